using System.Buffers;
using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem.Tests;

/// <summary>Regions, writers, the buffer that grows in place, and the ring that is mapped twice.</summary>
public sealed class BufferTests
{
    private static Machine Boot(bool portable = false, ulong ram = 64 << 20) =>
        Machine.Boot(new MachineOptions { RamBytes = ram, Cpus = 2, PortableMemory = portable });

    [Fact]
    public void A_region_is_a_safe_buffer_of_any_size()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no vmalloc here");
        using KmemRegion region = machine.CreateRegion(20 << 20);
        Assert.Equal(20UL << 20, region.ByteLength);
        Assert.Equal(0, region.Read<long>((20 << 20) - 8));
        region.Write((20 << 20) - 8, 42L);
        Assert.Equal(42, region.AsSpan((20 << 20) - 8, 8)[0]);
        Assert.Throws<ArgumentException>(() => region.Read<long>((20 << 20) - 7));
        Assert.Throws<ArgumentOutOfRangeException>(() => region.AsSpan(20 << 20, 1)[0]);
        Assert.Throws<ArgumentOutOfRangeException>(() => region.AsSpan(ulong.MaxValue, 1)[0]);
        using (var stream = new UnmanagedMemoryStream(region, 0, 100, FileAccess.ReadWrite))
            stream.Write("hello"u8);
        Assert.Equal("hello", Encoding.ASCII.GetString(region.AsSpan(0, 5)));

