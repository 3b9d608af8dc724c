using System.Text;

namespace Kmem.Tracing;

/// <summary>
/// The text of an event, from its name on. Each kind has one method, which goes through the fields in the order in
/// which kernels 4.x to 6.18 print them; fields that some versions do not print are optional. The methods answer
/// null, or what is wrong with the line.
/// </summary>
internal sealed class EventParser
{
    private const int MaxOrder = 63;            // MAX_PAGE_ORDER is 10 to 16
    private const int MaxMigratetype = 63;
    private const int MaxNode = 1023;           // MAX_NUMNODES
    private const string BadTail = "unexpected text after the last field";

    /// <summary>Names of caches.</summary>
    public StringTable Names { get; } = new();

    /// <summary>Callers.</summary>
    public StringTable CallSites { get; } = new();

    /// <summary>Names of events that are not taken apart.</summary>
    public StringTable EventNames { get; } = new();

    /// <summary>GFP flags met so far.</summary>
    public GfpNames Gfp { get; } = new();

    /// <summary>Takes the event apart; null, or what is wrong.</summary>
    public string? Parse(ReadOnlySpan<byte> text, ref TraceEvent e)
    {
        var f = new FieldCursor(text);
        switch (text.IsEmpty ? (byte)0 : text[0])
        {
            case (byte)'k':
                if (f.Skip("kmem_cache_alloc: "u8) || f.Skip("kmem_cache_alloc_node: "u8))
                    return Alloc(ref f, ref e, TraceEventKind.KmemCacheAlloc);
                if (f.Skip("kmem_cache_free: "u8))
                    return Free(ref f, ref e, TraceEventKind.KmemCacheFree);
                if (f.Skip("kfree: "u8))
                    return Free(ref f, ref e, TraceEventKind.Kfree);
                if (f.Skip("kmalloc: "u8) || f.Skip("kmalloc_node: "u8))
                    return Alloc(ref f, ref e, TraceEventKind.Kmalloc);
                break;

            case (byte)'m':
                if (f.Skip("mm_page_alloc: "u8))
                    return PageAlloc(ref f, ref e);
                if (f.Skip("mm_page_free: "u8))
                    return PageFree(ref f, ref e, TraceEventKind.PageFree);
                if (f.Skip("mm_page_free_batched: "u8))
                    return PageFree(ref f, ref e, TraceEventKind.PageFreeBatched);
                if (f.Skip("mm_page_alloc_zone_locked: "u8))
                    return ZoneLocked(ref f, ref e);
                if (f.Skip("mm_page_pcpu_drain: "u8))
                    return PcpuDrain(ref f, ref e);
                if (f.Skip("mm_page_alloc_extfrag: "u8))
                    return Extfrag(ref f, ref e);
                break;

            case (byte)'a' when f.Skip("alloc_vmap_area: "u8):
                return AllocVmapArea(ref f, ref e);
            case (byte)'p' when f.Skip("purge_vmap_area_lazy: "u8):
                return PurgeVmapArea(ref f, ref e);
            case (byte)'f' when f.Skip("free_vmap_area_noflush: "u8):
                return FreeVmapArea(ref f, ref e);
            case (byte)'t' when f.Skip("tracing_mark_write:"u8):
                e.Kind = TraceEventKind.Marker;
                f.Skip(" "u8);
                e.Text = Encoding.UTF8.GetString(f.Rest);
                return null;
        }

        return Other(text, ref e);
    }

    /// <summary>
    /// kmalloc and kmem_cache_alloc. Only the latter has a name; name, node and accounted come and go with the version.
    /// </summary>
    private string? Alloc(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind)
    {
        e.Kind = kind;
        if (!f.Skip("call_site="u8) || !f.TakeUntil(" ptr="u8, out ReadOnlySpan<byte> site))
            return "no call_site=… ptr=";
        e.CallSite = CallSites.Intern(site);
        f.Skip(" ptr="u8);
        if (!f.Pointer(out ulong ptr, out bool hidden))
            return "ptr is no address";
        e.Ptr = ptr;
        e.PtrHidden = hidden;

        if (f.Skip(" name="u8))
        {
            if (!f.TakeUntil(" bytes_req="u8, out ReadOnlySpan<byte> name))
                return "no bytes_req after the name";
            e.Name = Names.Intern(name);
        }

        if ((e.CallSite | e.Name) < 0)
            return "control characters in a name";
        if (!f.Skip(" bytes_req="u8) || !f.Decimal(out ulong bytesReq))
            return "bytes_req is no number";
        if (!f.Skip(" bytes_alloc="u8) || !f.Decimal(out ulong bytesAlloc))
            return "bytes_alloc is no number";
        e.BytesReq = bytesReq;
        e.BytesAlloc = bytesAlloc;
        return GfpFlags(ref f, ref e) ?? NodeAndAccounted(ref f, ref e);
    }

