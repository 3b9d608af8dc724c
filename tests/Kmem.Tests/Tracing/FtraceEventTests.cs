using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>The text of each event, as kernels 4.x to 6.18 print it.</summary>
public sealed class FtraceEventTests
{
    [Fact]
    public void Kmalloc()
    {
        TraceEvent e = TraceText.Event(
            "kmalloc: call_site=demo_open+0x41/0x90 ptr=00000000a1b2c3d4 bytes_req=50 bytes_alloc=64 "
            + "gfp_flags=GFP_KERNEL|__GFP_ZERO node=-1 accounted=false", out FtraceReader r);
        Assert.Equal(TraceEventKind.Kmalloc, e.Kind);
        Assert.Equal("demo_open+0x41/0x90", r.CallSites[e.CallSite]);
        Assert.Equal(0xa1b2c3d4UL, e.Ptr);
        Assert.False(e.PtrHidden);
        Assert.Equal(50UL, e.BytesReq);
        Assert.Equal(64UL, e.BytesAlloc);
        Assert.Equal(0xdc0u, e.GfpFlags);
        Assert.Equal(-1, e.Node);
        Assert.False(e.Accounted);
        Assert.Equal(0, e.Name);
        Assert.Equal(1, e.Line);
    }

    [Fact]
    public void KmemCacheAlloc()
    {
        TraceEvent e = TraceText.Event(
            "kmem_cache_alloc: call_site=demo_insert+0x2c/0x90 [demo] ptr=ffff88810caf8810 name=demo_node bytes_req=56 "
            + "bytes_alloc=64 gfp_flags=GFP_ATOMIC node=1 accounted=true", out FtraceReader r);
        Assert.Equal(TraceEventKind.KmemCacheAlloc, e.Kind);
        Assert.Equal("demo_insert+0x2c/0x90 [demo]", r.CallSites[e.CallSite]);
        Assert.Equal("demo_node", r.Names[e.Name]);
        Assert.Equal(0xffff88810caf8810UL, e.Ptr);
        Assert.Equal((56UL, 64UL), (e.BytesReq, e.BytesAlloc));
        Assert.Equal(0x820u, e.GfpFlags);
        Assert.Equal(1, e.Node);
        Assert.True(e.Accounted);
    }

    [Theory]
    [InlineData("kmalloc: call_site=ffffffff81234567 @GFP_KERNEL",
        TraceEventKind.Kmalloc, -1, false)]
    [InlineData("kmalloc_node: call_site=f+0x1/0x2 @GFP_KERNEL node=1",
        TraceEventKind.Kmalloc, 1, false)]
    [InlineData("kmem_cache_alloc: call_site=f+0x1/0x2 @GFP_KERNEL accounted=true",
        TraceEventKind.KmemCacheAlloc, -1, true)]
    [InlineData("kmem_cache_alloc_node: call_site=f+0x1/0x2 @GFP_KERNEL node=0 "
        + "accounted=false", TraceEventKind.KmemCacheAlloc, 0, false)]
    [InlineData("kmalloc: call_site=f+0x1/0x2 @GFP_KERNEL node=-1 accounted=true "
        + "future_field=7", TraceEventKind.Kmalloc, -1, true)]
    public void AllocationsOfOtherVersions(string text, TraceEventKind kind, int node, bool accounted)
    {
        TraceEvent e = TraceText.Event(text.Replace(
            "@", "ptr=00000000deadbeef bytes_req=8 bytes_alloc=8 gfp_flags=", StringComparison.Ordinal), out _);
        Assert.Equal((kind, node, accounted, 0), (e.Kind, e.Node, e.Accounted, e.Name));
        Assert.Equal((0xdeadbeefUL, 8UL, 8UL, 0xcc0u), (e.Ptr, e.BytesReq, e.BytesAlloc, e.GfpFlags));
    }

