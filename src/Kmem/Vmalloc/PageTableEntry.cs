namespace Kmem;

/// <summary>
/// How the CPU caches a mapping (enum page_cache_mode, arch/x86/include/asm/pgtable_types.h, Linux 6.18).
/// </summary>
public enum CacheMode : byte
{
    /// <summary>As ordinary memory (WB).</summary>
    WriteBack,

    /// <summary>Not cached; writes are gathered (WC).</summary>
    WriteCombining,

    /// <summary>Not cached, unless an MTRR says write-combining (UC−).</summary>
    UncachedMinus,

    /// <summary>Not cached (UC).</summary>
    Uncached,

    /// <summary>Reads are cached, writes go to memory at once (WT).</summary>
    WriteThrough,

    /// <summary>Reads are cached, writes drop the line (WP).</summary>
    WriteProtected,
}

/// <summary>What may be done through a mapping. x86 cannot express a present page that may not be read.</summary>
[Flags]
public enum PageProt
{
    /// <summary>Nothing.</summary>
    None = 0,

    /// <summary>Reading.</summary>
    Read = 1,

    /// <summary>Writing.</summary>
    Write = 2,

    /// <summary>Running as code.</summary>
    Execute = 4,

    /// <summary>All of it also for programs, not only for the kernel.</summary>
    User = 8,

    /// <summary>The translation survives a change of address space.</summary>
    Global = 16,

    /// <summary>PAGE_KERNEL.</summary>
    Kernel = Read | Write | Global,

    /// <summary>PAGE_KERNEL_RO.</summary>
    KernelReadOnly = Read | Global,

    /// <summary>PAGE_KERNEL_EXEC.</summary>
    KernelExec = Read | Write | Execute | Global,

    /// <summary>PAGE_KERNEL_ROX.</summary>
    KernelReadOnlyExec = Read | Execute | Global,
}

/// <summary>
/// One entry of a table, as the processor reads it; all levels alike:
/// <code>
///   63  62…59  58…52     51 … 12                 11…9      8   7        6   5   4    3    2    1    0
///   NX  key    software  frame number            software  G   PSE/PAT  D   A   PCD  PWT  US   RW   P
///                          └ bit 12 of a large leaf: PAT
/// </code>
/// A and D are set beforehand in the kernel's leaves, so that the processor never has to write them.
/// </summary>
/// <remarks>arch/x86/include/asm/pgtable_types.h, Linux 6.18.</remarks>
internal static class PageTableEntry
{
    public const ulong Present = 1UL << 0;
    public const ulong Writable = 1UL << 1;
    public const ulong User = 1UL << 2;
    public const ulong WriteThrough = 1UL << 3;
    public const ulong CacheDisable = 1UL << 4;
    public const ulong Accessed = 1UL << 5;
    public const ulong Dirty = 1UL << 6;

    /// <summary>In a PUD or PMD entry: a leaf, not a table. In a PTE the same bit is <see cref="PatSmall"/>.</summary>
    public const ulong PageSize = 1UL << 7;
    public const ulong PatSmall = 1UL << 7;
    public const ulong Global = 1UL << 8;
    public const ulong PatLarge = 1UL << 12;
    public const ulong NoExecute = 1UL << 63;

    /// <summary>The flags of every entry that points to a table (_KERNPG_TABLE with User): the leaf decides.</summary>
    public const ulong Table = Present | Writable | User | Accessed | Dirty;

    public const ulong FrameMask = 0x000f_ffff_ffff_f000;

    /// <summary>The level of the last tables; a level's entries cover 2^<see cref="ShiftOf"/> bytes.</summary>
    public const int PteLevel = 1;
    public const int PmdLevel = 2;
    public const int PudLevel = 3;

    private const int BitsPerLevel = 9;
    private const ulong CacheMask = WriteThrough | CacheDisable;

    /// <summary>Bits of the address below the index of a level: 12 for PTEs, 21, 30, 39, 48.</summary>
    public static int ShiftOf(int level) => Pfn.PageShift + ((level - 1) * BitsPerLevel);

    public static int IndexOf(int level, ulong va) => (int)(va >> ShiftOf(level)) & 511;

    /// <summary>Whether a present entry of a level maps memory and not a table.</summary>
    public static bool IsLeaf(ulong entry, int level) =>
        (entry & Present) != 0 && (level == PteLevel || (level <= PudLevel && (entry & PageSize) != 0));

