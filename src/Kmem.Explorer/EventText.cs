using System.Collections.Concurrent;
using System.Text.Json;
using System.Text.Unicode;
using Kmem.Tracing;

namespace Kmem;

/// <summary>Recorded events as JSON; written straight from the tables, because a film shows thirty a second.</summary>
internal static class EventText
{
    private static readonly ConcurrentDictionary<uint, string> s_gfp = new();

    /// <summary>The tracepoint's name in the kernel.</summary>
    public static string NameOf(TraceEventKind kind) => kind switch
    {
        TraceEventKind.Kmalloc => "kmalloc",
        TraceEventKind.KmemCacheAlloc => "kmem_cache_alloc",
        TraceEventKind.Kfree => "kfree",
        TraceEventKind.KmemCacheFree => "kmem_cache_free",
        TraceEventKind.PageAlloc => "mm_page_alloc",
        TraceEventKind.PageFree => "mm_page_free",
        TraceEventKind.PageFreeBatched => "mm_page_free_batched",
        TraceEventKind.PageAllocZoneLocked => "mm_page_alloc_zone_locked",
        TraceEventKind.PagePcpuDrain => "mm_page_pcpu_drain",
        TraceEventKind.PageAllocExtfrag => "mm_page_alloc_extfrag",
        TraceEventKind.AllocVmapArea => "alloc_vmap_area",
        TraceEventKind.PurgeVmapAreaLazy => "purge_vmap_area_lazy",
        TraceEventKind.FreeVmapAreaNoflush => "free_vmap_area_noflush",
        TraceEventKind.Marker => "tracing_mark_write",
        _ => "other",
    };

    /// <summary>Writes event number <paramref name="n"/> as an object.</summary>
    public static void Write(Utf8JsonWriter json, Timeline timeline, MachineShape shape, int n)
    {
        ref readonly StoredEvent e = ref timeline.EventAt(n);
        bool pages = StoredEvent.IsOfPages(e.Kind);
        json.WriteStartObject();
        json.WriteNumber("n"u8, n);
        json.WriteNumber("line"u8, e.Line);
        json.WriteNumber("ns"u8, e.TimestampNs);
        json.WriteString("kind"u8, NameOf(e.Kind));
        json.WriteNumber("cpu"u8, e.Cpu);
        json.WriteNumber("pid"u8, e.Pid);
        WriteSite(json, "site"u8, timeline.CallSites, e.CallSite);
        if (e.Name > 0 && e.Kind != TraceEventKind.Other)
            json.WriteString("cache"u8, timeline.Names.Utf8(e.Name));
        else
            json.WriteNull("cache"u8);
        if (e.Gfp != 0)
            json.WriteString("gfp"u8, s_gfp.GetOrAdd(e.Gfp, static bits => ((Gfp)bits).ToKernelString()));
        else
            json.WriteNull("gfp"u8);
        WriteNumberOrNull(json, "bytesRequested"u8, e.BytesRequested);
        WriteNumberOrNull(json, "bytesAllocated"u8, e.BytesGiven);
        if (pages)
        {
            json.WriteNumber("order"u8, e.Order);
            json.WriteNumber("migrateType"u8, e.Migratetype);
            json.WriteNull("recorded"u8);
            json.WriteNumber("recordedPfn"u8, e.Place);
        }
        else
        {
            json.WriteNull("order"u8);
            json.WriteNull("migrateType"u8);
            WriteAddress(json, "recorded"u8, e.Place);
            json.WriteNull("recordedPfn"u8);
        }

        WritePlace(json, timeline, shape, n);
        json.WriteString("result"u8, ResultOf(e.Result));
        WriteText(json, e);
        json.WriteEndObject();
    }

    public static void WriteSite(Utf8JsonWriter json, ReadOnlySpan<byte> name, StringTable sites, int id)
    {
        if (id <= 0)
        {
            json.WriteNull(name);
            return;
        }

        json.WriteStartObject(name);
        json.WriteNumber("id"u8, id);
        json.WriteString("name"u8, sites.Utf8(id));
        json.WriteEndObject();
    }

