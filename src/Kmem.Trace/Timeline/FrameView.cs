using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tracing;

/// <summary>
/// A window of a <see cref="FrameMap"/> at a level of detail, as a client sees it: cells of 2^level frames, four words
/// each, and the messages that bring the client up to date. Only chunks that changed are looked at, and nothing is
/// allocated.
/// </summary>
/// <remarks>The layout of words and messages is in docs/explorer.md.</remarks>
internal sealed class FrameView
{
    public const int MaxLevel = 22;
    public const int CellWords = 4;
    public const int HeaderWords = 10;
    public const uint Magic = 0x50414d4b;
    private const int ChunkShift = PageOrder.Max;

    private readonly uint[] _cells;
    private readonly uint[] _seen;      // versions of the chunks
    private readonly int[] _matched;    // frames that pass, by cell
    private readonly byte[] _message;
    private FrameFilter _filter = FrameFilter.Everything;
    private uint _sequence;
    private long _matchedFrames;
    private bool _fresh = true;

    /// <param name="id">What the client calls it.</param>
    /// <param name="first">First frame; rounded down to a whole cell.</param>
    /// <param name="count">Frames.</param>
    /// <param name="level">A cell shows 2^level frames.</param>
    public FrameView(uint id, ulong first, ulong count, int level)
    {
        Id = id;
        Level = level;
        ulong size = 1UL << level;
        First = first & ~(size - 1);
        Cells = checked((int)((first + count - First + size - 1) >> level));
        _cells = new uint[Cells * CellWords];
        _matched = new int[Cells];
        _seen = new uint[checked(
            (int)(((First + ((ulong)Cells << level) - 1) >> ChunkShift) - (First >> ChunkShift) + 1))];
        _message = new byte[sizeof(uint) * (HeaderWords + Math.Max(Cells * CellWords, 1))];
    }

    public uint Id { get; }

    public ulong First { get; }

    public int Level { get; }

    public int Cells { get; }

    /// <summary>What the client marks. Setting it makes the next message a full one.</summary>
    public FrameFilter Filter
    {
        get => _filter;
        set
        {
            _filter = value;
            _fresh = true;
        }
    }

    /// <summary>The words of all cells, as of the last message.</summary>
    public ReadOnlySpan<uint> Words => _cells;

    /// <summary>The next message is a full one: the map is another one, or the client lost a message.</summary>
    public void Restart() => _fresh = true;

    /// <summary>The message that brings the client to a moment; valid until the next call.</summary>
    public ReadOnlyMemory<byte> Update(FrameMap map, uint moment)
    {
        bool full = _fresh;
        int records = 0;
        int at = HeaderWords * sizeof(uint);
        int next = 0;
        Span<uint> words = stackalloc uint[CellWords];
        while (next < Cells)
        {
            int cell = next;
            next = NextCell(cell);
            if (!full && !_filter.DependsOnMoment && IsUnchanged(map, cell, next - 1))
                continue;

            for (; cell < next; cell++)
            {
                Compute(map, cell, moment, words);
                Span<uint> old = _cells.AsSpan(cell * CellWords, CellWords);
                if (!full && words.SequenceEqual(old))
                    continue;

                words.CopyTo(old);
                if (full)
                    continue;
                if (at + ((CellWords + 1) * sizeof(uint)) > _message.Length)
                {
                    // More changes than cells would take: all cells, then. The rest is still computed below.
                    full = true;
                    continue;
                }

                at = WriteRecord(at, cell, words);
                records++;
            }
        }

        _fresh = false;
        if (full)
        {
            at = HeaderWords * sizeof(uint);
            MemoryMarshal.AsBytes(_cells.AsSpan()).CopyTo(_message.AsSpan(at));
            at += _cells.Length * sizeof(uint);
            records = Cells;
        }

        RememberVersions(map);
        WriteHeader(full, records, moment);
        return _message.AsMemory(0, at);
    }

    /// <summary>The end of the group of cells that begins here: those of one chunk, or one cell of many
    /// chunks.</summary>
    private int NextCell(int cell)
    {
        if (Level >= ChunkShift)
            return cell + 1;

        int perChunk = 1 << (ChunkShift - Level);
        int offset = (int)((First >> Level) & (ulong)(perChunk - 1));
        return Math.Min(Cells, ((cell + offset) / perChunk * perChunk) + perChunk - offset);
    }

    private bool IsUnchanged(FrameMap map, int firstCell, int lastCell)
    {
        int from = ChunkOf(First + ((ulong)firstCell << Level));
        int to = ChunkOf(First + (((ulong)lastCell + 1) << Level) - 1);
        int origin = ChunkOf(First);
        for (int chunk = from; chunk <= to && chunk < map.Chunks; chunk++)
        {
            if (_seen[chunk - origin] != map.VersionOf(chunk))
                return false;
        }

        return true;
    }

