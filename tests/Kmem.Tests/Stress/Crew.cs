using System.Diagnostics;
using System.Globalization;

namespace Kmem.Tests;

/// <summary>
/// Threads that work on a machine for a while. The first exception ends the work of all and is what <see cref="Run"/>
/// throws. <c>KMEM_STRESS_SECONDS</c> sets how long.
/// </summary>
internal sealed class Crew
{
    private readonly List<Thread> _threads = [];
    private readonly double _seconds;
    private readonly long _end;
    private Exception? _error;

    public Crew(double seconds = 1)
    {
        if (double.TryParse(
                Environment.GetEnvironmentVariable("KMEM_STRESS_SECONDS"), CultureInfo.InvariantCulture, out double wanted))
        {
            seconds = wanted;
        }

        _seconds = seconds;
        _end = Stopwatch.GetTimestamp() + (long)(seconds * Stopwatch.Frequency);
    }

    public bool Working => Volatile.Read(ref _error) == null && Stopwatch.GetTimestamp() < _end;

    public void Add(int count, Action<int> work)
    {
        for (int i = 0; i < count; i++)
        {
            int index = i;
            _threads.Add(new Thread(() => Guard(() => work(index))) { IsBackground = true, Name = $"worker {index}" });
        }
    }

    /// <summary>Starts all, waits for all, and throws what went wrong.</summary>
    public void Run()
    {
        foreach (Thread thread in _threads)
            thread.Start();
        foreach (Thread thread in _threads)
        {
            bool ended = thread.Join(TimeSpan.FromSeconds(_seconds + 60));
            Assert.True(ended, $"{thread.Name} hangs; first error: {Volatile.Read(ref _error)}");
        }

        if (_error != null)
            throw new InvalidOperationException(_error.Message, _error);
    }

    public void Guard(Action work)
    {
        try
        {
            work();
        }
        catch (Exception error)
        {
            Interlocked.CompareExchange(ref _error, error, null);
        }
    }
}
