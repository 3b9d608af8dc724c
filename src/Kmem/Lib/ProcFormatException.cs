namespace Kmem;

/// <summary>
/// A kernel text (a file of /proc, /sys or debugfs, or boot log lines) breaks a rule of its format. It is the only
/// exception that the readers of such texts throw for what a text contains.
/// </summary>
/// <remarks>The texts come from other machines, other kernels and other people's editors, so the message names the
/// file, the line, the rule and the beginning of the line: enough to find and judge the place by hand.</remarks>
public sealed class ProcFormatException : FormatException
{
    private const int LongestLine = 80;

    /// <summary>Reports that one line breaks a rule.</summary>
    /// <param name="fileKind">What the text is, for instance <c>/proc/buddyinfo</c>.</param>
    /// <param name="lineNumber">The line, counted from 1; one more than the last line if the text ends early.</param>
    /// <param name="line">The line's text; kept shortened to 80 characters and without control characters.</param>
    /// <param name="rule">The rule broken, as a phrase.</param>
    public ProcFormatException(string fileKind, int lineNumber, string line, string rule)
        : base($"{fileKind}, line {lineNumber}: {rule}: \"{Shorten(line)}\"")
    {
        FileKind = fileKind;
        LineNumber = lineNumber;
        Line = Shorten(line);
        Rule = rule;
    }

    /// <summary>What the text is, for instance <c>/proc/buddyinfo</c>.</summary>
    public string FileKind { get; }

    /// <summary>The line, counted from 1; one more than the last line if the text ends early.</summary>
    public int LineNumber { get; }

    /// <summary>The line's text, at most 80 characters and an ellipsis; control characters show as "?".</summary>
    public string Line { get; }

    /// <summary>The rule broken, as a phrase.</summary>
    public string Rule { get; }

    private static string Shorten(string line)
    {
        string head = line.Length <= LongestLine ? line : string.Concat(line.AsSpan(0, LongestLine), "…");
        return string.Create(head.Length, head, static (into, from) =>
        {
            for (int i = 0; i < into.Length; i++) into[i] = char.IsControl(from[i]) ? '?' : from[i];
        });
    }
}
