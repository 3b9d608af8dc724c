namespace Kmem;

/// <summary>
/// What answers at physical addresses, seen from a mapping of devices:
/// <code>
///   0 ──── RAM ────|hole|──── RAM ────|          | device "nvme" |            | device |        2^46
///          refused   ▲      refused      nothing:                  nothing
///                    reserved RAM: its frames    reads as ones
/// </code>
/// </summary>
/// <remarks>Thread-safe.</remarks>
internal sealed class PhysicalMap : IDisposable
{
    /// <summary>Width of a physical address (x86_phys_bits): 64 TiB, what the direct map could hold.</summary>
    public const int AddressBits = 46;

    private const ulong OnesBytes = 2UL << 20;

    private readonly Lock _gate = new();
    private readonly List<DeviceMemory> _devices = [];
    private readonly IReadOnlyList<BootPages> _ram;
    private readonly IReadOnlyList<BootPages> _present;
    private Ram? _ones;

    /// <param name="ram">The frames that belong to the page allocator.</param>
    /// <param name="present">All frames that there are, reserved ones too.</param>
    public PhysicalMap(IReadOnlyList<BootPages> ram, IReadOnlyList<BootPages> present)
    {
        _ram = ram;
        _present = present;
    }

    /// <summary>Part of a range that one thing answers for.</summary>
    /// <param name="Pages">Its length.</param>
    /// <param name="Source">Whose frames; null for the machine's own.</param>
    /// <param name="SourcePfn">The first of them, in the numbers of the source.</param>
    /// <param name="Writable">Nobody takes what is written where nothing is.</param>
    public readonly record struct Piece(ulong Pages, Ram? Source, ulong SourcePfn, bool Writable);

    /// <summary>Which part of a range of frames is RAM of the page allocator.</summary>
    public (bool Any, bool All) RamIn(ulong pfn, ulong pages)
    {
        ulong found = 0;
        foreach (BootPages range in _ram)
        {
            ulong from = Math.Max(pfn, range.Start);
            ulong to = Math.Min(pfn + pages, range.End);
            found += to > from ? to - from : 0;
        }

        return (found > 0, found == pages);
    }

    /// <summary>Adds a device's memory.</summary>
    /// <exception cref="ArgumentException">There is RAM or another device.</exception>
    public DeviceMemory Add(ulong start, ulong bytes, string name)
    {
        ulong pages = bytes >> Pfn.PageShift;
        lock (_gate)
        {
            if (RamIn(start >> Pfn.PageShift, pages).Any)
                throw new ArgumentException($"0x{start:x} + 0x{bytes:x} is RAM of the machine", nameof(start));
            DeviceMemory? other = _devices.Find(at => at.Start.Value < start + bytes && start < at.EndAddress);
            if (other != null)
                throw new ArgumentException($"0x{start:x} + 0x{bytes:x} overlaps {other}", nameof(start));

            var device = new DeviceMemory(this, new PhysAddr(start), Ram.Create(bytes), name);
            _devices.Add(device);
            return device;
        }
    }

    /// <summary>
    /// What answers at the beginning of a range, and for how long. The device cannot go while it is mapped.
    /// </summary>
    public Piece PieceAt(ulong pfn, ulong pages)
    {
        ulong at = pfn << Pfn.PageShift;
        lock (_gate)
        {
            ulong limit = pages;
            foreach (DeviceMemory device in _devices)
            {
                ulong first = device.Start.Value >> Pfn.PageShift;
                if (device.Start.Value <= at && at < device.EndAddress)
                {
                    ulong left = (device.EndAddress - at) >> Pfn.PageShift;
                    return new Piece(Math.Min(pages, left), device.Backing, pfn - first, Writable: true);
                }

                if (first > pfn)
                    limit = Math.Min(limit, first - pfn);
            }

            // Frames that no allocator owns: the first MiB, for instance.
            foreach (BootPages range in _present)
            {
                if (range.Start <= pfn && pfn < range.End)
                    return new Piece(Math.Min(limit, range.End - pfn), null, pfn, Writable: true);
                if (range.Start > pfn)
                    limit = Math.Min(limit, range.Start - pfn);
            }

            return new Piece(Math.Min(limit, OnesBytes >> Pfn.PageShift), Ones(), 0, Writable: false);
        }
    }

    /// <summary>Counts a mapping of the devices in a range up or down.</summary>
    public void Pin(ulong pfn, ulong pages, int by)
    {
        ulong start = pfn << Pfn.PageShift;
        ulong end = (pfn + pages) << Pfn.PageShift;
        lock (_gate)
        {
            foreach (DeviceMemory device in _devices.Where(at => at.Start.Value < end && start < at.EndAddress))
                device.Mappings += by;
        }
    }

    /// <summary>Removes a device, unless it is mapped.</summary>
    public bool TryRemove(DeviceMemory device)
    {
        lock (_gate)
        {
            if (device.Mappings > 0)
                return false;

            _devices.Remove(device);
            return true;
        }
    }

    public void Dispose()
    {
        foreach (DeviceMemory device in _devices)
            device.Backing.Dispose();
        _ones?.Dispose();
    }

    /// <summary>What a bus answers when nobody is there.</summary>
    private unsafe Ram Ones()
    {
        if (_ones == null)
        {
            _ones = Ram.Create(OnesBytes);
            new Span<byte>(_ones.Base, (int)OnesBytes).Fill(0xff);
        }

        return _ones;
    }
}

/// <summary>
/// Memory of a device on the machine's bus: outside the RAM, reached through <see cref="Machine.Ioremap"/>. Its content
/// lives in memory of this process, which the program that plays the device reads and writes through
/// <see cref="Pointer"/>.
/// </summary>
public sealed class DeviceMemory : IDisposable
{
    private readonly PhysicalMap _owner;

    internal DeviceMemory(PhysicalMap owner, PhysAddr start, Ram backing, string name)
    {
        _owner = owner;
        Start = start;
        Backing = backing;
        Name = name;
    }

    /// <summary>Its first physical address.</summary>
    public PhysAddr Start { get; }

    /// <summary>Its size in bytes.</summary>
    public ulong Bytes => Backing.Bytes;

    /// <summary>Its name, for reports.</summary>
    public string Name { get; }

    /// <summary>The device's own view of its memory; null after <see cref="Dispose"/>. Zero at first.</summary>
    public unsafe byte* Pointer => Backing.Base;

    internal Ram Backing { get; }

    internal ulong EndAddress => Start.Value + Bytes;

    /// <summary>Mappings that show a part of it.</summary>
    internal int Mappings { get; set; }

    /// <summary>
    /// Takes the device off the bus; from then on nothing answers at its addresses. Twice is fine.
    /// </summary>
    /// <exception cref="InvalidOperationException">It is mapped: iounmap first.</exception>
    public unsafe void Dispose()
    {
        if (Backing.Base == null)
            return;
        if (!_owner.TryRemove(this))
            throw new InvalidOperationException($"{this} is mapped {Mappings} times; it cannot go before iounmap");

        Backing.Dispose();
    }

    /// <summary>Name and range, as /proc/iomem shows them.</summary>
    /// <returns>For example <c>fe000000-fe0fffff : nvme</c>.</returns>
    public override string ToString() => $"{Start.Value:x8}-{Start.Value + Bytes - 1:x8} : {Name}";
}
