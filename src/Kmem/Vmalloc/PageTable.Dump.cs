using System.Globalization;
using System.Text;

namespace Kmem;

/// <content>What is in the tables, as rows and as the kernel's text.</content>
internal abstract partial class PageTable
{
    private static readonly (ulong Start, string Name)[] s_regions4 =
    [
        (0, "User Space"),
        (0xffff_8000_0000_0000, "Kernel Space"),
        (0xffff_8800_0000_0000, "LDT remap"),
        (0xffff_8880_0000_0000, "Low Kernel Mapping"),
        (0xffff_c900_0000_0000, "vmalloc() Area"),
        (0xffff_ea00_0000_0000, "Vmemmap"),
        (0xffff_fe00_0000_0000, "CPU entry Area"),
        (0xffff_ff00_0000_0000, "ESPfix Area"),
        (0xffff_ffef_0000_0000, "EFI Runtime Services"),
        (0xffff_ffff_8000_0000, "High Kernel Mapping"),
        (0xffff_ffff_a000_0000, "Modules"),
        (0xffff_ffff_ff00_0000, "End Modules"),
    ];

    private static readonly (ulong Start, string Name)[] s_regions5 =
    [
        (0, "User Space"),
        (0xff00_0000_0000_0000, "Kernel Space"),
        (0xff10_0000_0000_0000, "LDT remap"),
        (0xff11_0000_0000_0000, "Low Kernel Mapping"),
        (0xffa0_0000_0000_0000, "vmalloc() Area"),
        (0xffd4_0000_0000_0000, "Vmemmap"),
        .. s_regions4[6..],
    ];

    /// <summary>The region of the address map that an address is in.</summary>
    public static string RegionOf(int levels, ulong va) =>
        (levels == 5 ? s_regions5 : s_regions4).Last(region => va >= region.Start).Name;

    /// <summary>
    /// All present entries, tables and leaves, each table's entry before what is under it, in the order of addresses.
    /// Read while others map, it shows each entry as it was at some moment.
    /// </summary>
    public IEnumerable<PageTableRow> Rows() => RowsUnder(RootPfn, Levels, 0);

    /// <summary>
    /// Every table: its frame, then pairs of index and entry where an entry is not 0. Nobody may be at work.
    /// </summary>
    public List<ulong[]> Capture()
    {
        var tables = new List<ulong[]>();
        Capture(RootPfn, Levels, tables);
        return tables;
    }

    /// <summary>Whether the leaf that maps an address allows writing.</summary>
    public bool IsWritable(ulong va) =>
        Walk(va).Steps is [.., { Leaf: true } leaf] && (leaf.Entry & PageTableEntry.Writable) != 0;

    private void Capture(ulong table, int level, List<ulong[]> tables)
    {
        var row = new List<ulong> { table };
        for (int index = 0; index < EntriesPerTable; index++)
        {
            ulong entry = Read(table, index);
            if (entry == 0)
                continue;

            row.Add((ulong)index);
            row.Add(entry);
            bool isTable = level > PteLevel && (entry & PageTableEntry.Present) != 0
                && !PageTableEntry.IsLeaf(entry, level);
            if (isTable)
                Capture(PageTableEntry.PfnOf(entry, level), level - 1, tables);
        }

        tables.Add([.. row]);
    }

    /// <summary>
    /// The text of debugfs page_tables/kernel (arch/x86/mm/dump_pagetables.c, Linux 6.18): ranges of equal entries
    /// merged, holes included, a line at the start of each region of the address map.
    /// </summary>
    public string Dump()
    {
        var text = new DumpText(Levels == 5 ? s_regions5 : s_regions4, this);
        DumpUnder(RootPfn, Levels, 0, text);
        text.Finish();
        return text.ToString();
    }

    private IEnumerable<PageTableRow> RowsUnder(ulong table, int level, ulong va)
    {
        for (int index = 0; index < EntriesPerTable; index++)
        {
            ulong entry = Read(table, index);
            if ((entry & PageTableEntry.Present) == 0)
                continue;

            ulong at = AddressOf(va, level, index);
            yield return new PageTableRow(level, at, entry);
            if (PageTableEntry.IsLeaf(entry, level) || PageTableEntry.IsBad(entry, level))
                continue;
            foreach (PageTableRow row in RowsUnder(PageTableEntry.PfnOf(entry, level), level - 1, at))
                yield return row;
        }
    }

