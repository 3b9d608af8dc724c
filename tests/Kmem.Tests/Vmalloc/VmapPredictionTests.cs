using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// The addresses that a real kernel chose, predicted from one vmallocinfo text and the trace after it.
/// </summary>
public sealed class VmapPredictionTests
{
    [Fact]
    public void PageAlignedRequestsOfOneCpuAreAllExact()
    {
        VmapPredictionResult result = Run("r3");
        Assert.Equal((3716, 3716), (result.Allocs, result.Exact));
        Assert.Equal((3716, 3716), (result.PageAligned, result.PageAlignedExact));
        Assert.Empty(result.Mismatches);
        Assert.Equal((0, 1, 3716), (result.UnknownFrees, result.ShapesTried, result.ExactWithFirstShape));
        Assert.Equal(3716, result.ExactInAdvance);
    }

    [Fact]
    public void TwoBusyCpusWithStacks()
    {
        VmapPredictionResult result = Run("r4");
        Assert.Equal((7517, 5477, 0), (result.Allocs, result.PageAligned, result.UnknownFrees));
        Assert.True(result.PageAlignedExact >= 5476, $"{result.PageAlignedExact} of 5477 page-aligned ones");
        Assert.True(result.Exact >= 7510, $"{result.Exact} of 7517");
        Assert.InRange(result.ExactInAdvance, 7490, result.Exact);
        Assert.True(result.PageAlignedExactInAdvance >= 5470, $"{result.PageAlignedExactInAdvance} in advance");
        Assert.True(result.ExactWithFirstShape >= 7450, $"{result.ExactWithFirstShape} with the first shape");
        Assert.Equal(result.Allocs - result.Exact, result.Mismatches.Count);
    }

    /// <summary>A wrong address in the trace must be noticed, and must not spoil the predictions after it.</summary>
    [Fact]
    public void AnAddressThatTheKernelWouldNotChooseIsReported()
    {
        string[] lines = TestData.ReadGzip("vmap/r3/trace.txt.gz").Split('\n');
        int at = Array.FindIndex(lines, 1000, line => line.Contains("alloc_vmap_area", StringComparison.Ordinal));
        ulong right = ulong.Parse(lines[at].Split("va_start: ")[1].Split(' ')[0], null);
        ulong wrong = right + (1UL << 40);
        string freed = $"va_start=0x{right:x} ";
        int free = Array.FindIndex(lines, at, line => line.Contains(freed, StringComparison.Ordinal));
        lines[at] = lines[at].Replace($"va_start: {right} ", $"va_start: {wrong} ", StringComparison.Ordinal);
        lines[free] = lines[free].Replace($"0x{right:x}", $"0x{wrong:x}", StringComparison.Ordinal);

        VmapPredictionResult result = Run(string.Join('\n', lines), TestData.ReadGzip("vmap/r3/vmallocinfo.txt.gz"));
        Assert.Equal(3716, result.Allocs);
        VmapMismatch first = result.Mismatches[0];
        Assert.Equal((at + 1, wrong, right), (first.Line, first.Kernel, first.Predicted));
        Assert.True(result.Exact > 3500, $"{result.Exact} of 3716 after one wrong address");
    }

    [Fact]
    public void HiddenAddressesAndMissingMarkersAreRefused()
    {
        const string Hidden = "0x0000000012345000-0x0000000012347000    8192 f+0x1/0x2 vmalloc\n";
        const string Real = "0xffffc90000005000-0xffffc90000007000    8192 f+0x1/0x2 vmalloc\n";
        const string Markers =
            "  sh-1 [000] ..... 1.000000: tracing_mark_write: SNAP_BEGIN 0\n"
            + "  sh-1 [000] ..... 1.000001: tracing_mark_write: SNAP_END 0\n";
        Assert.Throws<InvalidDataException>(() => Run(Markers, Hidden));
        Assert.Throws<InvalidDataException>(() => Run(Markers, ""));
        Assert.Throws<ProcFormatException>(() => Run(Markers, "no areas\n"));
        Assert.Throws<TraceFormatException>(() => Run(Markers.Split('\n')[0], Real));
        Assert.Equal(0, Run(Markers, Real).Allocs);
    }

    private static VmapPredictionResult Run(string recording) => Run(
        TestData.ReadGzip($"vmap/{recording}/trace.txt.gz"), TestData.ReadGzip($"vmap/{recording}/vmallocinfo.txt.gz"));

    private static VmapPredictionResult Run(string trace, string areas)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(Encoding.UTF8.GetBytes(trace)), "the trace");
        return VmapPrediction.Run(new StringReader(areas), reader);
    }
}