    [Theory]
    [InlineData("kfree: call_site=demo_timer+0x1c/0x40 ptr=00000000a1b2c3d4", TraceEventKind.Kfree, "")]
    [InlineData("kmem_cache_free: call_site=ffffffffa0000000 ptr=00000000a1b2c3d4", TraceEventKind.KmemCacheFree, "")]
    [InlineData("kmem_cache_free: call_site=g+0x1/0x2 [m 0123456789abcdef] ptr=a1b2c3d4 name=filp",
        TraceEventKind.KmemCacheFree, "filp")]
    [InlineData("kmem_cache_free: call_site=g+0x1/0x2 ptr=a1b2c3d4 name=ext4 inode (8:1) bytes_req=",
        TraceEventKind.KmemCacheFree, "ext4 inode (8:1) bytes_req=")]
    public void Frees(string text, TraceEventKind kind, string name)
    {
        TraceEvent e = TraceText.Event(text, out FtraceReader r);
        Assert.Equal((kind, 0xa1b2c3d4UL), (e.Kind, e.Ptr));
        Assert.Equal(name, r.Names[e.Name]);
    }

    [Theory]
    [InlineData("odd name=x ptr=y")]
    [InlineData("ext4 (8:1) a=b")]
    [InlineData("naïve-ünïcode")]
    public void CacheNamesRunUpToTheNextField(string name)
    {
        TraceEvent e = TraceText.Event(
            $"kmem_cache_alloc: call_site=f+0x1/0x2 ptr=0000000000000010 name={name} bytes_req=1 bytes_alloc=2 "
            + "gfp_flags=none node=-1 accounted=false", out FtraceReader r);
        Assert.Equal(name, r.Names[e.Name]);
        Assert.Equal((1UL, 2UL, 0u), (e.BytesReq, e.BytesAlloc, e.GfpFlags));
    }

    [Theory]
    [InlineData("ffff88810caf8810", 0xffff88810caf8810UL, false)]
    [InlineData("0xffff88810caf8810", 0xffff88810caf8810UL, false)]
    [InlineData("FFFF88810CAF8810", 0xffff88810caf8810UL, false)]
    [InlineData("0000000000000000", 0UL, false)]
    [InlineData("c1234567", 0xc1234567UL, false)]
    [InlineData("0x10", 0x10UL, false)]
    [InlineData("(null)", 0UL, false)]
    [InlineData("          (null)", 0UL, false)]
    [InlineData("(____ptrval____)", 0UL, true)]
    [InlineData("(ptrval)", 0UL, true)]
    public void Pointers(string printed, ulong ptr, bool hidden)
    {
        TraceEvent free = TraceText.Event($"kfree: call_site=f+0x1/0x2 ptr={printed}", out _);
        Assert.Equal((ptr, hidden), (free.Ptr, free.PtrHidden));
        TraceEvent page = TraceText.Event($"mm_page_free: page={printed} pfn=0x102a4c order=3", out _);
        Assert.Equal((ptr, hidden, 0x102a4cUL, 3), (page.Page, page.PtrHidden, page.Pfn, page.Order));
    }

    [Theory]
    [InlineData("mm_page_free: page=000000007a31c0de pfn=0x102a4c order=10", TraceEventKind.PageFree, 10)]
    [InlineData("mm_page_free: page=000000007a31c0de pfn=1059404 order=2", TraceEventKind.PageFree, 2)]
    [InlineData("mm_page_free_batched: page=000000007a31c0de pfn=0x102a4c order=0", TraceEventKind.PageFreeBatched, 0)]
    [InlineData("mm_page_free_batched: page=000000007a31c0de pfn=0x102a4c order=0 cold=0",
        TraceEventKind.PageFreeBatched, 0)]
    public void PageFrees(string text, TraceEventKind kind, int order)
    {
        TraceEvent e = TraceText.Event(text, out _);
        Assert.Equal((kind, 0x7a31c0deUL, 0x102a4cUL, order), (e.Kind, e.Page, e.Pfn, e.Order));
    }

    [Fact]
    public void PageAllocations()
    {
        TraceEvent e = TraceText.Event(
            "mm_page_alloc: page=000000007a31c0de pfn=0x102a4c order=9 migratetype=1 "
            + "gfp_flags=GFP_HIGHUSER_MOVABLE|__GFP_ZERO|__GFP_COMP", out _);
        Assert.Equal((TraceEventKind.PageAlloc, 0x7a31c0deUL, 0x102a4cUL), (e.Kind, e.Page, e.Pfn));
        Assert.Equal((9, 1, 0x140dcau), (e.Order, e.Migratetype, e.GfpFlags));

        TraceEvent failed = TraceText.Event(
            "mm_page_alloc: page=0000000000000000 pfn=0x0 order=4 migratetype=0 gfp_flags=GFP_NOWAIT", out _);
        Assert.Equal((0UL, 0UL, 4, 0x2800u), (failed.Page, failed.Pfn, failed.Order, failed.GfpFlags));
    }

