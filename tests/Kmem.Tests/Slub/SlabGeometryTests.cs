namespace Kmem.Tests;

public sealed class SlabGeometryTests
{
    // Slot size, then order/objects for 1, 2, 4, 8, 16, 32, 64 and 128 CPUs.
    private const string OrderVectors = """
            8 0/512 0/512 0/512 0/512 0/512 0/512 0/512 0/512
           16 0/256 0/256 0/256 0/256 0/256 0/256 0/256 0/256
           64  0/64  0/64  0/64  0/64  0/64  0/64  0/64  0/64
           96  0/42  0/42  0/42  0/42  0/42  0/42  0/42  0/42
          128  0/32  0/32  0/32  0/32  0/32  0/32  0/32  1/64
          192  0/21  0/21  0/21  0/21  1/42  1/42  1/42  1/42
          256  0/16  0/16  0/16  1/32  1/32  1/32  1/32  2/64
          320  0/12  0/12  1/25  1/25  1/25  2/51  2/51  2/51
          384  0/10  1/21  1/21  1/21  2/42  2/42  2/42  2/42
          512   0/8  1/16  1/16  2/32  2/32  2/32  2/32  3/64
          576  1/14  1/14  2/28  2/28  2/28  2/28  3/56  3/56
          640  1/12  1/12  2/25  2/25  2/25  3/51  3/51  3/51
          704  1/11  2/23  2/23  2/23  3/46  3/46  3/46  3/46
         1024   1/8  2/16  2/16  3/32  3/32  3/32  3/32  3/32
         1088  2/15  2/15  3/30  3/30  3/30  3/30  3/30  3/30
         1216  2/13  2/13  3/26  3/26  3/26  3/26  3/26  3/26
         1536  2/10  3/21  3/21  3/21  3/21  3/21  3/21  3/21
         2048   2/8  3/16  3/16  3/16  3/16  3/16  3/16  3/16
         2304  3/14  3/14  3/14  3/14  3/14  3/14  3/14  3/14
         3072  3/10  3/10  3/10  3/10  3/10  3/10  3/10  3/10
         4096   3/8   3/8   3/8   3/8   3/8   3/8   3/8   3/8
         5888   3/5   3/5   3/5   3/5   3/5   3/5   3/5   3/5
         8192   3/4   3/4   3/4   3/4   3/4   3/4   3/4   3/4
        10240   3/3   3/3   3/3   3/3   3/3   3/3   3/3   3/3
        20000   3/1   3/1   3/1   3/1   3/1   3/1   3/1   3/1
        40000   4/1   4/1   4/1   4/1   4/1   4/1   4/1   4/1
        """;

    [Fact]
    public void OrdersGrowWithTheCpus()
    {
        string[] lines = OrderVectors.Split('\n');
        Assert.Equal(26, lines.Length);
        foreach (string line in lines)
        {
            string[] columns = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            Assert.Equal(9, columns.Length);
            int size = int.Parse(columns[0]);
            for (int i = 1; i < columns.Length; i++)
            {
                int cpus = 1 << (i - 1);
                SlabGeometry g = SlabGeometry.Compute(new SlabGeometryRequest(size, 0, SlabFlags.None, cpus));
                Assert.Equal(size, g.Size);
                Assert.True(columns[i] == $"{g.Order}/{g.ObjectsPerSlab}",
                    $"{size} bytes, {cpus} CPUs: {g.Order}/{g.ObjectsPerSlab}, not {columns[i]}");
            }
        }
    }

