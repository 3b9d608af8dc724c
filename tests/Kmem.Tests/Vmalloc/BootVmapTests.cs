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
        string events = TestData.ReadGzip("boot-1cpu/02-vm/events.tsv.gz");
        string directory = Path.GetDirectoryName(TestData.PathOf("boot-1cpu/02-vm/state-t0.json.gz"))!;
        using var replay = new BootVmapReplay(directory);
        Assert.Empty(replay.Validate());
        replay.Run(new StringReader(events));
        replay.CompareEnd();

        Assert.Empty(replay.Differences);
        Assert.Empty(replay.Validate());
        Assert.Equal((1597, 1403, 2), (replay.Allocs, replay.Frees, replay.Purges));
        Assert.Equal(1597 + 102 + 1020, replay.SlabOperations);
    }
}