    public static void WriteAddress(Utf8JsonWriter json, ReadOnlySpan<byte> name, ulong address)
    {
        Span<byte> text = stackalloc byte[18];
        "0x"u8.CopyTo(text);
        address.TryFormat(text[2..], out _, "x16");
        json.WriteString(name, text);
    }

    /// <summary>Where this machine put it: the last object or block that the event changed.</summary>
    private static void WritePlace(Utf8JsonWriter json, Timeline timeline, MachineShape shape, int n)
    {
        ReadOnlySpan<ObjectChange> objects = timeline.ObjectsOf(n, n + 1);
        ulong? offset = null;
        if (objects.Length > 0)
        {
            offset = objects[^1].Offset;
        }
        else if (timeline.EventAt(n) is { Result: EventResult.Ok } e && StoredEvent.IsOfPages(e.Kind))
        {
            foreach (ref readonly FrameChange change in timeline.FramesOf(n, n + 1))
            {
                FrameCell cell = e.Kind == TraceEventKind.PageAlloc ? change.To : change.From;
                if (change.Count > 0 && FrameKinds.IsInUse(cell.Kind) && cell.Kind != FrameKind.Slab)
                    offset = (ulong)change.Pfn << Pfn.PageShift;
            }
        }

        ref readonly StoredEvent its = ref timeline.EventAt(n);
        if (its is
            {
                Kind: TraceEventKind.AllocVmapArea or TraceEventKind.FreeVmapAreaNoflush,
                Result: EventResult.Ok or EventResult.Unknown,
            })
        {
            WriteAddress(json, "address"u8, its.Place);     // areas are where the recorded kernel put them
            json.WriteNull("pfn"u8);
        }
        else if (offset is { } place)
        {
            WriteAddress(json, "address"u8, shape.DirectMap + place);
            json.WriteNumber("pfn"u8, place >> Pfn.PageShift);
        }
        else
        {
            json.WriteNull("address"u8);
            json.WriteNull("pfn"u8);
        }
    }

    private static void WriteNumberOrNull(Utf8JsonWriter json, ReadOnlySpan<byte> name, uint value)
    {
        if (value == 0)
            json.WriteNull(name);
        else
            json.WriteNumber(name, value);
    }

    private static void WriteText(Utf8JsonWriter json, in StoredEvent e)
    {
        const int Longest = 256;
        Span<byte> text = stackalloc byte[Longest];
        int length;
        int pages = 1 << Math.Min((int)e.Order, PageOrder.Max);
        _ = e.Kind switch
        {
            TraceEventKind.Kmalloc => Utf8.TryWrite(
                text, $"kmalloc of {e.BytesRequested} bytes, {e.BytesAllocated} given", out length),
            TraceEventKind.KmemCacheAlloc =>
                Utf8.TryWrite(text, $"an object of {e.BytesRequested} bytes is given out", out length),
            TraceEventKind.Kfree or TraceEventKind.KmemCacheFree =>
                Utf8.TryWrite(text, $"an object comes back", out length),
            TraceEventKind.PageAlloc => Utf8.TryWrite(text, $"pages are given out: {pages}", out length),
            TraceEventKind.PageFree => Utf8.TryWrite(text, $"pages come back: {pages}", out length),
            TraceEventKind.AllocVmapArea => Utf8.TryWrite(text, $"an area is given out: {e.Detail} pages", out length),
            TraceEventKind.FreeVmapAreaNoflush =>
                Utf8.TryWrite(text, $"an area is freed lazily; lazy pages: {e.Detail}", out length),
            TraceEventKind.PurgeVmapAreaLazy => Utf8.TryWrite(text, $"lazy areas become usable again", out length),
            _ => Utf8.TryWrite(text, $"{NameOf(e.Kind)}", out length),
        };
        json.WriteString("text"u8, text[..length]);
    }

    private static string ResultOf(EventResult result) => result switch
    {
        EventResult.Ok => "ok",
        EventResult.Failed => "failed",
        EventResult.Unknown => "unknown",
        EventResult.Skipped => "skipped",
        EventResult.Internal => "internal",
        _ => "refused",
    };
}
