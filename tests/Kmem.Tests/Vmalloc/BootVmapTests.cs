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
        VmapStatePrediction replay =
            VmapStatePrediction.Run(folder, RecordedEvents.Read(Path.Combine(folder, "events.tsv.gz")));

        Assert.Empty(replay.Differences);
        Assert.Equal((1597, 1597, 1403, 2), (replay.Allocs, replay.AllocsExact, replay.Frees, replay.Purges));
        Assert.Equal(1597 + 102 + 1020, replay.SlabOperations);
    }
}
