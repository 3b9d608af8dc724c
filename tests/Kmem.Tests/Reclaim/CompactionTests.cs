using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>
/// Pages move, their content and everything that points to it move with them, and large blocks come of it.
/// </summary>
public sealed class CompactionTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [Trait("rule", "COMPACT-01")]
    public void Moved_pages_keep_their_content_and_their_owners(int seed)
    {
        using Machine machine = Boot();
        var random = new Random(seed);
        using var owner = new MovableObjects(machine);
        owner.Fill(15_000);
        owner.FreeWhere(_ => random.Next(100) < 60);
        owner.Refuses = number => number % 17 == 0 ? Refusal.Isolate : number % 23 == 0 ? Refusal.Migrate : Refusal.None;
        machine.DrainAllPages();
        int before = LargestFree(machine, 9);
        Assert.True(ExtfragAt(machine, 9) > 500 || before > 0, "memory is not fragmented");

        CompactionReport report = machine.Compact();
        owner.Check();
        Assert.True(report.Moved > 1000, report.ToString());
        Assert.Equal(report.Moved, owner.Moves);
        Assert.True(report.Failed > 0);
        Assert.Equal(report.Failed, owner.PutBacks);
        Assert.Empty(machine.Validate());
        Assert.Equal((ulong)report.Moved, machine.Proc.ReadVmStat().Stats.Find("pgmigrate_success"));

        // Without those who refuse everything comes together.
        owner.Refuses = _ => Refusal.None;
        machine.Compact();
        owner.Check();
        int after = LargestFree(machine, 9);
        Assert.True(after >= before + 4, $"{before} blocks of 2 MiB before, {after} after");
        Assert.Equal(0, machine.Dmesg.TotalLines);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "COMPACT-02")]
    public void A_large_request_gets_its_block_by_compaction()
    {
        using Machine machine = Boot();
        using var owner = new MovableObjects(machine);
        owner.Fill(15_000);
        owner.FreeWhere(number => number % 2 == 0);
        machine.DrainAllPages();
        int there = LargestFree(machine, 6);
        List<Pfn> blocks = [];
        for (int i = 0; i < there + 40; i++)
        {
            Pfn block = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 6);
            Assert.True(block.IsValid, $"no block {i}: {machine.Proc.BuddyInfo()}");
            blocks.Add(block);
        }

        Assert.True(owner.Moves > 0);
        owner.Check();
        Assert.True(machine.Proc.ReadVmStat().Stats.Find("compact_success") > 0);
        Assert.True(machine.Proc.ReadVmStat().Stats.Find("compact_stall") > 0);

        // Who may not wait, or must do no I/O, does not move anything.
        long moves = owner.Moves;
        while (machine.AllocPages(Gfp.NoWait | Gfp.NoWarn, 6) is { IsValid: true } block)
            blocks.Add(block);
        machine.AllocPages(Gfp.NoIO | Gfp.NoWarn, 6);
        Assert.Equal(moves, owner.Moves);
        blocks.ForEach(block => machine.FreePages(block, 6));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "COMPACT-03")]
    public void Attempts_in_vain_are_left_out_twice_as_often_each_time()
    {
        var memory = new CompactMemory();
        memory.Reset(7);        // orders up to 7 have succeeded
        var attempts = new List<int>();
        for (int request = 0; request < 400; request++)
        {
            if (memory.IsDeferred(5))
                continue;
            attempts.Add(request);
            memory.Defer(5);
        }

        // 1, 3, 7 … 63 are left out between two attempts, and never more.
        Assert.Equal([0, 2, 6, 14, 30, 62, 126, 190, 254, 318, 382], attempts);
        Assert.False(memory.IsDeferred(4));
        memory.Reset(5);
        Assert.False(memory.IsDeferred(5));
        Assert.False(memory.IsDeferred(5));
    }

    [Fact]
    [Trait("rule", "COMPACT-04")]
    public void Offers_that_cannot_be_kept_are_refused()
    {
        using Machine machine = Boot();
        using var owner = new MovableObjects(machine);
        Pfn pair = machine.AllocPages(Gfp.Kernel, 1);
        Pfn shared = machine.AllocPage(Gfp.Kernel);
        machine.GetPage(shared);
        Assert.Throws<ArgumentException>(() => machine.SetMovable(pair, owner));
        Assert.Throws<ArgumentException>(() => machine.SetMovable(shared, owner));
        machine.FreePage(shared);
        machine.SetMovable(shared, owner);
        Assert.Throws<ArgumentException>(() => machine.SetMovable(shared, owner));
        KernelBugException error = Assert.Throws<KernelBugException>(() => machine.FreePage(shared));
        Assert.Contains("non-NULL mapping", error.Message, StringComparison.Ordinal);
        Assert.True(machine.ClearMovable(shared));
        Assert.Throws<KernelBugException>(() => machine.ClearMovable(shared));
    }

    [Fact]
    [Trait("rule", "COMPACT-01")]
    public void An_owner_that_throws_keeps_its_pages()
    {
        using Machine machine = Boot();
        using var owner = new MovableObjects(machine);
        owner.Fill(8000);
        owner.FreeWhere(number => number % 3 == 0);
        int calls = 0;
        owner.Refuses = _ => ++calls % 5 == 0 ? throw new InvalidOperationException("not now") : Refusal.None;
        machine.Compact();
        owner.Refuses = _ => Refusal.None;
        owner.Check();
        Assert.Contains(
            "WARNING: an owner of movable pages threw InvalidOperationException: not now",
            machine.Dmesg.Lines,
            StringComparer.Ordinal);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "COMPACT-01")]
    public void Swap_areas_move_and_threads_go_on()
    {
        using Machine machine = VmallocMachine.Boot(4, 64UL << 20);
        using SwapArea area = machine.CreateSwapAreaOn(96 << 20, new MemoryStore());
        int pages = (int)(area.Bytes / Pfn.PageSize);
        var versions = new int[pages];
        for (int page = 0; page < pages; page++)
            Write(area, page, versions[page] = page + 1);
        var crew = new Crew(2);
        long moved = 0;
        crew.Add(3, index =>
        {
            var random = new Random(index);
            while (crew.Working)
            {
                int page = (random.Next(pages / 3) * 3) + index;
                using (SwapPin pin = area.Pin((ulong)page * Pfn.PageSize, Pfn.PageSize, write: false))
                {
                    int version = versions[page];
                    Assert.False(
                        MemoryMarshal.Cast<byte, int>(pin.Span).ContainsAnyExcept(version), $"page {page} has changed");
                }

                Write(area, page, ++versions[page]);
            }
        });
        crew.Add(1, _ =>
        {
            while (crew.Working)
                moved += machine.Compact().Moved;
        });
        crew.Run();
        Assert.True(moved > 0);
        for (int page = 0; page < pages; page++)
        {
            using SwapPin pin = area.Pin((ulong)page * Pfn.PageSize, Pfn.PageSize, write: false);
            Assert.False(MemoryMarshal.Cast<byte, int>(pin.Span).ContainsAnyExcept(versions[page]), $"page {page}");
        }

        Assert.Empty(machine.Validate());
    }

    private static void Write(SwapArea area, int page, int version)
    {
        using SwapPin pin = area.Pin((ulong)page * Pfn.PageSize, Pfn.PageSize);
        MemoryMarshal.Cast<byte, int>(pin.Span).Fill(version);
    }

    private static int LargestFree(Machine machine, int order) => (int)machine.Pages.Zones.Sum(
        zone => Enumerable.Range(order, PageOrder.Count - order).Sum(o => zone.Buddy.NrFree(o) << (o - order)));

    private static int ExtfragAt(Machine machine, int order) => machine.Pages.Zones.Max(
        zone => Fragmentation.ExtfragIndex(zone.Buddy.NrFree, order));

    private static Machine Boot() => Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Linux618,
        RamBytes = 64UL << 20,
        Cpus = 1,
    });
}