        region.Dispose();
        region.Dispose();
        Assert.Throws<ObjectDisposedException>(() => region.Read<byte>(0));
        Assert.Throws<ObjectDisposedException>(() => region.AsSpan(0, 1)[0]);
        Assert.Equal(0, machine.Outstanding);
    }

    [Fact]
    public void A_region_in_use_is_freed_by_the_last_user()
    {
        using Machine machine = Boot();
        KmemRegion region = machine.CreateRegion(100);
        bool added = false;
        region.DangerousAddRef(ref added);
        region.Dispose();
        Assert.Equal(1, machine.Outstanding);
        region.DangerousRelease();
        Assert.Equal(0, machine.Outstanding);
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.CreateRegion(0));
    }

    [Fact]
    public void A_lost_region_is_freed_and_reported()
    {
        var reports = new List<LeakReport>();
        using Machine machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 1,
            OnLeak = report =>
            {
                lock (reports)
                    reports.Add(report);
            },
        });
        Lose(machine);
        for (int i = 0; i < 20 && machine.Outstanding > 0; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        Assert.Equal(0, machine.Outstanding);
        lock (reports)
            Assert.Equal(("KmemRegion", 5000L), (Assert.Single(reports).Sites[0].Source, reports[0].Bytes));
    }

    [Fact]
    public void A_buffer_writer_grows_by_moving_and_notices_old_memory()
    {
        using Machine machine = Boot();
        using KmemBufferWriter writer = machine.CreateWriter(16);
        Memory<byte> old = writer.GetMemory();
        var expected = new ArrayBufferWriter<byte>();
        for (int i = 0; i < 3000; i++)
        {
            writer.Write(BitConverter.GetBytes(i));
            expected.Write(BitConverter.GetBytes(i));
        }

        Assert.True(writer.WrittenSpan.SequenceEqual(expected.WrittenSpan));
        Assert.True(writer.WrittenMemory.Span.SequenceEqual(expected.WrittenSpan));
        Assert.Throws<ObjectDisposedException>(() => old.Span[0]);
        Assert.Equal(1, machine.Outstanding);
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(-1));
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(writer.Capacity));
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.GetSpan(-1)[0]);
        Assert.True(writer.GetSpan(100_000).Length >= 100_000);
        Assert.Equal(12_000, writer.WrittenCount);
        Assert.Throws<OutOfMemoryException>(() => writer.GetSpan(int.MaxValue)[0]);
        Assert.True(writer.WrittenSpan.SequenceEqual(expected.WrittenSpan));
        writer.Clear();
        Assert.Equal(0, writer.WrittenCount);
        writer.Dispose();
        writer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => writer.GetSpan()[0]);
        Assert.Throws<ObjectDisposedException>(() => writer.WrittenSpan.Length);
        Assert.Equal(0, machine.Outstanding);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void A_sequence_writer_moves_nothing(int seed)
    {
        using Machine machine = Boot();
        using KmemSequenceWriter writer = machine.CreateSequenceWriter(512);
        Assert.True(writer.AsReadOnlySequence.IsEmpty);
        var random = new Random(seed);
        var expected = new ArrayBufferWriter<byte>();
        ReadOnlySequence<byte> early = default;
        long earlyLength = 0;
        for (int i = 0; i < 500; i++)
        {
            int hint = random.Next(4) == 0 ? random.Next(3000) : 0;
            Span<byte> room = writer.GetSpan(hint);
            Assert.True(room.Length >= Math.Max(hint, 1));
            int count = random.Next(Math.Min(room.Length, 700) + 1);
            random.NextBytes(room[..count]);
            expected.Write(room[..count]);
            writer.Advance(count);
            if (i == 100)
                (early, earlyLength) = (writer.AsReadOnlySequence, writer.Length);
        }

        Assert.Equal(expected.WrittenCount, writer.Length);
        Assert.True(writer.AsReadOnlySequence.ToArray().AsSpan().SequenceEqual(expected.WrittenSpan));
        Assert.True(
            early.Slice(0, earlyLength).ToArray().AsSpan().SequenceEqual(expected.WrittenSpan[..(int)earlyLength]));
        Assert.True(writer.SegmentCount > 10);
        Assert.Equal(writer.SegmentCount, machine.Outstanding);
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(1 << 20));
        writer.Clear();
        Assert.Equal((0, 0), (writer.Length, machine.Outstanding));
        Assert.Throws<ArgumentOutOfRangeException>(() => writer.Advance(1));
        writer.Write("again"u8);
        Assert.Equal("again"u8.ToArray(), writer.AsReadOnlySequence.ToArray());
        writer.Dispose();
        writer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => writer.GetSpan()[0]);
        Assert.Throws<ObjectDisposedException>(() => writer.AsReadOnlySequence.Length);
        Assert.Equal(0, machine.Outstanding);
    }

    [Fact]
    public unsafe void A_growing_buffer_keeps_its_addresses()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        using (KmemGrowingBuffer warm = machine.CreateGrowingBuffer(1 << 20))
            warm.Write("page tables and the like"u8);
        long free = FreePages(machine);
        using KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 30);
        Assert.True(buffer.CommitsOnDemand);
        Assert.Equal((1 << 30, 0), (buffer.MaxCapacity, buffer.Committed));
        Span<byte> first = buffer.GetSpan();
        fixed (byte* start = first)
        {
            int total = 0;
            var random = new Random(5);
            while (total < 20 << 20)
            {
                int count = random.Next(1, 300_000);
                Span<byte> room = buffer.GetSpan(count);
                Assert.True(Unsafe.AreSame(ref room[0], ref start[total]));
                room[..count].Fill((byte)(count >> 4));
                buffer.Advance(count);
                total += count;
            }

            Assert.Equal(total, buffer.WrittenCount);
            Assert.True(Unsafe.AreSame(ref buffer.WrittenSpan[0], ref *start));
        }

        random_check(buffer);
        Assert.True(buffer.Committed - buffer.WrittenCount < 16 << 20);
        Assert.Empty(machine.Validate());
        Assert.Contains("sparse", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() => buffer.GetSpan(60 << 20)[0]);
        Assert.Contains("growth of a KmemGrowingBuffer", error.Message, StringComparison.Ordinal);
        Assert.Throws<OutOfMemoryException>(() => buffer.GetSpan(int.MaxValue)[0]);
        random_check(buffer);

        buffer.Clear();
        buffer.TrimExcess();
        Assert.Equal((0, 0), (buffer.Committed, buffer.WrittenCount));
        buffer.Write("hello"u8);
        Assert.Equal("hello"u8.ToArray(), buffer.WrittenSpan.ToArray());
        Memory<byte> memory = buffer.WrittenMemory;
        buffer.Dispose();
        buffer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => memory.Span[0]);
        Assert.Throws<ObjectDisposedException>(() => buffer.GetSpan()[0]);
        Assert.Equal(0, machine.Outstanding);
        machine.VmUnmapAliases();
        Assert.Empty(machine.Validate());
        Assert.InRange(FreePages(machine), free - 64, free);

        static void random_check(KmemGrowingBuffer buffer)
        {
            var random = new Random(5);
            int at = 0;
            while (at < buffer.WrittenCount)
            {
                int count = random.Next(1, 300_000);
                Assert.True(buffer.WrittenSpan.Slice(at, count).IndexOfAnyExcept((byte)(count >> 4)) < 0);
                at += count;
            }
        }
    }

    [Fact]
    public void One_refusal_of_the_host_is_tried_again_after_a_purge()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        using KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20);
        buffer.GetSpan(100).Fill(1);
        buffer.Advance(100);
        int committed = buffer.Committed;
        machine.Floor.Memory.Vmalloc.Window.FailHostCall(1);
        buffer.GetSpan(300_000).Fill(2);
        Assert.True(buffer.Committed > committed);
        Assert.Equal(1, buffer.WrittenSpan[99]);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void A_pinned_growing_buffer_is_freed_with_the_last_pin()
    {
        using Machine machine = Boot();
        KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20);
        buffer.Write("abc"u8);
        MemoryHandle pin = buffer.WrittenMemory.Pin();
        buffer.Dispose();
        Assert.Equal(1, machine.Outstanding);
        unsafe
        {
            Assert.Equal((byte)'b', ((byte*)pin.Pointer)[1]);
        }

        pin.Dispose();
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void On_portable_memory_a_growing_buffer_says_what_it_cannot_do()
    {
        using Machine machine = Boot(portable: true);
        using KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20);
        Assert.False(buffer.CommitsOnDemand);
        Assert.Equal(1 << 20, buffer.Committed);
        buffer.Write("hello"u8);
        buffer.TrimExcess();
        Assert.Equal(1 << 20, buffer.Committed);
        Assert.Throws<OutOfMemoryException>(() => buffer.GetSpan(1 << 20)[0]);
        NotSupportedException error = Assert.Throws<NotSupportedException>(() => machine.CreateGrowingBuffer(5 << 20));
        Assert.Contains("cannot be mapped a second time", error.Message, StringComparison.Ordinal);
        buffer.Dispose();
        Assert.Equal(0, machine.Outstanding);
    }

    [Theory]
    [InlineData(false, 1)]
    [InlineData(false, 5000)]
    [InlineData(false, 3 << 20)]
    [InlineData(true, 5000)]
    public void A_ring_behaves_as_a_queue_of_bytes(bool portable, int capacity)
    {
        using Machine machine = Boot(portable);
        using KmemRing ring = machine.CreateRing(capacity);
        bool mirrored = ring.WhyNotMirrored == null;
        Assert.Equal(mirrored, !portable && machine.Floor.Memory.WhyNoWindow == null);
        var model = new Queue<byte>();
        var random = new Random(capacity);
        var bytes = new byte[ring.Capacity + 1];
        for (int i = 0; i < 2000; i++)
        {
            int count = random.Next(Math.Min(ring.Capacity, 20_000) + 1);
            if (random.Next(2) == 0)
            {
                random.NextBytes(bytes.AsSpan(0, count));
                Assert.Equal(count <= ring.Capacity - model.Count, ring.TryWrite(bytes.AsSpan(0, count)));
                if (count <= ring.Capacity - model.Count)
                    bytes.Take(count).ToList().ForEach(model.Enqueue);
            }
            else
            {
                int got = ring.Read(bytes.AsSpan(0, count));
                Assert.Equal(Math.Min(count, model.Count), got);
                for (int b = 0; b < got; b++)
                    Assert.Equal(model.Dequeue(), bytes[b]);
            }

            Assert.Equal(model.Count, ring.ReadableCount);
            Assert.Equal(ring.Capacity - model.Count, ring.WritableCount);
            if (!mirrored)
                continue;

            Assert.Equal(model.Count, ring.ReadSpan.Length);
            Assert.Equal(ring.Capacity - model.Count, ring.WriteSpan.Length);
        }

        Assert.False(ring.TryWrite(bytes));
        Assert.Throws<ArgumentOutOfRangeException>(() => ring.Commit(ring.WritableCount + 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => ring.Commit(-1));
        Assert.Throws<ArgumentOutOfRangeException>(() => ring.Consume(ring.ReadableCount + 1));
        Assert.Equal(1, machine.Outstanding);
        Assert.Equal(ring.Capacity, machine.OutstandingBytes);
        Assert.Empty(machine.Validate());
        ring.Dispose();
        ring.Dispose();
        Assert.Throws<ObjectDisposedException>(() => ring.WriteSpan.Length);
        Assert.Throws<ObjectDisposedException>(() => ring.Consume(0));
        Assert.Throws<ObjectDisposedException>(() => ring.TryWrite([]));
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void A_mirrored_ring_shows_one_byte_at_two_addresses()
    {
        using Machine machine = Boot();
        Assert.SkipWhen(machine.Floor.Memory.WhyNoWindow != null, "no second mappings here");
        using KmemRing ring = machine.CreateRing(8192, requireMirror: true);
        Assert.True(ring.TryWrite(new byte[6000]));
        ring.Consume(6000);
        Assert.Equal(8192, ring.WriteSpan.Length);
        byte[] text = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(1000, 2000)));
        text.CopyTo(ring.WriteMemory);
        ring.Commit(text.Length);
        Assert.Equal(text, ring.ReadSpan.ToArray());
        Assert.Equal(text, ring.ReadMemory.ToArray());
    }

    [Fact]
    public void On_portable_memory_a_ring_says_what_it_cannot_do()
    {
        using Machine machine = Boot(portable: true);
        Assert.Throws<NotSupportedException>(() => machine.CreateRing(4096, requireMirror: true));
        using KmemRing ring = machine.CreateRing(4096);
        Assert.Contains("cannot be mapped a second time", ring.WhyNotMirrored, StringComparison.Ordinal);
        ring.TryWrite(new byte[3000]);
        ring.Consume(3000);
        Assert.Equal((4096, 1096), (ring.WritableCount, ring.WriteSpan.Length));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.CreateRing(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.CreateRing(KmemRing.MaxCapacity + 1));
    }

    [Fact]
    public void One_thread_writes_while_another_reads()
    {
        using Machine machine = Boot();
        using KmemRing ring = machine.CreateRing(4096);
        const int Total = 4_000_000;
        var writer = new Thread(() =>
        {
            var random = new Random(1);
            int next = 0;
            while (next < Total)
            {
                Span<byte> room = ring.WriteSpan;
                int count = Math.Min(Math.Min(room.Length, random.Next(1, 1000)), Total - next);
                for (int i = 0; i < count; i++)
                    room[i] = (byte)(next + i);
                ring.Commit(count);
                next += count;
                if (count == 0)
                    Thread.Yield();
            }
        });
        writer.Start();
        int seen = 0;
        int wrong = 0;
        while (seen < Total)
        {
            ReadOnlySpan<byte> ready = ring.ReadSpan;
            for (int i = 0; i < ready.Length; i++)
                wrong += ready[i] == (byte)(seen + i) ? 0 : 1;
            ring.Consume(ready.Length);
            seen += ready.Length;
            if (ready.IsEmpty)
                Thread.Yield();
        }

        writer.Join();
        Assert.Equal(0, wrong);
    }

    [Fact]
    public void A_machine_without_frames_refuses_rings_and_stays_whole()
    {
        using Machine machine = Boot(ram: 32 << 20);
        using KmemPool pool = machine.CreatePool();
        machine.CreateRing(4096).Dispose();
        var held = new List<IMemoryOwner<byte>>();
        Assert.Throws<OutOfMemoryException>(() => RentForever(pool, held));
        Assert.Throws<OutOfMemoryException>(() => machine.CreateRing(1 << 20));
        Assert.Equal(held.Count, machine.Outstanding);
        held.ForEach(block => block.Dispose());
        Assert.Empty(machine.Validate());
        machine.CreateRing(1 << 20).Dispose();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Lose(Machine machine) => machine.CreateRegion(5000);

    private static long FreePages(Machine machine)
    {
        machine.ShrinkCaches();
        machine.DrainAllPages();
        return machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
    }

    private static void RentForever(KmemPool pool, List<IMemoryOwner<byte>> held)
    {
        while (true)
            held.Add(pool.Rent());
    }
}