    private string? GfpFlags(ref FieldCursor f, ref TraceEvent e)
    {
        if (!f.Skip(" gfp_flags="u8) || !Gfp.TryParse(f.TakeWord(), out uint flags))
            return "no gfp_flags";
        e.GfpFlags = flags;
        return null;
    }

    private static string? NodeAndAccounted(ref FieldCursor f, ref TraceEvent e)
    {
        if (f.Skip(" node="u8))
        {
            if (!f.Integer(-1, MaxNode, out int node))
                return "node is no node number";
            e.Node = node;
        }

        if (f.Skip(" accounted="u8))
        {
            e.Accounted = f.Skip("true"u8);
            if (!e.Accounted && !f.Skip("false"u8))
                return "accounted is neither true nor false";
        }

        return f.AtFieldEnd ? null : BadTail;
    }

    /// <summary>kfree and kmem_cache_free; the latter has a name from 5.12 on, up to the end of the line.</summary>
    private string? Free(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind)
    {
        e.Kind = kind;
        if (!f.Skip("call_site="u8) || !f.TakeUntil(" ptr="u8, out ReadOnlySpan<byte> site))
            return "no call_site=… ptr=";
        e.CallSite = CallSites.Intern(site);
        f.Skip(" ptr="u8);
        if (!f.Pointer(out ulong ptr, out bool hidden))
            return "ptr is no address";
        e.Ptr = ptr;
        e.PtrHidden = hidden;

        if (kind == TraceEventKind.KmemCacheFree && f.Skip(" name="u8))
            e.Name = Names.Intern(f.Take(f.Rest.Length));
        if ((e.CallSite | e.Name) < 0)
            return "control characters in a name";
        return f.AtFieldEnd ? null : BadTail;
    }

    /// <summary>What all page events begin with; pfn was decimal in older kernels.</summary>
    private static string? Block(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind)
    {
        e.Kind = kind;
        if (!f.Skip("page="u8) || !f.Pointer(out ulong page, out bool hidden))
            return "page is no address";
        if (!f.Skip(" pfn="u8) || !f.Number(out ulong pfn))
            return "pfn is no number";
        e.Page = page;
        e.PtrHidden = hidden;
        e.Pfn = pfn;
        return null;
    }

    private static string? BlockOrder(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind)
    {
        if (Block(ref f, ref e, kind) is string reason)
            return reason;
        if (!f.Skip(" order="u8) || !f.Integer(0, MaxOrder, out int order))
            return "order is no order";
        e.Order = order;
        return null;
    }

    private static string? BlockOrderType(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind)
    {
        if (BlockOrder(ref f, ref e, kind) is string reason)
            return reason;
        if (!f.Skip(" migratetype="u8) || !f.Integer(-1, MaxMigratetype, out int migratetype))
            return "migratetype is no migratetype";
        e.Migratetype = migratetype;
        return null;
    }

    private string? PageAlloc(ref FieldCursor f, ref TraceEvent e) =>
        BlockOrderType(ref f, ref e, TraceEventKind.PageAlloc)
            ?? GfpFlags(ref f, ref e)
            ?? (f.AtFieldEnd ? null : BadTail);

    private static string? PageFree(ref FieldCursor f, ref TraceEvent e, TraceEventKind kind) =>
        BlockOrder(ref f, ref e, kind) ?? (f.AtFieldEnd ? null : BadTail);

    private static string? PcpuDrain(ref FieldCursor f, ref TraceEvent e) =>
        BlockOrderType(ref f, ref e, TraceEventKind.PagePcpuDrain) ?? (f.AtFieldEnd ? null : BadTail);

    private static string? ZoneLocked(ref FieldCursor f, ref TraceEvent e)
    {
        if (BlockOrderType(ref f, ref e, TraceEventKind.PageAllocZoneLocked) is string reason)
            return reason;
        if (!f.Skip(" percpu_refill="u8) || !f.Flag(out bool refill))
            return "percpu_refill is neither 0 nor 1";
        e.PercpuRefill = refill;
        return f.AtFieldEnd ? null : BadTail;
    }

