using System.Buffers.Binary;

namespace Kmem.Tests;

/// <summary>
/// Random order of new slabs, encoded free pointers, and what happens when somebody writes to a free object.
/// </summary>
public sealed class FreelistTests
{
    [Theory]
    [InlineData(64)]
    [InlineData(1000)]
    [InlineData(8192)]
    public void Random_order_is_a_permutation_walked_from_a_random_place(int size)
    {
        using Machine machine = Boot(random: true);
        KmemCache cache = machine.CreateCache("r", size, 0, SlabFlags.NoMerge);
        int n = cache.Geometry.ObjectsPerSlab;
        var starts = new HashSet<int>();
        int[]? cycle = null;
        for (int slab = 0; slab < 12; slab++)
        {
            nint[] objects = Alloc(cache, n);
            nint first = objects.Min();
            int[] order = objects.Select(obj => (int)((obj - first) / cache.SlotSize)).ToArray();
            Assert.Equal(Enumerable.Range(0, n), order.Order());
            starts.Add(order[0]);

            // Every slab of a cache has the same cycle, entered somewhere else.
            int zero = Array.IndexOf(order, 0);
            int[] rotated = [.. order[zero..], .. order[..zero]];
            cycle ??= rotated;
            Assert.Equal(cycle, rotated);
        }

        Assert.True(starts.Count > 1, "every slab starts at the same object");
        Assert.True(n < 8 || !cycle!.SequenceEqual(Enumerable.Range(0, n)), "the order is not random at all");
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void The_seed_decides_the_order()
    {
        static nint[] Order(ulong seed)
        {
            using Machine machine = Boot(random: true, seed: seed);
            nint[] objects = Alloc(machine.CreateCache("r", 64, 0, SlabFlags.NoMerge), 64);
            nint first = objects.Min();
            return objects.Select(obj => obj - first).ToArray();
        }

        nint[] one = Order(1);
        Assert.Equal(one, Order(1));
        Assert.NotEqual(one, Order(2));
        Assert.NotEqual(Order(4), Order(5)); // neighbours, too
    }

    [Fact]
    public void Two_caches_of_one_machine_have_different_orders()
    {
        using Machine machine = Boot(random: true);
        nint[][] orders = Enumerable.Range(0, 2).Select(i =>
        {
            nint[] objects = Alloc(machine.CreateCache($"r{i}", 64, 0, SlabFlags.NoMerge), 64);
            nint first = objects.Min();
            return objects.Select(obj => obj - first).ToArray();
        }).ToArray();
        Assert.NotEqual(orders[0], orders[1]);
    }

    [Fact]
    public unsafe void A_smaller_slab_leaves_out_what_it_does_not_have()
    {
        using Machine machine = Boot(random: true);
        KmemCache cache = machine.CreateCache("r", 1024, 0, SlabFlags.NoMerge);
        var pages = new List<Pfn>();
        for (Pfn page; (page = machine.AllocPages(Gfp.Kernel | Gfp.MemAlloc | Gfp.NoWarn, 0)).IsValid;)
            pages.Add(page);
        foreach (Pfn page in pages.Where(page => page.Value % 2 == 1))
            machine.FreePage(page);
        machine.DrainAllPages();
        nint[] objects = Alloc(cache, 4);
        nint start = objects.Min();
        Assert.Equal(4, cache.TotalObjects);
        Assert.Equal([0, 1024, 2048, 3072], objects.Select(obj => obj - start).Order());
        Assert.Equal(0, start & 4095);
    }

    [Fact]
    public unsafe void Plain_free_pointers_can_be_read_and_hardened_ones_cannot()
    {
        foreach (bool hardened in (bool[])[false, true])
        {
            using Machine machine = Boot(hardened: hardened);
            KmemCache cache = machine.CreateCache("h", 256, 0, SlabFlags.NoMerge);
            nint[] objects = Alloc(cache, 3);
            cache.Free((void*)objects[0]);
            cache.Free((void*)objects[1]);
            ulong* word = (ulong*)(objects[1] + cache.Geometry.FreePointerOffset);
            Assert.Equal(128, cache.Geometry.FreePointerOffset);
            Assert.Equal(!hardened, *word == (ulong)objects[0]);
            if (!hardened)
                continue;

            // secret = stored ^ pointer ^ byte-swapped address: the same for every object of the cache, other for
            // others.
            ulong secret = *word ^ (ulong)objects[0] ^ BinaryPrimitives.ReverseEndianness((ulong)word);
            ulong* other = (ulong*)(objects[0] + 128);
            nint next = SlabView.Freelist(cache, 0)[2];
            Assert.Equal(secret, *other ^ (ulong)next ^ BinaryPrimitives.ReverseEndianness((ulong)other));
            Assert.NotEqual(0UL, secret);
            KmemCache second = machine.CreateCache("h2", 256, 0, SlabFlags.NoMerge);
            nint[] more = Alloc(second, 2);
            second.Free((void*)more[0]);
            second.Free((void*)more[1]);
            ulong* third = (ulong*)(more[1] + 128);
            Assert.NotEqual(secret, *third ^ (ulong)more[0] ^ BinaryPrimitives.ReverseEndianness((ulong)third));
        }
    }

    [Theory]
    [InlineData(false, 0x4141_4141_4141_4141UL)]
    [InlineData(false, 1UL)]
    [InlineData(false, 0xffff_ffff_ffff_ffffUL)]
    [InlineData(true, 0x4141_4141_4141_4141UL)]
    [InlineData(true, 0UL)]
    public unsafe void A_write_to_a_free_object_is_reported_and_the_machine_goes_on(bool hardened, ulong garbage)
    {
        using Machine machine = Boot(hardened: hardened);
        foreach (int way in (int[])[0, 1, 2, 3])
        {
            KmemCache cache = machine.CreateCache("victim", 256, 0, SlabFlags.NoMerge);
            nint[] objects = Alloc(cache, 40);
            cache.Free((void*)objects[33]); // in the current slab (16 objects each, on 1 CPU)
            if (way == 3)
                cache.FlushAll();
            *(ulong*)(objects[33] + cache.Geometry.FreePointerOffset) = garbage;
            int lines = machine.Dmesg.Lines.Count;
            switch (way)
            {
                case 0:
                case 3:
                    Assert.Throws<KernelBugException>(() => { cache.Alloc(Gfp.Kernel); });
                    break;
                case 1:
                    var bulk = new nint[8];
                    Assert.Throws<KernelBugException>(() => cache.AllocBulk(Gfp.Kernel, bulk));
                    break;
                default:
                    cache.Shrink(); // nobody to throw at: only the log knows
                    break;
            }

            string report = string.Join('\n', machine.Dmesg.Lines.Skip(lines));
            Assert.Contains("BUG victim: Freepointer corrupt", report);
            Assert.Contains($"0x{machine.KernelAddressOf((void*)objects[33]).Value:x16}", report);

            Assert.Empty(machine.Validate());
            nint[] more = Alloc(cache, 100);
            Assert.DoesNotContain(objects[0], more);
            Assert.Equal(100, more.Distinct().Count());
            foreach (nint obj in more)
                cache.Free((void*)obj);
            foreach (nint obj in objects.Where(obj => obj != objects[33]))
                cache.Free((void*)obj);
            cache.Shrink();
            Assert.Empty(machine.Validate());
            Assert.Equal(1, cache.SlabCount); // the one that lost objects; nobody else suffers
            Assert.Throws<KernelBugException>(cache.Destroy);
        }

        machine.Kfree(machine.Kmalloc(256, Gfp.Kernel));
    }

    private static Machine Boot(bool random = false, bool hardened = false, ulong seed = 1) =>
        Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = 64 << 20,
            Cpus = 1,
            Seed = seed,
            SlabFreelistRandom = random,
            SlabFreelistHardened = hardened,
        });

    private static unsafe nint[] Alloc(KmemCache cache, int count)
    {
        var objects = new nint[count];
        for (int i = 0; i < count; i++)
            objects[i] = (nint)cache.Alloc(Gfp.Kernel);
        return objects;
    }
}
