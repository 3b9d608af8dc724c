using System.Text;

namespace Kmem;

/// <summary>
/// The machine's log, as <c>dmesg</c> shows it: reports of misuse and failed allocations, newest last. Bounded: when
/// full, the oldest lines are forgotten. Safe to use from any thread.
/// </summary>
public sealed class KernelLog
{
    private const int Capacity = 4096;
    private readonly Queue<string> _lines = new();
    private readonly Lock _lock = new();

    /// <summary>Number of lines ever written, forgotten ones included.</summary>
    public long TotalLines { get; private set; }

    /// <summary>A copy of the lines that are kept, oldest first.</summary>
    public IReadOnlyList<string> Lines
    {
        get
        {
            lock (_lock)
                return _lines.ToArray();
        }
    }

    /// <summary>Forgets all lines.</summary>
    public void Clear()
    {
        lock (_lock)
            _lines.Clear();
    }

    /// <summary>The lines that are kept, oldest first, one per line.</summary>
    /// <returns>The text, empty if nothing was logged.</returns>
    public override string ToString()
    {
        var text = new StringBuilder();
        lock (_lock)
        {
            foreach (string line in _lines)
                text.Append(line).Append('\n');
        }

        return text.ToString();
    }

    /// <summary>Appends a report of one or more lines; they stay together.</summary>
    internal void Write(string report)
    {
        lock (_lock)
        {
            foreach (string line in report.TrimEnd('\n').Split('\n'))
            {
                if (_lines.Count == Capacity)
                    _lines.Dequeue();
                _lines.Enqueue(line);
                TotalLines++;
            }
        }
    }
}
