using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Three bytes for each pageblock (512 frames): its migrate type with the "skip in compaction" bit, and the zone that
/// it belongs to. Zone borders lie on pageblock borders, so one number answers page_zone() for all its frames.
/// </summary>
/// <remarks>
/// The type is written under the zone's lock and read without (a stale answer is harmless, as in the kernel).
/// </remarks>
internal sealed class PageblockMap : IDisposable
{
    /// <summary>The zone of a pageblock that belongs to none; beyond the last zone of 1024 nodes.</summary>
    public const ushort NoZone = 0xffff;

    private const byte TypeMask = 0x07;
    private const byte SkipBit = 0x08;
    private const byte PresentBit = 0x10;

    private unsafe byte* _types;
    private unsafe ushort* _zones;

    public unsafe PageblockMap(ulong endPfn)
    {
        // One more pageblock than there is, for the look at a buddy beyond the end.
        Count = (endPfn >> PageOrder.Pageblock) + 2;
        _types = (byte*)NativeMemory.AllocZeroed((nuint)Count);
        _zones = (ushort*)NativeMemory.Alloc((nuint)Count, sizeof(ushort));
        new Span<ushort>(_zones, checked((int)Count)).Fill(NoZone);
    }

    /// <summary>Number of pageblocks, with one or two spare ones at the end.</summary>
    public ulong Count { get; }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe Migratetype TypeOf(ulong pfn) => (Migratetype)(_types[pfn >> PageOrder.Pageblock] & TypeMask);

    /// <summary>Index of the zone of a frame, or <see cref="NoZone"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe int ZoneOf(ulong pfn) => _zones[pfn >> PageOrder.Pageblock];

    public unsafe void SetType(ulong pfn, Migratetype type)
    {
        byte* entry = _types + (pfn >> PageOrder.Pageblock);
        *entry = (byte)((*entry & ~TypeMask) | (byte)type);
    }

    public unsafe void SetZone(ulong pfn, int zone) => _zones[pfn >> PageOrder.Pageblock] = (ushort)zone;

    /// <summary>Whether the pageblock has any memory (pfn_valid; holes within a pageblock do not show).</summary>
    public unsafe bool IsPresent(ulong pfn) => (_types[pfn >> PageOrder.Pageblock] & PresentBit) != 0;

    public unsafe void SetPresent(ulong pfn) => _types[pfn >> PageOrder.Pageblock] |= PresentBit;

    public unsafe bool SkipOf(ulong pfn) => (_types[pfn >> PageOrder.Pageblock] & SkipBit) != 0;

    public unsafe void SetSkip(ulong pfn, bool skip)
    {
        byte* entry = _types + (pfn >> PageOrder.Pageblock);
        *entry = (byte)(skip ? *entry | SkipBit : *entry & ~SkipBit);
    }

    public unsafe void Dispose()
    {
        NativeMemory.Free(_types);
        NativeMemory.Free(_zones);
        _types = null;
        _zones = null;
    }
}
