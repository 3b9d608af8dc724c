using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>Levels whose entries a call changed (pgtbl_mod_mask, include/linux/pgtable.h, Linux 6.18).</summary>
[Flags]
internal enum PageTableModification
{
    None = 0,

    /// <summary>A table was hung into an entry of the root with five levels.</summary>
    Pgd = 1 << 0,

    /// <summary>A table was hung into a P4D entry; with four levels, into the root.</summary>
    P4d = 1 << 1,

    /// <summary>A table was hung into a PUD entry, or a 1 GiB leaf was set or cleared.</summary>
    Pud = 1 << 2,

    /// <summary>A table was hung into a PMD entry, or a 2 MiB leaf was set or cleared.</summary>
    Pmd = 1 << 3,

    /// <summary>PTEs were written or cleared.</summary>
    Pte = 1 << 4,
}

/// <summary>A present entry.</summary>
/// <param name="Level">1 = PTE, 2 = PMD, 3 = PUD, 4 = P4D (the root with four levels), 5 = PGD.</param>
/// <param name="Va">The first address that the entry covers.</param>
/// <param name="Entry">The entry itself.</param>
internal readonly record struct PageTableRow(int Level, ulong Va, ulong Entry);

/// <summary>One look into a table.</summary>
/// <param name="Level">As in <see cref="PageTableRow"/>.</param>
/// <param name="Name">pgd, p4d, pud, pmd or pte.</param>
/// <param name="TablePfn">The frame of the table.</param>
/// <param name="Index">Which of its 512 entries.</param>
/// <param name="Entry">The entry found.</param>
public readonly record struct PageWalkStep(int Level, string Name, ulong TablePfn, int Index, ulong Entry)
{
    /// <summary>The entry leads somewhere.</summary>
    public bool Present => (Entry & PageTableEntry.Present) != 0;

    /// <summary>It leads to memory, not to a further table.</summary>
    public bool Leaf => PageTableEntry.IsLeaf(Entry, Level);

    /// <summary>Points nowhere sensible: somebody wrote over the table.</summary>
    public bool Bad => PageTableEntry.IsBad(Entry, Level);

    /// <summary>Where the entry lies in the machine's RAM.</summary>
    public PhysAddr EntryAddress => new((TablePfn << Pfn.PageShift) + ((ulong)Index * sizeof(ulong)));

    /// <summary>The frame that the entry leads to: of the next table, or the first one that a leaf maps.</summary>
    public Pfn Target => Present ? new Pfn(PageTableEntry.PfnOf(Entry, Level)) : Pfn.None;

    /// <summary>The names of the bits that are set, without those of the frame number.</summary>
    /// <returns>For example <c>P RW A D G NX</c>.</returns>
    public string FlagNames() => PageTableEntry.NamesOf(Entry, Level);
}

/// <summary>The way from the root to the frame behind an address, or to the entry where it ends.</summary>
public sealed class PageWalk
{
    internal PageWalk(ulong address, IReadOnlyList<PageWalkStep> steps)
    {
        Address = address;
        Steps = steps;
        Pfn = Pfn.None;
        PageWalkStep last = steps[^1];
        if (!last.Leaf)
            return;

        ulong offset = address & ((1UL << PageTableEntry.ShiftOf(last.Level)) - 1);
        Pfn = new Pfn(PageTableEntry.PfnOf(last.Entry, last.Level) + (offset >> Pfn.PageShift));
    }

    /// <summary>The address that was looked up.</summary>
    public ulong Address { get; }

    /// <summary>The part of the address space that it is in, by the names of the kernel's dump.</summary>
    public string Region => PageTable.RegionOf(Steps[0].Level, Address);

    /// <summary>From the root down; as many as tables were read.</summary>
    public IReadOnlyList<PageWalkStep> Steps { get; }

    /// <summary>The frame behind the address; <see cref="Pfn.None"/> if there is none.</summary>
    public Pfn Pfn { get; }

    /// <summary>The way ends at a frame.</summary>
    public bool IsMapped => Pfn.IsValid;

    /// <summary>Offset of the address in its frame, in bytes.</summary>
    public int Offset => (int)(Address & (Pfn.PageSize - 1));

    /// <summary>The physical address; 0 if nothing is mapped.</summary>
    public PhysAddr PhysicalAddress => IsMapped ? new PhysAddr(Pfn.Address.Value + (ulong)Offset) : default;

    /// <summary>Bytes that the leaf maps: 4 KiB, 2 MiB or 1 GiB; 0 if nothing is mapped.</summary>
    public ulong LeafBytes => IsMapped ? 1UL << PageTableEntry.ShiftOf(Steps[^1].Level) : 0;

    /// <summary>
    /// What the address may be used for: writing and user access need every level's consent, any level forbids
    /// execution.
    /// </summary>
    public PageProt Prot
    {
        get
        {
            if (!IsMapped)
                return PageProt.None;
            PageProt all = PageProt.Read | PageProt.Write | PageProt.Execute | PageProt.User;
            PageProt prot = Steps.Aggregate(all, (sum, step) => sum & PageTableEntry.ProtOf(step.Entry));
            return prot | (PageTableEntry.ProtOf(Steps[^1].Entry) & PageProt.Global);
        }
    }

    /// <summary>How the memory is cached; write-back if nothing is mapped.</summary>
    public CacheMode CacheMode =>
        IsMapped ? PageTableEntry.CacheModeOf(Steps[^1].Entry, Steps[^1].Level) : CacheMode.WriteBack;

    /// <summary>
    /// The line that an oops prints (arch/x86/mm/fault.c, Linux 6.18): <c>PGD 2400067 P4D 2400067 PUD 2515067 PMD
    /// 2516067 PTE 800000001f401163</c>.
    /// </summary>
    /// <returns>The line, ending with the first entry that is empty or a large leaf.</returns>
    public override string ToString()
    {
        var text = new StringBuilder();
        foreach (PageWalkStep step in Steps)
        {
            string entry = step.Entry.ToString("x", CultureInfo.InvariantCulture);
            if (text.Length > 0)
                text.Append(' ');
            text.Append(step.Name.ToUpperInvariant()).Append(' ').Append(entry);

            // With four levels the P4D is the PGD entry by another name; the report names it all the same.
            if (step is { Name: "pgd", Level: 4, Present: true })
                text.Append(" P4D ").Append(entry);
        }

        return text.ToString();
    }
}
