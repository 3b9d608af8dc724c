namespace Kmem;

/// <content>Requests for objects that fail on purpose (should_failslab, mm/failslab.c, Linux 6.18).</content>
public sealed partial class KmemCache
{
    /// <summary>Asked on the ways with checks only: whoever wants failures sends all requests there.</summary>
    private bool IsToFail(Gfp gfp) =>
        _slabs.Pages.Faults is { } faults
        && faults.FailsObject(gfp, _objectSize, (Flags & SlabFlags.FailSlab) != SlabFlags.None);
}
