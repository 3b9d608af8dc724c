namespace Kmem.Tests;

/// <summary>Who is on which CPU, and that nobody is on it at the same time.</summary>
public sealed class CpuSetTests
{
    [Theory]
    [InlineData(1, 3, 0)]
    [InlineData(2, 2, 1)]
    [InlineData(2, 6, 2)]
    [InlineData(4, 3, 1)]
    [InlineData(3, 8, 0)]
    public void A_section_is_alone_on_its_cpu(int cpus, int threads, int visitors)
    {
        using var set = new CpuSet(cpus);
        var crew = new Crew(0.7);
        var inside = new int[cpus * 64];
        var counts = new long[cpus * 64]; // plain increments: two at a time would lose some
        long total = 0;
        crew.Add(threads, index =>
        {
            var random = new Random(index);
            long mine = 0;
            while (crew.Working)
            {
                if (random.Next(16) == 0)
                    set.Pin(random.Next(-1, cpus));
                for (int i = 0; i < 20; i++, mine++)
                    Section(set, inside, counts, index + 1);
            }

            Interlocked.Add(ref total, mine);
        });
        crew.Add(visitors, index =>
        {
            var random = new Random(1000 + index);
            long mine = 0;
            for (; crew.Working; mine++)
            {
                int cpu = random.Next(cpus);
                set.AcquireRemote(cpu);
                Use(inside, counts, cpu, 1000 + index);
                set.ReleaseRemote(cpu);
                Section(set, inside, counts, 2000 + index);
                mine++;
            }

            Interlocked.Add(ref total, mine);
        });
        crew.Add(1, _ =>
        {
            long mine = 0;
            while (crew.Working)
            {
                var shortLived = new Thread(() => crew.Guard(() => Section(set, inside, counts, 3000)));
                shortLived.Start();
                shortLived.Join();
                mine++;
            }

            Interlocked.Add(ref total, mine);
        });
        crew.Run();
        Assert.Equal(total, counts.Sum());
        Assert.True(set.KnownThreads < 64, $"{set.KnownThreads} threads are known");
    }

    /// <summary>
    /// The narrow places: a thread that moves to a CPU of its own while that is taken from it, and a thread that
    /// becomes the owner while another, bound to the CPU a moment ago, holds its lock.
    /// </summary>
    [Theory]
    [InlineData("visitor")]
    [InlineData("neighbour")]
    [InlineData("both hop")]
    public void Moving_and_taking_do_not_miss_each_other(string other)
    {
        using var set = new CpuSet(2);
        var crew = new Crew(0.7);
        var inside = new int[2 * 64];
        var counts = new long[2 * 64];
        long total = 0;
        crew.Add(1, _ =>
        {
            long mine = 0;
            for (int round = 0; crew.Working; round++)
            {
                set.Pin(other == "neighbour" ? 0 : round & 1);
                for (int stay = other == "visitor" && round % 7 == 0 ? 60 : 1; stay > 0; stay--, mine++)
                    Section(set, inside, counts, 1);
            }

            Interlocked.Add(ref total, mine);
        });
        crew.Add(1, _ =>
        {
            long mine = 0;
            for (; crew.Working; mine++)
            {
                int cpu = (int)(mine & 1);
                if (other == "visitor")
                {
                    set.AcquireRemote(cpu);
                    Use(inside, counts, cpu, 2);
                    set.ReleaseRemote(cpu);
                }
                else
                {
                    set.Pin(cpu);
                    Section(set, inside, counts, 2);
                }
            }

            Interlocked.Add(ref total, mine);
        });
        crew.Run();
        Assert.Equal(total, counts.Sum());
    }

    [Fact]
    public void A_lone_thread_owns_its_cpu_and_stays_there()
    {
        using var set = new CpuSet(4);
        int first = Enter(set);
        Assert.True(Owns(set));
        for (int i = 0; i < 1000; i++)
            Assert.Equal(first, Enter(set));
    }

    [Fact]
    public void Threads_spread_over_the_cpus()
    {
        using var set = new CpuSet(4);
        using var done = new ManualResetEventSlim();
        var seen = new HashSet<int>();
        var threads = new List<Thread>();
        for (int i = 0; i < 4; i++)
        {
            using var entered = new ManualResetEventSlim();
            var thread = new Thread(() =>
            {
                int cpu = Enter(set);
                lock (seen)
                    seen.Add(cpu);
                entered.Set();
                done.Wait();
            });
            thread.Start();
            threads.Add(thread);
            entered.Wait(TestContext.Current.CancellationToken);
        }

        done.Set();
        threads.ForEach(thread => thread.Join());
        Assert.Equal(4, seen.Count);
    }

    [Fact]
    public void A_cpu_is_owned_again_when_those_who_shared_it_are_dead()
    {
        using var set = new CpuSet(1);
        Enter(set);
        for (int round = 0; round < 5; round++)
        {
            for (int i = 0; i < 3; i++)
                OnThread(() => Assert.Equal(0, Enter(set)));
            Assert.False(Owns(set));
            for (int i = 0; i < 600; i++)
                Enter(set);
            Assert.True(Owns(set));
        }
    }

