using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// The columns before the event: names that look like columns, and the variants of kernels 4.x to 6.18.
/// </summary>
public sealed class FtraceFrameTests
{
    private const string Text = "kfree: call_site=f+0x1/0x2 ptr=0000000000000007\n";

    [Theory]
    [InlineData("            demo-871     [002] d.h3.   412.000731: ", 871, 0, 2, 412_000_731_000UL)]     // 6.18
    [InlineData("            demo-871   [002] d.h3   412.000731: ", 871, 0, 2, 412_000_731_000UL)]        // 4.x
    [InlineData("          <idle>-0       [001] ..s1. 12345.000977: ", 0, 0, 1, 12345_000_977_000UL)]
    [InlineData("           <...>-4194303 [1023] .....     0.000001: ", 4194303, 0, 1023, 1_000UL)]
    [InlineData("            demo-871     (    871) [002] .....   412.000731: ", 871, 871, 2, 412_000_731_000UL)]
    [InlineData("            demo-871   (  870) [002] ....   412.000731: ", 871, 870, 2, 412_000_731_000UL)]
    [InlineData("            demo-871     (-------) [002] .....   412.000731: ", 871, 0, 2, 412_000_731_000UL)]
    [InlineData("            demo-871     [002]   412.000731: ", 871, 0, 2, 412_000_731_000UL)]            // noirq-info
    [InlineData("            demo-871     [002] 123456.000731: ", 871, 0, 2, 123456_000_731_000UL)]
    [InlineData("            demo-871     (    871) [002] 412.000731: ", 871, 871, 2, 412_000_731_000UL)]
    [InlineData("            demo-871     [002] d..h3.1   412.000731: ", 871, 0, 2, 412_000_731_000UL)]    // real-time
    [InlineData("            demo-871     [002] .....   412.000731123: ", 871, 0, 2, 412_000_731_123UL)]
    [InlineData("            demo-871     [002] .....   412.5: ", 871, 0, 2, 412_500_000_000UL)]
    [InlineData("            demo-871     [002] .....     1234567: ", 871, 0, 2, 1234567UL)]               // a counter
    [InlineData("demo-871 [002] ..... 412.000731: ", 871, 0, 2, 412_000_731_000UL)]                        // trimmed
    [InlineData("demo-871 (871) [2] 412.000731: ", 871, 871, 2, 412_000_731_000UL)]
    public void Columns(string frame, int pid, int tgid, int cpu, ulong ns)
    {
        TraceEvent e = TraceText.One(frame + Text, out _);
        Assert.Equal((TraceEventKind.Kfree, 7UL), (e.Kind, e.Ptr));
        Assert.Equal((pid, tgid, cpu, ns), (e.Pid, e.Tgid, e.Cpu, e.TimestampNs));
    }

    [Theory]
    [InlineData("kworker/u8:5")]
    [InlineData("a b c")]
    [InlineData("x-12 [001]")]
    [InlineData("x-1 [1] 1.0: y")]
    [InlineData("a-1 [2] 3.4: b")]
    [InlineData("my-app-7 (3)")]
    [InlineData("[brackets]")]
    [InlineData("co:lo: n")]
    [InlineData("# comment")]
    [InlineData("CPU:2 [LOST")]
    [InlineData("()")]
    [InlineData("-")]
    [InlineData("ünïcödé")]
    public void NamesMayLookLikeAnything(string name)
    {
        int bytes = System.Text.Encoding.UTF8.GetByteCount(name);
        string padded = new string(' ', 16 - bytes) + name;
        foreach (string columns in (string[])
            ["-871     [002] d.h3. ", "-871   [002] d.h3 ", "-871     (    871) [002] ..... ", "-871     [002] "])
        {
            TraceEvent e = TraceText.One(padded + columns + "  412.000731: " + Text, out _);
            Assert.Equal((871, 2, 412_000_731_000UL, 7UL), (e.Pid, e.Cpu, e.TimestampNs, e.Ptr));
        }

        if (name[0] != '#')
        {
            TraceEvent e = TraceText.One(name + "-871 [002] d.h3. 412.000731: " + Text, out _);
            Assert.Equal((871, 2, 7UL), (e.Pid, e.Cpu, e.Ptr));
        }
    }

