using System.Runtime.CompilerServices;

namespace Kmem.Tool.Bench;

/// <summary>
/// <c>footprint</c>: a program whose objects change their sizes as it goes on; then how much memory is resident for the
/// bytes that are live, and how much stays after all is freed. One round is the whole life; times are per replacement.
/// </summary>
internal sealed class FootprintCase<TA>(string name, TA allocator, int slots, Action trim, Func<long> resident)
    : Case(name)
    where TA : struct, IHeap
{
    private const int ReplacementsPerSlot = 5;

    /// <summary>Ranges of sizes that the program prefers, one after the other.</summary>
    private static readonly (int Smallest, int End)[] s_phases =
        [(16, 256), (64, 1024), (16, 512), (128, 2048), (16, 1024)];

    private static readonly TimeSpan s_while = TimeSpan.FromMilliseconds(1200);

    private readonly nint[] _objects = new nint[slots];
    private readonly int[] _sizes = new int[slots];
    private long _live;
    private Footprint? _footprint;

    internal override Footprint? Footprint => _footprint;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        var dice = new Dice(5);
        long done = 0;
        foreach ((int smallest, int end) in s_phases)
        {
            for (int i = 0; i < ReplacementsPerSlot * _objects.Length; i++, done++)
                Replace(dice.Below(_objects.Length), smallest + dice.Below(end - smallest));
        }
        _footprint = new Footprint(_live, resident());
        return done;
    }

    internal override void Finish()
    {
        Dispose();
        Thread.Sleep(s_while);
        long afterFree = resident();
        trim();
        _footprint = _footprint! with { AfterFree = afterFree, AfterTrim = resident() };
    }

    public override void Dispose()
    {
        for (int i = 0; i < _objects.Length; i++) Drop(i);
    }

    private unsafe void Replace(int slot, int size)
    {
        Drop(slot);
        var obj = (byte*)allocator.Alloc((nuint)size);
        obj[0] = 1;
        obj[size - 1] = 1;
        _objects[slot] = (nint)obj;
        _sizes[slot] = size;
        _live += size;
    }

    private void Drop(int slot)
    {
        if (_objects[slot] == 0) return;

        allocator.Free(_objects[slot]);
        _objects[slot] = 0;
        _live -= _sizes[slot];
    }
}
