namespace Kmem.Tests;

/// <summary>
/// Buffers of several of the largest blocks, which the native profile has contiguous and in private memory.
/// </summary>
public sealed class LargeRunsTests
{
    private const nuint Size = 9 << 20;     // three blocks

    [Fact]
    public unsafe void A_buffer_is_contiguous_and_kept_for_the_next_one()
    {
        using Machine machine = Boot();
        var first = (byte*)machine.Kvmalloc(Size, Gfp.Kernel);
        Assert.False(machine.IsVmallocAddr(first));
        Assert.Equal((nuint)12 << 20, machine.Ksize(first));
        new Span<byte>(first, (int)Size).Fill(7);
        Assert.InRange(machine.PrivateResidentBytes, Size, 12U << 20);
        Assert.Empty(machine.Validate());

        machine.Kvfree(first);
        Assert.Empty(machine.Validate());
        var second = (byte*)machine.Kvmalloc(Size - 100, Gfp.Kernel);
        Assert.True(second == first);
        machine.Kvfree(second);
        var clear = (byte*)machine.Kvzalloc(Size, Gfp.Kernel);
        Assert.True(clear == first);
        Assert.Equal(-1, new Span<byte>(clear, (int)Size).IndexOfAnyExcept((byte)0));
        machine.Kvfree(clear);

        long free = machine.Pages.Zones.Sum(zone => zone.Zone.FreePages);
        machine.Trim();
        Assert.Equal(0UL, machine.PrivateResidentBytes);
        Assert.True(machine.Pages.Zones.Sum(zone => zone.Zone.FreePages) >= free + (3 << PageOrder.Max));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void A_part_of_a_kept_buffer_serves_a_smaller_one()
    {
        using Machine machine = Boot();
        void* large = machine.Kvmalloc(20 << 20, Gfp.Kernel);
        machine.Kvfree(large);
        var one = (byte*)machine.Kvmalloc(8 << 20, Gfp.Kernel);
        var two = (byte*)machine.Kvmalloc(12 << 20, Gfp.Kernel);
        Assert.Equal(0, machine.Slabs.Runs!.KeptBlocks);
        Assert.True(Math.Min((ulong)one, (ulong)two) == (ulong)large);
        Assert.True(one + (8 << 20) == two || two + (12 << 20) == one);
        machine.Kvfree(two);
        machine.Kvfree(one);
        Assert.Equal(5, machine.Slabs.Runs!.KeptBlocks);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Only_its_start_frees_it_and_only_once()
    {
        using Machine machine = Boot();
        var buffer = (byte*)machine.Kvmalloc(Size, Gfp.Kernel);
        Assert.Throws<KernelBugException>(() => machine.Kvfree(buffer + (4 << 20)));
        Assert.Throws<KernelBugException>(() => machine.Kvfree(buffer + 4096));
        Assert.Throws<KernelBugException>(() => machine.FreePages(PfnOf(machine, buffer), PageOrder.Max));
        machine.Kvfree(buffer);
        Assert.Throws<KernelBugException>(() => machine.Kvfree(buffer));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Its_content_moves_along_when_it_grows()
    {
        using Machine machine = Boot();
        var buffer = (byte*)machine.Kvmalloc(Size, Gfp.Kernel);
        new Span<byte>(buffer, (int)Size).Fill(3);
        Assert.True(machine.Kvrealloc(buffer, 10 << 20, Gfp.Kernel) == buffer);
        var larger = (byte*)machine.Kvrealloc(buffer, 30 << 20, Gfp.Kernel);
        Assert.True(larger != buffer);
        Assert.Equal(-1, new Span<byte>(larger, (int)Size).IndexOfAnyExcept((byte)3));
        machine.Kvfree(larger);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Its_frames_cannot_be_shown_a_second_time_and_those_of_others_can()
    {
        using Machine machine = Boot();
        void* buffer = machine.Kvmalloc(Size, Gfp.Kernel);
        Pfn frame = PfnOf(machine, buffer);
        Assert.True(machine.Vmap([frame]) == null);
        machine.Kvfree(buffer);
        machine.Trim();

        // The same frame, shared again.
        var block = (byte*)machine.Map.AddressOf(machine.Map.PageOf(frame.Value));
        block[1] = 5;
        var area = (byte*)machine.Vmap([frame]);
        Assert.Equal(5, area[1]);
        machine.Vunmap(area);
    }

    [Fact]
    public unsafe void Kept_blocks_go_before_memory_runs_out()
    {
        using Machine machine = Boot();
        void* buffer = machine.Kvmalloc(30 << 20, Gfp.Kernel);
        machine.Kvfree(buffer);
        Assert.True(machine.Slabs.Runs!.KeptBlocks > 0);
        int blocks = 0;
        while (machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 8) != Pfn.None)
            blocks++;
        Assert.True(blocks > 0);
        Assert.Equal(0, machine.Slabs.Runs!.KeptBlocks);
    }

    [Fact]
    public unsafe void A_restored_machine_frees_it()
    {
        using Machine machine = Boot();
        var buffer = (byte*)machine.Kvmalloc(Size, Gfp.Kernel);
        using Machine copy = Machine.FromState(machine.WriteState(), machine.Options);
        byte* same = copy.Map.RamBase + (buffer - machine.Map.RamBase);
        Assert.Equal((nuint)12 << 20, copy.Ksize(same));
        Assert.Throws<KernelBugException>(() => copy.Kvfree(same + (4 << 20)));
        copy.Kvfree(same);
        Assert.Empty(copy.Validate());
    }

    [Fact]
    public unsafe void A_kernel_s_profile_has_none()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Profile = KernelProfile.Linux618 });
        Assert.SkipUnless(machine.Ram.CanAlias, "no windows here");
        void* buffer = machine.Kvmalloc(Size, Gfp.Kernel);
        Assert.True(machine.IsVmallocAddr(buffer));
        machine.Kvfree(buffer);
    }

    private static unsafe Pfn PfnOf(Machine machine, void* buffer) =>
        new(machine.Map.PfnOf(machine.Map.PageAt(buffer)));

    private static Machine Boot()
    {
        var machine = Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Cpus = 2, DecaySeconds = 0 });
        Assert.SkipUnless(machine.Ram.CanAlias, "this host has no RAM that runs are made of");
        return machine;
    }
}
