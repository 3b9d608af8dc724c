namespace Kmem;

/// <summary>
/// The text of the boot parameter slab_debug: which caches are debugged, and how.
/// <code>
///   slab_debug=[letters][,name[*]…][;block…]       F Z P U T A   flags      O   not where it raises the order     -   none
/// </code>
/// </summary>
/// <remarks>parse_slub_debug_flags, kmem_cache_flags, mm/slub.c, Linux 6.18.</remarks>
internal sealed class SlubDebugSetting
{
    /// <summary>What the parameter without letters stands for.</summary>
    private const SlabFlags All =
        SlabFlags.ConsistencyChecks | SlabFlags.RedZone | SlabFlags.Poison | SlabFlags.StoreUser;

    private readonly List<Block> _lists = [];
    private readonly List<string> _complaints = [];
    private SlabFlags _global;

    private SlubDebugSetting()
    {
    }

    /// <summary>No cache is debugged unless its creator asks for it.</summary>
    public static SlubDebugSetting None { get; } = new();

    /// <summary>Caches whose smallest order would grow lose the flags that make slots larger (letter O).</summary>
    public bool NoHigherOrders { get; private set; }

    /// <summary>What the log says about letters that do not exist.</summary>
    public IReadOnlyList<string> Complaints => _complaints;

    /// <summary>Reads the parameter's value.</summary>
    /// <param name="text">The text after "slab_debug="; null if it was not given, empty for F Z P U on all
    /// caches.</param>
    public static SlubDebugSetting Parse(string? text)
    {
        if (text == null)
            return None;

        var setting = new SlubDebugSetting();
        if (text.Length == 0)
            setting._global = All;
        foreach (string block in text.Split(';', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] parts = block.Split(',');
            SlabFlags flags = parts[0].Length == 0 ? All : setting.FlagsOf(parts[0]);
            if (parts.Length == 1)
                setting._global = flags;
            else
                setting._lists.Add(new Block(flags, parts[1..]));
        }

        return setting;
    }

    /// <summary>The flags that a cache is created with.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="flags">What its creator asks for.</param>
    public SlabFlags FlagsFor(string name, SlabFlags flags)
    {
        if ((flags & SlabFlags.NoUserFlags) != 0)
            return flags;

        foreach (Block block in _lists)
        {
            if (Array.Exists(block.Names, pattern => Matches(pattern, name)))
                return flags | block.Flags;
        }

        SlabFlags global = (flags & SlabFlags.NoLeakTrace) != 0 ? _global & ~SlabFlags.StoreUser : _global;
        return flags | global;
    }

    private static bool Matches(string pattern, string name) =>
        pattern.EndsWith('*')
            ? name.StartsWith(pattern[..^1], StringComparison.Ordinal)
            : string.Equals(name, pattern, StringComparison.Ordinal);

    private SlabFlags FlagsOf(string letters)
    {
        var flags = SlabFlags.None;
        foreach (char letter in letters)
        {
            switch (char.ToLowerInvariant(letter))
            {
                case '-':
                    flags = SlabFlags.None;
                    break;
                case 'f':
                    flags |= SlabFlags.ConsistencyChecks;
                    break;
                case 'z':
                    flags |= SlabFlags.RedZone;
                    break;
                case 'p':
                    flags |= SlabFlags.Poison;
                    break;
                case 'u':
                    flags |= SlabFlags.StoreUser;
                    break;
                case 't':
                    flags |= SlabFlags.Trace;
                    break;
                case 'a':
                    flags |= SlabFlags.FailSlab;
                    break;
                case 'o':
                    NoHigherOrders = true;
                    break;
                default:
                    _complaints.Add($"slab_debug option '{letter}' unknown. skipped");
                    break;
            }
        }

        return flags;
    }

    private sealed record Block(SlabFlags Flags, string[] Names);
}
