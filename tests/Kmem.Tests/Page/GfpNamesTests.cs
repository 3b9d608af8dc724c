using System.Text;
using CsCheck;

namespace Kmem.Tests;

public sealed class GfpNamesTests
{
    [Theory]
    [InlineData(0x0, "none")]
    [InlineData(0x1, "GFP_DMA")]
    [InlineData(0x4, "GFP_DMA32")]
    [InlineData(0xcc0, "GFP_KERNEL")]
    [InlineData(0xdc0, "GFP_KERNEL|__GFP_ZERO")]
    [InlineData(0x920, "GFP_ATOMIC|__GFP_ZERO")]
    [InlineData(0x100dca, "GFP_HIGHUSER_MOVABLE|__GFP_ZERO")]
    [InlineData(0x52cc0, "GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP")]
    [InlineData(0x1c24ca, "GFP_TRANSHUGE")]
    [InlineData(0x1c20ca, "GFP_TRANSHUGE_LIGHT")]
    [InlineData(0xc00, "GFP_NOIO")]
    [InlineData(0x400, "__GFP_DIRECT_RECLAIM")]
    [InlineData(0x800, "__GFP_KSWAPD_RECLAIM")]
    [InlineData(0x840, "__GFP_IO|__GFP_KSWAPD_RECLAIM")]
    [InlineData(0x2800, "GFP_NOWAIT")]
    [InlineData(0x1000000, "__GFP_NO_OBJ_EXT")]
    [InlineData(0x200, "0x200")]
    [InlineData(0x80000ec0, "GFP_KERNEL|0x80000200")]
    public void FlagsAreWrittenAndReadInTheKernelsWords(uint value, string text)
    {
        Assert.Equal(text, ((Gfp)value).ToKernelString());
        AssertParses(text, (Gfp)value);
    }

    [Fact]
    public void EveryTextOfTheRecordedTracesComesBack()
    {
        string[] texts = File.ReadAllLines(TestData.PathOf("gfp-flags.txt"));
        Assert.Equal(38, texts.Length);
        foreach (string text in texts)
        {
            Assert.True(GfpNames.TryParse(text, out Gfp gfp), text);
            Assert.Equal(text, gfp.ToKernelString());
        }
    }

    [Fact]
    public void EveryValueComesBack() =>
        Gen.UInt.Sample(value => AssertParses(((Gfp)value).ToKernelString(), (Gfp)value));

    [Theory]
    [InlineData("__GFP_DMA", Gfp.Dma)]
    [InlineData("__GFP_DMA32|__GFP_DMA", Gfp.Dma | Gfp.Dma32)]
    [InlineData("__GFP_RECLAIM", Gfp.Reclaim)]
    [InlineData("0xCC0", Gfp.Kernel)]
    [InlineData("GFP_ATOMIC|__GFP_NOLOCKDEP|__GFP_SKIP_KASAN|__GFP_SKIP_ZERO", Gfp.Atomic)]
    public void OtherSpellingsAreRead(string text, Gfp gfp) => AssertParses(text, gfp);

    [Theory]
    [InlineData("")]
    [InlineData("|")]
    [InlineData("GFP_KERNEL|")]
    [InlineData("|GFP_KERNEL")]
    [InlineData("GFP_KERNEL||__GFP_ZERO")]
    [InlineData(" GFP_KERNEL")]
    [InlineData("gfp_kernel")]
    [InlineData("GFP_KERNELX")]
    [InlineData("GFP_KERNEL|none")]
    [InlineData("0x")]
    [InlineData("0x 1")]
    [InlineData("0x100000000")]
    [InlineData("0xg")]
    [InlineData("3264")]
    [InlineData("GFP_KERN\u00c9L")]
    public void AnythingElseIsRefused(string text)
    {
        Assert.False(GfpNames.TryParse(text, out Gfp gfp));
        Assert.Equal(Gfp.None, gfp);
        Assert.False(GfpNames.TryParse(Encoding.UTF8.GetBytes(text), out gfp));
        Assert.Equal(Gfp.None, gfp);
    }

    [Fact]
    public void EndlessTextIsRefused()
    {
        string text = string.Join('|', Enumerable.Repeat("GFP_KERNEL", 1000));
        Assert.False(GfpNames.TryParse(text, out _));
        Assert.False(GfpNames.TryParse(Encoding.UTF8.GetBytes(text), out _));
    }

    private static void AssertParses(string text, Gfp expected)
    {
        Assert.True(GfpNames.TryParse(text, out Gfp gfp), text);
        Assert.Equal(expected, gfp);
        Assert.True(GfpNames.TryParse(Encoding.UTF8.GetBytes(text), out gfp), text);
        Assert.Equal(expected, gfp);
    }
}
