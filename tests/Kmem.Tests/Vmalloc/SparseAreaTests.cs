namespace Kmem.Tests;

/// <summary>Areas that are reserved first and filled in parts (VM_SPARSE).</summary>
public sealed class SparseAreaTests
{
    [Fact]
    public unsafe void Parts_are_mapped_shown_and_unmapped_one_by_one()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        VmallocAllocator vmalloc = machine.Floor.Memory.Vmalloc;
        VmStruct* area = vmalloc.ReserveSparse(1 << 30);
        Pfn frames = machine.AllocPages(Gfp.Kernel, 2);
        Assert.Equal(Pfn.None, vmalloc.Tables.Translate(area->Address));

        Assert.True(vmalloc.MapSparse(area, 8 << 20, frames, 4));
        var shown = (byte*)vmalloc.PointerOf(area->Address + (8 << 20));
        shown[4 * 4096 - 1] = 77;
        Assert.Equal(77, ((byte*)machine.AddressOf(frames))[4 * 4096 - 1]);
        Assert.Equal(frames, vmalloc.Tables.Translate(area->Address + (8 << 20)));
        Assert.Equal(Pfn.None, vmalloc.Tables.Translate(area->Address + (8 << 20) + 4 * 4096));
        Assert.True(vmalloc.Window.MapCount > 1);
        Assert.Empty(machine.Validate());

        // The same frames at a second place, as anybody may who owns them.
        Assert.True(vmalloc.MapSparse(area, 0, frames, 1));
        *(byte*)vmalloc.PointerOf(area->Address) = 5;
        Assert.Equal(5, *shown);

        vmalloc.UnmapSparse(area, 0, 4096);
        vmalloc.UnmapSparse(area, 8 << 20, 4 * 4096);
        Assert.Equal(Pfn.None, vmalloc.Tables.Translate(area->Address + (8 << 20)));
        Assert.Equal(1, vmalloc.Window.MapCount);
        vmalloc.FreeSparse(area);
        machine.FreePages(frames, 2);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void What_lies_outside_and_what_is_no_sparse_area_is_refused()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        VmallocAllocator vmalloc = machine.Floor.Memory.Vmalloc;
        Assert.True(vmalloc.ReserveSparse(0) == null);
        VmStruct* area = vmalloc.ReserveSparse(8192);
        Pfn frame = machine.AllocPage(Gfp.Kernel);
        Throws(() => vmalloc.MapSparse(area, 8192, frame, 1));      // the guard page
        Throws(() => vmalloc.MapSparse(area, 4096, frame, 2));
        Throws(() => vmalloc.MapSparse(area, 100, frame, 1));
        nint pointer = (nint)vmalloc.PointerOf(area->Address);
        Throws(() => machine.Vfree((void*)pointer));
        Throws(() => machine.Vunmap((void*)pointer));
        Throws(() => machine.Vrealloc((void*)pointer, 100, Gfp.Kernel));
        Assert.Contains("sparse", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        vmalloc.FreeSparse(area);
        machine.FreePage(frame);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void One_refusal_of_the_host_is_tried_again_after_a_purge()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        using KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20);
        buffer.GetSpan(100).Fill(1);
        buffer.Advance(100);
        int committed = buffer.Committed;
        machine.Floor.Memory.Vmalloc.Window.FailHostCall(1);
        buffer.GetSpan(300_000).Fill(2);
        Assert.True(buffer.Committed > committed);
        Assert.Equal(1, buffer.WrittenSpan[99]);
        Assert.Empty(machine.Validate());
    }

    private static Machine Boot() => Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 1 });

    private static void Throws(Action action) => Assert.Throws<KernelBugException>(action);
}