    [Fact]
    public void ZoneEvents()
    {
        TraceEvent e = TraceText.Event(
            "mm_page_alloc_zone_locked: page=000000007a31c0de pfn=0x102a4c order=1 migratetype=2 percpu_refill=1",
            out _);
        Assert.Equal((TraceEventKind.PageAllocZoneLocked, 0x102a4cUL, 1, 2), (e.Kind, e.Pfn, e.Order, e.Migratetype));
        Assert.True(e.PercpuRefill);

        e = TraceText.Event("mm_page_pcpu_drain: page=000000007a31c0de pfn=0x102a4c order=0 migratetype=1", out _);
        Assert.Equal((TraceEventKind.PagePcpuDrain, 0x102a4cUL, 0, 1), (e.Kind, e.Pfn, e.Order, e.Migratetype));
        Assert.False(e.PercpuRefill);

        e = TraceText.Event(
            "mm_page_alloc_extfrag: page=0000000019c0ffee pfn=0x114e00 alloc_order=1 fallback_order=9 "
            + "pageblock_order=10 alloc_migratetype=0 fallback_migratetype=2 fragmenting=1 change_ownership=1", out _);
        Assert.Equal((TraceEventKind.PageAllocExtfrag, 0x19c0ffeeUL, 0x114e00UL), (e.Kind, e.Page, e.Pfn));
        Assert.Equal((1, 9, 10, 0, 2),
            (e.Order, e.FallbackOrder, e.PageblockOrder, e.Migratetype, e.FallbackMigratetype));
        Assert.True(e.Fragmenting);
        Assert.True(e.ChangeOwnership);
    }

    [Fact]
    public void VmapEvents()
    {
        TraceEvent e = TraceText.Event(
            "alloc_vmap_area: va_start: 18446683601028616192 size=83894272 align=4096 vstart=0xffffc90000000000 "
            + "vend=0xffffe8ffffffffff failed=0", out _);
        Assert.Equal((TraceEventKind.AllocVmapArea, 0xffffc9001b559000UL), (e.Kind, e.VmapStart));
        Assert.Equal((83894272UL, 4096UL, 0xffffc90000000000UL, 0xffffe8ffffffffffUL),
            (e.VmapSize, e.VmapAlign, e.VmapRangeStart, e.VmapRangeEnd));
        Assert.False(e.VmapFailed);

        e = TraceText.Event(
            "alloc_vmap_area: va_start: 18446744073709551600 size=4096 align=1 vstart=0x0 vend=0x10 failed=1", out _);
        Assert.True(e.VmapFailed);

        e = TraceText.Event(
            "purge_vmap_area_lazy: start=0xffffc90000dc8000 end=0xffffc9002055b000 num_purged=1161", out _);
        Assert.Equal((TraceEventKind.PurgeVmapAreaLazy, 0xffffc90000dc8000UL, 0xffffc9002055b000UL, 1161u),
            (e.Kind, e.VmapStart, e.VmapEnd, e.VmapPurged));

        e = TraceText.Event(
            "free_vmap_area_noflush: va_start=0xffffc9000c9e6000 nr_lazy=26321 nr_lazy_max=16384", out _);
        Assert.Equal((TraceEventKind.FreeVmapAreaNoflush, 0xffffc9000c9e6000UL, 26321UL, 16384UL),
            (e.Kind, e.VmapStart, e.VmapLazyPages, e.VmapLazyMax));
    }

    [Theory]
    [InlineData("tracing_mark_write: SNAP_BEGIN 0", "SNAP_BEGIN 0")]
    [InlineData("tracing_mark_write: a: b=c [001] kfree: ünïcode", "a: b=c [001] kfree: ünïcode")]
    [InlineData("tracing_mark_write: ", "")]
    [InlineData("tracing_mark_write:", "")]
    public void Markers(string text, string expected)
    {
        TraceEvent e = TraceText.Event(text, out _);
        Assert.Equal((TraceEventKind.Marker, expected), (e.Kind, e.Text));
    }

