using Kmem.Tool.Commands;

namespace Kmem.Tool.Tests;

public sealed class ByteSizeTests
{
    [Theory]
    [InlineData("4096", 4096)]
    [InlineData("4096B", 4096)]
    [InlineData("4K", 4096)]
    [InlineData("512M", 512UL << 20)]
    [InlineData("4g", 4UL << 30)]
    [InlineData("64GiB", 64UL << 30)]
    [InlineData("1tb", 1UL << 40)]
    [InlineData("1.5M", 3UL << 19)]
    [InlineData("18446744073709551615", ulong.MaxValue)]
    public void SizesAreReadAsPeopleWriteThem(string text, ulong bytes)
    {
        Assert.True(ByteSize.TryParse(text, out ulong read));
        Assert.Equal(bytes, read);
    }

    [Theory]
    [InlineData("")]
    [InlineData("M")]
    [InlineData("-1M")]
    [InlineData("+1M")]
    [InlineData("1,5M")]
    [InlineData("1 M")]
    [InlineData("1.2.3M")]
    [InlineData("4X")]
    [InlineData("4MM")]
    [InlineData("4iB")]
    [InlineData("0.3")]
    [InlineData("18446744073709551616")]
    [InlineData("16384P1")]
    [InlineData("99999999P")]
    [InlineData("999999999999999999999999999999999999")]
    public void OthersAreNone(string text) => Assert.False(ByteSize.TryParse(text, out _));

    [Theory]
    [InlineData(0, "0 B")]
    [InlineData(1023, "1023 B")]
    [InlineData(1024, "1 KiB")]
    [InlineData(1536, "1.5 KiB")]
    [InlineData(16UL << 30, "16 GiB")]
    [InlineData(ulong.MaxValue, "16384 PiB")]
    public void SizesAreWrittenShort(ulong bytes, string text) => Assert.Equal(text, ByteSize.Format(bytes));
}