    [Fact]
    public void A_free_thread_moves_away_from_a_cpu_that_another_is_bound_to()
    {
        using var set = new CpuSet(2);
        int mine = Enter(set);
        using var stop = new ManualResetEventSlim();
        using var entered = new ManualResetEventSlim();
        int before = -1;
        var bound = new Thread(() =>
        {
            set.Pin(mine);
            before = Enter(set);
            entered.Set();
            stop.Wait();
        });
        bound.Start();
        entered.Wait(TestContext.Current.CancellationToken);
        int after = -1;
        for (int i = 0; i < 5; i++)
            after = Enter(set);
        Assert.Equal(mine, before);
        Assert.Equal(1 - mine, after);
        Assert.True(Owns(set));
        stop.Set();
        bound.Join();
    }

    [Fact]
    public void Dead_threads_are_forgotten_without_the_garbage_collector()
    {
        using var set = new CpuSet(2);
        int most = 0;
        for (int i = 0; i < 500; i++)
        {
            OnThread(() => Enter(set));
            most = Math.Max(most, set.KnownThreads);
        }

        Assert.InRange(most, 1, 40);
    }

    [Fact]
    public void What_dead_threads_leave_is_collected_before_and_after_the_end_of_the_machine()
    {
        for (int round = 0; round < 20; round++)
        {
            var set = new CpuSet(2);
            for (int i = 0; i < 5; i++)
                OnThread(() => Enter(set));
            if (round % 2 == 0)
                Collect();
            OnThread(() => Enter(set));
            Enter(set);
            set.Dispose();
            Collect();
        }
    }

    [Fact]
    public void A_thread_works_on_many_machines_in_turn()
    {
        using var first = new CpuSet(3);
        first.Pin(2);
        for (int i = 0; i < 200; i++)
        {
            using var other = new CpuSet(2);
            other.Pin(1);
            Assert.Equal(1, Enter(other));
            Assert.Equal(2, Enter(first));
            Assert.Equal(1, other.KnownThreads);
        }

        Assert.Equal(2, first.Pin(-1));
        Assert.Equal(1, first.KnownThreads);
    }

    [Fact]
    public void Pin_returns_what_was_before_and_refuses_what_is_not_there()
    {
        using var set = new CpuSet(2);
        Assert.Equal(-1, set.Pin(1));
        Assert.Equal(1, Enter(set));
        Assert.Equal(1, set.Pin(0));
        Assert.Equal(0, Enter(set));
        Assert.Equal(0, set.Pin(1));
        Assert.True(Owns(set)); // it owned both: moving took no lock
        Assert.Throws<ArgumentOutOfRangeException>(() => set.Pin(2));
        Assert.Throws<ArgumentOutOfRangeException>(() => set.Pin(-2));
        Assert.Equal(1, set.Pin(-1));
        Assert.Equal(1, Enter(set));
    }

    [Fact]
    public unsafe void A_visitor_waits_for_the_section_and_the_owner_for_the_visitor()
    {
        using var set = new CpuSet(1);
        CpuTask* task = set.Current;
        Assert.Equal(0, set.Enter(task));
        using var visiting = new ManualResetEventSlim();
        using var leave = new ManualResetEventSlim();
        var visitor = new Thread(() =>
        {
            set.AcquireRemote(0);
            visiting.Set();
            leave.Wait();
            set.ReleaseRemote(0);
        });
        visitor.Start();
        Assert.False(
            visiting.Wait(50, TestContext.Current.CancellationToken), "the CPU was taken from inside a section");
        set.Leave(task);
        Assert.True(visiting.Wait(10_000, TestContext.Current.CancellationToken));

        bool entered = false;
        var second = new Thread(() =>
        {
            Enter(set);
            Volatile.Write(ref entered, true);
        });
        second.Start();
        Thread.Sleep(50);
        Assert.False(Volatile.Read(ref entered), "a section began while a visitor worked on the CPU");
        leave.Set();
        visitor.Join();
        second.Join();
        Assert.True(entered);
        Assert.Equal(0, Enter(set));
    }

    private static unsafe int Enter(CpuSet set)
    {
        CpuTask* task = set.Current;
        int cpu = set.Enter(task);
        set.Leave(task);
        return cpu;
    }

    private static unsafe bool Owns(CpuSet set) => set.Current->Cpu >= 0;

    private static unsafe void Section(CpuSet set, int[] inside, long[] counts, int id)
    {
        CpuTask* task = set.Current;
        int cpu = set.Enter(task);
        try
        {
            if (task->Pinned >= 0 && cpu != task->Pinned)
                throw new InvalidOperationException($"on CPU {cpu}, bound to {task->Pinned}");
            Use(inside, counts, cpu, id);
        }
        finally
        {
            set.Leave(task);
        }
    }

    private static void Use(int[] inside, long[] counts, int cpu, int id)
    {
        ref int who = ref inside[cpu * 64];
        int found = Volatile.Read(ref who);
        Volatile.Write(ref who, id);
        counts[cpu * 64]++;
        Thread.SpinWait(5);
        int now = Volatile.Read(ref who);
        Volatile.Write(ref who, 0);
        if (found != 0 || now != id)
            throw new InvalidOperationException($"CPU {cpu}: {id} met {found} and {now}");
    }

    private static void OnThread(Action work)
    {
        Exception? error = null;
        var thread = new Thread(() =>
        {
            try
            {
                work();
            }
            catch (Exception caught)
            {
                error = caught;
            }
        });
        thread.Start();
        thread.Join();
        if (error != null)
            throw new InvalidOperationException(error.Message, error);
    }

    private static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }
}
