namespace Kmem.Tracing;

/// <content>Event by event, for a time line.</content>
internal sealed partial class ReplayEngine
{
    /// <summary>Carries out one event on the calling thread, which the caller has pinned to a CPU of the
    /// machine.</summary>
    internal EventResult StepOne(in TraceEvent e)
    {
        long failed = _failedAllocs + _tracedFailures + _freesOfFailed;
        long unknown = _unknownFrees;
        long skipped = _skipped + _nullFrees;
        long slabs = _slabPages + _slabPageFrees;
        try
        {
            Step(e);
        }
        catch (KernelBugException bug)
        {
            _misuseCount++;
            if (_misuse.Count < MaxTexts)
                _misuse.Add(bug.Message);
            return EventResult.Refused;
        }

        return _failedAllocs + _tracedFailures + _freesOfFailed != failed ? EventResult.Failed
            : _unknownFrees != unknown ? EventResult.Unknown
            : _skipped + _nullFrees != skipped ? EventResult.Skipped
            : _slabPages + _slabPageFrees != slabs && StoredEvent.IsOfPages(e.Kind) ? EventResult.Internal
            : EventResult.Ok;
    }

    /// <summary>The CPU that an event runs on here.</summary>
    internal int CpuOf(in TraceEvent e) => (int)((uint)e.Cpu % (uint)_lastPage.Length);
}
