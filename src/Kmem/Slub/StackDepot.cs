using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;

namespace Kmem;

/// <summary>Call stacks by number, each kept once; for caches that remember their users.</summary>
/// <remarks>lib/stackdepot.c, Linux 6.18. A frame reads Namespace.Type.Method+0x&lt;offset&gt;.</remarks>
internal sealed class StackDepot
{
    /// <summary>Frames that are kept of a stack (TRACK_ADDRS_COUNT).</summary>
    private const int MaxFrames = 16;
    private const string OwnAssembly = "Kmem,";

    private readonly ConcurrentDictionary<string, int> _handles = new(StringComparer.Ordinal);
    private readonly Lock _lock = new();
    private readonly List<string> _stacks = [];
    private readonly List<string> _sites = []; // the source line of each stack's caller

    /// <summary>Keeps the stack of the caller, from the call into the allocators on outwards.</summary>
    /// <returns>Its number, 1 or more; equal stacks have equal numbers.</returns>
    public int Capture()
    {
        string stack = string.Join('\n', Frames());
        if (_handles.TryGetValue(stack, out int handle))
            return handle;

        lock (_lock)
        {
            if (_handles.TryGetValue(stack, out handle))
                return handle;

            _stacks.Add(stack);
            _sites.Add(Site());
            return _handles[stack] = _stacks.Count;
        }
    }

    /// <summary>The frames of a stack, innermost first; null if there is none of this number.</summary>
    public string[]? Find(int handle)
    {
        lock (_lock)
            return handle > 0 && handle <= _stacks.Count ? _stacks[handle - 1].Split('\n') : null;
    }

    /// <summary>
    /// Who called the allocators, as /proc/allocinfo shows it: <c>file:line func:Method</c>; without symbols
    /// <c>Namespace.Type func:Method</c>.
    /// </summary>
    public string SiteOf(int handle)
    {
        lock (_lock)
            return handle > 0 && handle <= _sites.Count ? _sites[handle - 1] : "unknown";
    }

    /// <summary>
    /// The frame that called the allocators: the second one, because a stack begins with the allocators' own entry.
    /// </summary>
    public static string CallerIn(string[] frames) => frames.Length > 1 ? frames[1] : frames[0];

    private static string Site()
    {
        foreach (StackFrame frame in new StackTrace(2, fNeedFileInfo: true).GetFrames())
        {
            DiagnosticMethodInfo? method = DiagnosticMethodInfo.Create(frame);
            if (method == null || method.DeclaringAssemblyName.StartsWith(OwnAssembly, StringComparison.Ordinal))
                continue;

            string place = frame.GetFileName() is { } file
                ? string.Create(CultureInfo.InvariantCulture, $"{Path.GetFileName(file)}:{frame.GetFileLineNumber()}")
                : method.DeclaringTypeName ?? "unknown";
            return $"{place} func:{method.Name}";
        }

        return "kmem func:boot";
    }

    /// <summary>The caller's frames, innermost first: the allocators' entry, who called it, and so on.</summary>
    private static List<string> Frames()
    {
        var frames = new List<string>();
        string? entry = null;
        foreach (StackFrame frame in new StackTrace(2, fNeedFileInfo: false).GetFrames())
        {
            DiagnosticMethodInfo? method = DiagnosticMethodInfo.Create(frame);
            string text = method == null ? "0x0" : Name(method, frame);
            bool own = method != null && method.DeclaringAssemblyName.StartsWith(OwnAssembly, StringComparison.Ordinal);
            if (own && frames.Count == 0)
            {
                entry = text;
                continue;
            }

            if (frames.Count == 0 && entry != null)
                frames.Add(entry);
            frames.Add(text);
            if (frames.Count >= MaxFrames)
                break;
        }

        if (frames.Count == 0)
            frames.Add(entry ?? "0x0"); // the machine's own thread
        return frames;
    }

    private static string Name(DiagnosticMethodInfo method, StackFrame frame)
    {
        int offset = frame.GetILOffset();
        if (offset == StackFrame.OFFSET_UNKNOWN)
            offset = frame.GetNativeOffset();
        return string.Create(CultureInfo.InvariantCulture, $"{method.DeclaringTypeName}.{method.Name}+0x{offset:x}");
    }
}
