using System.Runtime.CompilerServices;

namespace Kmem.Tests;

/// <summary>KmemCache of a type: references, handles that notice, bulk, leaks.</summary>
public sealed class TypedCacheTests
{
    private static Machine Boot(bool sites = false, Action<LeakReport>? onLeak = null) => Machine.Boot(
        new MachineOptions { RamBytes = 64 << 20, Cpus = 2, TrackCallSites = sites, OnLeak = onLeak });

    private struct Node
    {
        public long Key;
        public KmemHandle<Node> Next;
        public InlineText Text;
    }

    [InlineArray(40)]
    private struct InlineText
    {
        private byte _first;
    }

    private struct Odd
    {
        public byte A;
        public short B;
        public byte C;
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Objects_are_references_into_the_machine(bool stamps)
    {
        using Machine machine = Boot();
        using KmemCache<Node> nodes = machine.CreateCache<Node>("node", SlabFlags.None, stamps);
        KmemHandle<Node> head = default;
        for (int i = 0; i < 1000; i++)
            head = nodes.Rent(new Node { Key = i, Next = head });
        Assert.Equal(1000, nodes.Outstanding);
        long sum = 0;
        for (KmemHandle<Node> at = head; !at.IsNull; at = nodes[at].Next)
            sum += nodes[at].Key++;
        Assert.Equal(999 * 500, sum);
        while (!head.IsNull)
        {
            KmemHandle<Node> next = nodes[head].Next;
            nodes.Return(head);
            head = next;
        }

        Assert.Equal(0, nodes.Outstanding);
        Assert.Equal(0, nodes.Cache.LiveCount);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void A_rented_object_is_zero_unless_a_value_is_given()
    {
        using Machine machine = Boot();
        using KmemCache<Node> nodes = machine.CreateCache<Node>("node");
        KmemHandle<Node> dirty = nodes.Rent();
        nodes[dirty].Text[39] = 1;
        nodes.Return(dirty);
        KmemHandle<Node> clean = nodes.Rent();
        Assert.Equal(0, nodes[clean].Text[39]);
        nodes.Return(clean);
    }

    [Fact]
    public void A_handle_that_outlived_its_object_is_refused_even_if_the_place_is_used_again()
    {
        using Machine machine = Boot();
        using KmemCache<Odd> cache = machine.CreateCache<Odd>("odd");
        KmemHandle<Odd> old = cache.Rent(new Odd { A = 1, B = 2, C = 3 });
        cache.Return(old);
        Assert.False(cache.IsLive(old));
        ObjectDisposedException error = Assert.Throws<ObjectDisposedException>(() => cache[old].A);
        Assert.Contains("cache 'odd': a handle was used after its object had been returned", error.Message, StringComparison.Ordinal);
        Assert.Throws<ObjectDisposedException>(() => cache.Return(old));

        var again = new List<KmemHandle<Odd>>();
        for (int i = 0; i < 2000; i++)
            again.Add(cache.Rent());
        Assert.Contains(again, handle => handle.Offset == old.Offset);
        Assert.False(cache.IsLive(old));
        Assert.Throws<ObjectDisposedException>(() => cache[old].A);
        Assert.Throws<ObjectDisposedException>(() => cache.Return(old));
        Assert.Equal(2000, cache.Outstanding);
        again.ForEach(cache.Return);
        Assert.Equal(0, cache.Outstanding);
    }

    [Fact]
    public void Without_stamps_a_free_place_is_refused()
    {
        using Machine machine = Boot();
        using KmemCache<long> cache = machine.CreateCache<long>("plain", SlabFlags.None, stamps: false);
        Assert.Equal(8, cache.Cache.ObjectSize);
        KmemHandle<long> handle = cache.Rent(1);
        cache.Return(handle);
        Assert.Throws<ObjectDisposedException>(() => cache[handle]);
        Assert.Throws<ObjectDisposedException>(() => cache.Return(handle));
        KmemHandle<long>[] twins = [cache.Rent(1), default];
        twins[1] = twins[0];
        Assert.Throws<ObjectDisposedException>(() => cache.ReturnBulk(twins));
        Assert.Equal((0, 0), (cache.Outstanding, cache.Cache.LiveCount));
    }

    [Fact]
    public void Null_and_handles_of_other_caches_are_refused()
    {
        using Machine machine = Boot();
        using KmemCache<long> one = machine.CreateCache<long>("one");
        using KmemCache<long> two = machine.CreateCache<long>("two");
        KmemHandle<long> handle = one.Rent(5);
        Assert.True(default(KmemHandle<long>).IsNull);
        Assert.Contains("null", Assert.Throws<ArgumentException>(() => one[default]).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => one.Return(default));
        Assert.Contains(
            "another cache", Assert.Throws<ArgumentException>(() => two[handle]).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => two.Return(handle));
        Assert.Equal(5, one[handle]);
        one.Return(handle);
    }

    [Fact]
    public void Bulk_rents_all_or_nothing_and_returns_what_is_right()
    {
        using Machine machine = Boot();
        using KmemCache<Node> nodes = machine.CreateCache<Node>("node");
        var handles = new KmemHandle<Node>[1000];
        nodes.RentBulk(handles);
        Assert.Equal(1000, handles.Distinct().Count());
        Assert.Equal(1000, nodes.Outstanding);
        foreach (KmemHandle<Node> handle in handles)
            Assert.Equal(0, nodes[handle].Key);

        KmemHandle<Node> stale = handles[500];
        nodes.Return(stale);
        Assert.Throws<ObjectDisposedException>(() => nodes.ReturnBulk(handles));
        Assert.Equal(499, nodes.Outstanding);
        nodes.ReturnBulk(handles.AsSpan(501));
        Assert.Equal((0, 0), (nodes.Outstanding, nodes.Cache.LiveCount));

        using Machine tiny = Machine.Boot(new MachineOptions { RamBytes = 16 << 20, Cpus = 1, Name = "tiny" });
        using KmemCache<Node> few = tiny.CreateCache<Node>("few");
        var many = new KmemHandle<Node>[400_000];
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() => few.RentBulk(many));
        Assert.Contains("for KmemCache<Node> 'few'", error.Message, StringComparison.Ordinal);
        Assert.True(many.All(handle => handle.IsNull));
        Assert.Equal((0, 0), (few.Outstanding, few.Cache.LiveCount));
    }

