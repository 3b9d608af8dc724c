using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>
/// Requests for objects that fail on purpose (should_failslab, mm/failslab.c, Linux 6.18). As long as nobody wants that,
/// nobody is asked: whoever is sends all caches the way on which debugged ones are, and that leads here.
/// </content>
public sealed partial class KmemCache
{
    /// <summary>From here on every request of this cache asks the machine's fault injection.</summary>
    internal void AskFaults() => _route = -1;

    private bool IsToFail(Gfp gfp) =>
        _slabs.Pages.Faults is { } faults
        && faults.FailsObject(gfp, _objectSize, (Flags & SlabFlags.FailSlab) != SlabFlags.None);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocIfAllowed(CpuTask* task, Gfp gfp, int node, nuint requested, bool traceAsKmalloc)
    {
        if (IsToFail(gfp))
            return null;

        void* obj = _sheafCapacity > 0 ? AllocFromSheaf(task, gfp, node) : null;
        if (obj == null)
            obj = AllocFromSlabs(task, gfp, node);
        if (obj == null)
            return null;

        MarkLive(obj);
        if ((gfp & Gfp.Zero) != 0)
            new Span<byte>(obj, _objectSize).Clear();
        if (_slabs.Trace != null)
            TraceAlloc(obj, requested, gfp, node, traceAsKmalloc);
        return obj;
    }

    /// <summary>Frees an object of an ordinary cache, which is marked free already.</summary>
    private unsafe void FreeAsEver(Page* slab, void* obj)
    {
        CpuTask* task = _cpus.Current;
        if (_sheafCapacity == 0 || !FreeToSheaf(task, slab, obj))
            FreeChain(slab, obj, obj, 1);
    }
}
