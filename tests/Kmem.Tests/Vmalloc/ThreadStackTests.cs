using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>Kernel stacks: guards, alignment, the caches of the CPUs, grace periods.</summary>
public sealed class ThreadStackTests
{
    private const int Page = Pfn.PageSize;

    [Fact]
    [Trait("rule", "STACK-01")]
    public unsafe void A_stack_has_faulting_pages_on_both_sides()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        void* below = machine.Vmalloc(Page);
        for (int i = 0; i < 20; i++)
        {
            var stack = (byte*)machine.AllocThreadStack();
            Assert.Equal(0UL, machine.VmallocIfUsed!.AddressOf(stack) % (ulong)Machine.ThreadSize);
            Assert.Equal("20480 AllocThreadStack pages=4 vmalloc N0=4", InfoLine(machine, stack));
            Assert.Equal("--", probe.Access(stack - 1));
            Assert.Equal("rw", probe.Access(stack));
            Assert.Equal("rw", probe.Access(stack + Machine.ThreadSize - 1));
            Assert.Equal("--", probe.Access(stack + Machine.ThreadSize));
        }

        machine.Vfree(below);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Each_cpu_keeps_two_dead_stacks_and_clears_them_for_reuse()
    {
        using Machine machine = Boot(cpus: 2);
        using CpuBinding binding = machine.RunOn(0);
        nint[] stacks = Enumerable.Range(0, 5).Select(_ => (nint)machine.AllocThreadStack()).ToArray();
        foreach (nint stack in stacks)
        {
            new Span<byte>((void*)stack, Machine.ThreadSize).Fill(0x77);
            machine.FreeThreadStack((void*)stack);
        }

        ThreadStacks cache = machine.VmallocIfUsed!.Stacks;
        Assert.Equal(2, cache.Cached);
        Assert.Equal(2 * 4, machine.VmallocIfUsed.PageCount);
        void* again = machine.AllocThreadStack();
        Assert.Equal(stacks[0], (nint)again);
        Assert.Equal(-1, new Span<byte>(again, Machine.ThreadSize).IndexOfAnyExcept((byte)0));
        using (machine.RunOn(1))
        {
            // Another CPU has a cache of its own.
            void* other = machine.AllocThreadStack();
            Assert.DoesNotContain((nint)other, stacks[..2]);
            machine.FreeThreadStack(other);
        }

        machine.FreeThreadStack(again);
        Assert.Equal(3, cache.Cached);
        cache.Drain();
        Assert.Equal(0, cache.Cached);
        Assert.Equal(0, machine.VmallocIfUsed.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_stack_that_readers_may_see_is_freed_after_them()
    {
        using Machine machine = Boot(cpus: 1);
        nint[] stacks = Enumerable.Range(0, 3).Select(_ => (nint)machine.AllocThreadStack()).ToArray();
        machine.FreeThreadStack((void*)stacks[0]);
        machine.FreeThreadStack((void*)stacks[1]);
        using (machine.RcuRead())
        {
            machine.FreeThreadStack((void*)stacks[2]);
            Assert.Equal(12, machine.VmallocIfUsed!.PageCount);
            *(int*)stacks[2] = 1;
        }

        machine.RcuBarrier();
        machine.Vfree(machine.Vmalloc(Page));
        Assert.Equal(8, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void After_the_grace_period_the_cache_is_tried_again()
    {
        using Machine machine = Boot(cpus: 1);
        nint[] stacks = Enumerable.Range(0, 3).Select(_ => (nint)machine.AllocThreadStack()).ToArray();
        machine.FreeThreadStack((void*)stacks[0]);
        machine.FreeThreadStack((void*)stacks[1]);
        using (machine.RcuRead())
            machine.FreeThreadStack((void*)stacks[2]);
        machine.RcuBarrier();
        machine.AllocThreadStack();
        machine.AllocThreadStack();
        Assert.Equal(0, machine.VmallocIfUsed!.Stacks.Cached);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void What_is_no_stack_in_use_is_refused()
    {
        using Machine machine = Boot();
        var stack = (byte*)machine.AllocThreadStack();
        void* area = machine.Vmalloc(4 * Page);
        AssertRefused(machine, () => machine.FreeThreadStack(stack + Page), "free_thread_stack()", "no stack in use");
        AssertRefused(machine, () => machine.FreeThreadStack(area), "free_thread_stack()");
        machine.FreeThreadStack(stack);
        AssertRefused(machine, () => machine.FreeThreadStack(stack), "free_thread_stack()");
        machine.FreeThreadStack(null);
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(() => machine.AllocThreadStack());
        machine.Vfree(area);
    }
}
