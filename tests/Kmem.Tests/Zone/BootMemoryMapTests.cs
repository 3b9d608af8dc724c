using CsCheck;

namespace Kmem.Tests;

/// <summary>The boot memory map: ready-made maps, maps read from texts, nodes, and a bitmap as the model.</summary>
public sealed class BootMemoryMapTests
{
    private const ulong KiB = 1UL << 10, MiB = 1UL << 20, GiB = 1UL << 30;

    [Fact]
    public void A_pc_of_512_MiB_has_the_zone_sizes_of_the_recorded_one()
    {
        // Recorded with 512 MiB: zone DMA spans 4095 pages from pfn 1, has 3998 present and 3840 managed.
        BootMemoryMap map = BootMemoryMap.ForRam(512 * MiB);
        ZoneInfoText recorded = ZoneInfoText.Parse(ProcTexts.Read("proc-boot-slab-t0", "/proc/zoneinfo"));
        ZoneInfoRecord dma = recorded.Zones[0];
        Assert.Equal(dma.StartPfn, map.PresentPages().First().Start);
        Assert.Equal(dma.Present, map.CountPresent(dma.StartPfn, 4096));
        Assert.Equal(dma.Spanned - dma.Present, map.CountHoles(dma.StartPfn, 4096));
        Assert.Equal(dma.Managed, Sum(map.FreePages(), 0, 4096));
        Assert.Equal([new BootPages(256, 512 * MiB >> 12, 0)], map.FreePages());
        Assert.Equal(512 * MiB >> 12, map.EndPfn);
    }

    [Theory]
    [InlineData(4096UL)]
    [InlineData(8 * 4096UL)]
    [InlineData(1 << 20)]
    [InlineData(12 << 20)]
    public void A_small_machine_has_all_its_ram_free_in_one_aligned_piece(ulong ram)
    {
        BootMemoryMap map = BootMemoryMap.ForRam(ram);
        Assert.Equal([new BootPages(1024, 1024 + (ram >> 12), 0)], map.FreePages());
        Assert.True(map.EndPfn <= 4096, "the DMA zone ends at 16 MiB");
    }

    [Fact]
    public void Ram_beyond_3_GiB_lies_above_4_GiB()
    {
        BootMemoryMap map = BootMemoryMap.ForRam(8 * GiB);
        BootRegion[] memory =
        [
            new(4 * KiB, 0x9fc00, 0), new(MiB, 3 * GiB, 0), new(4 * GiB, 9 * GiB, 0),
        ];
        Assert.Equal(memory, map.Memory);
        Assert.Equal([new BootRegion(0, MiB, 0)], map.Reserved);
        Assert.Equal(memory[1..], map.FreeRanges());
        Assert.False(map.IsMemory(3 * GiB));
        Assert.True(map.IsMemory(4 * GiB));
        Assert.Equal((1, -1, 0), (map.NodeCount, map.NodeOfPage(0), map.NodeOfPage(9 * GiB / 4096 - 1)));
        Assert.Equal(-1, map.NodeOfPage(0x9f));         // only part of this page is memory
        Assert.Equal(-1, map.NodeOfPage(ulong.MaxValue));
    }

