using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <summary>
/// All frames of a machine at one moment, and what can be counted about them; kept up to date by small changes.
/// <code>
///   frames     |  chunk 0: 1024 cells  |  chunk 1  |  chunk 2  | …      a chunk is as large as the largest block
///                       │                    │           │
///              own copy, once written        └─────┬─────┘
///                                         shared: one free block, or a hole, or another map's
/// </code>
/// A copy of a map costs the table of chunks; a machine of terabytes costs only the chunks in which something happens.
/// </summary>
internal sealed class FrameMap
{
    public const int ChunkFrames = PageOrder.MaxBlockPages;
    public const byte NoZone = 31;
    private const int BlockFrames = PageOrder.PageblockPages;
    private const int Orders = PageOrder.Count;
    private const int Types = Migratetypes.Count;

    private static readonly FrameCell[] s_free =
        Uniform(new FrameCell { Kind = FrameKind.Free, Order = PageOrder.Max });
    private static readonly FrameCell[] s_hole = Uniform(default);

    private readonly FrameCell[][] _chunks;
    private readonly bool[] _owned;
    private readonly uint[] _versions;
    private readonly byte[] _blockTypes;
    private readonly byte[] _blockZones;
    private readonly ushort[] _blockUsed;
    private readonly long[] _kinds = new long[FrameKinds.Count];
    private readonly long[] _freeBlocks;
    private readonly long[] _pcp;
    private int[] _slabs = new int[256];

    /// <summary>A map in which all is hole.</summary>
    public FrameMap(ulong frames, int zones, int cpus)
    {
        Frames = frames;
        Zones = zones;
        Cpus = cpus;
        int chunks = checked((int)((frames + ChunkFrames - 1) / ChunkFrames));
        _chunks = new FrameCell[chunks][];
        Array.Fill(_chunks, s_hole);
        _owned = new bool[chunks];
        _versions = new uint[chunks];
        int blocks = chunks * (ChunkFrames / BlockFrames);
        _blockTypes = new byte[blocks];
        _blockZones = new byte[blocks];
        Array.Fill(_blockZones, NoZone);
        _blockUsed = new ushort[blocks];
        _freeBlocks = new long[(zones + 1) * Orders * Types];
        _pcp = new long[(zones + 1) * cpus];
        _kinds[(int)FrameKind.Hole] = (long)chunks * ChunkFrames;
    }

    private FrameMap(FrameMap other)
    {
        (Frames, Zones, Cpus) = (other.Frames, other.Zones, other.Cpus);
        _chunks = (FrameCell[][])other._chunks.Clone();
        Array.Clear(other._owned);          // shared from now on
        _owned = new bool[_chunks.Length];
        _versions = (uint[])other._versions.Clone();
        _blockTypes = (byte[])other._blockTypes.Clone();
        _blockZones = (byte[])other._blockZones.Clone();
        _blockUsed = (ushort[])other._blockUsed.Clone();
        _kinds = (long[])other._kinds.Clone();
        _freeBlocks = (long[])other._freeBlocks.Clone();
        _pcp = (long[])other._pcp.Clone();
        _slabs = (int[])other._slabs.Clone();
    }

    public ulong Frames { get; }

    public int Zones { get; }

    public int Cpus { get; }

    public int Chunks => _chunks.Length;

    /// <summary>A map in the same state, which then goes its own way.</summary>
    public FrameMap Copy() => new(this);

    /// <summary>Changes whenever something in the chunk does.</summary>
    public uint VersionOf(int chunk) => _versions[chunk];

    /// <summary>The cells of a chunk, to be read.</summary>
    public ReadOnlySpan<FrameCell> Chunk(int chunk) => _chunks[chunk];

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref readonly FrameCell At(ulong pfn) => ref _chunks[pfn / ChunkFrames][pfn % ChunkFrames];

    public Migratetype TypeOf(ulong pfn) => (Migratetype)_blockTypes[pfn / BlockFrames];

    /// <summary>Number of the zone in the list of those that have memory; <see cref="NoZone"/> in holes.</summary>
    public byte ZoneOf(ulong pfn) => _blockZones[pfn / BlockFrames];

    /// <summary>Frames in use of the pageblock of a frame.</summary>
    public int UsedOf(ulong pfn) => _blockUsed[pfn / BlockFrames];

    /// <summary>The frame keeps a pageblock from being free that otherwise nearly is.</summary>
    public bool IsPin(in FrameCell cell, ulong pfn) => FrameKinds.Pins(cell.Kind) && UsedOf(pfn) <= BlockFrames / 8;

    public long FramesOf(FrameKind kind) =>
        _kinds[(int)kind] - (kind == FrameKind.Hole ? ((long)Chunks * ChunkFrames) - (long)Frames : 0);

    public long FreeBlocks(int zone, int order, Migratetype type) =>
        _freeBlocks[(((zone * Orders) + order) * Types) + (int)type];

    public long FreeFrames(int zone)
    {
        long frames = 0;
        for (int i = zone * Orders * Types; i < (zone + 1) * Orders * Types; i++)
            frames += _freeBlocks[i] << (i / Types % Orders);
        return frames;
    }

    public long PcpFrames(int zone, int cpu) => _pcp[(zone * Cpus) + cpu];

    public int Slabs(int cache) => cache < _slabs.Length ? _slabs[cache] : 0;

    /// <summary>Pageblocks of a zone by migrate type.</summary>
    public void CountBlocks(int zone, Span<int> byType)
    {
        for (int block = 0; block < _blockZones.Length; block++)
        {
            if (_blockZones[block] == zone)
                byType[_blockTypes[block]]++;
        }
    }

