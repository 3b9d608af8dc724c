using System.Runtime.InteropServices;

namespace Kmem.Tests;

public sealed class ProcessBarrierTests
{
    /// <summary>
    /// The handshake of the doc comment, without a fence on the owner's side. When owner and visitor miss each other,
    /// both are in the unguarded section at once and one of their counts is lost: without the barrier that happens in
    /// most runs.
    /// </summary>
    [Fact]
    public async Task OwnerAndVisitorNeverBothEnter()
    {
        Assert.SkipUnless(HostInfo.Cpus > 1, "two threads must run at once for stores and loads to cross");
        const int Visits = 150_000;
        var slot = new Slot();
        Task<long> owner = Task.Factory.StartNew(
            () => OwnerLoop(slot),
            TestContext.Current.CancellationToken,
            TaskCreationOptions.LongRunning,
            TaskScheduler.Default);
        try
        {
            for (int i = 0; i < Visits; i++)
            {
                Visit(slot);
                Thread.SpinWait(i % 8);                  // let the owner in, at ever different moments
            }
        }
        finally
        {
            Volatile.Write(ref slot.Stop, 1);
        }

        Assert.Equal(Visits + await owner, slot.Total);
    }

    private static void Visit(Slot slot)
    {
        Volatile.Write(ref slot.Visitor, 1);
        ProcessBarrier.Full();
        for (int spins = 1; Volatile.Read(ref slot.Busy) != 0; spins++)
        {
            if (spins % 1000 == 0) Thread.Yield();       // the owner has been preempted
        }

        Count(slot);
        Volatile.Write(ref slot.Visitor, 0);
    }

    private static long OwnerLoop(Slot slot)
    {
        long entered = 0;
        while (Volatile.Read(ref slot.Stop) == 0)
        {
            Volatile.Write(ref slot.Busy, 1);
            if (Volatile.Read(ref slot.Visitor) == 0)
            {
                Count(slot);
                entered++;
            }

            Volatile.Write(ref slot.Busy, 0);
        }

        return entered;
    }

    /// <summary>An increment that takes its time, so that an intruder is noticed.</summary>
    private static void Count(Slot slot)
    {
        long total = Volatile.Read(ref slot.Total);
        Thread.SpinWait(1);
        Volatile.Write(ref slot.Total, total + 1);
    }

    /// <summary>Each field in its own cache lines: sharing one would hide the reordering that is looked for.</summary>
    [StructLayout(LayoutKind.Explicit)]
    private sealed class Slot
    {
        [FieldOffset(128)] public int Busy;
        [FieldOffset(256)] public int Visitor;
        [FieldOffset(384)] public int Stop;
        [FieldOffset(512)] public long Total;
    }
}