    private void RememberVersions(FrameMap map)
    {
        int origin = ChunkOf(First);
        for (int i = 0; i < _seen.Length && origin + i < map.Chunks; i++)
            _seen[i] = map.VersionOf(origin + i);
    }

    private void Compute(FrameMap map, int cell, uint moment, Span<uint> words)
    {
        ulong first = First + ((ulong)cell << Level);
        ulong end = Math.Min(first + (1UL << Level), map.Frames);
        if (first >= end)
        {
            words.Clear();
            words[0] = ((uint)FrameMap.NoZone << 16) | 0xff000000;
            return;
        }

        var tally = default(Tally);
        for (ulong pfn = first; pfn < end;)
        {
            ref readonly FrameCell frame = ref map.At(pfn);
            ulong run = frame.Kind == FrameKind.Free ? frame.HeadOf(pfn) + (1UL << frame.Order) - pfn : 1;
            run = Math.Min(run, end - pfn);
            bool matches = _filter.IsEverything || _filter.Matches(frame, map.ZoneOf(pfn), map.TypeOf(pfn), moment);
            tally.Add(frame.Kind, pfn, (int)run, matches, map.IsPin(frame, pfn));
            pfn += run;
        }

        _matchedFrames += tally.Matched - _matched[cell];
        _matched[cell] = tally.Matched;
        Write(map, first, (int)(end - first), tally, words);
    }

    private void Write(FrameMap map, ulong first, int frames, in Tally tally, Span<uint> words)
    {
        bool match = tally.Matched > 0;
        (FrameKind kind, int count, ulong pfn) = tally.Largest(match);
        ref readonly FrameCell cell = ref map.At(pfn);
        int share = Math.Max(1, (int)((long)count * 255 / frames));
        words[0] = (uint)kind
            | ((uint)cell.Order << 8)
            | ((uint)map.TypeOf(pfn) << 12)
            | (tally.Kinds > 1 ? 1u << 15 : 0)
            | ((uint)map.ZoneOf(pfn) << 16)
            | (match ? 1u << 21 : 0)
            | (map.At(first).HeadOf(first) == first ? 1u << 22 : 0)
            | (tally.Pins ? 1u << 23 : 0)
            | ((uint)share << 24);
        uint fill = 0;
        if (kind == FrameKind.Slab)
        {
            ref readonly FrameCell head = ref map.At(cell.HeadOf(pfn));
            fill = head.Objects == 0 ? 0 : (uint)Math.Min(255, head.InUse * 255 / head.Objects);
        }

        uint used = (uint)(map.UsedOf(pfn) * 255 / PageOrder.PageblockPages);
        words[1] = cell.Owner | (fill << 16) | (used << 24);
        words[2] = cell.Born;
        words[3] = (uint)cell.Site;
    }

    private int WriteRecord(int at, int cell, ReadOnlySpan<uint> words)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(_message.AsSpan(at), (uint)cell);
        MemoryMarshal.AsBytes(words).CopyTo(_message.AsSpan(at + sizeof(uint)));
        return at + ((CellWords + 1) * sizeof(uint));
    }

    private void WriteHeader(bool full, int records, uint moment)
    {
        ReadOnlySpan<uint> header =
        [
            Magic, 1 | (full ? 1u << 8 : 0) | ((uint)Level << 16) | ((uint)CellWords << 24), Id, _sequence++, moment,
            (uint)First, (uint)Cells, (uint)records, (uint)_matchedFrames, 0,
        ];
        MemoryMarshal.AsBytes(header).CopyTo(_message);
    }

    private static int ChunkOf(ulong pfn) => (int)(pfn >> ChunkShift);

    /// <summary>What the frames of a cell are.</summary>
    private struct Tally
    {
        private Numbers _counts;
        private Numbers _matches;
        private Places _first;
        private Places _firstMatch;

        public int Matched { get; private set; }

        public int Kinds { get; private set; }

        public bool Pins { get; private set; }

        public void Add(FrameKind kind, ulong pfn, int count, bool matches, bool pins)
        {
            int k = (int)kind;
            if (_counts[k] == 0)
            {
                Kinds++;
                _first[k] = pfn;
            }

            _counts[k] += count;
            if (matches)
            {
                if (_matches[k] == 0)
                    _firstMatch[k] = pfn;
                _matches[k] += count;
                Matched += count;
                Pins |= pins;
            }
        }

        public readonly (FrameKind Kind, int Count, ulong First) Largest(bool ofMatches)
        {
            int best = 0;
            int most = -1;
            for (int k = 0; k < FrameKinds.Count; k++)
            {
                int count = ofMatches ? _matches[k] : _counts[k];
                if (count > most)
                    (best, most) = (k, count);
            }

            return ((FrameKind)best, most, ofMatches ? _firstMatch[best] : _first[best]);
        }
    }

    [InlineArray(FrameKinds.Count)]
    private struct Numbers
    {
        private int _first;
    }

    [InlineArray(FrameKinds.Count)]
    private struct Places
    {
        private ulong _first;
    }
}
