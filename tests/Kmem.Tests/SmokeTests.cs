namespace Kmem.Tests;

public sealed class SmokeTests
{
    [Fact]
    public void Builds() => Assert.Equal(4096, 1 << 12);
}
