namespace Kmem.Tracing;

/// <summary>
/// An operation that can be stopped in the middle and carried on later, while others run: a thread of its own that
/// takes turns with the thread that drives it. Exactly one of the two runs at any time.
/// </summary>
internal sealed class Fiber : IDisposable
{
    [ThreadStatic]
    private static Fiber? t_current;

    private readonly SemaphoreSlim _toFiber = new(0);
    private readonly SemaphoreSlim _toDriver = new(0);
    private readonly Thread _thread;
    private Exception? _error;
    private volatile bool _abandoned;

    /// <summary>Prepares an operation; nothing runs before <see cref="Resume"/>.</summary>
    public Fiber(Action operation)
    {
        _thread = new Thread(() => Run(operation)) { IsBackground = true, Name = "fiber" };
        _thread.Start();
    }

    /// <summary>The operation that this thread is, or null.</summary>
    public static Fiber? Current => t_current;

    public bool IsDone { get; private set; }

    /// <summary>The CPU that the operation runs on; it may change while the operation waits.</summary>
    public int Cpu { get; set; }

    /// <summary>Called in the operation's thread with the CPU whenever it begins or goes on.</summary>
    public Action<int>? Entered { get; init; }

    /// <summary>Called in the operation's thread when it broke off.</summary>
    public Action? Failed { get; init; }

    /// <summary>Runs the operation until it pauses or ends.</summary>
    public void Resume()
    {
        _toFiber.Release();
        _toDriver.Wait();
        if (_error != null && !_abandoned)
            throw new InvalidOperationException(_error.Message, _error);
    }

    /// <summary>Ends an operation that waits and that nobody will resume: it is left where it stands.</summary>
    public void Abandon()
    {
        _abandoned = true;
        Resume();
        Dispose();
    }

    /// <summary>Called by the operation: gives the turn back until the next <see cref="Resume"/>.</summary>
    public void Pause()
    {
        if (_abandoned)
            throw new OperationCanceledException("an operation that never ended in the recording");

        _toDriver.Release();
        _toFiber.Wait();
        if (_abandoned)
            throw new OperationCanceledException("an operation that never ended in the recording");
        Entered?.Invoke(Cpu);
    }

    public void Dispose()
    {
        if (IsDone)
            _thread.Join();
        _toFiber.Dispose();
        _toDriver.Dispose();
    }

    private void Run(Action operation)
    {
        t_current = this;
        _toFiber.Wait();
        try
        {
            Entered?.Invoke(Cpu);
            operation();
        }
        catch (Exception error) when (error is not OutOfMemoryException)
        {
            _error = error;
            Failed?.Invoke();
        }

        IsDone = true;
        _toDriver.Release();
    }
}
