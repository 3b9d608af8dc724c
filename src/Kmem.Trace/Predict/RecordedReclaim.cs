namespace Kmem.Tracing;

/// <summary>
/// What a recorded kernel did for want of memory is in the recording: frees and drains are events of their own.
/// </summary>
internal sealed class RecordedReclaim : ReclaimHooks
{
    public override bool DrainsOnFailure => false;

    public override bool MayWait => false;
}