    [Theory]
    [InlineData(64, true, "", 64, 32, 0, 64)]
    [InlineData(64, true, "Z", 72, 32, 64, 192)]
    [InlineData(64, true, "P", 64, 64, 0, 128)]
    [InlineData(64, true, "U", 64, 32, 0, 192)]
    [InlineData(64, true, "ZP", 72, 72, 64, 192)]
    [InlineData(64, true, "FZPU", 72, 72, 64, 256)]
    [InlineData(96, true, "FZPU", 104, 104, 32, 224)]
    [InlineData(192, true, "FZPU", 200, 200, 64, 384)]
    [InlineData(1024, true, "FZPU", 1032, 1032, 1024, 3072)]
    [InlineData(8, true, "FZPU", 16, 16, 8, 112)]
    [InlineData(200, false, "", 200, 96, 0, 200)]
    [InlineData(200, false, "Z", 208, 96, 8, 224)]
    [InlineData(200, false, "FZPU", 208, 208, 8, 296)]
    [InlineData(197, false, "FZPU", 200, 200, 8, 288)]
    [InlineData(24, false, "U", 24, 8, 0, 88)]
    [InlineData(56, false, "FZPU", 64, 64, 8, 152)]
    public void DebugFlagsEnlargeTheSlot(
        int objectSize, bool kmalloc, string letters, int inuse, int freePointer, int leftPad, int size)
    {
        SlabFlags flags = FlagsOf(letters) | (kmalloc ? SlabFlags.Kmalloc : SlabFlags.None);
        int align = kmalloc ? SlabGeometry.KmallocAlignmentOf(objectSize) : 0;
        SlabGeometry g = SlabGeometry.Compute(new SlabGeometryRequest(objectSize, align, flags, 2));

        Assert.Equal(inuse, g.Inuse);
        Assert.Equal(freePointer, g.FreePointerOffset);
        Assert.Equal(leftPad, g.RedLeftPad);
        Assert.Equal(size, g.Size);
        Assert.Equal(freePointer >= inuse, g.FreePointerOutside);
        Assert.Equal(freePointer >= inuse ? inuse + 8 : inuse, g.TrackOffset);
        Assert.Equal(letters.Length > 0, g.CpuPartial == 0);
    }

    [Fact]
    public void RedZoneWithUserTrackingMovesTheFreePointerOfKmallocObjectsOnly()
    {
        const SlabFlags flags = SlabFlags.RedZone | SlabFlags.StoreUser;
        Assert.False(SlabGeometry.Compute(new SlabGeometryRequest(64, 64, flags, 2)).FreePointerOutside);
        Assert.True(SlabGeometry.Compute(new SlabGeometryRequest(64, 64, flags | SlabFlags.Kmalloc, 2))
            .FreePointerOutside);
        Assert.True(SlabGeometry.Compute(new SlabGeometryRequest(4, 0, SlabFlags.RedZone, 2)).FreePointerOutside);
    }

    [Fact]
    public void BodiesArePoisonedUnlessSomebodyReliesOnThem()
    {
        var plain = new SlabGeometryRequest(200, 0, SlabFlags.Poison, 2);
        Assert.True(SlabGeometry.Compute(plain).PoisonsObjects);
        Assert.False(SlabGeometry.Compute(plain with { HasConstructor = true }).PoisonsObjects);
        Assert.False(SlabGeometry.Compute(plain with { Flags = SlabFlags.Poison | SlabFlags.TypesafeByRcu })
            .PoisonsObjects);
    }

    [Fact]
    public void TracksWithoutStackDepotAreShorter()
    {
        var request = new SlabGeometryRequest(24, 0, SlabFlags.StoreUser, 2) { TrackSize = 24 };
        Assert.Equal(24 + 2 * 24, SlabGeometry.Compute(request).Size);
    }

    [Fact]
    public void DebuggingThatNeedsAHigherOrderCanBeGivenUp()
    {
        SlabFlags flags = FlagsOf("FZPU");
        var request = new SlabGeometryRequest(4096, 0, flags, 2);
        SlabGeometry full = SlabGeometry.Compute(request);
        Assert.Equal(flags, full.Flags);
        Assert.Equal(1, full.MinOrder);

        SlabGeometry reduced = SlabGeometry.Compute(request with { NoHigherOrderDebug = true });
        Assert.Equal(SlabFlags.ConsistencyChecks, reduced.Flags);
        Assert.Equal((4096, 2048, 0), (reduced.Size, reduced.FreePointerOffset, reduced.MinOrder));
        Assert.Equal(0, reduced.CpuPartial);

        SlabGeometry small = SlabGeometry.Compute(request with { ObjectSize = 64, NoHigherOrderDebug = true });
        Assert.Equal(flags, small.Flags);
    }

    [Theory]
    [InlineData(0, 0, 3, 512, 0, 8)]        // automatic: 8 objects wanted on 1 CPU
    [InlineData(2, 0, 3, 512, 2, 32)]       // slab_min_order
    [InlineData(0, 40, 3, 512, 3, 64)]      // slab_min_objects: 40 * 512 needs order 3
    [InlineData(0, 0, 0, 2304, 0, 1)]       // slab_max_order: no better than one object
    [InlineData(0, 0, 0, 5000, 1, 1)]       // an object larger than slab_max_order still gets its slab
    [InlineData(7, 0, 7, 8, 5, 16384)]      // more than 32767 objects do not fit the counter
    public void TunablesShiftTheOrder(int minOrder, int minObjects, int maxOrder, int size, int order, int objects)
    {
        SlabGeometry g = SlabGeometry.Compute(new SlabGeometryRequest(size, 0, SlabFlags.None, 1)
        {
            SlabMinOrder = minOrder,
            SlabMinObjects = minObjects,
            SlabMaxOrder = maxOrder,
        });
        Assert.Equal((order, objects), (g.Order, g.ObjectsPerSlab));
    }

