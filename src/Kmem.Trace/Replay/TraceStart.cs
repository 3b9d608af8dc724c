namespace Kmem.Tracing;

/// <summary>
/// The events that must be read before the machine is booted, because it needs to know how many CPUs there are. One is
/// enough if the trace has a header.
/// </summary>
/// <param name="Events">Events read, to be replayed first.</param>
/// <param name="Cpus">CPUs of the recorded machine, at most as many as a machine can have.</param>
internal readonly record struct TraceStart(IReadOnlyList<TraceEvent> Events, int Cpus)
{
    private const int Most = 4096;

    public static TraceStart Read(FtraceReader reader)
    {
        var events = new List<TraceEvent>();
        TraceEvent e = default;
        int highest = 0;
        while (events.Count < Most && reader.TryRead(ref e))
        {
            events.Add(e);
            highest = Math.Max(highest, e.Cpu);
            if (reader.HeaderCpus > 0)
                break;
        }

        int cpus = reader.HeaderCpus > 0 ? reader.HeaderCpus : highest + 1;
        return new TraceStart(events, Math.Min(cpus, CpuSet.MaxCpus));
    }
}
