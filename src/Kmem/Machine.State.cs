namespace Kmem;

/// <content>The whole state as plain data: where recordings of real kernels come in, and what checkpoints are.</content>
public sealed partial class Machine
{
    private VmapAllocator? _recordedVmap;

    /// <summary>
    /// The addresses of the vmalloc space: this machine's own, or those of the kernel whose state it was made from. Null
    /// if there are none yet.
    /// </summary>
    internal VmapAllocator? VmapSpace => VmallocIfUsed?.Vmap ?? _recordedVmap;

    /// <summary>
    /// Builds a machine in the state that <see cref="SaveState"/> wrote, or in the recorded state of a real kernel: from here on
    /// the same requests on the same CPUs give the same addresses.
    /// </summary>
    /// <remarks>
    /// The content of memory in use is not part of a state, nor are constructors of caches. A recording does not tell whose
    /// the blocks in use are that are not slabs; they can be freed only by a replay.
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
    /// Writes the whole state of the allocators: lists in order, slabs with their free lists, per-CPU parts, the vmalloc space.
    /// No other thread may be at work on the machine, and no free may wait for the end of a grace period.
    /// </summary>
    /// <param name="path">The file to write JSON to; gzip if the name ends in .gz.</param>
    /// <exception cref="IOException">The file cannot be written.</exception>
    public void SaveState(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        WriteState().Write(path);
    }

    /// <summary>
    /// Brings a machine into the state that another one was in, or a real kernel: from here on the same requests give the
    /// same answers. The content of memory in use is not part of a state, except for what the allocators keep there.
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
            machine.RestoreVmap(state);
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

    /// <summary>The machine's whole state. Nobody may be at work, and no work may wait for a grace period.</summary>
    internal MachineState WriteState()
    {
        VmallocIfUsed?.DropKept();
        return StateWriter.Write(Parts());
    }

    private MachineParts Parts() => new(
        Cpus, MinFreeKbytes, Options.WatermarkBoostFactor, _nodes, _pages, _blocks, _map, _slabs, _kmalloc)
    {
        VmallocIfUsed = VmallocIfUsed,
        VmapSpace = VmapSpace,
    };

    private void RestoreVmap(MachineState state)
    {
        if (state.Vmap is not { } vmap)
            return;

        if (state.Own?.Tables is { } tables)
            PublishVmalloc(new VmallocAllocator(_slabs, _kmalloc, _ram, vmap, tables.Root, tables.Tables, VmallocOptionsOfProfile));
        else
            _recordedVmap = new VmapAllocator(_slabs, new VmapOptions { State = vmap, IsReplay = true });
    }
}
