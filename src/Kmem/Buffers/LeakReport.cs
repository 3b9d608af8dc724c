using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>Things of the .NET floor that were handed out at one place and not given back.</summary>
/// <param name="Source">
/// What they are: <c>KmemPool 'kestrel'</c>, <c>KmemCache&lt;Node&gt; 'node'</c>, <c>Machine.Rent</c>, …
/// </param>
/// <param name="File">The source file that asked for them; empty when call sites are not kept.</param>
/// <param name="Line">The line; 0 when it is not known.</param>
/// <param name="Count">How many.</param>
/// <param name="Bytes">Their bytes, as asked for.</param>
public sealed record LeakSite(string Source, string File, int Line, long Count, long Bytes)
{
    /// <summary>One line: count, source, bytes, place.</summary>
    /// <returns>The line.</returns>
    public override string ToString()
    {
        string place = File.Length == 0 ? "" : Line == 0 ? $"  at {File}" : $"  at {File}:{Line}";
        return string.Create(CultureInfo.InvariantCulture, $"{Count} x {Source}, {Bytes} bytes{place}");
    }
}

/// <summary>What the .NET floor of a machine handed out and did not get back, by place.</summary>
public sealed class LeakReport
{
    internal LeakReport(string machine, string occasion, bool hasCallSites, IReadOnlyList<LeakSite> sites)
    {
        Machine = machine;
        Occasion = occasion;
        HasCallSites = hasCallSites;
        Sites = sites;
    }

    /// <summary>The machine's name.</summary>
    public string Machine { get; }

    /// <summary>When the report was made: <c>now</c>, <c>at dispose</c>, <c>lost owner</c>, …</summary>
    public string Occasion { get; }

    /// <summary>Whether places are known: <see cref="MachineOptions.TrackCallSites"/>.</summary>
    public bool HasCallSites { get; }

    /// <summary>The places, most bytes first. Without call sites one entry for each source.</summary>
    public IReadOnlyList<LeakSite> Sites { get; }

    /// <summary>Things outstanding.</summary>
    public long Count => Sites.Sum(site => site.Count);

    /// <summary>Their bytes.</summary>
    public long Bytes => Sites.Sum(site => site.Bytes);

    /// <summary>Nothing is outstanding.</summary>
    public bool IsEmpty => Sites.Count == 0;

    /// <summary>A headline, and a line for each place.</summary>
    /// <returns>The text.</returns>
    public override string ToString()
    {
        if (IsEmpty)
            return $"Kmem machine '{Machine}', {Occasion}: nothing is outstanding";

        var text = new StringBuilder();
        text.Append(
            CultureInfo.InvariantCulture,
            $"Kmem machine '{Machine}', {Occasion}: {Count} not given back, {Bytes} bytes");
        foreach (LeakSite site in Sites)
            text.Append("\n  ").Append(site);
        if (!HasCallSites)
            text.Append("\n  (MachineOptions.TrackCallSites tells the source lines)");
        return text.ToString();
    }
}