    private static string? Extfrag(ref FieldCursor f, ref TraceEvent e)
    {
        if (Block(ref f, ref e, TraceEventKind.PageAllocExtfrag) is string reason)
            return reason;
        if (!f.Skip(" alloc_order="u8) || !f.Integer(0, MaxOrder, out int order)
            || !f.Skip(" fallback_order="u8) || !f.Integer(0, MaxOrder, out int fallbackOrder)
            || !f.Skip(" pageblock_order="u8) || !f.Integer(0, MaxOrder, out int pageblockOrder))
        {
            return "an order is no order";
        }

        if (!f.Skip(" alloc_migratetype="u8) || !f.Integer(-1, MaxMigratetype, out int migratetype)
            || !f.Skip(" fallback_migratetype="u8) || !f.Integer(-1, MaxMigratetype, out int fallbackMigratetype))
        {
            return "a migratetype is no migratetype";
        }

        if (!f.Skip(" fragmenting="u8) || !f.Flag(out bool fragmenting)
            || !f.Skip(" change_ownership="u8) || !f.Flag(out bool changeOwnership))
        {
            return "fragmenting or change_ownership is neither 0 nor 1";
        }

        e.Order = order;
        e.FallbackOrder = fallbackOrder;
        e.PageblockOrder = pageblockOrder;
        e.Migratetype = migratetype;
        e.FallbackMigratetype = fallbackMigratetype;
        e.Fragmenting = fragmenting;
        e.ChangeOwnership = changeOwnership;
        return f.AtFieldEnd ? null : BadTail;
    }

    /// <summary>The address is printed in decimal, after a colon.</summary>
    private static string? AllocVmapArea(ref FieldCursor f, ref TraceEvent e)
    {
        e.Kind = TraceEventKind.AllocVmapArea;
        if ((!f.Skip("va_start: "u8) && !f.Skip("va_start="u8)) || !f.Number(out ulong start))
            return "va_start is no number";
        if (!f.Skip(" size="u8) || !f.Decimal(out ulong size) || !f.Skip(" align="u8) || !f.Decimal(out ulong align))
            return "size or align is no number";
        if (!f.Skip(" vstart="u8) || !f.Number(out ulong low) || !f.Skip(" vend="u8) || !f.Number(out ulong high))
            return "vstart or vend is no number";
        if (!f.Skip(" failed="u8) || !f.Flag(out bool failed))
            return "failed is neither 0 nor 1";
        e.VmapStart = start;
        e.VmapSize = size;
        e.VmapAlign = align;
        e.VmapRangeStart = low;
        e.VmapRangeEnd = high;
        e.VmapFailed = failed;
        return f.AtFieldEnd ? null : BadTail;
    }

    private static string? PurgeVmapArea(ref FieldCursor f, ref TraceEvent e)
    {
        e.Kind = TraceEventKind.PurgeVmapAreaLazy;
        if (!f.Skip("start="u8) || !f.Number(out ulong start) || !f.Skip(" end="u8) || !f.Number(out ulong end))
            return "start or end is no number";
        if (!f.Skip(" num_purged="u8) || !f.Decimal(out ulong purged) || purged > uint.MaxValue)
            return "num_purged is no number";
        e.VmapStart = start;
        e.VmapEnd = end;
        e.VmapPurged = (uint)purged;
        return f.AtFieldEnd ? null : BadTail;
    }

    private static string? FreeVmapArea(ref FieldCursor f, ref TraceEvent e)
    {
        e.Kind = TraceEventKind.FreeVmapAreaNoflush;
        if (!f.Skip("va_start="u8) || !f.Number(out ulong start))
            return "va_start is no number";
        if (!f.Skip(" nr_lazy="u8) || !f.Decimal(out ulong lazy)
            || !f.Skip(" nr_lazy_max="u8) || !f.Decimal(out ulong lazyMax))
        {
            return "nr_lazy or nr_lazy_max is no number";
        }

        e.VmapStart = start;
        e.VmapLazyPages = lazy;
        e.VmapLazyMax = lazyMax;
        return f.AtFieldEnd ? null : BadTail;
    }

    /// <summary>
    /// Any other event: <c>name: text</c>, or what has no name: <c>function &lt;-caller</c>,
    /// <c>&lt;stack trace&gt;</c>.
    /// </summary>
    private string? Other(ReadOnlySpan<byte> text, ref TraceEvent e)
    {
        e.Kind = TraceEventKind.Other;
        int length = 0;
        while (length < text.Length && (char.IsAsciiLetterOrDigit((char)text[length]) || text[length] == (byte)'_'))
            length++;

        ReadOnlySpan<byte> rest = text[length..];
        if (length > 0 && (rest.StartsWith(": "u8) || rest.SequenceEqual(":"u8)))
            e.EventName = EventNames.Intern(text[..length]);
        else if (!text.StartsWith((byte)'<') && rest.IndexOf(" <-"u8) < 0)
            return "no name of an event";
        return rest.Contains((byte)0) ? "NUL bytes" : null;
    }
}