    /// <summary>The first address of an entry; the upper half continues the sign.</summary>
    private ulong AddressOf(ulong va, int level, int index)
    {
        ulong at = va + ((ulong)index << PageTableEntry.ShiftOf(level));
        return level == Levels && index >= EntriesPerTable / 2 ? at | KernelHalf : at;
    }

    private void DumpUnder(ulong table, int level, ulong va, DumpText text)
    {
        for (int index = 0; index < EntriesPerTable; index++)
        {
            ulong entry = Read(table, index);
            ulong at = AddressOf(va, level, index);
            bool isTable = (entry & PageTableEntry.Present) != 0
                && !PageTableEntry.IsLeaf(entry, level) && !PageTableEntry.IsBad(entry, level);
            if (isTable)
                DumpUnder(PageTableEntry.PfnOf(entry, level), level - 1, at, text);
            else
                text.Note(at, level, entry);
        }
    }

    /// <summary>
    /// Merges what it is told. All tables carry the same rights here, so equal flags are equal effective rights.
    /// </summary>
    private sealed class DumpText((ulong Start, string Name)[] regions, PageTable tree)
    {
        private const string Units = "KMGTPE";
        private readonly StringBuilder _text = new();
        private int _nextRegion;
        private ulong _start;
        private ulong _flags;
        private int _level;     // 0: nothing noted yet

        public void Note(ulong va, int level, ulong entry)
        {
            ulong pat = level == PteLevel ? 0 : PageTableEntry.PatLarge;
            ulong flags = (entry & PageTableEntry.Present) == 0 ? 0
                : entry & (~PageTableEntry.FrameMask | (PageTableEntry.IsLeaf(entry, level) ? pat : 0));
            bool region = _nextRegion < regions.Length && va >= regions[_nextRegion].Start;
            if (_level == level && _flags == flags && !region)
                return;

            if (_level != 0)
                Line(va);
            for (; _nextRegion < regions.Length && va >= regions[_nextRegion].Start; _nextRegion++)
            {
                bool last = _nextRegion + 1 == regions.Length || va < regions[_nextRegion + 1].Start;
                if (last)
                    _text.Append("---[ ").Append(regions[_nextRegion].Name).Append(" ]---\n");
            }

            (_start, _level, _flags) = (va, level, flags);
        }

        /// <summary>The last line ends where addresses end.</summary>
        public void Finish() => Line(0);

        public override string ToString() => _text.ToString();

        private void Line(ulong end)
        {
            // The gap of addresses that are not canonical belongs to nobody.
            if (_start < tree.KernelHalf && end >= tree.KernelHalf)
                end = ~tree.KernelHalf + 1;
            ulong size = (end - _start) >> 10;
            int unit = 0;
            while (size != 0 && (size & 1023) == 0 && unit < Units.Length - 1)
            {
                size >>= 10;
                unit++;
            }

            _text.Append(CultureInfo.InvariantCulture, $"0x{_start:x16}-0x{end:x16}   {size,9}{Units[unit]} ")
                .Append(Flags()).Append(tree.NameOf(_level)).Append('\n');
        }

        private string Flags()
        {
            if (_flags == 0)
                return new string(' ', 30);

            string Shown(ulong bit, string name) => (_flags & bit) != 0 ? name : "    ";
            bool small = _level == PteLevel;
            return Shown(PageTableEntry.User, "USR ")
                + ((_flags & PageTableEntry.Writable) != 0 ? "RW " : "ro ")
                + Shown(PageTableEntry.WriteThrough, "PWT ")
                + Shown(PageTableEntry.CacheDisable, "PCD ")
                + Shown(small ? 0 : PageTableEntry.PageSize, "PSE ")
                + Shown(small ? PageTableEntry.PatSmall : PageTableEntry.PatLarge, "PAT ")
                + Shown(PageTableEntry.Global, "GLB ")
                + ((_flags & PageTableEntry.NoExecute) != 0 ? "NX " : "x  ");
        }
    }
}
