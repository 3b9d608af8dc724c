namespace Kmem.Tests;

/// <summary>/proc/vmallocinfo of real kernels, and the rarer forms of its lines.</summary>
public sealed class VmallocInfoTests
{
    [Theory]
    [InlineData("vmap/r3/vmallocinfo.txt.gz", 399)]
    [InlineData("vmap/r4/vmallocinfo.txt.gz", 398)]
    public void A_recorded_text_is_written_as_it_was_read(string file, int rows)
    {
        string text = TestData.ReadGzip(file);
        Assert.Equal(text, Rewrite(text));
        Assert.Equal(rows, VmallocInfoText.Parse(text).Rows.Count);
    }

    [Theory]
    [InlineData("proc-boot-slab-t0")]
    [InlineData("proc-boot-mixed-t1")]
    public void So_is_one_from_a_boot(string recording)
    {
        string text = ProcTexts.Read(recording, "/proc/vmallocinfo");
        Assert.Equal(text, Rewrite(text));
        Assert.All(VmallocInfoText.Parse(text).Rows, row => Assert.Equal(row.End - row.Start, row.Size));
    }

    [Fact]
    public void Fields_stand_where_the_text_has_them()
    {
        const string Text =
            "0xffffc90000aac000-0xffffc90000d2e000 2629632 map_alloc+0x2e4/0x5a0 [some_module] pages=641"
            + " vmalloc user vpages N0=640 N1=1\n"
            + "0xffffc90000200000-0xffffc90000301000 1052672 phys=0x00000000eec00000 ioremap sparse\n"
            + "0xffffc90000400000-0xffffc90000800000 4194304 vm_map_ram\n"
            + "0x0000000000000000-0x0000000000000000   20480 unpurged vm_area\n";
        List<VmallocInfoRow> rows = VmallocInfoText.Parse(Text).Rows;

        Assert.Equal("map_alloc+0x2e4/0x5a0 [some_module]", rows[0].Caller);
        Assert.Equal(VmallocInfoFlags.Vmalloc | VmallocInfoFlags.User | VmallocInfoFlags.Vpages, rows[0].Flags);
        Assert.Equal([new VmallocNodePages(0, 640), new VmallocNodePages(1, 1)], rows[0].NodePages);
        Assert.Equal((641UL, 0xffffc90000aac000, 2629632UL), (rows[0].Pages, rows[0].Start, rows[0].Size));
        Assert.Null(rows[1].Caller);
        Assert.Equal(0xeec00000UL, rows[1].PhysicalAddress);
        Assert.Equal(VmallocInfoFlags.IoRemap | VmallocInfoFlags.Sparse, rows[1].Flags);
        Assert.Equal(VmallocInfoKind.MapRam, rows[2].Kind);
        Assert.Equal(VmallocInfoKind.Unpurged, rows[3].Kind);
        Assert.Equal(Text, Rewrite(Text));
    }

    [Theory]
    [InlineData("ffffc90000aac000-0xffffc90000d2e000 4096 vmalloc")]
    [InlineData("0xffffc90000aac000-0xffffc90000d2e000 x vmalloc")]
    [InlineData("0xffffc90000aac000-0xffffc90000d2e000 4096 f+0x1/0x2 vmalloc zzz")]
    [InlineData("0xffffc90000aac000-0xffffc90000d2e000 4096 f+0x1/0x2 pages=z")]
    public void What_is_no_area_is_refused(string line) =>
        Assert.Equal(1, Assert.Throws<ProcFormatException>(() => VmallocInfoText.Parse(line)).LineNumber);

    internal static string Rewrite(string text) => VmallocInfoText.Parse(text).Render();
}