    [Fact]
    public void Impossible_ram_sizes_are_refused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => BootMemoryMap.ForRam(4095));
        Assert.Throws<ArgumentOutOfRangeException>(() => BootMemoryMap.ForRam(1UL << 52));
        Assert.Equal((1UL << 52) - MiB, BootMemoryMap.ForRam((1UL << 52) - GiB - MiB).Memory[^1].End);
    }

    [Fact]
    public void Memory_is_split_evenly_at_pageblocks()
    {
        BootMemoryMap map = BootMemoryMap.ForRam(8 * GiB, nodes: 4);
        Assert.Equal(4, map.NodeCount);
        ulong all = 0;
        for (int node = 0; node < 4; node++)
        {
            ulong bytes = 0;
            foreach (BootRegion region in map.Memory)
            {
                if (region.Node == node) bytes += region.Length;
            }
            Assert.InRange(bytes, (2 * GiB) - (2 * MiB), (2 * GiB) + (2 * MiB));
            all += bytes;
        }
        Assert.Equal(map.MemoryBytes, all);
        for (int i = 1; i < map.Memory.Count; i++)
        {
            if (map.Memory[i].Node != map.Memory[i - 1].Node && map.Memory[i].Start == map.Memory[i - 1].End)
                Assert.Equal(0UL, map.Memory[i].Start % (2 * MiB));
        }
    }

    [Fact]
    public void Nodes_border_on_pageblocks_and_none_is_empty()
    {
        BootMemoryMap map = BootMemoryMap.ForRam(64 * MiB);
        ArgumentException error = Assert.Throws<ArgumentException>(() => map.SplitIntoNodesAt(33 * MiB));
        Assert.Contains("0x2100000 is no multiple of 2 MiB", error.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => map.SplitIntoNodesAt(64 * MiB));
        Assert.Throws<ArgumentException>(() => map.SplitIntoNodesAt(32 * MiB, 16 * MiB));
        Assert.Throws<ArgumentException>(() => map.SplitIntoNodesAt(0));
        Assert.Throws<ArgumentException>(() => map.SplitIntoNodes(33));
        Assert.Throws<ArgumentException>(() => new BootMemoryMap().SplitIntoNodes(2));
        Assert.Equal(1, map.NodeCount);

        map.SplitIntoNodesAt(32 * MiB);
        Assert.Equal((0, 1), (map.NodeOfPage(32 * MiB / 4096 - 1), map.NodeOfPage(32 * MiB / 4096)));
        map.SplitIntoNodesAt();
        Assert.Equal(1, map.NodeCount);
    }

    [Fact]
    public void Memory_of_two_nodes_never_shares_a_pageblock()
    {
        var map = new BootMemoryMap();
        map.AddMemory(0, 3 * MiB);
        ArgumentException error = Assert.Throws<ArgumentException>(() => map.AddMemory(3 * MiB, 8 * MiB, 1));
        Assert.Contains("multiples of 2 MiB", error.Message, StringComparison.Ordinal);
        Assert.Equal([new BootRegion(0, 3 * MiB, 0)], map.Memory);
        map.AddMemory(4 * MiB, 8 * MiB, 1);
        Assert.Equal(2, map.NodeCount);
    }

    [Fact]
    public void Iomem_gives_memory_and_what_the_kernel_occupies()
    {
        const string Text =
            "00000000-00000fff : Reserved\n" +
            "00001000-0009fbff : System RAM\n" +
            "0009fc00-000fffff : Reserved\n" +
            "  000a0000-000bffff : PCI Bus 0000:00\n" +
            "00100000-bfffffff : System RAM\n" +
            "  01000000-02209987 : Kernel code\n" +
            "  02400000-02e09fff : Kernel rodata\n" +
            "  03000000-0327c0ff : Kernel data\n" +
            "  03b34000-03c57fff : Kernel bss\n" +
            "  a0000000-afffffff : Crash kernel\n" +
            "c0000000-febfffff : PCI Bus 0000:00\n" +
            "  c0000000-c0ffffff : 0000:00:02.0\n" +
            "    c0000000-c0ffffff : System RAM\n" +
            "100000000-1ffffffff : System RAM\n";
        BootMemoryMap map = BootMemoryMap.ParseIomem(Text);
        Assert.Equal(
            [new(0x1000, 0x9fc00, 0), new(MiB, 3 * GiB, 0), new BootRegion(4 * GiB, 8 * GiB, 0)], map.Memory);
        BootPages[] free =
        [
            new(1, 0x9f, 0), new(0x100, 0x1000, 0), new(0x220a, 0x2400, 0), new(0x2e0a, 0x3000, 0),
            new(0x327d, 0x3b34, 0), new(0x3c58, 0xa0000, 0), new(0xb0000, 0xc0000, 0), new(0x100000, 0x200000, 0),
        ];
        Assert.Equal(free, map.FreePages());
        Assert.True(map.IsReserved(0x2209987));
        Assert.False(map.IsReserved(0x2209988));
    }

    [Theory]
    [InlineData("00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n", 1, "read the file as root")]
    [InlineData("", 1, "empty")]
    [InlineData("00100000-001fffff : PCI Bus 0000:00\n", 2, "no \"System RAM\"")]
    [InlineData("00100000-000fffff : System RAM\n", 1, "ends before it starts")]
    [InlineData("00000000-00100000 System RAM\n", 1, "\":\" expected")]
    [InlineData("00001000-00001fff : System RAM\n    00001000-00001fff : Kernel code\n", 2, "indented")]
    [InlineData(" 00001000-00001fff : System RAM\n", 1, "indented")]
    [InlineData("00001000-ffffffffffffffff : System RAM\n", 1, "52 address bits")]
    [InlineData("00001000-1ffffffffffffffff : System RAM\n", 1, "exceeds 64 bits")]
    public void Broken_iomem_is_refused(string text, int line, string rule)
    {
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => BootMemoryMap.ParseIomem(text));
        Assert.Equal(line, error.LineNumber);
        Assert.Contains(rule, error.Rule, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[    0.000000] ")]
    [InlineData("Jan  1 00:00:00 host kernel: ")]
    public void E820_lines_are_found_in_a_boot_log(string prefix)
    {
        string text = string.Join('\n',
            prefix + "Command line: quiet",
            prefix + "BIOS-provided physical RAM map:",
            prefix + "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
            prefix + "BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved",
            prefix + "BIOS-e820: [mem 0x0000000000100000-0x000000001ffdffff] usable",
            prefix + "BIOS-e820: [mem 0x000000001ffe0000-0x000000001fffffff] ACPI data",
            prefix + "BIOS-e820: [mem 0x00000000fffc0000-0x00000000ffffffff] reserved",
            prefix + "NX (Execute Disable) protection: active");
        BootMemoryMap map = BootMemoryMap.ParseE820(text);
        Assert.Equal([new BootRegion(0, 0x9fc00, 0), new BootRegion(MiB, 0x1ffe0000, 0)], map.Memory);
        Assert.True(map.IsReserved(0xffffffff));

        map.ApplyPcRules();
        Assert.Equal(3998UL, map.CountPresent(0, 4096));
        Assert.Equal(3840UL, Sum(map.FreePages(), 0, 4096));
    }

    [Theory]
    [InlineData("reserved")]
    [InlineData("ACPI data")]
    [InlineData("ACPI NVS")]
    [InlineData("unusable")]
    [InlineData("soft reserved")]
    [InlineData("persistent (type 7)")]
    [InlineData("type 20")]
    public void The_more_restrictive_of_overlapping_e820_entries_wins(string type)
    {
        string usable = "BIOS-e820: [mem 0x0000000000000000-0x0000000000ffffff] usable\n";
        string other = $"BIOS-e820: [mem 0x0000000000400000-0x00000000004fffff] {type}\n";
        BootRegion[] memory = [new(0, 4 * MiB, 0), new(5 * MiB, 16 * MiB, 0)];
        Assert.Equal(memory, BootMemoryMap.ParseE820(usable + other).Memory);
        Assert.Equal(memory, BootMemoryMap.ParseE820(other + usable).Memory);
    }

    [Theory]
    [InlineData("nothing of that kind\n", "no \"BIOS-e820")]
    [InlineData("BIOS-e820: [mem 0x0-0xfff] reserved\n", "no \"BIOS-e820")]
    [InlineData("BIOS-e820: [mem 0x0-0xfff] usabl\n", "unknown type")]
    [InlineData("BIOS-e820: [mem 0x0-0xfff] type x\n", "unknown type")]
    [InlineData("BIOS-e820: [mem 0x2000-0xfff] usable\n", "ends before it starts")]
    [InlineData("BIOS-e820: [mem 2000-3fff] usable\n", "\"0x\" expected")]
    [InlineData("BIOS-e820: 0000000000000000 - 000000000009fc00 (usable)\n", "\"[mem\" expected")]
    public void Broken_e820_is_refused(string text, string rule)
    {
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => BootMemoryMap.ParseE820(text));
        Assert.Contains(rule, error.Rule, StringComparison.Ordinal);
    }

    [Fact]
    public void Ranges_out_of_bounds_are_refused()
    {
        var map = new BootMemoryMap();
        Assert.Throws<ArgumentOutOfRangeException>(() => map.AddMemory(2, 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => map.Reserve(0, (1UL << 52) + 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => map.AddMemory(0, 1, -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => map.AddMemory(0, 1, 1024));
        map.AddMemory(7, 7);
        map.Reserve(7, 7);
        Assert.Empty(map.Memory);
        Assert.Empty(map.Reserved);
        Assert.Equal((0UL, 0), (map.EndPfn, map.NodeCount));
    }

    [Fact]
    public void Splitting_moves_no_memory_and_shares_no_pageblock() =>
        Gen.Select(Gen.ULong[4096, 9 * GiB], Gen.ULong[4096, 64 * MiB], Gen.Bool, Gen.Int[1, 16])
            .Sample((large, small, isSmall, nodes) =>
            {
                BootMemoryMap whole = BootMemoryMap.ForRam(isSmall ? small : large);
                BootMemoryMap split;
                try
                {
                    split = BootMemoryMap.ForRam(isSmall ? small : large, nodes);
                }
                catch (ArgumentException)
                {
                    // Rounding to pageblocks moves a border by at most 1 MiB, so only small shares can vanish.
                    Assert.InRange(whole.MemoryBytes / (ulong)nodes, 0UL, (6 * MiB) - 1);
                    return;
                }
                Assert.Equal(whole.MemoryBytes, split.MemoryBytes);
                Assert.Equal(nodes, split.NodeCount);
                Assert.Equal(Sum(whole.PresentPages(), 0, whole.EndPfn), Sum(split.PresentPages(), 0, whole.EndPfn));
                for (int i = 1; i < split.Memory.Count; i++)
                {
                    BootRegion left = split.Memory[i - 1], right = split.Memory[i];
                    if (left.Node == right.Node) continue;
                    Assert.Equal(left.Node + 1, right.Node);
                    Assert.NotEqual((left.End - 1) / (2 * MiB), right.Start / (2 * MiB));
                }
            });

    /// <summary>A map and a model that knows of each half KiB whether it is memory (and whose) and reserved.</summary>
    [Fact]
    public void Any_history_agrees_with_a_bitmap()
    {
        Gen<(int Op, int Start, int Length, int Node)> step =
            Gen.Select(Gen.Int[0, 9], Gen.Int[0, Model.Cells], Gen.Int[0, 60], Gen.Int[0, 2]);
        step.Array[1, 40].Sample(steps =>
        {
            var map = new BootMemoryMap();
            var model = new Model();
            foreach ((int op, int start, int length, int node) in steps)
            {
                int end = Math.Min(start + length, Model.Cells);
                ulong from = (ulong)start * Model.CellBytes, to = (ulong)end * Model.CellBytes;
                switch (op)
                {
                    case < 4: map.AddMemory(from, to); model.Add(start, end, 0); break;
                    case < 6: map.Reserve(from, to); model.SetReserved(start, end, true); break;
                    case < 7: map.Unreserve(from, to); model.SetReserved(start, end, false); break;
                    case < 8: map.RemoveMemory(from, to); model.Remove(start, end); break;
                    default:
                        // Other nodes live a pageblock higher, where they may touch their own kind only.
                        ulong block = (ulong)node * 2 * MiB;
                        map.AddMemory(block + from, block + to, node);
                        model.Add((node * Model.BlockCells) + start, (node * Model.BlockCells) + end, node);
                        break;
                }
                model.Check(map);
            }
        });
    }

    private static ulong Sum(IEnumerable<BootPages> runs, ulong start, ulong end)
    {
        ulong sum = 0;
        foreach (BootPages run in runs)
        {
            ulong from = Math.Max(run.Start, start), to = Math.Min(run.End, end);
            if (from < to) sum += to - from;
        }
        return sum;
    }

    private sealed class Model
    {
        public const int Cells = 160;
        public const ulong CellBytes = 512;
        public const int BlockCells = (int)(2 * MiB / CellBytes);
        private const int CellsOfPage = (int)(4096 / CellBytes);
        private const int All = (2 * BlockCells) + Cells;

        private readonly sbyte[] _node = new sbyte[All];
        private readonly bool[] _reserved = new bool[All];

        public Model() => Array.Fill(_node, (sbyte)-1);

        public void Add(int start, int end, int node)
        {
            for (int i = start; i < end; i++)
            {
                if (_node[i] < 0) _node[i] = (sbyte)node;
            }
        }

        public void Remove(int start, int end)
        {
            for (int i = start; i < end; i++) _node[i] = -1;
        }

        public void SetReserved(int start, int end, bool value)
        {
            for (int i = start; i < end; i++) _reserved[i] = value;
        }

        public void Check(BootMemoryMap map)
        {
            CheckSorted(map.Memory);
            CheckSorted(map.Reserved);
            Assert.Equal(Paint(map.Memory), _node);
            Assert.Equal(Paint(map.Reserved).Select(n => n >= 0), _reserved);

            var present = new List<ulong>();
            var free = new List<ulong>();
            for (int page = 0; page < All / CellsOfPage; page++)
            {
                int first = page * CellsOfPage;
                bool whole = true, untouched = true;
                for (int i = first; i < first + CellsOfPage; i++)
                {
                    whole &= _node[i] >= 0;
                    untouched &= !_reserved[i];
                }
                if (whole) present.Add((ulong)page);
                if (whole && untouched) free.Add((ulong)page);
                if (page % 8 == 0 || whole) Assert.Equal(whole ? _node[first] : -1, map.NodeOfPage((ulong)page));
            }
            Assert.Equal(present, Numbers(map.PresentPages()));
            Assert.Equal(free, Numbers(map.FreePages()));
            Assert.Equal((ulong)present.Count, map.CountPresent(0, All));
            Assert.Equal(8 - (ulong)present.Count(pfn => pfn is >= 3 and < 11), map.CountHoles(3, 11));
        }

        /// <summary>Regions are not empty, ascend, and touch only where their nodes differ.</summary>
        private static void CheckSorted(IReadOnlyList<BootRegion> regions)
        {
            for (int i = 0; i < regions.Count; i++)
            {
                Assert.True(regions[i].Start < regions[i].End);
                if (i == 0) continue;
                bool apart = regions[i - 1].End < regions[i].Start;
                bool touch = regions[i - 1].End == regions[i].Start && regions[i - 1].Node != regions[i].Node;
                Assert.True(apart || touch, $"{regions[i - 1]} {regions[i]}");
            }
        }

        private static sbyte[] Paint(IReadOnlyList<BootRegion> regions)
        {
            var cells = new sbyte[All];
            Array.Fill(cells, (sbyte)-1);
            foreach (BootRegion region in regions)
            {
                int from = (int)(region.Start / CellBytes), count = (int)(region.Length / CellBytes);
                Array.Fill(cells, (sbyte)region.Node, from, count);
            }
            return cells;
        }

        private static IEnumerable<ulong> Numbers(IEnumerable<BootPages> runs)
        {
            foreach (BootPages run in runs)
            {
                for (ulong pfn = run.Start; pfn < run.End; pfn++) yield return pfn;
            }
        }
    }
}
