namespace Kmem.Tests;

/// <summary>
/// A replay goes on after a step that broke off, and opens the locks that the step held. It is never quite alone on its
/// machine: the finalizer of a thread that ended takes locks, too, at a moment that nobody can foresee.
/// </summary>
public sealed class BreakLocksTests
{
    [Fact]
    public void What_this_thread_holds_is_opened()
    {
        using Machine machine = Boot();
        machine.CpuSet.AcquireRemote(1);
        ZonePages zone = machine.Pages.Zones.First();
        zone.Buddy.Lock.Acquire();

        machine.BreakLocks();

        Assert.False(zone.Buddy.Lock.IsHeld);
        machine.CpuSet.AcquireRemote(1);
        machine.CpuSet.ReleaseRemote(1);
        using (machine.RunOn(1))
            machine.FreePage(machine.AllocPage(Gfp.Kernel));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void What_another_thread_holds_stays_closed()
    {
        using Machine machine = Boot();
        ZonePages zone = machine.Pages.Zones.First();
        KmemCache cache = machine.CreateCache("held", 100, flags: SlabFlags.NoMerge);
        Fill(cache);
        KmemCacheNode node = cache.Nodes[0];
        foreach ((string what, Action take, Action release, Func<bool> isHeld) in ((string, Action, Action, Func<bool>)[])
        [
            ("zone", () => zone.Buddy.Lock.Acquire(), () => zone.Buddy.Lock.Release(), () => zone.Buddy.Lock.IsHeld),
            ("partial list", () => node.Lock.Acquire(), () => node.Lock.Release(), () => node.Lock.IsHeld),
            ("CPU", () => machine.CpuSet.AcquireRemote(1), () => machine.CpuSet.ReleaseRemote(1), () => true),
        ])
        {
            using var taken = new SemaphoreSlim(0);
            using var broken = new SemaphoreSlim(0);
            Exception? error = null;
            var other = new Thread(() =>
            {
                take();
                taken.Release();
                broken.Wait();
                error = Record.Exception(release);
            });
            other.Start();
            taken.Wait(TestContext.Current.CancellationToken);
            machine.BreakLocks();
            bool held = isHeld();
            broken.Release();
            other.Join();
            Assert.True(held, $"{what}: opened under the one who held it");
            Assert.Null(error);
        }

        machine.BreakLocks();
        Assert.Empty(machine.Validate());
    }

    /// <summary>What a thread that ended leaves behind is struck off while a replay opens its locks.</summary>
    [Fact]
    public void Threads_come_and_go_while_locks_are_opened()
    {
        using var set = new CpuSet(2);
        int left = 100_000;
        Exception? error = null;
        var other = new Thread(() => error = Record.Exception(() =>
        {
            try
            {
                for (; left > 0; left--)
                    Assert.InRange(set.KnownThreads, 0, 2);
            }
            finally
            {
                Volatile.Write(ref left, 0);
            }
        }));
        other.Start();
        while (Volatile.Read(ref left) > 0)
            set.Break();
        other.Join();
        Assert.Null(error);
    }

    private static unsafe void Fill(KmemCache cache) => cache.Free(cache.Alloc(Gfp.Kernel));

    private static Machine Boot() =>
        Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, Cpus = 2, RamBytes = 32 << 20 });
}
