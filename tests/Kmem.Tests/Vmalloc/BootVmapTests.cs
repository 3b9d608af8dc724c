using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// The address space allocator against a kernel whose whole state is known: every address, every object taken from the
/// slab and given back, and at the end the same trees with the same shape and colours.
/// </summary>
public sealed class BootVmapTests
{
    [Fact]
    public void TheVmallocPhase()
    {
        string folder = Path.GetDirectoryName(TestData.PathOf("boot-1cpu/02-vm/state-t0.json.gz"))!;
        StatePrediction prediction = StatePrediction.Run(folder);

        Assert.Null(prediction.First);
        Assert.Empty(prediction.Differences);
        Assert.Equal((1597, 1597), (prediction.VmapAllocs, prediction.VmapAllocsExact));
        Assert.Equal((4791, 4791), (prediction.SlabAllocs, prediction.SlabAllocsExact));
    }
}