    /// <summary>
    /// Whether an entry above the last level is neither empty nor a leaf nor what this kernel writes there
    /// (pmd_bad and the like).
    /// </summary>
    public static bool IsBad(ulong entry, int level)
    {
        const ulong Ignored = User | Accessed;
        return level != PteLevel && entry != 0 && !IsLeaf(entry, level)
            && (entry & ~FrameMask & ~Ignored) != (Table & ~Ignored);
    }

    /// <summary>The flags of a 4 KiB leaf: those of PAGE_KERNEL and its relatives.</summary>
    public static ulong FlagsOf(PageProt prot, CacheMode mode)
    {
        Bug.On((prot & PageProt.Read) == 0, "a mapping on x86 can always be read");
        ulong flags = Present | Accessed | CacheBits(mode);
        bool user = (prot & PageProt.User) != 0;
        if ((prot & PageProt.Write) != 0)
            flags |= user ? Writable : Writable | Dirty;
        if (user)
            flags |= User;
        if ((prot & PageProt.Global) != 0)
            flags |= Global;
        if ((prot & PageProt.Execute) == 0)
            flags |= NoExecute;
        return flags;
    }

    /// <summary>A leaf of a level for flags of a 4 KiB one: the PAT bit moves (pgprot_4k_2_large).</summary>
    public static ulong Leaf(ulong pfn, ulong smallFlags, int level)
    {
        ulong address = pfn << Pfn.PageShift;
        if (level == PteLevel)
            return address | smallFlags;
        ulong pat = (smallFlags & PatSmall) != 0 ? PatLarge : 0;
        return address | (smallFlags & ~PatSmall) | pat | PageSize;
    }

    /// <summary>The names of an entry's flags, lowest bit first.</summary>
    public static string NamesOf(ulong entry, int level)
    {
        bool large = level != PteLevel && (entry & PageSize) != 0;
        (ulong Bit, string Name)[] names =
        [
            (Present, "P"), (Writable, "RW"), (User, "US"), (WriteThrough, "PWT"), (CacheDisable, "PCD"),
            (Accessed, "A"), (Dirty, "D"), (PatSmall, level == PteLevel ? "PAT" : "PSE"), (Global, "G"),
            (large ? PatLarge : 0, "PAT"), (NoExecute, "NX"),
        ];
        return string.Join(' ', names.Where(it => (entry & it.Bit) != 0).Select(it => it.Name));
    }

    /// <summary>The flags of a leaf as a 4 KiB one has them (pgprot_large_2_4k).</summary>
    public static ulong SmallFlagsOf(ulong leaf, int level)
    {
        ulong flags = leaf & ~FrameMask;
        if (level == PteLevel)
            return flags;
        return (flags & ~PageSize) | ((leaf & PatLarge) != 0 ? PatSmall : 0);
    }

    /// <summary>The first frame that a leaf maps, or the frame of the table.</summary>
    public static ulong PfnOf(ulong entry, int level)
    {
        ulong mask = level > PteLevel && IsLeaf(entry, level) ? FrameMask & ~PatLarge : FrameMask;
        return (entry & mask) >> Pfn.PageShift;
    }

    public static PageProt ProtOf(ulong entry)
    {
        PageProt prot = PageProt.Read;
        if ((entry & Writable) != 0)
            prot |= PageProt.Write;
        if ((entry & NoExecute) == 0)
            prot |= PageProt.Execute;
        if ((entry & User) != 0)
            prot |= PageProt.User;
        if ((entry & Global) != 0)
            prot |= PageProt.Global;
        return prot;
    }

    public static CacheMode CacheModeOf(ulong leaf, int level)
    {
        bool pat = (leaf & (level == PteLevel ? PatSmall : PatLarge)) != 0;
        return (leaf & CacheMask, pat) switch
        {
            (0, _) => CacheMode.WriteBack,
            (WriteThrough, false) => CacheMode.WriteCombining,
            (WriteThrough, true) => CacheMode.WriteProtected,
            (CacheDisable, _) => CacheMode.UncachedMinus,
            (_, false) => CacheMode.Uncached,
            (_, true) => CacheMode.WriteThrough,
        };
    }

    /// <summary>Slots of the PAT register as the kernel fills it: WB WC UC− UC WB WP UC− WT.</summary>
    public static ulong CacheBits(CacheMode mode) => mode switch
    {
        CacheMode.WriteBack => 0,
        CacheMode.WriteCombining => WriteThrough,
        CacheMode.UncachedMinus => CacheDisable,
        CacheMode.Uncached => CacheDisable | WriteThrough,
        CacheMode.WriteProtected => PatSmall | WriteThrough,
        CacheMode.WriteThrough => PatSmall | CacheDisable | WriteThrough,
        _ => throw new ArgumentOutOfRangeException(nameof(mode)),
    };
}
