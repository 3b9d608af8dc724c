using System.Collections.ObjectModel;
using Kmem.Tracing;

namespace Kmem;

/// <summary>What the explorer shows: a recording at any moment, or a machine as it is now.</summary>
internal abstract class ExplorerSource : IDisposable
{
    /// <summary>What the page calls it.</summary>
    public required string Name { get; init; }

    /// <summary><c>trace</c>, <c>live</c> or <c>state</c>.</summary>
    public abstract string Kind { get; }

    /// <summary>The recording; null if there is no past to go to.</summary>
    public virtual Timeline? Timeline => null;

    /// <summary>The latest moment.</summary>
    public abstract int Now { get; }

    /// <summary>What cannot change while the source lives: number of CPUs, zones, addresses.</summary>
    public abstract MachineShape Shape { get; }

    /// <summary>Names of call sites, by number.</summary>
    public virtual StringTable? CallSites => null;

    /// <summary>The page tables of a recorded kernel; null if the machine has its own, or none.</summary>
    public Func<VirtAddr, PageWalk>? RecordedTables { get; init; }

    /// <summary>The frames for one connection, which moves through time on its own.</summary>
    public abstract FrameSource OpenFrames();

    /// <summary>Asks about the frames at a moment.</summary>
    public abstract T AskFrames<T>(int moment, Func<FrameSource, T> question);

    /// <summary>Asks the allocators at a moment. Of a machine at work the answer is a moment old when it
    /// comes.</summary>
    /// <exception cref="QueryException">The machine is gone.</exception>
    public abstract T Ask<T>(int moment, Func<Machine, T> question);

    /// <summary>Explains by a machine at a moment, and by what is remembered of its objects and pages; null: what the
    /// machine itself remembers.</summary>
    /// <exception cref="QueryException">The machine is gone.</exception>
    public virtual Explanation Explain(int moment, Func<Machine, EventMemory?, Explanation> question) =>
        Ask(moment, machine => question(machine, null));

    /// <summary>Somebody is there: what takes long to prepare may begin, on another thread.</summary>
    public virtual void Expect()
    {
    }

    /// <summary>What the allocators did between two moments, in order of time; the order of the moments does not
    /// matter.</summary>
    public virtual ReadOnlyMemory<Tick> TicksBetween(int one, int other) => ReadOnlyMemory<Tick>.Empty;

    /// <summary>What a machine at work has counted; empty if it counts nothing.</summary>
    public virtual IReadOnlyDictionary<string, long> CountersNow() => ReadOnlyDictionary<string, long>.Empty;

    public abstract void Dispose();

    /// <summary>The machine is gone, and every question about it is too late.</summary>
    protected static QueryException Gone() => new("the machine has been disposed", null, 503);
}

/// <summary>Frames of a source at the moment that somebody looks at.</summary>
internal abstract class FrameSource
{
    public abstract FrameMap Map { get; }

    /// <summary>What is counted besides frames; null for a machine as it is.</summary>
    public virtual TimelineCursor? Cursor => null;

    public abstract int Moment { get; }

    /// <summary>Goes to a moment; a machine as it is goes to now, if that is later than what was seen.</summary>
    public abstract void MoveTo(int moment);

    /// <summary>The message that brings a view up to date.</summary>
    public abstract ReadOnlyMemory<byte> Update(FrameView view);
}

/// <summary>What does not change about a machine.</summary>
internal sealed class MachineShape
{
    public MachineShape(Machine machine)
    {
        Cpus = machine.Cpus;
        Frames = machine.Map.EndPfn;
        DirectMap = machine.Slabs.Addresses.DirectMap;
        VmallocStart = machine.Slabs.Addresses.VmallocStart;
        VmallocEnd = machine.Slabs.Addresses.VmallocEnd;
        Profile = machine.Options.Profile.Name;
        RamBytes = (ulong)machine.Pages.Zones.Sum(it => (long)it.Zone.Present) << Pfn.PageShift;
        Zones = [.. machine.Pages.Zones.Select((it, id) => new ZoneShape(
            id, it.Zone.NodeId, it.Zone.Name, it.Zone.StartPfn, it.Zone.EndPfn, it.Zone.Present, it.Zone.Managed))];
    }

    public int Cpus { get; }

    public ulong Frames { get; }

    public ulong DirectMap { get; }

    public ulong VmallocStart { get; }

    public ulong VmallocEnd { get; }

    public string Profile { get; }

    public ulong RamBytes { get; }

    public IReadOnlyList<ZoneShape> Zones { get; }

    /// <summary>The frame of an address of the direct map; null if it is none.</summary>
    public ulong? PfnOf(ulong address)
    {
        ulong pfn = (address - DirectMap) >> Pfn.PageShift;
        return address >= DirectMap && pfn < Frames ? pfn : null;
    }
}

/// <summary>A zone; <paramref name="End"/> is the frame after its last.</summary>
internal sealed record ZoneShape(
    int Id, int Node, string Name, ulong Start, ulong End, ulong Present, ulong Managed);

/// <summary>A question that has no answer; the message is for people.</summary>
internal sealed class QueryException(string message, string? parameter, int status = 400) : Exception(message)
{
    public string? Parameter { get; } = parameter;

    public int Status { get; } = status;
}
