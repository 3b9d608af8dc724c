namespace Kmem;

/// <summary>
/// Which physical addresses are mapped how: one range must not be cached in two ways at once (memtype_reserve and
/// memtype_free, arch/x86/mm/pat/memtype.c, Linux 6.18). Thread-safe.
/// </summary>
internal sealed class MemoryTypes
{
    private readonly Lock _gate = new();
    private readonly List<Reserved> _reserved = [];

    private readonly record struct Reserved(ulong Start, ulong End, CacheMode Mode);

    /// <summary>Number of reservations.</summary>
    public int Count
    {
        get
        {
            lock (_gate)
                return _reserved.Count;
        }
    }

    /// <summary>
    /// Reserves a type for a range. Who comes second gets the type of who was first, if it may be used for what was
    /// asked.
    /// </summary>
    /// <param name="start">First byte.</param>
    /// <param name="end">One past the last byte.</param>
    /// <param name="wanted">The type asked for.</param>
    /// <param name="given">The type to use.</param>
    /// <returns>Null; else why there is none.</returns>
    public string? Reserve(ulong start, ulong end, CacheMode wanted, out CacheMode given)
    {
        lock (_gate)
        {
            given = wanted;
            bool any = false;
            foreach (Reserved other in _reserved.Where(other => other.Start < end && other.End > start))
            {
                if (any && other.Mode != given)
                {
                    return $"x86/PAT: conflicting memory types {start:x}-{end:x} {NameOf(given)}<->{NameOf(other.Mode)}";
                }

                given = other.Mode;
                any = true;
            }

            if (!MayReplace(wanted, given))
            {
                return $"ioremap error for 0x{start:x}-0x{end:x}, requested {NameOf(wanted)}, got {NameOf(given)}";
            }

            _reserved.Add(new Reserved(start, end, given));
            return null;
        }
    }

    /// <summary>Gives one reservation of exactly this range back.</summary>
    /// <returns>False if there is none.</returns>
    public bool Free(ulong start, ulong end)
    {
        lock (_gate)
        {
            int index = _reserved.FindIndex(other => other.Start == start && other.End == end);
            if (index >= 0)
                _reserved.RemoveAt(index);
            return index >= 0;
        }
    }

    /// <summary>
    /// Uncached and combining users do not bear a cache that is written later, and write-through does not bear
    /// combining (is_new_memtype_allowed).
    /// </summary>
    private static bool MayReplace(CacheMode wanted, CacheMode given) => (wanted, given) switch
    {
        (CacheMode.UncachedMinus, CacheMode.WriteBack) => false,
        (CacheMode.WriteCombining, CacheMode.WriteBack) => false,
        (CacheMode.WriteThrough, CacheMode.WriteBack) => false,
        (CacheMode.WriteThrough, CacheMode.WriteCombining) => false,
        _ => true,
    };

    private static string NameOf(CacheMode mode) => mode switch
    {
        CacheMode.WriteBack => "write-back",
        CacheMode.WriteCombining => "write-combining",
        CacheMode.UncachedMinus => "uncached-minus",
        CacheMode.Uncached => "uncached",
        CacheMode.WriteThrough => "write-through",
        _ => "write-protected",
    };
}
