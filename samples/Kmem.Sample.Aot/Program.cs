using System.Buffers;
using System.Diagnostics.Metrics;
using System.Runtime.CompilerServices;
using Kmem;
using Kmem.Samples;

// Uses every part of the .NET floor once, and checks the result: what a trimmer or the AOT compiler left out would
// show.
int failures = 0;
void Check(bool holds, [CallerArgumentExpression(nameof(holds))] string what = "")
{
    Console.WriteLine($"{(holds ? "ok   " : "FAIL ")} {what}");
    failures += holds ? 0 : 1;
}

var leaks = new List<LeakReport>();
Machine machine = Machine.Boot(new MachineOptions
{
    Name = "aot",
    RamBytes = 64 << 20,
    TrackCallSites = true,
    OnLeak = leaks.Add,
});

using (KmemOwner<Guid> owner = machine.Rent<Guid>(100, clear: true))
    Check(owner.Span.IndexOfAnyExcept(Guid.Empty) < 0);

using (KmemPool pool = machine.CreatePool("p"))
{
    MemoryPool<byte> asPool = pool;
    using IMemoryOwner<byte> block = asPool.Rent();
    Check(block.Memory.Length == 4096 && pool.Outstanding == 1);
}

using (KmemCache<Node> nodes = machine.CreateCache<Node>("node"))
{
    KmemHandle<Node> first = nodes.Rent(new Node { Key = 1 });
    KmemHandle<Node> second = nodes.Rent(new Node { Key = 2, Next = first });
    Check(nodes[nodes[second].Next].Key == 1);
    nodes.Return(first);
    Check(!nodes.IsLive(first));
    nodes.Return(second);
}

using (KmemRegion region = machine.CreateRegion(3 << 20))
{
    region.Write(2 << 20, 4711);
    Check(region.Read<int>(2 << 20) == 4711);
}

using (KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20))
{
    for (int i = 0; i < 1000; i++)
        buffer.Write(BitConverter.GetBytes(i));
    Check(BitConverter.ToInt32(buffer.WrittenSpan[^4..]) == 999);
}

using (KmemSequenceWriter writer = machine.CreateSequenceWriter())
{
    writer.Write(new byte[10_000]);
    Check(writer.AsReadOnlySequence.Length == 10_000);
}

using (KmemRing ring = machine.CreateRing(4096))
{
    ring.TryWrite(new byte[4000]);
    ring.Consume(4000);
    ring.TryWrite(new byte[4000]);
    Check(ring.ReadableCount == 4000 && (ring.WhyNotMirrored != null || ring.ReadSpan.Length == 4000));
}

long size = 0;
using (var listener = new MeterListener())
{
    listener.InstrumentPublished = (instrument, l) =>
    {
        if (instrument is { Meter.Name: "Kmem", Name: "kmem.memory.size" })
            l.EnableMeasurementEvents(instrument);
    };
    listener.SetMeasurementEventCallback<long>((_, value, _, _) => size += value);
    listener.Start();
    listener.RecordObservableInstruments();
}

Check(size == 64 << 20);
try
{
    machine.Rent<byte>(1 << 30);
    Check(false, "a machine of 64 MiB gave a gigabyte");
}
catch (OutOfMemoryException error)
{
    Check(error.Message.Contains("machine 'aot'", StringComparison.Ordinal));
}

Check(machine.Outstanding == 0);
Check(machine.Validate().Count == 0);
_ = machine.Rent<byte>(100);
machine.Dispose();
Check(leaks.Count == 1 && leaks[0].Sites[0].File.EndsWith("Program.cs", StringComparison.Ordinal));

Console.WriteLine(FormattableString.Invariant($"shared fraction {Machine.SharedFraction}"));
Machine.ConfigureShared(new MachineOptions { Name = "mine", RamBytes = 64 << 20 });
Check(Machine.Shared.Name == "mine");
using (KmemOwner<byte> shared = Machine.Shared.Rent<byte>(100))
    Check(Machine.Shared.Outstanding == 1);

Console.WriteLine(failures == 0 ? $"all fine, {(RuntimeFeature.IsDynamicCodeSupported ? "JIT" : "native AOT")}" : $"{failures} failed");
return failures == 0 ? 0 : 1;

namespace Kmem.Samples
{
    internal struct Node
    {
        public long Key;
        public KmemHandle<Node> Next;
    }
}