    [Fact]
    public void WasteIsWhatNoSlotCovers()
    {
        SlabGeometry g = SlabGeometry.Compute(new SlabGeometryRequest(600, 0, SlabFlags.HwcacheAlign, 2));
        Assert.Equal((640, 1, 12, 8192 - 12 * 640), (g.Size, g.Order, g.ObjectsPerSlab, g.WastePerSlab));
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(-8, 0)]
    [InlineData((4 << 20) + 1, 0)]
    [InlineData(int.MaxValue, 0)]
    [InlineData(64, 3)]
    [InlineData(64, -8)]
    [InlineData(64, int.MinValue)]
    [InlineData(64, 8 << 20)]
    [InlineData(64, 1 << 30)]
    public void ImpossibleSizesAndAlignmentsAreRefused(int size, int align) =>
        Assert.Throws<ArgumentException>(
            () => SlabGeometry.Compute(new SlabGeometryRequest(size, align, SlabFlags.None, 2)));

    [Fact]
    public void LargestObjectFillsTheLargestBlock()
    {
        var request = new SlabGeometryRequest(4 << 20, 0, SlabFlags.None, 2);
        SlabGeometry g = SlabGeometry.Compute(request);
        Assert.Equal((10, 1, 0), (g.Order, g.ObjectsPerSlab, g.WastePerSlab));

        ArgumentException e = Assert.Throws<ArgumentException>(
            () => SlabGeometry.Compute(request with { HasConstructor = true }));
        Assert.Contains("larger than the largest block", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ImpossibleSettingsAreRefused()
    {
        var good = new SlabGeometryRequest(64, 0, SlabFlags.None, 2);
        SlabGeometryRequest[] bad =
        [
            good with { Cpus = 0 },
            good with { CacheLineSize = 48 },
            good with { CacheLineSize = 0 },
            good with { SlabMaxOrder = 11 },
            good with { SlabMaxOrder = -1 },
            good with { SlabMinOrder = 4 },
            good with { SlabMinOrder = -1 },
            good with { SlabMinObjects = -1 },
            good with { TrackSize = 0 },
            default,
        ];
        foreach (SlabGeometryRequest request in bad)
            Assert.Throws<ArgumentException>(() => SlabGeometry.Compute(request));
    }

    [Theory]
    [InlineData(0, true)]
    [InlineData(184, true)]
    [InlineData(4, false)]
    [InlineData(192, false)]
    [InlineData(-8, false)]
    public void ChosenFreePointerOffsetStaysInsideTheObject(int offset, bool isValid)
    {
        var request = new SlabGeometryRequest(192, 0, SlabFlags.TypesafeByRcu | SlabFlags.HwcacheAlign, 2);
        Assert.Equal((256, 192), (SlabGeometry.Compute(request).Size, SlabGeometry.Compute(request).FreePointerOffset));

        request = request with { FreePointerOffset = offset };
        if (isValid)
        {
            SlabGeometry g = SlabGeometry.Compute(request);
            Assert.Equal((192, offset, false), (g.Size, g.FreePointerOffset, g.FreePointerOutside));
        }
        else
        {
            Assert.Throws<ArgumentException>(() => SlabGeometry.Compute(request));
        }
    }

    [Fact]
    public void ChosenFreePointerOffsetNeedsRcuWithoutConstructor()
    {
        var request = new SlabGeometryRequest(192, 0, SlabFlags.None, 2) { FreePointerOffset = 8 };
        Assert.Throws<ArgumentException>(() => SlabGeometry.Compute(request));
        request = request with { Flags = SlabFlags.TypesafeByRcu, HasConstructor = true };
        Assert.Throws<ArgumentException>(() => SlabGeometry.Compute(request));
    }

    [Theory]
    [InlineData(0, 100, false, 8)]
    [InlineData(4, 100, false, 8)]
    [InlineData(32, 100, false, 32)]
    [InlineData(0, 100, true, 64)]
    [InlineData(0, 33, true, 64)]
    [InlineData(0, 32, true, 32)]
    [InlineData(0, 17, true, 32)]
    [InlineData(0, 16, true, 16)]
    [InlineData(0, 3, true, 8)]
    [InlineData(256, 16, true, 256)]
    public void AlignmentFollowsTheCacheLine(int requested, int objectSize, bool hwcacheAlign, int expected)
    {
        SlabFlags flags = hwcacheAlign ? SlabFlags.HwcacheAlign : SlabFlags.None;
        int align = SlabGeometry.AlignmentOf(flags, requested, objectSize);
        Assert.Equal(expected, align);
        Assert.Equal(align, SlabGeometry.AlignmentOf(flags, align, objectSize));
    }

    [Fact]
    public void AlignmentOfNothingIsRefused() =>
        Assert.Throws<ArgumentOutOfRangeException>(() => SlabGeometry.AlignmentOf(SlabFlags.HwcacheAlign, 0, 0));

    [Theory]
    [InlineData(192, SlabFlags.None, ":0000192")]
    [InlineData(64, SlabFlags.Account, ":A-0000064")]
    [InlineData(32, SlabFlags.ReclaimAccount | SlabFlags.Account | SlabFlags.Panic, ":aA-0000032")]
    [InlineData(96, SlabFlags.CacheDma | SlabFlags.CacheDma32 | SlabFlags.ConsistencyChecks, ":dDF-0000096")]
    public void SharedCachesAreNamedByFlagsAndSize(int size, SlabFlags flags, string name) =>
        Assert.Equal(name, SlabGeometry.SysfsName(flags, size));

    /// <summary>
    /// Every cache of a running kernel with one CPU: fields that sysfs does not show come from its memory.
    /// </summary>
    [Fact]
    public void EveryCacheOfTheOneCpuKernelComesOut()
    {
        string[] lines = File.ReadAllLines(TestData.PathOf("boot-1cpu/caches.tsv"));
        string[] header = lines[0].Split('\t');
        Assert.Equal(85, lines.Length);
        for (int i = 1; i < lines.Length; i++)
        {
            string[] fields = lines[i].Split('\t');
            int Field(string column) => int.Parse(fields[Array.IndexOf(header, column)]);

            SlabFlags flags = (SlabFlags)Field("flags");
            bool hasConstructor = Field("ctor") != 0;
            // A free pointer inside an object under RCU was put there by the cache's creator.
            bool isChosen = (flags & SlabFlags.TypesafeByRcu) != SlabFlags.None && Field("offset") < Field("inuse");
            var request = new SlabGeometryRequest(Field("object_size"), Field("align"), flags, 1)
            {
                HasConstructor = hasConstructor,
                FreePointerOffset = isChosen ? Field("offset") : null,
            };
            SlabGeometry g = SlabGeometry.Compute(request);

            int offset = g.FreePointerOffset;
            if (fields[0] == "mnt_cache")
            {
                // A larger cache joined this one, which keeps the free pointer of its first user. That user's size is
                // not recorded; only 352 to 367 bytes put the pointer there.
                Assert.Equal((384, 192, 176), (Field("object_size"), offset, Field("offset")));
                offset = SlabGeometry.Compute(new SlabGeometryRequest(352, 0, flags, 1)).FreePointerOffset;
            }
            int[] computed =
            [
                g.Size, g.Align, g.Inuse, offset, g.Order, g.ObjectsPerSlab, g.MinOrder, g.MinObjects,
                g.MinPartial, g.CpuPartial, g.CpuPartialSlabs, (int)g.AllocFlags,
            ];
            int[] recorded =
            [
                Field("size"), Field("align"), Field("inuse"), Field("offset"), Field("order"), Field("objects"),
                Field("min_order"), Field("min_objects"), Field("min_partial"), Field("cpu_partial"),
                Field("cpu_partial_slabs"), Field("allocflags"),
            ];
            Assert.True(recorded.AsSpan().SequenceEqual(computed),
                $"{fields[0]}: {string.Join(' ', computed)}, not {string.Join(' ', recorded)}");
        }
    }

    private static SlabFlags FlagsOf(string letters)
    {
        SlabFlags flags = SlabFlags.None;
        foreach (char letter in letters)
        {
            flags |= letter switch
            {
                'F' => SlabFlags.ConsistencyChecks,
                'Z' => SlabFlags.RedZone,
                'P' => SlabFlags.Poison,
                'U' => SlabFlags.StoreUser,
                _ => throw new ArgumentException($"No debug letter {letter}.", nameof(letters)),
            };
        }
        return flags;
    }
}