    public void SetZone(ulong pfn, byte zone, Migratetype type)
    {
        _blockZones[pfn / BlockFrames] = zone;
        _blockTypes[pfn / BlockFrames] = (byte)type;
    }

    /// <summary>Makes frames of one chunk alike.</summary>
    public void Set(ulong pfn, int count, in FrameCell cell)
    {
        int chunk = (int)(pfn / ChunkFrames);
        FrameCell[] cells = Own(chunk);
        int at = (int)(pfn % ChunkFrames);
        for (int from = at; from < at + count;)
        {
            int to = from + 1;
            FrameCell old = cells[from];
            while (to < at + count && cells[to].Equals(old))
                to++;
            Account(old, pfn + (ulong)(from - at), to - from, -1);
            from = to;
        }

        cells.AsSpan(at, count).Fill(cell);
        Account(cell, pfn, count, 1);
        _versions[chunk]++;
    }

    /// <summary>The same, for frames that are known to be alike.</summary>
    public void Change(ulong pfn, int count, in FrameCell from, in FrameCell to)
    {
        int chunk = (int)(pfn / ChunkFrames);
        FrameCell[] cells = Own(chunk);
        Account(from, pfn, count, -1);
        cells.AsSpan((int)(pfn % ChunkFrames), count).Fill(to);
        Account(to, pfn, count, 1);
        _versions[chunk]++;
    }

    /// <summary>A whole chunk is one free block.</summary>
    public void SetFree(int chunk)
    {
        if (_chunks[chunk] == s_free)
            return;

        Set((ulong)chunk * ChunkFrames, ChunkFrames, s_free[0]);
        _chunks[chunk] = s_free;
        _owned[chunk] = false;
    }

    /// <summary>An object of a slab was given out, or came back.</summary>
    public void AddObject(ulong pfn, int delta)
    {
        if (pfn >= Frames)
            return;

        ref readonly FrameCell cell = ref At(pfn);
        if (cell.Kind != FrameKind.Slab)
            return;

        ulong head = cell.HeadOf(pfn);
        int chunk = (int)(pfn / ChunkFrames);
        ref FrameCell first = ref Own(chunk)[head % ChunkFrames];
        first.InUse = (ushort)(first.InUse + delta);
        _versions[chunk]++;
    }

    /// <summary>A pageblock gets another type, and with it its free blocks.</summary>
    public void SetType(ulong pfn, Migratetype type)
    {
        ulong block = pfn / BlockFrames;
        var old = (Migratetype)_blockTypes[block];
        if (old == type)
            return;

        ulong start = block * BlockFrames;
        for (ulong frame = start; frame < start + BlockFrames;)
        {
            ref readonly FrameCell cell = ref At(frame);
            if (cell.Kind != FrameKind.Free)
            {
                frame++;
                continue;
            }

            if (cell.HeadOf(frame) == frame)
            {
                CountFree(frame, cell.Order, old, -1);
                CountFree(frame, cell.Order, type, 1);
            }

            frame += 1UL << Math.Min((int)cell.Order, PageOrder.Pageblock);
        }

        _blockTypes[block] = (byte)type;
        _versions[start / ChunkFrames]++;
    }

    private void Account(in FrameCell cell, ulong pfn, int count, int sign)
    {
        _kinds[(int)cell.Kind] += sign * count;
        if (cell.Kind < FrameKind.Free)
            return;

        ulong end = pfn + (ulong)count;
        if (FrameKinds.IsInUse(cell.Kind))
        {
            for (ulong from = pfn; from < end;)
            {
                ulong to = Math.Min(end, (from | (BlockFrames - 1)) + 1);
                _blockUsed[from / BlockFrames] = (ushort)(_blockUsed[from / BlockFrames] + (sign * (int)(to - from)));
                from = to;
            }

            if (cell.Kind == FrameKind.Slab)
                CountSlabs(cell, pfn, end, sign);
        }
        else if (cell.Kind == FrameKind.Free)
        {
            ulong size = 1UL << cell.Order;
            for (ulong head = (pfn + size - 1) & ~(size - 1); head < end; head += size)
                CountFree(head, cell.Order, TypeOf(head), sign);
        }
        else
        {
            _pcp[(Math.Min(ZoneOf(pfn), Zones) * Cpus) + cell.Owner] += sign * count;
        }
    }

    private void CountSlabs(in FrameCell cell, ulong pfn, ulong end, int sign)
    {
        if (cell.Owner >= _slabs.Length)
            Array.Resize(ref _slabs, Math.Max(_slabs.Length * 2, cell.Owner + 1));
        ulong size = 1UL << cell.Order;
        ulong first = (pfn + size - 1) & ~(size - 1);
        if (first < end)
            _slabs[cell.Owner] += sign * (int)((end - first + size - 1) / size);
    }

    private void CountFree(ulong head, int order, Migratetype type, int sign) =>
        _freeBlocks[(((Math.Min(ZoneOf(head), Zones) * Orders) + order) * Types) + (int)type] += sign;

    private FrameCell[] Own(int chunk)
    {
        if (_owned[chunk])
            return _chunks[chunk];

        _owned[chunk] = true;
        return _chunks[chunk] = (FrameCell[])_chunks[chunk].Clone();
    }

    private static FrameCell[] Uniform(FrameCell cell)
    {
        var cells = new FrameCell[ChunkFrames];
        Array.Fill(cells, cell);
        return cells;
    }
}
