namespace Kmem;

/// <summary>
/// Where a range of kernel addresses can be touched in this process: a pointer is an address plus a constant.
/// <code>
///   kernel addresses   START ─────────── 32 TiB ───┐ ... nothing can be shown here ... ┌── 1 TiB ── END
///                        │ low window              │                                   │ high window │
///   pointers           Base                                                          Base
/// </code>
/// With four levels of page tables one window covers the vmalloc space. That of five levels is a hundred times larger
/// than a process; vmalloc fills it from below, per-CPU chunks from above, so its two ends are what is needed.
/// </summary>
internal sealed class KernelWindow : IDisposable
{
    private const ulong LowBytes = 32UL << 40;
    private const ulong HighBytes = 1UL << 40;

    private readonly (ulong Start, AddressWindow Window)[] _parts;

    /// <summary>Reserves the pointers for the addresses of a range.</summary>
    /// <param name="ram">Whose frames will be shown.</param>
    /// <param name="start">First address.</param>
    /// <param name="last">Last address.</param>
    /// <param name="budget">Mappings it may use; null for the process's.</param>
    /// <exception cref="PlatformException">The host has no address space left.</exception>
    public KernelWindow(Ram ram, ulong start, ulong last, MapBudget? budget)
    {
        ulong bytes = last - start + 1;
        AddressWindow low = AddressWindow.Reserve(Math.Min(bytes, LowBytes), ram, budget: budget);
        Start = start;
        if (bytes <= LowBytes)
        {
            // A host with less room has a smaller vmalloc space; where it starts stays.
            Last = start + low.Bytes - 1;
            _parts = [(start, low)];
            return;
        }

        try
        {
            AddressWindow high = AddressWindow.Reserve(HighBytes, ram, atLeast: HighBytes, budget);
            Last = last;
            _parts = [(start, low), (last + 1 - HighBytes, high)];
        }
        catch
        {
            low.Dispose();
            throw;
        }
    }

    /// <summary>First address.</summary>
    public ulong Start { get; }

    /// <summary>Last address; below what was asked for if the host has less room.</summary>
    public ulong Last { get; }

    /// <summary>The window from <see cref="Start"/> up.</summary>
    public AddressWindow Low => _parts[0].Window;

    /// <summary>Mappings in the host.</summary>
    public int MapCount => _parts.Sum(part => part.Window.MapCount);

    public void Dispose()
    {
        foreach ((_, AddressWindow window) in _parts)
            window.Dispose();
    }

    /// <summary>
    /// Whether a pointer stands for an address of the range (is_vmalloc_addr, which leaves the very last byte out).
    /// </summary>
    public unsafe bool Contains(void* pointer)
    {
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            var offset = (ulong)((byte*)pointer - window.Base);
            if (offset < window.Bytes)
                return start + offset != Last;
        }

        return false;
    }

    /// <summary>The address that a pointer stands for; it must be one of the range.</summary>
    public unsafe ulong AddressOf(void* pointer)
    {
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            var offset = (ulong)((byte*)pointer - window.Base);
            if (offset < window.Bytes)
                return start + offset;
        }

        throw new ArgumentException($"0x{(ulong)pointer:x} stands for no kernel address", nameof(pointer));
    }

    /// <summary>The pointer for an address; null where nothing can be shown.</summary>
    public unsafe void* PointerOf(ulong address)
    {
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            if (address - start < window.Bytes)
                return window.Base + (address - start);
        }

        return null;
    }

    /// <summary>
    /// Shows a run of frames, of the machine's RAM or of <paramref name="source"/>; see
    /// <see cref="AddressWindow.Map"/>.
    /// </summary>
    /// <returns>
    /// <see cref="WindowResult.HostLimit"/> also if this process has no pointers for these addresses.
    /// </returns>
    public WindowResult Map(
        ulong va, ulong pfn, ulong pages, WindowProtection protection, Ram? source = null, bool populate = false)
    {
        ulong bytes = pages << Pfn.PageShift;
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            if (va - start < window.Bytes && bytes <= window.Bytes - (va - start))
                return window.Map(va - start, pfn << Pfn.PageShift, bytes, protection, source, populate);
        }

        return WindowResult.HostLimit;
    }

    /// <summary>Whether an address lies in the range.</summary>
    public bool Holds(ulong va) => va >= Start && va <= Last;

    /// <summary>Changes what a run of shown pages allows.</summary>
    public WindowResult Protect(ulong va, ulong pages, WindowProtection protection)
    {
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            if (va - start < window.Bytes)
                return window.Protect(va - start, pages << Pfn.PageShift, protection);
        }

        return WindowResult.Done;
    }

    /// <summary>Makes addresses fault; those without pointers do anyway.</summary>
    public WindowResult Unmap(ulong va, ulong bytes)
    {
        WindowResult result = WindowResult.Done;
        foreach ((ulong start, AddressWindow window) in _parts)
        {
            ulong from = Math.Max(va, start);
            ulong last = Math.Min(va + (bytes - 1), start + (window.Bytes - 1));
            if (from <= last && window.Unmap(from - start, last - from + 1) != WindowResult.Done)
                result = WindowResult.HostLimit;
        }

        return result;
    }
}
