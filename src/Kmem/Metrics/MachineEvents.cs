using System.Diagnostics.Tracing;

namespace Kmem;

/// <summary>A machine's rare events, handed to <see cref="KmemEventSource"/> if somebody listens.</summary>
internal sealed class MachineEvents(string machine) : IRareEvents, IFloorEvents
{
    public void Booted(ulong bytes, int cpus, string profile)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Informational))
        {
            KmemEventSource.Log.Write(
                (machine, (long)bytes, cpus, profile),
                static (log, e) => log.MachineBooted(e.machine, e.Item2, e.cpus, e.profile));
        }
    }

    public void Disposed(long outstanding)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Informational))
        {
            KmemEventSource.Log.Write(
                (machine, outstanding), static (log, e) => log.MachineDisposed(e.machine, e.outstanding));
        }
    }

    public void SlowPath(int order, Gfp gfp)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Informational))
        {
            KmemEventSource.Log.Write(
                (machine, order, gfp), static (log, e) => log.SlowPath(e.machine, e.order, e.gfp.ToKernelString()));
        }
    }

    public void Fallback(int node, ZoneType zone, long count)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Informational))
        {
            KmemEventSource.Log.Write(
                (machine, node, zone, count),
                static (log, e) => log.Fallback(e.machine, e.node, e.zone.Name(), e.count));
        }
    }

    public void Failure(int order, Gfp gfp)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Warning))
        {
            KmemEventSource.Log.Write(
                (machine, order, gfp), static (log, e) => log.PageFailure(e.machine, e.order, e.gfp.ToKernelString()));
        }
    }

    public void OutOfMemory(string report)
    {
        if (KmemEventSource.Log.Wants(EventLevel.Error))
            KmemEventSource.Log.Write((machine, report), static (log, e) => log.OutOfMemory(e.machine, e.report));
    }

    public void Leak(LeakReport report)
    {
        if (!KmemEventSource.Log.Wants(EventLevel.Warning))
            return;

        foreach (LeakSite site in report.Sites)
        {
            KmemEventSource.Log.Write((report, site), static (log, e) => log.Leak(
                e.report.Machine,
                e.report.Occasion,
                e.site.Source,
                e.site.File.Length == 0 ? "" : $"{e.site.File}:{e.site.Line}",
                e.site.Count,
                e.site.Bytes));
        }
    }
}
