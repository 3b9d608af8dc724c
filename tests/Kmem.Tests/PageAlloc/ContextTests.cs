namespace Kmem.Tests;

/// <summary>Who may ask for what where: contexts that must not sleep, and scopes that take flags away.</summary>
public sealed class ContextTests
{
    private static readonly Dictionary<string, (string Report, int Irqs)> s_contexts = new(StringComparer.Ordinal)
    {
        ["atomic section"] = ("preempt_count: 1, context: atomic section", 0),
        ["softirq"] = ("preempt_count: 100, context: softirq", 0),
        ["tasklet"] = ("preempt_count: 100, context: softirq", 0),
        ["bottom halves disabled"] = ("preempt_count: 200, context: bottom halves disabled", 0),
        ["hard interrupt"] = ("preempt_count: 10000, context: hard interrupt", 0),
        ["interrupts off"] = ("preempt_count: 0, context: interrupts off", 1),
    };

    public static TheoryData<string> Contexts() => [.. s_contexts.Keys];

    [Theory]
    [MemberData(nameof(Contexts))]
    [Trait("rule", "CTX-01")]
    public unsafe void A_request_that_may_sleep_is_refused_where_sleeping_is_forbidden(string context)
    {
        using Machine machine = Small();
        string before = machine.Proc.BuddyInfo();
        Action[] requests =
        [
            () => machine.AllocPage(Gfp.Kernel),
            () => machine.AllocPages(Gfp.NoIO, 3),
            () => machine.AllocPages(Gfp.DirectReclaim, 0),
            () => machine.AllocPagesBulk(Gfp.User, [Pfn.None, Pfn.None, Pfn.None]),
            () => machine.AllocPagesExact(20_000, Gfp.Kernel),
            () => machine.Kmalloc(100, Gfp.Kernel),
            () => machine.Kmalloc(100_000, Gfp.Kernel),
        ];
        for (int i = 0; i < requests.Length; i++)
        {
            machine.Dmesg.Clear();
            Enter(machine, context, () => Assert.Throws<KernelBugException>(requests[i]));
            (string report, int irqs) = s_contexts[context];
            Assert.StartsWith(
                "BUG: sleeping function called from invalid context", machine.Dmesg.Lines[0], StringComparison.Ordinal);
            Assert.Equal(
                $"in_atomic(): {1 - irqs}, irqs_disabled(): {irqs}, {report}", machine.Dmesg.Lines[1]);
            Assert.Contains(
                "may sleep; use GFP_ATOMIC or GFP_NOWAIT", machine.Dmesg.Lines[2], StringComparison.Ordinal);
        }

        Assert.Equal(before, machine.Proc.BuddyInfo());
        Assert.Empty(machine.Validate());
        Assert.True(machine.AllocPage(Gfp.Kernel).IsValid);     // outside again
    }

