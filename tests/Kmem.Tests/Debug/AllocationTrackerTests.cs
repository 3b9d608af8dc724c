using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>Leaks that are found and those that are none; who holds what, by source line, and block by block.</summary>
public sealed class AllocationTrackerTests : IDisposable
{
    private static readonly TimeSpan s_any = TimeSpan.Zero;
    private readonly Machine _machine;
    private readonly nint[] _root = GC.AllocateArray<nint>(4, pinned: true);

    public AllocationTrackerTests()
    {
        _machine = Boot(KernelProfile.Native);
        AddRoot(_machine);
    }

    public static TheoryData<string> Profiles => [.. KernelProfile.All.Select(profile => profile.Name)];

    public void Dispose() => _machine.Dispose();

    private static Machine Boot(KernelProfile profile, KfenceOptions? kfence = null, string? debug = null) =>
        Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 2,
            Profile = profile,
            TrackAllocations = true,
            DecaySeconds = 0,
            Kfence = kfence,
            SlubDebug = debug,
        });

    private unsafe void AddRoot(Machine machine) => machine.Allocations!.AddRoot(
        (void*)Marshal.UnsafeAddrOfPinnedArrayElement(_root, 0), (nuint)(_root.Length * sizeof(nint)));

    /// <summary>A node of 64 bytes whose first words point to others.</summary>
    private unsafe nint Node(params nint[] to)
    {
        var node = (nint*)_machine.Kzalloc(64, Gfp.Kernel);
        to.CopyTo(new Span<nint>(node, 8));
        return (nint)node;
    }

    private HashSet<nint> Leaks() => [.. _machine.ScanForLeaks(s_any).Select(leak => leak.Pointer)];

    [Fact]
    public void What_a_list_or_a_tree_holds_is_no_leak_and_what_was_cut_off_is()
    {
        nint third = Node();
        nint second = Node(third);
        nint first = Node(second);
        nint leaf = Node();
        nint tree = Node(Node(), Node(leaf), Node());
        _root[0] = first;
        _root[1] = tree + 24; // any place inside will do
        Assert.Empty(Leaks());

        unsafe
        {
            *(nint*)first = 0;
        }

        Assert.Equal([second, third], Leaks());
        _root[1] = 0;
        Assert.Equal(2 + 5, Leaks().Count);
        Assert.Contains(leaf, Leaks());
    }

    [Fact]
    public unsafe void A_cycle_that_nobody_reaches_is_found()
    {
        nint a = Node();
        nint b = Node(a);
        nint c = Node(b);
        *(nint*)a = c;
        _root[0] = b;
        Assert.Empty(Leaks());
        _root[0] = 0;
        Assert.Equal([a, b, c], Leaks());
    }

    [Fact]
    public unsafe void Large_blocks_and_areas_and_objects_of_caches_are_looked_at_too()
    {
        KmemCache cache = _machine.CreateCache("held", 200);
        var area = (nint*)_machine.Vzalloc(3 << 20);
        var large = (nint*)_machine.Kzalloc(100_000, Gfp.Kernel);
        var obj = (nint*)cache.Alloc(Gfp.Kernel | Gfp.Zero);
        nint last = Node();
        _root[0] = (nint)area;
        area[300_000] = (nint)large;
        large[12_000] = (nint)obj;
        obj[24] = last;
        Assert.Empty(Leaks());
        large[12_000] = 0;
        Assert.Equal([(nint)obj, last], Leaks());
        _root[0] = 0;
        Assert.Equal(4, Leaks().Count);
        _machine.Vfree(area);
        _machine.Kfree(large);
        cache.Free(obj);
        Assert.Equal([last], Leaks());
    }

    [Theory]
    [MemberData(nameof(Profiles))]
    public unsafe void What_the_allocators_hold_themselves_is_no_leak(string profile)
    {
        using Machine machine = Boot(KernelProfile.Find(profile)!);
        KmemCache sheaved = machine.CreateCache("sheaved", 64, sheafCapacity: 16);
        var objects = new nint[500];
        Assert.Equal(500, sheaved.AllocBulk(Gfp.Kernel, objects));
        sheaved.FreeBulk(objects);
        machine.Vfree(machine.Vmalloc(1 << 20));
        using KmemOwner<byte> owner = machine.Rent<byte>(100);
        using KmemOwner<byte> larger = machine.Rent<byte>(1 << 20);
        using KmemCache<long> typed = machine.CreateCache<long>("typed");
        KmemHandle<long> handle = typed.Rent();
        Assert.Empty(machine.ScanForLeaks(s_any));
        typed.Return(handle);
        Assert.Empty(machine.Validate());
        Assert.Equal("", machine.Dmesg.ToString());
    }

    [Fact]
    public unsafe void What_the_program_knows_better_is_believed()
    {
        nint child = Node();
        nint kept = Node(child);
        nint ignored = Node(Node());
        Assert.Equal(4, Leaks().Count);
        _machine.Allocations!.NotALeak((void*)kept);
        _machine.Allocations.Ignore((void*)ignored);
        Assert.Single(Leaks()); // what the ignored one refers to
        Assert.Throws<ArgumentException>(() => _machine.Allocations.Ignore((void*)(kept + 8)));
        Assert.True(_machine.Allocations.RemoveRoot((void*)Marshal.UnsafeAddrOfPinnedArrayElement(_root, 0)));
        Assert.False(_machine.Allocations.RemoveRoot((void*)kept));
    }

    [Fact]
    public unsafe void The_young_are_not_reported_and_those_that_change_are_in_use()
    {
        nint node = Node();
        Assert.Empty(_machine.ScanForLeaks());
        Assert.Empty(_machine.ScanForLeaks(TimeSpan.FromHours(1)));
        Assert.Equal([node], Leaks());
        *(nint*)node = 42;
        Assert.Empty(Leaks());
        Assert.Equal([node], Leaks());
    }

    [Fact]
    public unsafe void A_leak_is_reported_in_the_words_of_the_kernel()
    {
        nint leaked = Node();
        Encoding.ASCII.GetBytes("leaked").CopyTo(new Span<byte>((void*)leaked, 64));
        Leak leak = Assert.Single(_machine.ScanForLeaks(s_any));
        Assert.Equal(64, leak.Bytes);
        Assert.Equal("kmalloc-64", leak.Source);
        Assert.InRange(leak.Age, TimeSpan.Zero, TimeSpan.FromMinutes(5));
        Assert.Equal(Environment.CurrentManagedThreadId, leak.Thread);
        Assert.Matches(
            @"^unreferenced object 0xffff8880[0-9a-f]{8} \(size 64\):\n"
            + @"  comm ""dotnet"", pid \d+, jiffies \d+\n"
            + @"  hex dump \(first 32 bytes\):\n"
            + @"    6c 65 61 6b 65 64( 00){10}  leaked\.{10}\n"
            + @"    (00 ){16} \.{16}\n"
            + @"  backtrace \(crc [0-9a-f]+\):\n"
            + @"    Kmem\.Machine\.Kzalloc\+0x[0-9a-f]+\n    Kmem\.Tests\.AllocationTrackerTests\.Node\+0x",
            leak.ToString());
        Assert.EndsWith(
            "kmemleak: 1 new suspected memory leaks (see Machine.ScanForLeaks)\n", _machine.Dmesg.ToString());
    }

    [Theory]
    [InlineData(null, true)]
    [InlineData("FZPU", false)]
    public unsafe void It_goes_together_with_guarded_objects_and_slab_debugging(string? debug, bool guarded)
    {
        using Machine machine = Boot(
            KernelProfile.Linux618, guarded ? new KfenceOptions { EveryNth = 3 } : null, debug);
        AddRoot(machine);
        var objects = new List<nint>();
        for (int i = 0; i < 30; i++)
            objects.Add((nint)machine.Kzalloc(64, Gfp.Kernel));
        _root[0] = objects[0];
        for (int i = 0; i < 29; i++)
            *(nint*)objects[i] = objects[i + 1];
        Assert.Empty(machine.ScanForLeaks(s_any));
        *(nint*)objects[9] = 0;
        Assert.Equal(20, machine.ScanForLeaks(s_any).Count);
        foreach (nint obj in objects)
            machine.Kfree((void*)obj);
        Assert.Empty(machine.ScanForLeaks(s_any));
        Assert.Empty(machine.Validate());
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe nint Here(int size) => (nint)_machine.Kmalloc((nuint)size, Gfp.Kernel);

    [Fact]
    public unsafe void Who_holds_what_is_told_by_source_line()
    {
        nint[] mine = [Here(100), Here(100), Here(50_000)];
        AllocationTag[] tags = [.. _machine.Allocations!.Tags().Where(
            tag => tag.Site.EndsWith("func:Here", StringComparison.Ordinal))];
        Assert.Equal(
            [("kmalloc", 1L, 50_000L), ("kmalloc-112", 2, 200)],
            tags.Select(tag => (tag.Source, tag.Count, tag.Bytes)));
        Assert.All(tags, tag => Assert.Matches(@"^AllocationTrackerTests\.cs:\d+ func:Here$", tag.Site));
        string text = _machine.Allocations.AllocInfo();
        Assert.StartsWith("allocinfo - version: 1.0\n#     <size>  <calls> <tag info>\n", text);
        Assert.Matches(@"\n       50200        3 AllocationTrackerTests\.cs:\d+ func:Here\n", text);
        mine[1] = (nint)_machine.Krealloc((void*)mine[1], 105, Gfp.Kernel);
        Assert.Contains("       50205        3 ", _machine.Allocations.AllocInfo());
        foreach (nint p in mine)
            _machine.Kfree((void*)p);
        Assert.DoesNotContain("func:Here\n", _machine.Allocations.AllocInfo());
    }

    [Fact]
    public unsafe void Each_block_of_frames_has_an_owner()
    {
        long before = _machine.Allocations!.FramesInUse;
        Pfn block = _machine.AllocPages(Gfp.Kernel | Gfp.Zero, 3);
        string text = _machine.Allocations.PageOwner();
        Match entry = Regex.Match(
            text,
            @"Page allocated via order 3, mask 0xdc0\(GFP_KERNEL\|__GFP_ZERO\), "
            + @"pid \d+, tgid \d+ \(dotnet\), ts \d+ ns\n"
            + $@"PFN 0x{block.Value:x} type Unmovable Block {block.Value / 512} type \w+ Flags 0x[0-9a-f]+\n"
            + @" Kmem\.Machine\.AllocPages\+0x[0-9a-f]+\n Kmem\.Tests\.AllocationTrackerTests\.Each_block");
        Assert.True(entry.Success, text[..Math.Min(text.Length, 2000)]);
        Assert.Equal(before + 8, _machine.Allocations.FramesInUse);
        _machine.FreePages(block, 3);
        Assert.Equal(before, _machine.Allocations.FramesInUse);

        // A block whose rest was given back: five of eight frames are left.
        nuint exact = 5 * 4096;
        void* part = _machine.AllocPagesExact(exact, Gfp.Kernel);
        Assert.Equal(before + 5, _machine.Allocations.FramesInUse);
        _machine.FreePagesExact(part, exact);
        Assert.Equal(before, _machine.Allocations.FramesInUse);
    }

    [Fact]
    public void Frames_in_use_are_those_of_the_zones()
    {
        Assert.False(_machine.Options.Kfence != null);
        long used = _machine.NodeList.SelectMany(node => node.Zones).Sum(zone => (long)zone.Managed)
            - _machine.Pages.Zones.Sum(pages => pages.Zone.FreePagesExact + pages.PcpCount);
        Assert.Equal(used, _machine.Allocations!.FramesInUse);
        using Machine other = Machine.Boot(new MachineOptions { RamBytes = 64 << 20 });
        Assert.Null(other.Allocations);
        Assert.Throws<InvalidOperationException>(() => other.ScanForLeaks());
    }
}
