using System.Globalization;
using System.Text;

namespace Kmem.Tracing;

/// <summary>
/// Turns printed GFP flags (<c>GFP_KERNEL|__GFP_ZERO</c>, <c>none</c>, <c>…|0x2000000</c>) into the bits of Linux 6.18
/// (include/linux/gfp_types.h, include/trace/events/mmflags.h). Only names are stable over kernel versions; numbers are
/// not. Each distinct text is taken apart once.
/// </summary>
internal sealed class GfpNames
{
    private const uint Dma = 0x1, Highmem = 0x2, Dma32 = 0x4, Movable = 0x8, Reclaimable = 0x10, High = 0x20, Io = 0x40,
        Fs = 0x80, Zero = 0x100, DirectReclaim = 0x400, KswapdReclaim = 0x800, Write = 0x1000, Nowarn = 0x2000,
        RetryMayfail = 0x4000, Nofail = 0x8000, Noretry = 0x10000, Memalloc = 0x20000, Comp = 0x40000,
        Nomemalloc = 0x80000, Hardwall = 0x100000, Thisnode = 0x200000, Account = 0x400000, Zerotags = 0x800000,
        NoObjExt = 0x1000000;

    private const uint Reclaim = DirectReclaim | KswapdReclaim;
    private const uint Kernel = Reclaim | Io | Fs;
    private const uint User = Kernel | Hardwall;
    private const uint HighuserMovable = User | Highmem | Movable;
    private const uint TransHugeLight = (HighuserMovable | Comp | Nomemalloc | Nowarn) & ~Reclaim;

    /// <summary>Distinct unknown names that are kept for the report.</summary>
    private const int MaxUnknownNames = 20;

    /// <summary>
    /// Names of 6.18, then those that older kernels print. A name that stands for no bit of 6.18 (its feature is
    /// gone, or is not in our configuration) is known and 0.
    /// </summary>
    private static readonly Dictionary<string, uint> s_bits = new(StringComparer.Ordinal)
    {
        ["none"] = 0,
        ["GFP_TRANSHUGE"] = TransHugeLight | DirectReclaim,
        ["GFP_TRANSHUGE_LIGHT"] = TransHugeLight,
        ["GFP_HIGHUSER_MOVABLE"] = HighuserMovable,
        ["GFP_HIGHUSER"] = User | Highmem,
        ["GFP_USER"] = User,
        ["GFP_KERNEL_ACCOUNT"] = Kernel | Account,
        ["GFP_KERNEL"] = Kernel,
        ["GFP_NOFS"] = Reclaim | Io,
        ["GFP_ATOMIC"] = High | KswapdReclaim,
        ["GFP_NOIO"] = Reclaim,
        ["GFP_NOWAIT"] = KswapdReclaim | Nowarn,
        ["GFP_DMA"] = Dma,
        ["GFP_DMA32"] = Dma32,
        ["__GFP_RECLAIM"] = Reclaim,
        ["__GFP_DMA"] = Dma,
        ["__GFP_HIGHMEM"] = Highmem,
        ["__GFP_DMA32"] = Dma32,
        ["__GFP_MOVABLE"] = Movable,
        ["__GFP_RECLAIMABLE"] = Reclaimable,
        ["__GFP_HIGH"] = High,
        ["__GFP_IO"] = Io,
        ["__GFP_FS"] = Fs,
        ["__GFP_ZERO"] = Zero,
        ["__GFP_DIRECT_RECLAIM"] = DirectReclaim,
        ["__GFP_KSWAPD_RECLAIM"] = KswapdReclaim,
        ["__GFP_WRITE"] = Write,
        ["__GFP_NOWARN"] = Nowarn,
        ["__GFP_RETRY_MAYFAIL"] = RetryMayfail,
        ["__GFP_NOFAIL"] = Nofail,
        ["__GFP_NORETRY"] = Noretry,
        ["__GFP_MEMALLOC"] = Memalloc,
        ["__GFP_COMP"] = Comp,
        ["__GFP_NOMEMALLOC"] = Nomemalloc,
        ["__GFP_HARDWALL"] = Hardwall,
        ["__GFP_THISNODE"] = Thisnode,
        ["__GFP_ACCOUNT"] = Account,
        ["__GFP_ZEROTAGS"] = Zerotags,
        ["__GFP_SKIP_ZERO"] = 0,
        ["__GFP_SKIP_KASAN"] = 0,
        ["__GFP_NOLOCKDEP"] = 0,
        ["__GFP_NO_OBJ_EXT"] = NoObjExt,
        ["__GFP_SKIP_KASAN_UNPOISON"] = 0,
        ["__GFP_SKIP_KASAN_POISON"] = 0,
        ["__GFP_ATOMIC"] = 0,                           // until 6.2, beside __GFP_HIGH
        ["__GFP_COLD"] = 0,                             // until 4.14
        ["__GFP_NOTRACK"] = 0,
        ["__GFP_OTHER_NODE"] = 0,
        ["__GFP_REPEAT"] = RetryMayfail,                // until 4.12
        ["GFP_TEMPORARY"] = Kernel | Reclaimable,       // until 4.13
        ["__GFP_WAIT"] = Reclaim,
    };

    private readonly StringTable _texts = new();
    private readonly List<string> _unknown = [];
    private Parsed[] _parsed = new Parsed[64];

    /// <summary>Unknown names met so far, each as often as it was met.</summary>
    public long UnknownCount { get; private set; }

    /// <summary>The first distinct unknown names.</summary>
    public IReadOnlyList<string> UnknownNames => _unknown;

    /// <summary>The bits of a printed text; false if it cannot be GFP flags at all.</summary>
    public bool TryParse(ReadOnlySpan<byte> text, out uint flags)
    {
        int id = _texts.Intern(text);
        if (id <= 0)
            return TryParseSlow(id, text, out flags);

        if (id >= _parsed.Length)
            Array.Resize(ref _parsed, _texts.Count * 2);
        ref Parsed parsed = ref _parsed[id];
        if (!parsed.Done)
            parsed = Parse(text);
        UnknownCount += parsed.Unknown;
        flags = parsed.Flags;
        return true;
    }

    private bool TryParseSlow(int id, ReadOnlySpan<byte> text, out uint flags)
    {
        flags = 0;
        if (text.IsEmpty || id == StringTable.Unprintable)
            return false;

        Parsed parsed = Parse(text);        // the table is full
        UnknownCount += parsed.Unknown;
        flags = parsed.Flags;
        return true;
    }

    private Parsed Parse(ReadOnlySpan<byte> text)
    {
        uint flags = 0;
        int unknown = 0;
        foreach (string name in Encoding.UTF8.GetString(text).Split('|'))
        {
            if (s_bits.TryGetValue(name, out uint bits) || IsHex(name, out bits))
            {
                flags |= bits;
                continue;
            }

            unknown++;
            if (_unknown.Count < MaxUnknownNames && !_unknown.Contains(name, StringComparer.Ordinal))
                _unknown.Add(name);
        }

        return new Parsed(flags, unknown, Done: true);
    }

    private static bool IsHex(string name, out uint bits)
    {
        bits = 0;
        return name.StartsWith("0x", StringComparison.Ordinal)
            && uint.TryParse(name.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out bits);
    }

    private readonly record struct Parsed(uint Flags, int Unknown, bool Done);
}
