namespace Kmem;

/// <summary>
/// Waiting for something that takes a few dozen instructions: first busy, then giving the processor away, so that a
/// holder that was descheduled gets to run. Never sleeps, and so cannot be ended by <see cref="Thread.Interrupt"/>.
/// </summary>
internal struct Backoff
{
    private const int BusyRounds = 7;
    private static readonly bool s_alone = Environment.ProcessorCount == 1;
    private int _rounds;

    public void Once()
    {
#if DEBUG
        if (SimPoint.Of is { } simulation)
        {
            simulation.Wait();
            return;
        }
#endif
        if (_rounds < BusyRounds && !s_alone)
            Thread.SpinWait(1 << _rounds++);
        else
            Thread.Yield();
    }
}
