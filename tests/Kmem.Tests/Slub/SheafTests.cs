namespace Kmem.Tests;

/// <summary>Caches with sheaves: objects wait in per-CPU arrays and in the node's barn.</summary>
public sealed class SheafTests
{
    private const int Capacity = 32;

    [Fact]
    [Trait("rule", "SHEAF-01")]
    public unsafe void Objects_go_through_sheaves_and_none_is_lost()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });
        KmemCache cache = machine.CreateCache("node", 256, 256, sheafCapacity: Capacity);
        var random = new Random(7);
        var live = new List<nint>();
        for (int i = 0; i < 20_000; i++)
        {
            using CpuBinding cpu = machine.RunOn(random.Next(2));
            if (live.Count == 0 || random.Next(100) < 52)
            {
                var obj = (ulong*)cache.Alloc(random.Next(4) == 0 ? Gfp.NoWait : Gfp.Kernel);
                Assert.True(obj != null);
                *obj = (ulong)obj;
                live.Add((nint)obj);
            }
            else
            {
                int at = random.Next(live.Count);
                Assert.Equal((ulong)live[at], *(ulong*)live[at]);
                cache.Free((void*)live[at]);
                live[at] = live[^1];
                live.RemoveAt(live.Count - 1);
            }

            if (i % 2000 == 0)
                Assert.Empty(machine.Validate());
        }

        Assert.Equal(live.Count, cache.LiveCount);
        Assert.Equal(live.Count, live.Distinct().Count());
        cache.FreeBulk(live.ToArray());
        Assert.Empty(machine.Validate());
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void The_object_freed_last_comes_first_and_a_double_free_is_seen()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        KmemCache cache = machine.CreateCache("node", 256, 256, sheafCapacity: Capacity);
        void* first = cache.Alloc(Gfp.Kernel);
        void* second = cache.Alloc(Gfp.Kernel);
        cache.Free(first);
        cache.Free(second);

        Assert.Throws<KernelBugException>(() => cache.Free(first));
        Assert.True(cache.Alloc(Gfp.Kernel) == second);
        Assert.True(cache.Alloc(Gfp.Kernel) == first);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void What_kfree_rcu_puts_into_a_sheaf_is_reused_only_after_the_readers()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        KmemCache cache = machine.CreateCache("node", 256, 256, sheafCapacity: Capacity);
        var objects = new HashSet<nint>();
        for (int i = 0; i < Capacity; i++)
            objects.Add((nint)cache.Alloc(Gfp.Kernel));
        var others = new List<nint>();
        using (machine.RcuRead())
        {
            foreach (nint obj in objects)
                machine.KfreeRcu((void*)obj);
            for (int i = 0; i < 4 * Capacity; i++)
                others.Add((nint)cache.Alloc(Gfp.NoWait));
            Assert.DoesNotContain(others, objects.Contains);
        }

        machine.RcuBarrier();
        for (int i = 0; i < 8 * Capacity; i++)
            others.Add((nint)cache.Alloc(Gfp.Kernel));
        Assert.Contains(others, objects.Contains);
        cache.FreeBulk(others.ToArray());
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void A_prefilled_sheaf_cannot_fail()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        KmemCache cache = machine.CreateCache("node", 256, 256, sheafCapacity: Capacity);
        Sheaf* sheaf = cache.PrefillSheaf(Gfp.Kernel, 50);
        var objects = new HashSet<nint>();
        for (int i = 0; i < 50; i++)
            Assert.True(objects.Add((nint)cache.AllocFromPrefilled(Gfp.NoWait, sheaf)));
        Assert.True(cache.AllocFromPrefilled(Gfp.NoWait, sheaf) == null);
        cache.ReturnSheaf(Gfp.Kernel, sheaf);
        cache.FreeBulk(objects.ToArray());
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }
}
