using System.Collections.ObjectModel;

namespace Kmem;

/// <content>The whole state as plain data: where recordings of real kernels come in, and what checkpoints
/// are.</content>
public sealed partial class Machine
{
    private VmapAllocator? _recordedVmap;

    /// <summary>
    /// The addresses of the vmalloc space: this machine's own, or those of the kernel whose state it was made from.
    /// Null if there are none yet.
    /// </summary>
    internal VmapAllocator? VmapSpace => VmallocIfUsed?.Vmap ?? _recordedVmap ?? Recorded?.Vmap;

    /// <summary>
    /// The vmalloc space of the kernel whose events are replayed on this machine; null if there is none. It is not part
    /// of the machine's own state.
    /// </summary>
    internal RecordedSpace? Recorded { get; private set; }

    /// <summary>
    /// What lay behind the areas of the kernel whose state this machine was made from, by their starts.
    /// </summary>
    internal IReadOnlyDictionary<ulong, VmStructState> RecordedStructs { get; private set; } =
        ReadOnlyDictionary<ulong, VmStructState>.Empty;

    /// <summary>Begins to follow a recorded kernel's vmalloc space.</summary>
    internal RecordedSpace Follow(ulong start, ulong end)
    {
        Bug.On(Recorded != null, "a second recorded vmalloc space");
        Recorded = new RecordedSpace(_slabs, start, end);
        Recorded.Vmap.Trace = Trace as IVmapTrace;
        return Recorded;
    }

    /// <summary>
    /// Builds a machine in the state that <see cref="SaveState"/> wrote, or in the recorded state of a real kernel:
    /// from here on the same requests on the same CPUs give the same addresses.
    /// </summary>
    /// <remarks>
    /// The content of memory in use is not part of a state, nor are constructors of caches. A recording does not tell
    /// whose the blocks in use are that are not slabs; they can be freed only by a replay.
    /// </remarks>
    /// <param name="path">A file of JSON, may be gzip.</param>
    /// <param name="options">Options that a state does not contain; RAM, CPUs and nodes are the state's.</param>
    /// <returns>The machine.</returns>
    /// <exception cref="InvalidDataException">The file is not a state; the message names the rule.</exception>
    /// <exception cref="IOException">The file cannot be read.</exception>
    /// <exception cref="PlatformException">The host refused the address space or the memory.</exception>
    public static Machine LoadState(string path, MachineOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(path);
        return FromState(MachineState.Read(path), options ?? new MachineOptions { Profile = KernelProfile.Linux618 });
    }

    /// <summary>
    /// Writes the whole state of the allocators: lists in order, slabs with their free lists, per-CPU parts, the
    /// vmalloc space. No other thread may be at work on the machine.
    /// </summary>
    /// <remarks>
    /// A state has no place for everything: frees that wait for the end of a grace period, free lists in random order,
    /// page tables of 5 levels, changed rights, mappings of devices and of vm_map_ram, DMA memory, sparse areas,
    /// per-CPU objects, kernel stacks, modules, and address spaces of processes.
    /// </remarks>
    /// <param name="path">The file to write JSON to; gzip if the name ends in .gz.</param>
    /// <exception cref="InvalidOperationException">
    /// The machine has something that a state has no place for; the message names it. No file was written.
    /// </exception>
    /// <exception cref="IOException">The file cannot be written.</exception>
    public void SaveState(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        MachineState state = WriteState();
        string[] missing = [.. WithoutPlaceIn(state).Distinct(StringComparer.Ordinal)];
        if (missing.Length > 0)
            throw new InvalidOperationException($"a state has no place for {string.Join(", ", missing)}");

        state.Write(path);
    }

    /// <summary>
    /// Brings a machine into the state that another one was in, or a real kernel: from here on the same requests give
    /// the same answers. The content of memory in use is not part of a state, except for what the allocators keep
    /// there.
    /// </summary>
    /// <exception cref="InvalidDataException">The state contradicts itself; the message names the rule.</exception>
    internal static Machine FromState(MachineState state, MachineOptions options)
    {
        if (StateRules.FirstBroken(state) is { } broken)
            throw new InvalidDataException(broken);

        options = options with { Cpus = state.NrCpu };
        Func<int, int, int> distance = options.NodeDistance ?? ((a, b) => a == b ? 10 : 20);
        var machine = new Machine(
            options, StateReader.EndPfn(state), blocks => StateReader.LayOut(state, distance, blocks));
        try
        {
            machine.MinFreeKbytes = state.MinFreeKbytes;
            StateReader.Restore(state, machine.Parts());
            machine.StartRuns();
            machine.RestoreVmap(state);
            if (options.RememberEvents > 0)
                machine.Remember(options.RememberEvents);
            machine.ApplyFaultOptions();
            return machine;
        }
        catch (Exception error)
        {
            machine.Dispose();
            if (error is ArgumentException or KernelBugException)
                throw new InvalidDataException(error.Message, error);
            throw;
        }
    }

