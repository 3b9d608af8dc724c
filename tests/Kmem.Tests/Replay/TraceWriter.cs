using System.Globalization;
using System.Text;
using System.Text.Json;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>Writes small traces line by line, and replays them.</summary>
internal sealed class TraceWriter
{
    /// <summary>Where Linux on x86-64 maps physical memory, without KASLR.</summary>
    public const ulong DirectMap = 0xffff_8880_0000_0000;

    private const ulong Vmemmap = 0xffff_ea00_0000_0000;
    private readonly StringBuilder _text = new();

    public TraceWriter(int cpus = 2) =>
        _text.Append(
            CultureInfo.InvariantCulture, $"# tracer: nop\n#\n# entries-in-buffer/entries-written: 1/1   #P:{cpus}\n");

    /// <summary>The CPU and task of the lines that follow.</summary>
    public int Cpu { get; set; }

    public int Pid { get; set; } = 100;

    public TraceWriter Kmalloc(
        ulong ptr,
        long req,
        long alloc,
        string gfp = "GFP_KERNEL",
        bool accounted = false,
        string site = "a+0x1/0x2") =>
        Event($"kmalloc: call_site={site} ptr={ptr:x16} bytes_req={req} bytes_alloc={alloc} gfp_flags={gfp} node=-1 "
            + $"accounted={(accounted ? "true" : "false")}");

    public TraceWriter CacheAlloc(
        string name, ulong ptr, long req, long alloc, string gfp = "GFP_KERNEL", string site = "c+0x1/0x2") =>
        Event($"kmem_cache_alloc: call_site={site} ptr={ptr:x16} name={name} bytes_req={req} bytes_alloc={alloc} "
            + $"gfp_flags={gfp} node=-1 accounted=false");

    public TraceWriter Kfree(ulong ptr) => Event($"kfree: call_site=f+0x1/0x2 ptr={ptr:x16}");

    public TraceWriter CacheFree(string name, ulong ptr) =>
        Event($"kmem_cache_free: call_site=f+0x1/0x2 ptr={ptr:x16} name={name}");

    public TraceWriter PageAlloc(ulong pfn, int order = 0, string gfp = "GFP_KERNEL") => Event(
        $"mm_page_alloc: page={(pfn == 0 ? 0 : Vmemmap + (pfn * 64)):x16} pfn=0x{pfn:x} order={order} migratetype=0 "
        + $"gfp_flags={gfp}");

    public TraceWriter PageFree(ulong pfn, int order = 0) =>
        Event($"mm_page_free: page={Vmemmap + (pfn * 64):x16} pfn=0x{pfn:x} order={order}");

    public TraceWriter Event(string text) =>
        Line(string.Create(
            CultureInfo.InvariantCulture, $"{"demo",16}-{Pid,-7} [{Cpu:d3}] .....   412.000731: {text}"));

    public TraceWriter Line(string line)
    {
        _text.Append(line).Append('\n');
        return this;
    }

    public override string ToString() => _text.ToString();

    public ReplayResult Run(ReplayOptions? options = null) => Run(Encoding.ASCII.GetBytes(ToString()), options);

    public static ReplayResult Run(byte[] text, ReplayOptions? options = null)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(text), "test input");
        return Kmem.Tracing.Replay.Run(reader, options ?? new ReplayOptions { RamBytes = 1UL << 30 });
    }

    /// <summary>The report and the machine as text, without the speed.</summary>
    public static string Describe(ReplayResult result) =>
        JsonSerializer.Serialize(result.Report with { Elapsed = default, EventsPerSecond = 0 })
        + result.Machine.Proc.BuddyInfo() + result.Machine.Proc.SlabInfo() + result.Machine.Proc.ZoneInfo()
        + result.Machine.Proc.PageTypeInfo();

    /// <summary>
    /// What holds after every replay: each event is counted once, and the report is what the machine says.
    /// </summary>
    public static void CheckWhole(ReplayResult result)
    {
        CheckShape(result);
        foreach (CacheReport cache in result.Report.Caches.Where(cache => !IsLarge(cache)))
        {
            KmemCache its = result.Machine.Caches.Single(candidate => candidate.Name == cache.Name);
            Assert.Equal((its.LiveCount, its.SlabCount), (cache.LiveObjects, cache.Slabs));
            Assert.Equal((its.TotalObjects - its.LiveCount) * its.SlotSize, cache.FreeSlotBytes);
        }
    }

    /// <summary>The same, where names of caches may occur twice.</summary>
    public static void CheckShape(ReplayResult result)
    {
        ReplayReport r = result.Report;
        Assert.Empty(r.ViolationTexts);
        Assert.Equal(0, r.Violations);
        Assert.Equal(
            r.Events,
            r.Allocs + r.Frees + r.UnknownFrees + r.NullFrees + r.FreesOfFailedAllocs + r.TracedFailures
            + r.SlabPagesRecognised + r.LargeKmallocPagesRecognised + r.SlabPageFrees + r.VmapAllocs + r.VmapFrees + r.VmapPurges
            + r.SkippedEvents);
        Assert.Equal(r.LiveObjects, r.Caches.Sum(cache => cache.LiveObjects));
        Assert.Equal(r.LiveBytes, r.Caches.Sum(cache => cache.LiveObjects * cache.SlotSize));
        Assert.Equal(r.BytesAllocChecked, r.Caches.Sum(cache => cache.Checked));
        Assert.Equal(r.BytesAllocEqual, r.Caches.Sum(cache => cache.Equal));

        // All memory is free, on CPU lists, in slabs and large blocks, or in live pages.
        long inUse = r.LivePages
            + result.Machine.NodeList.Sum(node => node.SlabReclaimablePages + node.SlabUnreclaimablePages);
        Assert.Equal(r.Zones.Sum(zone => zone.Managed), r.Zones.Sum(zone => zone.Free + zone.PcpFrames) + inUse);
    }

    private static bool IsLarge(CacheReport cache) => cache.Name.StartsWith("kmalloc-large", StringComparison.Ordinal);
}
