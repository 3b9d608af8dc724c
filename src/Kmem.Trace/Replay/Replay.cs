namespace Kmem.Tracing;

/// <summary>What a replay runs on.</summary>
public sealed record ReplayOptions
{
    /// <summary>Whose rules the machine follows.</summary>
    public KernelProfile Profile { get; init; } = KernelProfile.Linux618;

    /// <summary>
    /// Number of CPUs, 1 to 1024. Null: as the trace's header says (<c>#P:2</c>), or one more than the highest CPU
    /// number among the first events. Events of CPUs that the machine does not have run on CPU number modulo this, and
    /// are counted in <see cref="ReplayReport.FoldedCpuEvents"/>.
    /// </summary>
    public int? Cpus { get; init; }

    /// <summary>Bytes of RAM. Costs address space only, until it is used.</summary>
    public ulong RamBytes { get; init; } = 16UL << 30;

    /// <summary>Seed of everything random in the machine.</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>
    /// Settings of the machine beyond the ones above: gets the options made of those, returns the ones to boot with.
    /// </summary>
    public Func<MachineOptions, MachineOptions>? Configure { get; init; }

    /// <summary>Stop after so many events; null: at the end of the recording.</summary>
    public long? StopAfter { get; init; }

    /// <summary>Stop after the first event whose allocation finds no memory.</summary>
    public bool StopAtFailure { get; init; }

    /// <summary>
    /// How many events the machine remembers, for <see cref="ReplayResult.Explain"/>; 0, the default, costs nothing.
    /// See <see cref="MachineOptions.RememberEvents"/>.
    /// </summary>
    public long RememberEvents { get; init; }

    /// <summary>Called with the machine and the number of events so far, before the first event, after every
    /// <see cref="SampleEvery"/>, and after the last. It may read the machine, not change it.</summary>
    public Action<Machine, long>? Sample { get; init; }

    /// <summary>Events between two calls of <see cref="Sample"/>.</summary>
    public long SampleEvery { get; init; } = 1000;
}

/// <summary>
/// Replays a recording of a kernel's memory events through a machine of Kmem:
/// <code>
///   ftrace text ─▶ FtraceReader ─▶ ReplayEngine ─▶ Machine: page allocator, SLUB, kmalloc
///                                   │    ▲              │
///             address of the kernel └────┴─ our address ┘      then ReplayReport
/// </code>
/// </summary>
/// <remarks>
/// Memory is bounded: it grows with the number of live objects, call sites and caches, not with the number of events.
/// </remarks>
public static class Replay
{
    /// <summary>Replays all events, each on the CPU that it names, on the calling thread.</summary>
    /// <param name="reader">A reader that nobody has read events from. It stays open.</param>
    /// <param name="options">What to replay on.</param>
    /// <param name="progress">Called about every 65 536 events with the number of events so far; or null.</param>
    /// <returns>
    /// The machine as it is after the last event, and the report. The same input and options give the same machine and,
    /// speed aside, the same report. Dispose it to give the machine's memory back.
    /// </returns>
    /// <exception cref="TraceFormatException">The input is no trace.</exception>
    /// <exception cref="IOException">The input cannot be read any further.</exception>
    /// <exception cref="ArgumentException">No machine can have such options; the message names the one.</exception>
    /// <exception cref="PlatformException">The host refused the address space or the memory.</exception>
    public static ReplayResult Run(FtraceReader reader, ReplayOptions options, Action<long>? progress = null)
    {
        ArgumentNullException.ThrowIfNull(reader);
        ArgumentNullException.ThrowIfNull(options);
        var start = TraceStart.Read(reader);
        var settings = new MachineOptions
        {
            Profile = options.Profile,
            Cpus = options.Cpus ?? start.Cpus,
            RamBytes = options.RamBytes,
            Seed = options.Seed,
        };
        Machine machine = Machine.Boot(options.Configure?.Invoke(settings) ?? settings);
        try
        {
            var engine = new ReplayEngine(machine, reader, progress)
            {
                StopAfter = options.StopAfter ?? long.MaxValue,
                StopAtFailure = options.StopAtFailure,
                Memory = options.RememberEvents > 0 ? machine.Remember(options.RememberEvents) : null,
            };
            Run(engine, start.Events, options);
            return new ReplayResult(machine, engine);
        }
        catch
        {
            machine.Dispose();
            throw;
        }
    }

    /// <summary>In one go, or from sample to sample.</summary>
    private static void Run(ReplayEngine engine, IReadOnlyList<TraceEvent> first, ReplayOptions options)
    {
        if (options.Sample is not { } sample)
        {
            engine.Run(first);
            return;
        }

        long end = engine.StopAfter;
        long before = -1;
        sample(engine.Machine, 0);
        while (engine.Events != before && engine.Events < end)
        {
            before = engine.Events;
            long next = Math.Min(end, before + Math.Max(1, options.SampleEvery));
            engine.StopAfter = next;
            engine.Run(first);
            if (engine.Events != before)
                sample(engine.Machine, engine.Events);
            if (engine.StopAfter < next)
                return;     // a failure stopped it
        }
    }
}

/// <summary>What a replay leaves behind.</summary>
public sealed class ReplayResult : IDisposable
{
    private readonly ReplayEngine _engine;

    internal ReplayResult(Machine machine, ReplayEngine engine)
    {
        Machine = machine;
        Report = engine.Report();
        _engine = engine;
    }

    /// <summary>The machine after the last event, with everything that is still allocated.</summary>
    public Machine Machine { get; }

    /// <summary>What happened.</summary>
    public ReplayReport Report { get; }

    /// <summary>Events replayed; where <see cref="ReplayOptions.StopAfter"/> stopped, or all.</summary>
    public long Events => Report.Events;

    /// <summary>
    /// Finds what a pointer, or the address of a page, of the recording is on this machine at this moment.
    /// </summary>
    /// <param name="recorded">An address as the recording prints it; it may lie inside an object or a block.</param>
    /// <returns>The address here; null if nothing is allocated there now, or it was allocated before the recording
    /// began.</returns>
    public VirtAddr? Find(VirtAddr recorded) => _engine.Find(recorded.Value) is { } ours ? new VirtAddr(ours) : null;

    /// <summary>
    /// Explains an address of the recording, or one of this machine: a recorded one if something that it recorded is
    /// there, or was there last.
    /// </summary>
    /// <param name="address">The address.</param>
    /// <param name="own">It is one of this machine, whatever the recording has there.</param>
    /// <returns>As <see cref="Machine.Explain(VirtAddr)"/>.</returns>
    public Explanation Explain(VirtAddr address, bool own = false)
    {
        if (own || (_engine.Find(address.Value) ?? Machine.Memory?.LastOf(address.Value)) is not { } ours)
            return Machine.Explain(address);
        return Machine.Explain(new VirtAddr(ours)) with { Recorded = address };
    }

    /// <summary>
    /// The request that failed last, explained; null if none did, or events were not remembered. With
    /// <see cref="ReplayOptions.StopAtFailure"/> that is the first one, at its own moment.
    /// </summary>
    public RequestExplanation? LastFailure => Machine.Memory?.Failures.LastOrDefault() is { } failed
        ? Machine.ExplainRequest(failed.Gfp, failed.Order) with { Decision = failed }
        : null;

    /// <summary>Disposes the machine.</summary>
    public void Dispose() => Machine.Dispose();
}
