using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <summary>
/// The columns before the event's own text:
/// <code>
///            demo-871     (    871) [002] d.h1.   412.000731: kmalloc: …
///   name, 16  pid         tgid       cpu  state   time        text
/// </code>
/// A name may contain blanks, dashes, brackets and colons. The tgid column is optional; the state column has 5
/// characters, 4 in older kernels, 7 in older real-time kernels, or is absent; the time has 6 decimals, 9 or none (a
/// clock that does not count time).
/// </summary>
/// <remarks>
/// The kernel pads the name to 16, so the dash is at index 16, and the widths of the other columns do not change within
/// a file: the place of the bracket found last is tried first. Lines that were trimmed or edited are searched.
/// </remarks>
internal struct FtraceFrame()
{
    private const int NameWidth = 16;
    private const int MaxCpu = 8191;        // NR_CPUS at most

    private int _bracket = 25;

    /// <summary>Takes the columns apart. Returns where the text begins, or −1 if this is no line of a trace.</summary>
    public int Parse(ReadOnlySpan<byte> line, ref TraceEvent e)
    {
        int bracket = _bracket;
        if (line.Length > bracket && line[bracket] == (byte)'[' && line[NameWidth] == (byte)'-')
        {
            int text = ParseAt(line, NameWidth, bracket, ref e);
            if (text >= 0)
                return text;
        }

        return Search(line, ref e);
    }

    /// <summary>
    /// Tries every bracket. A padded name is right at once; of the others the last that leaves a name of at most 16
    /// bytes wins (the name may look like columns itself, and so may the text, but that is further right).
    /// </summary>
    private int Search(ReadOnlySpan<byte> line, ref TraceEvent e)
    {
        int best = -1;
        int bestDash = 0;
        int indent = line.IndexOfAnyExcept((byte)' ');
        int i = 0;
        while (true)
        {
            int next = line[i..].IndexOf((byte)'[');
            if (next < 0)
                break;

            i += next;
            int dash = DashBefore(line, i);
            if (dash >= 0 && ParseAt(line, dash, i, ref e) is var text and >= 0)
            {
                if (dash == NameWidth)
                {
                    _bracket = i;
                    return text;
                }

                if (best >= 0 && dash - indent > NameWidth)
                    break;
                best = i;
                bestDash = dash;
            }

            i++;
        }

        return best < 0 ? -1 : ParseAt(line, bestDash, best, ref e);
    }

    /// <summary>
    /// Goes back from a bracket over blanks, tgid and pid to the dash before the pid; −1 if there is none.
    /// </summary>
    private static int DashBefore(ReadOnlySpan<byte> line, int bracket)
    {
        int i = SkipBlanksBack(line, bracket - 1);
        if (i >= 0 && line[i] == (byte)')')
            i = SkipBlanksBack(line, line[..i].LastIndexOf((byte)'(') - 1);

        int last = i;
        while (i >= 0 && char.IsAsciiDigit((char)line[i]))
            i--;
        return i >= 0 && i < last && line[i] == (byte)'-' ? i : -1;
    }

    private static int SkipBlanksBack(ReadOnlySpan<byte> line, int i)
    {
        while (i >= 0 && line[i] == (byte)' ')
            i--;
        return i;
    }

    /// <summary>Takes the columns apart, given where the pid's dash and the cpu's bracket are.</summary>
    private static int ParseAt(ReadOnlySpan<byte> line, int dash, int bracket, ref TraceEvent e)
    {
        int i = dash + 1;
        if (!Digits(line, ref i, int.MaxValue, out ulong pid))
            return -1;

        SkipBlanks(line, ref i);
        ulong tgid = 0;
        if (i < bracket && !Tgid(line, ref i, out tgid))
            return -1;
        if (i != bracket)
            return -1;

        i++;
        if (!Digits(line, ref i, MaxCpu, out ulong cpu) || !Is(line, i, (byte)']') || !Is(line, i + 1, (byte)' '))
            return -1;

        i += 2;
        ulong state = State(line, ref i);
        SkipBlanks(line, ref i);
        if (!Time(line, ref i, out ulong time))
            return -1;

        e.Pid = (int)pid;
        e.Tgid = (int)tgid;
        e.Cpu = (int)cpu;
        e.State = state;
        e.TimestampNs = time;
        return i;
    }