    [Theory]
    [InlineData("rss_stat: mm_id=1 curr=1 type=MM_ANONPAGES size=4096B", "rss_stat")]
    [InlineData("kmalloc_large: call_site=f ptr=1", "kmalloc_large")]
    [InlineData("sched_stat:", "sched_stat")]
    [InlineData("vfs_read <-ksys_read", "")]
    [InlineData("<stack trace>", "")]
    public void OtherEvents(string text, string name)
    {
        TraceEvent e = TraceText.Event(text, out FtraceReader r);
        Assert.Equal(TraceEventKind.Other, e.Kind);
        Assert.Equal(name, r.EventNames[e.EventName]);
        Assert.Null(e.Text);
    }

    [Theory]
    [InlineData("GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", 0x52cc0u)]
    [InlineData("GFP_HIGHUSER_MOVABLE|__GFP_ZERO", 0x100dcau)]
    [InlineData("GFP_ATOMIC|__GFP_ZERO", 0x920u)]
    [InlineData("GFP_TRANSHUGE", 0x1c24cau)]
    [InlineData("GFP_TRANSHUGE_LIGHT", 0x1c20cau)]
    [InlineData("GFP_KERNEL_ACCOUNT", 0x400cc0u)]
    [InlineData("GFP_USER", 0x100cc0u)]
    [InlineData("GFP_HIGHUSER", 0x100cc2u)]
    [InlineData("GFP_NOFS|__GFP_HIGHMEM|__GFP_MOVABLE|__GFP_HARDWALL", 0x100c4au)]
    [InlineData("GFP_NOIO|GFP_DMA|GFP_DMA32", 0xc05u)]
    [InlineData("__GFP_RECLAIM|__GFP_IO", 0xc40u)]
    [InlineData("none", 0u)]
    [InlineData("GFP_KERNEL|0x2000000", 0x2000cc0u)]
    [InlineData("0xcc0", 0xcc0u)]
    [InlineData("__GFP_ZERO|__GFP_HIGH|__GFP_WRITE|__GFP_RETRY_MAYFAIL|__GFP_NOFAIL|__GFP_MEMALLOC|__GFP_NOMEMALLOC",
        0xad120u)]
    [InlineData("__GFP_THISNODE|__GFP_ACCOUNT|__GFP_ZEROTAGS|__GFP_NO_OBJ_EXT|__GFP_RECLAIMABLE", 0x1e00010u)]
    [InlineData("GFP_ATOMIC|__GFP_ATOMIC|__GFP_COLD|__GFP_NOTRACK|__GFP_REPEAT", 0x4820u)]
    public void GfpFlagsHaveTheBitsOfLinux618(string printed, uint flags)
    {
        TraceEvent e = TraceText.Event(
            $"mm_page_alloc: page=0000000000000001 pfn=0x1 order=0 migratetype=0 gfp_flags={printed}",
            out FtraceReader r);
        Assert.Equal(flags, e.GfpFlags);
        Assert.Equal(0, r.UnknownGfpCount);
    }

    [Fact]
    public void UnknownGfpNamesAreCounted()
    {
        const string Line = TraceText.Frame
            + "mm_page_alloc: page=0000000000000001 pfn=0x1 order=0 migratetype=0 "
            + "gfp_flags=GFP_KERNEL|__GFP_NEW|__GFP_NEXT\n";
        using FtraceReader r = TraceText.Open(Line + Line);
        TraceEvent e = default;
        while (r.TryRead(ref e))
            Assert.Equal(0xcc0u, e.GfpFlags);
        Assert.Equal((2, 4), (r.Events, r.UnknownGfpCount));
        Assert.Equal(["__GFP_NEW", "__GFP_NEXT"], r.UnknownGfpNames);
    }