/// <summary>What an owner answers about one of its objects.</summary>
internal enum Refusal
{
    None,
    Isolate,
    Migrate,
}

/// <summary>
/// Objects of a page each, which users know by a number; where they are is in a table that a move changes. Each page is
/// filled with its number.
/// </summary>
internal sealed class MovableObjects(Machine machine) : IMovablePages, IDisposable
{
    private readonly Lock _gate = new();
    private readonly Dictionary<int, Pfn> _where = [];
    private readonly Dictionary<ulong, int> _at = [];
    private readonly HashSet<int> _isolated = [];
    private int _next;

    public Func<int, Refusal> Refuses { get; set; } = _ => Refusal.None;

    public Pfn First => _where.Values.First();

    public long Moves { get; private set; }

    public long PutBacks { get; private set; }

    public void Fill(int count)
    {
        for (int i = 0; i < count; i++)
        {
            Pfn frame = machine.AllocPage(Gfp.Kernel | Gfp.Movable | Gfp.NoWarn);
            if (!frame.IsValid)
                return;
            int number = ++_next;
            Content(frame).Fill(number);
            lock (_gate)
            {
                _where[number] = frame;
                _at[frame.Value] = number;
            }

            machine.SetMovable(frame, this);
        }
    }

    public void FreeWhere(Func<int, bool> chosen)
    {
        foreach (int number in _where.Keys.Where(chosen).ToArray())
        {
            Pfn frame = _where[number];
            Assert.True(machine.ClearMovable(frame));
            _where.Remove(number);
            _at.Remove(frame.Value);
            machine.FreePage(frame);
        }
    }

    public void Check()
    {
        Assert.Empty(_isolated);
        Assert.Equal(_where.Count, _at.Count);
        foreach ((int number, Pfn frame) in _where)
        {
            Assert.Equal(number, _at[frame.Value]);
            Assert.False(Content(frame).ContainsAnyExcept(number), $"object {number} in frame {frame} has changed");
        }
    }

    public bool Isolate(Pfn page)
    {
        lock (_gate)
        {
            int number = _at[page.Value];
            return Refuses(number) != Refusal.Isolate && _isolated.Add(number);
        }
    }

    public bool Migrate(Pfn from, Pfn to)
    {
        lock (_gate)
        {
            int number = _at[from.Value];
            Assert.Contains(number, _isolated);
            if (Refuses(number) == Refusal.Migrate)
                return false;
            Content(from).CopyTo(Content(to));
            Content(from).Fill(-1);
            _at.Remove(from.Value);
            _at.Add(to.Value, number);
            _where[number] = to;
            _isolated.Remove(number);
            Moves++;
            return true;
        }
    }

    public void PutBack(Pfn page)
    {
        lock (_gate)
        {
            Assert.True(_isolated.Remove(_at[page.Value]));
            PutBacks++;
        }
    }

    public void Dispose()
    {
        Check();
        FreeWhere(_ => true);
    }

    private unsafe Span<int> Content(Pfn frame) => new(machine.AddressOf(frame), Pfn.PageSize / sizeof(int));
}