    [Theory]
    [MemberData(nameof(Contexts))]
    [Trait("rule", "CTX-01")]
    public void Requests_that_cannot_sleep_are_served_everywhere(string context)
    {
        using Machine machine = Small();
        Enter(machine, context, () =>
        {
            foreach (Gfp gfp in new[] { Gfp.Atomic, Gfp.NoWait, Gfp.None, Gfp.Kernel & ~Gfp.DirectReclaim })
            {
                Pfn pfn = machine.AllocPages(gfp, 2);
                Assert.True(pfn.IsValid);
                machine.FreePages(pfn, 2);
                unsafe
                {
                    void* p = machine.Kmalloc(64, gfp);
                    Assert.True(p != null);
                    machine.Kfree(p);
                }
            }
        });
        Assert.Empty(machine.Dmesg.Lines);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "CTX-01")]
    public void Contexts_nest_and_only_the_outermost_end_allows_sleep_again()
    {
        using Machine machine = Small();
        using (machine.Atomic())
        {
            using (machine.SoftIrq())
            {
                using (machine.HardIrq())
                    Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
                Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
            }

            using (machine.Atomic())
                Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
            Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
        }

        Assert.True(machine.AllocPage(Gfp.Kernel).IsValid);
    }

    [Fact]
    [Trait("rule", "CTX-01")]
    public void A_context_is_a_thread_s_own()
    {
        using Machine machine = Small();
        using (machine.Atomic())
        {
            Pfn elsewhere = Pfn.None;
            var thread = new Thread(() => elsewhere = machine.AllocPage(Gfp.Kernel));
            thread.Start();
            thread.Join();
            Assert.True(elsewhere.IsValid);
            Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
        }
    }

    [Fact]
    [Trait("rule", "CTX-01")]
    public void A_reader_must_not_sleep()
    {
        using Machine machine = Small();
        using (machine.RcuRead())
        {
            Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
            Assert.True(machine.AllocPage(Gfp.NoWait).IsValid);
            using (machine.RcuRead())
                Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
            Assert.Throws<KernelBugException>(() => machine.AllocPage(Gfp.Kernel));
        }

        Assert.True(machine.AllocPage(Gfp.Kernel).IsValid);
    }

    [Fact]
    [Trait("rule", "CTX-02")]
    public void Scopes_take_flags_away_nest_and_restore()
    {
        using Machine machine = Small();
        var trace = new RecordingTrace();
        machine.Trace = trace;
        Assert.Equal(Gfp.Kernel, Seen(machine, trace, Gfp.Kernel));
        using (machine.MemallocNoFs())
        {
            Assert.Equal(Gfp.NoFS, Seen(machine, trace, Gfp.Kernel));
            using (machine.MemallocNoIo())
            {
                Assert.Equal(Gfp.NoIO, Seen(machine, trace, Gfp.Kernel));
                using (machine.MemallocNoFs())          // the same again: its end restores nothing
                    Assert.Equal(Gfp.NoIO, Seen(machine, trace, Gfp.Kernel));
                Assert.Equal(Gfp.NoIO, Seen(machine, trace, Gfp.Kernel));
                Assert.Equal(Gfp.Atomic, Seen(machine, trace, Gfp.Atomic));
            }

            Assert.Equal(Gfp.NoFS, Seen(machine, trace, Gfp.Kernel));
            using (machine.MemallocNoReclaim())
                Assert.Equal(Gfp.NoFS, Seen(machine, trace, Gfp.Kernel));
        }

        Assert.Equal(Gfp.Kernel, Seen(machine, trace, Gfp.Kernel));
    }

    [Fact]
    [Trait("rule", "CTX-02")]
    public void Pinned_pages_are_not_movable()
    {
        using var machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1, MovableBytes = 16 << 20 });
        var trace = new RecordingTrace();
        machine.Trace = trace;
        Pfn movable = machine.AllocPage(Gfp.HighUserMovable);
        Assert.Equal(Migratetype.Movable, trace.Allocations[^1].Type);
        Assert.True(movable.Address.Value >= 48 << 20);
        using (machine.MemallocPin())
        {
            Pfn pinned = machine.AllocPage(Gfp.HighUserMovable);
            Assert.Equal(
                (Gfp.HighUser, Migratetype.Unmovable), (trace.Allocations[^1].Gfp, trace.Allocations[^1].Type));
            Assert.True(pinned.Address.Value < 48 << 20);
        }

        machine.AllocPage(Gfp.HighUserMovable);
        Assert.Equal(Gfp.HighUserMovable, trace.Allocations[^1].Gfp);
    }

    [Fact]
    [Trait("rule", "CTX-02")]
    public unsafe void Scopes_reach_slab_pages_too()
    {
        using Machine machine = Small();
        var trace = new RecordingTrace();
        KmemCache cache = machine.CreateCache("scoped", 2000, flags: SlabFlags.NoMerge);
        machine.Trace = trace;
        using (machine.MemallocNoIo())
            Assert.True(cache.Alloc(Gfp.Kernel) != null);
        Assert.Equal(Gfp.None, Assert.Single(trace.Allocations).Gfp & (Gfp.IO | Gfp.FS));
    }

    private static Machine Small() => Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });

    private static Gfp Seen(Machine machine, RecordingTrace trace, Gfp gfp)
    {
        Pfn pfn = machine.AllocPage(gfp);
        Assert.Equal(pfn, trace.Allocations[^1].Pfn);
        machine.FreePage(pfn);
        return trace.Allocations[^1].Gfp;
    }

    private static void Enter(Machine machine, string context, Action body)
    {
        using ContextScope scope = context switch
        {
            "atomic section" => machine.Atomic(),
            "softirq" => machine.SoftIrq(),
            "tasklet" => machine.Tasklet(),
            "bottom halves disabled" => machine.BottomHalvesDisabled(),
            "hard interrupt" => machine.HardIrq(),
            _ => machine.IrqsDisabled(),
        };
        body();
    }
}