    [Theory]
    [InlineData("kfree: ptr=00000000a1b2c3d4")]
    [InlineData("kfree: call_site=f+0x1/0x2")]
    [InlineData("kfree: call_site=f+0x1/0x2 ptr=")]
    [InlineData("kfree: call_site=f+0x1/0x2 ptr=xyz")]
    [InlineData("kfree: call_site=f+0x1/0x2 ptr=(null")]
    [InlineData("kfree: call_site=f+0x1/0x2 ptr=11112222333344445")]
    [InlineData("kfree: call_site=f+0x1/0x2 ptr=0000000000000001x")]
    [InlineData("kfree: call_site=f\u0001 ptr=0000000000000001")]
    [InlineData("kfree:call_site=f+0x1/0x2 ptr=0000000000000001")]
    [InlineData("kmem_cache_free: call_site=f ptr=0000000000000001 name=a\0b")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req= bytes_alloc=1 gfp_flags=none")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req=18446744073709551616 bytes_alloc=1 "
        + "gfp_flags=none")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req=1 bytes_alloc=-1 gfp_flags=none")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req=1 bytes_alloc=1 gfp_flags=")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req=1 bytes_alloc=1 gfp_flags=none node=x")]
    [InlineData("kmalloc: call_site=f ptr=0000000000000001 bytes_req=1 bytes_alloc=1 gfp_flags=none node=0 "
        + "accounted=maybe")]
    [InlineData("kmem_cache_alloc: call_site=f ptr=0000000000000001 name=x gfp_flags=none")]
    [InlineData("mm_page_free: page=0000000000000001 pfn=0x order=1")]
    [InlineData("mm_page_free: page=0000000000000001 pfn=0x1 order=64")]
    [InlineData("mm_page_free: page=0000000000000001 pfn=0x1 order=-1")]
    [InlineData("mm_page_free: page=0000000000000001 pfn=0x1 order=4294967296")]
    [InlineData("mm_page_free: page=0000000000000001 pfn=0x1 order=1x")]
    [InlineData("mm_page_alloc: page=0000000000000001 pfn=0x1 order=1 migratetype=0")]
    [InlineData("mm_page_alloc_zone_locked: page=0000000000000001 pfn=0x1 order=1 migratetype=0 percpu_refill=2")]
    [InlineData("alloc_vmap_area: va_start: 1 size=1 align=1 vstart=0x1 vend=0x1")]
    [InlineData("purge_vmap_area_lazy: start=0x1 end=0x1 num_purged=4294967296")]
    [InlineData("free_vmap_area_noflush: va_start=0x1 nr_lazy=1")]
    [InlineData("")]
    [InlineData("kmem_ca")]
    public void DamagedEventsAreReportedAndSkipped(string text)
    {
        const string Good = TraceText.Frame + "kfree: call_site=f+0x1/0x2 ptr=0000000000000001\n";
        using FtraceReader r = TraceText.Open(TraceText.Header + TraceText.Frame + text + "\n" + Good);
        TraceEvent e = default;
        Assert.True(r.TryRead(ref e));
        Assert.Equal((6, 1UL), (e.Line, e.Ptr));
        Assert.False(r.TryRead(ref e));
        Assert.Equal(1, r.DamagedCount);
        TraceDamage damage = Assert.Single(r.Damage);
        Assert.Equal(5, damage.Line);
        Assert.NotEmpty(damage.Reason);
        Assert.StartsWith(TraceText.Frame, damage.Excerpt, StringComparison.Ordinal);
        Assert.DoesNotContain(damage.Excerpt, char.IsControl);
    }

    [Fact]
    public void EveryEventOverwritesAllOfTheLast()
    {
        using FtraceReader r = TraceText.Open(
            TraceText.Frame + "kmem_cache_alloc: call_site=f ptr=0000000000000001 name=x bytes_req=1 bytes_alloc=2 "
            + "gfp_flags=GFP_KERNEL node=0 accounted=true\n"
            + TraceText.Frame + "tracing_mark_write: text\n"
            + TraceText.Frame + "kfree: call_site=f ptr=0000000000000002\n");
        string expected = string.Empty;
        TraceEvent e = default;
        while (r.TryRead(ref e))
            expected = TraceText.Describe(r, e);
        using FtraceReader alone = TraceText.Open(TraceText.Frame + "kfree: call_site=f ptr=0000000000000002\n");
        Assert.Equal(Assert.Single(TraceText.ReadAll(alone)), expected);
        Assert.Equal(TraceEventKind.None, e.Kind);
    }
}
