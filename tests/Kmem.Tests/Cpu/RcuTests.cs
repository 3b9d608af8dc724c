namespace Kmem.Tests;

public sealed class RcuTests
{
    [Fact]
    public void Without_readers_work_runs_at_once()
    {
        var rcu = new Rcu();
        int ran = 0;
        rcu.Call(() => ran++);
        Assert.Equal(1, ran);
        Assert.Equal(0, rcu.Pending);
    }

    [Fact]
    public void Work_waits_for_the_readers_of_its_time_only()
    {
        var rcu = new Rcu();
        var log = new List<string>();
        int early = rcu.ReadLock();
        rcu.Call(() => log.Add("first"));
        int late = rcu.ReadLock();
        rcu.Call(() => log.Add("second"));
        Assert.Empty(log);
        rcu.ReadUnlock(early);
        Assert.Equal(["first"], log);
        rcu.ReadUnlock(late);
        Assert.Equal(["first", "second"], log);
        Assert.Equal(0, rcu.Pending);
    }

    /// <summary>
    /// Every short sequence of readers that come and go and of calls, against a list of who was there.
    /// </summary>
    [Fact]
    public void All_short_histories_keep_the_promise()
    {
        for (int code = 0; code < 4096; code++)
        {
            var rcu = new Rcu();
            var readers = new Queue<(int Id, int Phase)>();
            var waiting = new Dictionary<int, HashSet<int>>();
            var ran = new HashSet<int>();
            for (int step = 0, left = code; step < 6; step++, left >>= 2)
            {
                switch (left & 3)
                {
                    case 0:
                        readers.Enqueue((step, rcu.ReadLock()));
                        break;
                    case 1 when readers.Count > 0:
                        End(readers.Dequeue());
                        break;
                    default:
                        int name = step;
                        waiting[name] = readers.Select(reader => reader.Id).ToHashSet();
                        rcu.Call(() => Assert.True(
                            waiting[name].Count == 0 && ran.Add(name), $"history {code}: work {name} ran too early"));
                        break;
                }
            }

            while (readers.Count > 0)
                End(readers.Dequeue());
            Assert.Equal(0, rcu.Pending);
            Assert.Equal(waiting.Count, ran.Count);

            void End((int Id, int Phase) reader)
            {
                foreach (HashSet<int> left in waiting.Values)
                    left.Remove(reader.Id);
                rcu.ReadUnlock(reader.Phase);
            }
        }
    }

    [Fact]
    public void The_barrier_waits_for_work_that_another_thread_is_running()
    {
        var rcu = new Rcu();
        using var running = new ManualResetEventSlim();
        using var go = new ManualResetEventSlim();
        bool ended = false;
        var worker = new Thread(() => rcu.Call(() =>
        {
            running.Set();
            go.Wait();
            Volatile.Write(ref ended, true);
        }));
        worker.Start();
        running.Wait(TestContext.Current.CancellationToken);
        bool passed = false;
        bool sawEnd = false;
        var waiter = new Thread(() =>
        {
            rcu.Barrier();
            sawEnd = Volatile.Read(ref ended);
            Volatile.Write(ref passed, true);
        });
        waiter.Start();
        Thread.Sleep(50);
        Assert.False(Volatile.Read(ref passed));
        go.Set();
        waiter.Join();
        worker.Join();
        Assert.True(sawEnd);
    }

    [Fact]
    public void The_barrier_does_not_wait_for_what_comes_later()
    {
        var rcu = new Rcu();
        bool stop = false;
        var noise = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
            {
                int phase = rcu.ReadLock();
                rcu.Call(() => { });
                Thread.SpinWait(100);
                rcu.ReadUnlock(phase);
            }
        });
        noise.Start();
        for (int i = 0; i < 50; i++)
            rcu.Barrier();
        Volatile.Write(ref stop, true);
        noise.Join();
    }

    [Fact]
    public void One_bad_free_does_not_lose_the_others()
    {
        var rcu = new Rcu();
        int ran = 0;
        int phase = rcu.ReadLock();
        rcu.Call(() => ran++);
        rcu.Call(() => throw new KernelBugException("bad"));
        rcu.Call(() => ran++);
        rcu.ReadUnlock(phase);
        Assert.Equal(2, ran);
        Assert.Equal(0, rcu.Pending);
    }

    [Fact]
    public void Work_may_put_off_more_work()
    {
        var rcu = new Rcu();
        int depth = 0;
        void Again()
        {
            if (++depth < 1000)
                rcu.Call(Again);
        }

        rcu.Call(Again);
        rcu.Barrier();
        Assert.Equal(1000, depth);
    }
}