    /// <summary>
    /// After an operation of this thread broke off in the middle: leaves its section and opens the locks that it held.
    /// </summary>
    internal void BreakLocks()
    {
        CpuSet.Break();
        foreach (ZonePages zone in _pages.Zones)
            zone.Buddy.Lock.Break();
        foreach (KmemCache cache in _slabs.Caches)
            cache.BreakLocks();
        VmapSpace?.BreakLocks();
    }

    /// <summary>The machine's whole state. Nobody may be at work, and no work may wait for a grace period.</summary>
    internal MachineState WriteState()
    {
        VmallocIfUsed?.DropKept();
        _slabs.Runs?.Drop();
        _slabs.Quarantine?.Flush(null);
        return StateWriter.Write(Parts());
    }

    /// <summary>What this machine has and its written state would lose.</summary>
    private IEnumerable<string> WithoutPlaceIn(MachineState state)
    {
        if (_slabs.Rcu.Pending > 0)
            yield return "frees that wait for the end of a grace period";
        if (_slabs.Options.FreelistRandom)
            yield return "free lists in random order";
        if (Kfence != null)
            yield return "objects between guard pages";
        if (VmallocIfUsed is not { } vmalloc)
            yield break;

        if (Options.PageTableLevels != 4)
            yield return $"page tables of {Options.PageTableLevels} levels";
        if (vmalloc.DirectMap.ChangedFrames > 0)
            yield return "memory with changed rights";
        if (Modules.Count > 0)
            yield return "modules";
        if (PercpuIfUsed is { Chunks: > 0 })
            yield return "per-CPU objects";
        if (_spaces.Count > 0)
            yield return "address spaces of processes";

        foreach (VmapAreaState area in state.Vmap!.Nodes.SelectMany(node => node.Busy))
        {
            if ((area.Flags & (uint)(VmapAreaFlags.Ram | VmapAreaFlags.Block)) != 0)
                yield return "mappings of vm_map_ram";
            else if (area.Struct != null && NameOf((VmFlags)area.Struct.Flags, (VmCaller)area.Struct.Caller) is { } name)
                yield return name;
        }
    }

    private static string? NameOf(VmFlags flags, VmCaller caller) =>
        (flags & VmFlags.IoRemap) != 0 ? "mappings of devices"
        : (flags & VmFlags.DmaCoherent) != 0 ? "DMA memory"
        : (flags & VmFlags.Sparse) != 0 ? "sparse areas"
        : (flags & VmFlags.Percpu) != 0 ? "per-CPU objects"
        : caller == VmCaller.AllocThreadStack ? "kernel stacks"
        : (flags & VmFlags.Owned) != 0 ? "modules"
        : null;

    private MachineParts Parts() => new(
        Cpus, MinFreeKbytes, Options.WatermarkBoostFactor, _nodes, _pages, _blocks, _map, _slabs, _kmalloc)
    {
        VmallocIfUsed = VmallocIfUsed,
        VmapSpace = VmallocIfUsed?.Vmap ?? _recordedVmap,
    };

    private void RestoreVmap(MachineState state)
    {
        if (state.Vmap is not { } vmap)
            return;

        if (state.Own?.Tables is { } tables)
            PublishVmalloc(new VmallocAllocator(_slabs, _kmalloc, _ram, vmap, tables.Root, tables.Tables, VmallocOptionsOfProfile));
        else
            RestoreRecorded(vmap);
    }

    private void RestoreRecorded(VmapState vmap)
    {
        _recordedVmap = new VmapAllocator(_slabs, new VmapOptions { State = vmap, IsReplay = true });
        RecordedStructs = vmap.Nodes.SelectMany(node => node.Busy).Where(area => area.Struct != null)
            .ToDictionary(area => area.Start, area => area.Struct!);
    }
}
