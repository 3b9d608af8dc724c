using System.Collections.Concurrent;
using System.Diagnostics;

namespace Kmem;

/// <summary>Where something was handed out.</summary>
/// <param name="Source">What was handed out.</param>
/// <param name="File">The caller's source file as the compiler saw it; or, without one, a description.</param>
/// <param name="Line">The caller's line; 0 if unknown.</param>
internal readonly record struct CallSite(BufferSource Source, string File, int Line)
{
    public override string ToString() => Line == 0 ? File : $"{File}:{Line}";
}

/// <summary>
/// The call site of everything outstanding, by address. Exists only where the machine was asked to keep call sites
/// (<see cref="MachineOptions.TrackCallSites"/> turns it on); it costs a dictionary entry for each thing handed out.
/// </summary>
internal sealed class CallSites
{
    private readonly ConcurrentDictionary<nint, (CallSite Site, long Bytes)> _live = new();

    public void Add(nint address, CallSite site, long bytes)
    {
        if (site.File.Length == 0)
            site = FromStack(site);
        _live[address] = (site, bytes);
    }

    public void Remove(nint address) => _live.TryRemove(address, out _);

    public CallSite? Find(nint address) => _live.TryGetValue(address, out var entry) ? entry.Site : null;

    /// <summary>What is outstanding, summed by call site, most bytes first.</summary>
    public IReadOnlyList<LeakSite> Summary(BufferSource? only) => _live.Values
        .Where(entry => only == null || entry.Site.Source == only)
        .GroupBy(entry => entry.Site)
        .Select(site => new LeakSite(
            site.Key.Source.Name, site.Key.File, site.Key.Line, site.LongCount(), site.Sum(entry => entry.Bytes)))
        .OrderByDescending(site => site.Bytes)
        .ThenBy(site => site.File, StringComparer.Ordinal)
        .ThenBy(site => site.Line)
        .ToArray();

    /// <summary>
    /// Callers that come through a base class (MemoryPool&lt;byte&gt;.Rent) pass no source line: their method is found
    /// on the stack, with the line if there are symbols.
    /// </summary>
    private static CallSite FromStack(CallSite site)
    {
        foreach (StackFrame frame in new StackTrace(2, fNeedFileInfo: true).GetFrames())
        {
            DiagnosticMethodInfo? method = DiagnosticMethodInfo.Create(frame);
            if (method == null || method.DeclaringAssemblyName.StartsWith("Kmem,", StringComparison.Ordinal))
                continue;

            return frame.GetFileName() is { } file
                ? site with { File = file, Line = frame.GetFileLineNumber() }
                : site with { File = $"{method.DeclaringTypeName}.{method.Name}" };
        }

        return site with { File = "unknown caller" };
    }
}
