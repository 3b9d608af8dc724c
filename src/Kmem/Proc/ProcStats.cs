using System.Collections;

namespace Kmem;

/// <summary>One named counter, for instance <c>nr_free_pages 98213</c>.</summary>
/// <param name="Name">The counter's name, without blanks.</param>
/// <param name="Value">Its value; most count pages, see the kernel's documentation of the name. A counter that a
/// racing kernel let fall below zero shows as a number near 2^64.</param>
public readonly record struct ProcStat(string Name, ulong Value);

/// <summary>Named counters in the order of a kernel text. The order and the names depend on the kernel's version and
/// configuration, so they are data: names unknown to this library are kept where they stand.</summary>
/// <remarks>Not thread safe. Can be filled by <c>new ProcStats { { "nr_free_pages", 1 } }</c>.</remarks>
public sealed class ProcStats : IReadOnlyList<ProcStat>
{
    private readonly List<ProcStat> _stats = [];

    /// <summary>How many counters there are.</summary>
    public int Count => _stats.Count;

    /// <summary>The counter at this place.</summary>
    public ProcStat this[int index] => _stats[index];

    /// <summary>The value of the first counter of this name; null if there is none.</summary>
    public ulong? Find(string name)
    {
        foreach (ProcStat stat in _stats)
        {
            if (stat.Name == name) return stat.Value;
        }
        return null;
    }

    /// <summary>Appends a counter.</summary>
    public void Add(string name, ulong value) => _stats.Add(new ProcStat(name, value));

    /// <summary>Appends a counter.</summary>
    public void Add(ProcStat stat) => _stats.Add(stat);

    /// <summary>Enumerates the counters in order.</summary>
    public IEnumerator<ProcStat> GetEnumerator() => _stats.GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
