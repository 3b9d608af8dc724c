namespace Kmem.Tests;

public sealed class ProcessBarrierTests
{
    /// <summary>
    /// The handshake of the doc comment, without a fence on the owner's side. If owner and visitor ever missed each other, both would
    /// count in the unguarded total at once and an increment would be lost.
    /// </summary>
    [Fact]
    public async Task OwnerAndVisitorNeverBothEnter()
    {
        var slot = new Slot();
        Task<long> owner = Task.Run(() => OwnerLoop(slot), TestContext.Current.CancellationToken);
        const int Visits = 2000;
        for (int i = 0; i < Visits; i++)
        {
            Volatile.Write(ref slot.Visitor, 1);
            ProcessBarrier.Full();
            while (Volatile.Read(ref slot.Busy) != 0) Thread.Yield();
            slot.Total++;
            Volatile.Write(ref slot.Visitor, 0);
        }

        Volatile.Write(ref slot.Stop, 1);
        long entered = await owner;
        Assert.Equal(Visits + entered, slot.Total);
    }

    private static long OwnerLoop(Slot slot)
    {
        long entered = 0;
        while (Volatile.Read(ref slot.Stop) == 0)
        {
            Volatile.Write(ref slot.Busy, 1);
            if (Volatile.Read(ref slot.Visitor) == 0)
            {
                slot.Total++;
                entered++;
            }

            Volatile.Write(ref slot.Busy, 0);
        }

        return entered;
    }

    private sealed class Slot
    {
        public int Busy;
        public int Visitor;
        public int Stop;
        public long Total;
    }
}