    [Theory]
    [InlineData("            demo-871     [002] .....   412.000731: ")]
    [InlineData("            demo-871   [002] ....   412.000731: ")]
    [InlineData("demo-871 [002] ..... 412.000731: ")]
    public void ATraceLineInsideAMarkerStaysText(string frame)
    {
        const string Inner =
            "            evil-666     [007] .....   999.000000: kfree: call_site=f ptr=0000000000000001";
        TraceEvent e = TraceText.One(frame + "tracing_mark_write: " + Inner + "\n", out _);
        Assert.Equal((TraceEventKind.Marker, 871, 2, Inner), (e.Kind, e.Pid, e.Cpu, e.Text));
    }

    [Fact]
    public void ColumnsMayChangeFromLineToLine()
    {
        string[] frames =
        [
            "            demo-1       [002] d.h3.   412.000731: ", "            demo-2     [002] d.h3   412.000731: ",
            "            demo-3       (    871) [002] .....   412.000731: ", "demo-4 [002] ..... 412.000731: ",
            "            demo-5       [002] d.h3.   412.000731: ",
        ];
        using FtraceReader r = TraceText.Open(string.Concat(frames.Select(f => f + Text)));
        TraceEvent e = default;
        for (int pid = 1; pid <= 5; pid++)
        {
            Assert.True(r.TryRead(ref e));
            Assert.Equal((pid, pid, 7UL), (e.Pid, (int)e.Line, e.Ptr));
        }

        Assert.False(r.TryRead(ref e));
    }

    [Theory]
    [InlineData(".....", false, false, false, "task", 0, 0)]
    [InlineData("d....", true, false, false, "task", 0, 0)]
    [InlineData("b....", false, true, false, "task", 0, 0)]
    [InlineData("D....", true, true, false, "task", 0, 0)]
    [InlineData(".Ns1.", false, false, true, "soft", 1, 0)]
    [InlineData("d.h3.", true, false, false, "hard", 3, 0)]
    [InlineData("dnHf2", true, false, true, "hard", 15, 2)]
    [InlineData("..za.", false, false, false, "nmi", 10, 0)]
    [InlineData("..Z.1", false, false, false, "nmi", 0, 1)]
    [InlineData("d.s2", true, false, false, "soft", 2, 0)]
    [InlineData("dnlh213", true, false, true, "hard", 2, 3)]     // real-time: after 1 and 4 the lazy variants
    public void StateCharacters(
        string state, bool irqs, bool bh, bool resched, string context, int preempt, int migrate)
    {
        TraceEvent e = TraceText.One($"            demo-871     [002] {state}   412.000731: " + Text, out _);
        Assert.Equal((irqs, bh, resched), (e.IrqsOff, e.BhOff, e.NeedResched));
        Assert.Equal((context == "hard", context == "soft", context == "nmi"), (e.IsHardIrq, e.IsSoftIrq, e.IsNmi));
        Assert.Equal((preempt, migrate), (e.PreemptDepth, e.MigrateDisableDepth));
    }

    [Theory]
    [InlineData("            demo-     [002] .....   412.000731: ")]
    [InlineData("            demo-871     [0x2] .....   412.000731: ")]
    [InlineData("            demo-871     [99999] .....   412.000731: ")]
    [InlineData("            demo-99999999999 [002] .....   412.000731: ")]
    [InlineData("            demo-871     (12 [002] .....   412.000731: ")]
    [InlineData("            demo-871     [002] ...   412.000731: ")]
    [InlineData("            demo-871     [002] .....   412.0007311234: ")]
    [InlineData("            demo-871     [002] .....   412.: ")]
    [InlineData("            demo-871     [002] .....   99999999999.000001: ")]
    [InlineData("            demo-871     [002] .....   412.000731")]
    [InlineData("            demo-871     [002]")]
    [InlineData("            demo-871     [")]
    [InlineData("demo")]
    public void BadColumnsAreDamage(string frame)
    {
        using FtraceReader r = TraceText.Open(TraceText.Header + frame + Text);
        TraceEvent e = default;
        Assert.False(r.TryRead(ref e));
        Assert.Equal(1, r.DamagedCount);
    }
}