    [Fact]
    public void A_lease_returns_its_object()
    {
        using Machine machine = Boot();
        using KmemCache<long> cache = machine.CreateCache<long>("long");
        KmemHandle<long> handle;
        using (KmemLease<long> lease = cache.Lease(4))
        {
            lease.Value++;
            handle = lease.Handle;
            Assert.Equal(5, cache[handle]);
        }

        Assert.False(cache.IsLive(handle));
        KmemLease<long> second = cache.Lease();
        second.Dispose();
        second.Dispose();
        bool refused = false;
        try
        {
            second.Value = 1;
        }
        catch (ObjectDisposedException)
        {
            refused = true;
        }

        Assert.True(refused);
        Assert.Equal(0, cache.Outstanding);
    }

    [Fact]
    public void A_cache_that_is_disposed_with_objects_outstanding_reports_them_by_line()
    {
        var reports = new List<LeakReport>();
        using Machine machine = Boot(sites: true, reports.Add);
        KmemCache<long> cache = machine.CreateCache<long>("leaky");
        KmemHandle<long> handle = cache.Rent(1);
        cache.Dispose();
        cache.Dispose();
        LeakSite site = Assert.Single(Assert.Single(reports).Sites);
        Assert.Equal(("KmemCache<Int64> 'leaky'", 8L), (site.Source, site.Bytes));
        Assert.EndsWith("TypedCacheTests.cs", site.File, StringComparison.Ordinal);
        Assert.True(cache.IsDisposed);
        Assert.Throws<ObjectDisposedException>(() => cache[handle]);
        Assert.Throws<ObjectDisposedException>(() => cache.Rent(1));
        Assert.Throws<ObjectDisposedException>(() => cache.RentBulk(new KmemHandle<long>[2]));
        Assert.Equal(1, machine.Outstanding);
    }

    [Fact]
    public void A_cache_without_objects_is_destroyed_when_disposed()
    {
        using Machine machine = Boot();
        KmemCache<long> cache = machine.CreateCache<long>("gone");
        cache.Return(cache.Rent(1));
        cache.Dispose();
        Assert.DoesNotContain(machine.Caches, c => c.Name == "gone");
        Assert.DoesNotContain(machine.Floor.Sources, source => source.Name.Contains("gone", StringComparison.Ordinal));
    }

    [Fact]
    public void Threads_pass_objects_around_and_none_is_lost_or_mixed_up()
    {
        using Machine machine = Boot();
        using KmemCache<Node> nodes = machine.CreateCache<Node>("node");
        var slots = new KmemHandle<Node>[256];
        var locks = slots.Select(_ => new Lock()).ToArray();
        Thread[] threads = Enumerable.Range(0, 4).Select(seed => new Thread(() =>
        {
            var random = new Random(seed);
            for (int i = 0; i < 20_000; i++)
            {
                int at = random.Next(slots.Length);
                lock (locks[at])
                {
                    if (!slots[at].IsNull)
                    {
                        Assert.Equal(at, nodes[slots[at]].Key);
                        nodes.Return(slots[at]);
                    }

                    slots[at] = nodes.Rent(new Node { Key = at });
                }
            }
        })).ToArray();
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        nodes.ReturnBulk(slots.Where(handle => !handle.IsNull).ToArray());
        Assert.Equal((0, 0), (nodes.Outstanding, nodes.Cache.LiveCount));
        Assert.Empty(machine.Validate());
    }
}
