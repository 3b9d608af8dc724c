namespace Kmem.Tests;

public sealed class PageOrderTests
{
    [Fact]
    public void OrderIsTheSmallestWhoseBlockHoldsTheSize()
    {
        for (int order = 0; order <= PageOrder.Max + 3; order++)
        {
            nuint block = (nuint)4096 << order;
            Assert.Equal(order, PageOrder.ForSize(block));
            Assert.Equal(order, PageOrder.ForSize(block / 2 + 1));
            Assert.Equal(order + 1, PageOrder.ForSize(block + 1));
        }
    }

    [Fact]
    public void OneByteNeedsOnePageAndTheLargestSizeNoBlock()
    {
        Assert.Equal(0, PageOrder.ForSize(1));
        Assert.Equal(52, PageOrder.ForSize(nuint.MaxValue));
        Assert.Equal(52, PageOrder.ForSize(0));
    }
}