    /// <summary><c>(    871) </c> or <c>(-------) </c>.</summary>
    private static bool Tgid(ReadOnlySpan<byte> line, ref int i, out ulong tgid)
    {
        tgid = 0;
        if (!Is(line, i, (byte)'('))
            return false;

        i++;
        SkipBlanks(line, ref i);
        if (Is(line, i, (byte)'-'))
        {
            while (Is(line, i, (byte)'-'))
                i++;
        }
        else if (!Digits(line, ref i, int.MaxValue, out tgid))
        {
            return false;
        }

        if (!Is(line, i, (byte)')'))
            return false;
        i++;
        SkipBlanks(line, ref i);
        return true;
    }

    /// <summary>The state characters, brought to five; takes nothing if there are none.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong State(ReadOnlySpan<byte> line, ref int i)
    {
        ReadOnlySpan<byte> s = line[i..];
        int length = 0;
        while (length < 8 && length < s.Length && s[length] is not ((byte)' ' or (byte)':'))
            length++;
        if (length >= s.Length || s[length] != (byte)' ')
            return TraceEvent.NoState;      // the time follows at once, and it ends in a colon

        ulong state;
        switch (length)
        {
            case 5:
                state = s[0] | ((ulong)s[1] << 8) | ((ulong)s[2] << 16) | ((ulong)s[3] << 24) | ((ulong)s[4] << 32);
                break;
            case 4:
                state = s[0] | ((ulong)s[1] << 8) | ((ulong)s[2] << 16) | ((ulong)s[3] << 24) | ((ulong)'.' << 32);
                break;
            case 7:     // after 1 and 4 the real-time kernel has its lazy variants
                state = s[0] | ((ulong)s[1] << 8) | ((ulong)s[3] << 16) | ((ulong)s[4] << 24) | ((ulong)s[6] << 32);
                break;
            default:
                return TraceEvent.NoState;
        }

        i += length;
        return state;
    }

    /// <summary><c>734.699211: </c>: seconds with 1 to 9 decimals, in ns; without a point the number itself.</summary>
    private static bool Time(ReadOnlySpan<byte> line, ref int i, out ulong time)
    {
        const ulong MaxSeconds = (ulong.MaxValue / 1_000_000_000) - 1;

        if (!Digits(line, ref i, long.MaxValue, out time))
            return false;

        if (Is(line, i, (byte)'.'))
        {
            i++;
            int first = i;
            if (time > MaxSeconds || !Digits(line, ref i, 999_999_999, out ulong fraction))
                return false;

            int decimals = i - first;
            if (decimals > 9)
                return false;
            for (; decimals < 9; decimals++)
                fraction *= 10;
            time = (time * 1_000_000_000) + fraction;
        }

        if (!Is(line, i, (byte)':') || !Is(line, i + 1, (byte)' '))
            return false;
        i += 2;
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Digits(ReadOnlySpan<byte> line, ref int i, ulong max, out ulong value)
    {
        ulong sum = 0;
        int start = i;
        while ((uint)i < (uint)line.Length && (uint)line[i] - '0' <= 9 && i - start < 19)
        {
            sum = (sum * 10) + (line[i] - (uint)'0');
            i++;
        }

        value = sum;
        return i > start && sum <= max;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SkipBlanks(ReadOnlySpan<byte> line, ref int i)
    {
        while (Is(line, i, (byte)' '))
            i++;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Is(ReadOnlySpan<byte> line, int i, byte c) => (uint)i < (uint)line.Length && line[i] == c;
}
