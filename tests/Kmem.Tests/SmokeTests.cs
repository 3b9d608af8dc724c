using System.Diagnostics;

namespace Kmem.Tests;

public sealed class SmokeTests
{
    [Fact]
    public unsafe void The_first_steps_work()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 1UL << 30, Cpus = 2 });
        void* p = machine.Kmalloc(100, Gfp.Kernel);
        void* z = machine.Kzalloc(4096, Gfp.Kernel);
        Assert.True(p != null && z != null);
        Assert.True(new Span<byte>(z, 4096).IndexOfAnyExcept((byte)0) < 0);
        void* large = machine.Kmalloc(100_000, Gfp.Kernel);
        Assert.Equal((nuint)131072, machine.Ksize(large));
        machine.Kfree(p);
        machine.Kfree(z);
        machine.Kfree(large);
        KmemCache inodes = machine.CreateCache("inode", size: 600, align: 0, SlabFlags.HwcacheAlign);
        var objects = new List<nint>();
        for (int i = 0; i < 1000; i++)
            objects.Add((nint)inodes.Alloc(Gfp.Atomic));
        Assert.Empty(machine.Validate());
        foreach (nint obj in objects)
            inodes.Free((void*)obj);
        Assert.Empty(machine.Validate());
        inodes.Destroy();
        Assert.Empty(machine.Validate());
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.SlabInfo());
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.BuddyInfo());
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.PageTypeInfo());
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.ZoneInfo());
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.MemInfo());
    }

    [Theory]
    [InlineData(64UL << 30)]
    [InlineData(1UL << 40)]
    public void Big_machines_boot(ulong ram)
    {
        var watch = Stopwatch.StartNew();
        using var machine = Machine.Boot(new MachineOptions { RamBytes = ram, Cpus = 2 });
        TestContext.Current.TestOutputHelper?.WriteLine($"{watch.ElapsedMilliseconds} ms, rss {Environment.WorkingSet >> 20} MiB");
        TestContext.Current.TestOutputHelper?.WriteLine(machine.Proc.BuddyInfo());
    }
}
