using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>
/// What must not be done, at all kinds of sizes: each time a <see cref="KernelBugException"/> whose first line says
/// what happened, the same in the log, nothing broken, and the machine goes on.
/// </summary>
public abstract class MisuseChecks : IDisposable
{
    private static readonly byte[] s_static = GC.AllocateArray<byte>(64, pinned: true);
    private readonly Machine _machine;
    private readonly int _largestObject;

    protected MisuseChecks(KernelProfile profile, string? debug = null)
    {
        _machine = Machine.Boot(new MachineOptions { Profile = profile, RamBytes = 128 << 20, Cpus = 2, SlubDebug = debug });
        _largestObject = profile.SheavesEverywhere ? 32768 : 8192;
    }

    protected Machine Booted => _machine;

    public static TheoryData<int> Sizes => [8, 64, 96, 192, 1024, 4096, 8192, 3 * 4096, 32768, 9 * 4096, 1 << 20];

    public void Dispose()
    {
        _machine.Dispose();
        GC.SuppressFinalize(this);
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_twice_at_once(int size)
    {
        nint p = Alloc(size);
        Free(p);
        Refused(() => Free(p), Twice(size));
        Refused(() => Free(p), Twice(size));
        Refused(() => FreeAs("bulk", p), Twice(size));
        Refused(() => FreeAs("sensitive", p), Twice(size));
        Refused(() => FreeAs("rcu", p), Twice(size));
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_twice_with_much_in_between(int size)
    {
        nint p = Alloc(size);
        nint keep = Alloc(size);
        Free(p);

        // Others come and go, but none gets this place: a neighbour of another size class.
        int other = size == 64 ? 128 : 64;
        for (int i = 0; i < 1024; i++)
            Free(Alloc(other));
        Refused(() => Free(p), Twice(size));
        Free(keep);
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_a_b_a(int size)
    {
        nint a = Alloc(size);
        nint b = Alloc(size);
        Free(a);
        Free(b);
        Refused(() => Free(a), Twice(size));
        Refused(() => Free(b), Twice(size));
        nint[] again = [Alloc(size), Alloc(size), Alloc(size)];
        Assert.Equal(3, again.Distinct().Count());
        foreach (nint p in again)
            Free(p);
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_twice_in_one_bulk(int size)
    {
        nint a = Alloc(size);
        nint b = Alloc(size);
        Refused(() => _machine.KfreeBulk([a, b, a]), Twice(size));

        // Whatever of it was freed, nothing is lost and nothing freed twice.
        foreach (nint p in (nint[])[a, b])
        {
            if (IsLive(p))
                Free(p);
        }

        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_twice_from_two_threads(int size)
    {
        nint p = Alloc(size);
        var first = new Thread(() => Free(p));
        first.Start();
        first.Join();
        Refused(() => Free(p), Twice(size));

        nint q = Alloc(size);
        Free(q);
        Exception? caught = null;
        var second = new Thread(() => caught = Record.Exception(() => Free(q)));
        second.Start();
        second.Join();
        Assert.IsType<KernelBugException>(caught);
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_what_is_inside_a_block(int size)
    {
        nint p = Alloc(size);
        nint slot = (nint)Ksize(p);
        bool isSlab = IsInSlab(p);
        Assert.Equal(size <= _largestObject, isSlab);
        var offsets = new HashSet<nint> { 1, 4, 7, 8, slot / 2, slot - 1 };
        if (size > 4096)
        {
            offsets.Add(4096);          // a tail page, or a place where objects of other slabs begin
            offsets.Add(4097);
            offsets.Add(slot - 4096);
        }

        offsets.Remove(0);
        offsets.RemoveWhere(offset => offset >= slot);
        foreach (nint offset in offsets)
        {
            string what = isSlab ? "Invalid object pointer" : "inside a large kmalloc block";
            Refused(() => Free(p + offset), what);
            Refused(() => FreeAs("bulk", p + offset), what);
        }

        Assert.True(IsLive(p));
        Free(p);
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Freeing_next_to_a_block(int size)
    {
        nint p = Alloc(size);
        nint slot = (nint)Ksize(p);
        foreach (nint beside in (nint[])[p - 8, p - 1, p + slot, p - slot, p - 4096, p + Math.Max(slot, 4096)])
        {
            if (!IsLive(beside))
                Refused(() => Free(beside), "BUG");
        }

        Free(p);
    }

    [Fact]
    public unsafe void Freeing_what_never_came_from_here()
    {
        int local = 0;
        int* stack = &local;
        void* native = NativeMemory.Alloc(100);
        void* pinned = (void*)Marshal.UnsafeAddrOfPinnedArrayElement(s_static, 0);
        using var other = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        void* theirs = other.Kmalloc(100, Gfp.Kernel);
        nint[] foreign =
        [
            (nint)stack, (nint)native, (nint)pinned, (nint)theirs, 17, 4096, -1, nint.MaxValue, nint.MinValue,
            (nint)_machine.Map.RamBase - 1, (nint)_machine.Map.RamBase + (nint)(_machine.Map.EndPfn << 12),
            unchecked((nint)0xffff_8880_0000_1000),
        ];
        foreach (nint p in foreign)
        {
            Refused(() => Free(p), "not memory of this machine");
            Refused(() => FreeAs("bulk", p), "not memory of this machine");
            Refused(() => FreeAs("sensitive", p), "not memory of this machine");
            Refused(() => FreeAs("rcu", p), "not memory of this machine");
            Refused(() => FreeAs("cache", p), "not memory of this machine");
        }

        NativeMemory.Free(native);
        other.Kfree(theirs);
        Assert.Empty(other.Validate());
    }

    [Fact]
    public unsafe void Freeing_memory_that_nobody_has()
    {
        // The first page, a reserved one, a free block, the last page.
        foreach (ulong pfn in (ulong[])[0, 1, 0xa0, 0x2000, _machine.Map.EndPfn - 1])
        {
            var p = (nint)(_machine.Map.RamBase + (pfn << 12));
            Refused(() => Free(p), "Not a kmalloc allocation");
            Refused(() => Free(p + 64), "Not a kmalloc allocation");
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(3)]
    public unsafe void Freeing_pages_with_kfree_and_blocks_with_free_pages(int order)
    {
        Pfn pages = _machine.AllocPages(Gfp.Kernel, order);
        var address = (nint)_machine.AddressOf(pages);
        Refused(() => Free(address), "use free_pages");
        Pfn compound = _machine.AllocPages(Gfp.Kernel | Gfp.Comp, order);
        Refused(() => Free((nint)_machine.AddressOf(compound)), "use free_pages");
        if (order > 0)
            Refused(() => Free((nint)_machine.AddressOf(compound) + 4096), "use free_pages");
        _machine.FreePages(pages, order);
        _machine.FreePages(compound, order);

        nint small = Alloc(8192);
        var slab = new Pfn(_machine.PfnOf((void*)small).Value & ~7UL);
        Refused(() => _machine.FreePages(slab, 3), "Slab");
        nint large = Alloc(16 * 4096);
        Refused(() => _machine.FreePages(_machine.PfnOf((void*)large), 4), "LargeKmalloc");
        Free(small);
        Free(large);
    }

    private string Twice(int size) =>
        size > _largestObject ? "BUG" : "Object already free"; // the pages of a large block may be a slab by now

    protected unsafe nint Alloc(int size)
    {
        var p = (nint)_machine.Kmalloc((nuint)size, Gfp.Kernel);
        Assert.NotEqual(0, p);
        return p;
    }

    protected unsafe void Free(nint p) => _machine.Kfree((void*)p);

    protected unsafe void FreeAs(string way, nint p)
    {
        switch (way)
        {
            case "bulk": _machine.KfreeBulk([p]); break;
            case "sensitive": _machine.KfreeSensitive((void*)p); break;
            case "rcu": _machine.KfreeRcu((void*)p); break;
            default: _machine.Caches[0].Free((void*)p); break;
        }
    }

    protected unsafe nuint Ksize(nint p) => _machine.Ksize((void*)p);

    protected unsafe bool IsInSlab(nint p) => _machine.Slabs.SlabOf((void*)p) != null;

    protected unsafe bool IsLive(nint p)
    {
        Page* slab = _machine.Slabs.SlabOf((void*)p);
        return slab != null
            ? _machine.Slabs.CacheOf(slab) is { IsPrivate: false } cache && cache.IsLive((void*)p)
            : _machine.Slabs.LargeBlockAt((void*)p) != null;
    }

    protected void Refused(Action misuse, string what)
    {
        _machine.Dmesg.Clear();
        var error = Assert.Throws<KernelBugException>(misuse);
        string report = error.Message;
        Assert.Contains(what, report);
        string[] lines = report.Split('\n');
        Assert.Equal(lines, _machine.Dmesg.Lines.TakeLast(lines.Length).ToArray());
        string summary = report.Split('\n').First(line => !line.StartsWith('='));
        Assert.StartsWith("BUG", summary);
        Assert.True(summary.Length > 20, summary);
        Assert.Empty(_machine.Validate());
        nint[] live = [Alloc(8), Alloc(64), Alloc(1024), Alloc(8192), Alloc(3 * 4096), Alloc(9 * 4096)];
        Assert.Equal(6, live.Distinct().Count());
        foreach (nint p in live)
            Free(p);
    }
}

/// <summary>The same with the kernel's rules and without debugging: reports of a few lines.</summary>
public sealed class MisuseTests() : MisuseChecks(KernelProfile.Linux618)
{
    [Fact]
    public unsafe void An_object_of_another_cache_goes_home_with_a_warning()
    {
        KmemCache a = Booted.CreateCache("cache-a", 100, 0, SlabFlags.NoMerge);
        KmemCache b = Booted.CreateCache("cache-b", 300, 0, SlabFlags.NoMerge);
        var obj = (nint)b.Alloc(Gfp.Kernel);
        nint general = Alloc(100);
        a.Free((void*)obj);
        string warning = Assert.Single(Booted.Dmesg.Lines);
        Assert.Contains("Wrong slab cache. cache-a but object is from cache-b", warning);
        Assert.Equal(0, b.LiveCount);
        a.FreeBulk([general]);
        Assert.Contains("cache-a but object is from kmalloc-128", Booted.Dmesg.Lines[1]);
        Assert.False(IsLive(general));
        Refused(() => a.Free((void*)obj), "Object already free");
        Refused(() => b.Free((void*)(obj + 8)), "Invalid object pointer");
        nint large = Alloc(20000);
        Refused(() => a.Free((void*)large), "kmem_cache_free(cache-a)");
        Assert.True(IsLive(large));
        Free(large);
        a.Destroy();
        b.Destroy();
    }

    [Fact]
    public unsafe void The_report_names_cache_object_and_place()
    {
        KmemCache cache = Booted.CreateCache("named", 100, 0, SlabFlags.NoMerge);
        cache.Alloc(Gfp.Kernel);
        var obj = (nint)cache.Alloc(Gfp.Kernel);
        var error = Assert.Throws<KernelBugException>(() => cache.Free((void*)(obj + 12)));
        string[] lines = error.Message.Split('\n');
        Assert.Equal("BUG named (Not tainted): Invalid object pointer: 12 bytes into the allocated object "
            + $"0x{Booted.KernelAddressOf((void*)obj).Value:x16}", lines[1]);
        Assert.Contains("objects=39 used=2", lines[3]); // 39 slots of 104 bytes in a page
        Assert.Contains("@offset=116", lines[4]);
        Assert.Equal(lines, Booted.Dmesg.Lines);
        nint behind = (obj & ~4095) + (39 * 104);
        Refused(() => cache.Free((void*)behind), "behind the last object");
    }

    [Theory]
    [InlineData("random")]
    [InlineData("hardened")]
    [InlineData("two nodes")]
    public unsafe void Hardened_and_other_machines_refuse_the_same(string kind)
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = 64 << 20,
            Cpus = 2,
            Nodes = kind == "two nodes" ? 2 : 1,
            SlabFreelistRandom = kind == "random",
            SlabFreelistHardened = kind == "hardened",
        });
        foreach (int size in (int[])[8, 64, 96, 192, 1024, 4096, 8192, 3 * 4096, 1 << 20])
        {
            var p = (byte*)machine.Kmalloc((nuint)size, Gfp.Kernel);
            Assert.Throws<KernelBugException>(() => machine.Kfree(p + 1));
            Assert.Throws<KernelBugException>(() => machine.Kfree(p + (size / 2)));
            machine.Kfree(p);
            Assert.Throws<KernelBugException>(() => machine.Kfree(p));
            Assert.Empty(machine.Validate());
        }
    }
}

/// <summary>The same in the default setting, where every cache has sheaves.</summary>
public sealed class NativeMisuseTests() : MisuseChecks(KernelProfile.Native);

/// <summary>The same with slab debugging on all caches.</summary>
public sealed class DebuggedMisuseTests() : MisuseChecks(KernelProfile.Linux618, "FZPU");

/// <summary>The same with slab debugging on all caches of the default setting, and no record of users.</summary>
public sealed class DebuggedNativeMisuseTests() : MisuseChecks(KernelProfile.Native, "FZP");
