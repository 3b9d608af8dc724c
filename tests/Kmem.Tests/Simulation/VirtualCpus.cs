using System.Collections.Concurrent;

namespace Kmem.Tests;

/// <summary>
/// At a step, not the CPU that runs goes on, but another one: the so-manieth after it of those alive.
/// </summary>
internal readonly record struct Preemption(long Step, int Ahead);

/// <summary>What came of one run.</summary>
/// <param name="Steps">Places at which another CPU could have gone on.</param>
/// <param name="Switches">How often one did: by order, or because the one before had to wait or had ended.</param>
/// <param name="Hash">Of all switches: two runs with the same one were the same interleaving.</param>
/// <param name="Preempted">What the order did.</param>
/// <param name="Error">What went wrong, or null.</param>
internal sealed record Outcome(long Steps, long Switches, ulong Hash, IReadOnlyList<string> Preempted, Exception? Error);

/// <summary>
/// CPUs of which exactly one runs at a time. Each is a thread, but it goes on only while it holds the baton, and it
/// hands the baton over only at the places that <see cref="SimPoint"/> marks: where the order of preemptions says so,
/// where it has to wait for another one, and at its end. So a run is a function of its order and can be had again.
/// <code>
///   cpu 0  ────●            ●────────  end
///   cpu 1      └───● waits  ▲
///   cpu 2          └────────┘ end                 ● a marked place, └ the baton
/// </code>
/// </summary>
/// <remarks>
/// What it cannot show: writes seen out of order. A real processor may delay a store; here everybody sees it at once.
/// That is what the stress tests with real threads are for.
/// </remarks>
internal sealed class VirtualCpus : Simulation
{
    private const long MostSteps = 3_000_000;
    private const int MostRoundsOfWaiting = 3_000;
    private static readonly TimeSpan s_longest = TimeSpan.FromSeconds(60);

    private readonly Cpu[] _cpus;
    private readonly Preemption[] _order;
    private readonly LockRank? _open;
    private readonly BlockingCollection<Cpu> _ended = [];
    private int _running;
    private int _nextPreemption;
    private int _roundsOfWaiting;
    private long _steps;
    private long _switches;
    private ulong _hash = 0xcbf2_9ce4_8422_2325;
    private readonly List<object> _kept = [];
    private readonly List<string> _places = [];
    private Exception? _error;

    private VirtualCpus(IReadOnlyList<Action[]> work, IEnumerable<Preemption> order, LockRank? open)
    {
        _cpus = [.. work.Select((stages, index) => new Cpu(index, stages))];
        _order = [.. order.OrderBy(preemption => preemption.Step)];
        _open = open;
    }

    /// <summary>Runs work on CPUs to its end.</summary>
    /// <param name="work">
    /// For each CPU its stages; each stage is a thread of its own, which is dead when the next begins.
    /// </param>
    /// <param name="order">Where to switch though nobody has to.</param>
    /// <param name="open">Locks of this rank keep nobody out: a planted error.</param>
    public static Outcome Run(IReadOnlyList<Action[]> work, IEnumerable<Preemption> order, LockRank? open = null)
    {
        var cpus = new VirtualCpus(work, order, open);
        cpus.RunAll();
        return new Outcome(cpus._steps, cpus._switches, cpus._hash, cpus._places, cpus._error);
    }

    public override void Here(string place)
    {
        ThrowIfOver();
        _roundsOfWaiting = 0;
        Cpu self = _cpus[_running];
        foreach (Cpu cpu in _cpus)
            cpu.Waits = false;
        if (++_steps > MostSteps)
            Fail(new TimeoutException($"no end after {MostSteps} steps"));
        if (_nextPreemption == _order.Length || _order[_nextPreemption].Step > _steps)
            return;

        int ahead = _order[_nextPreemption++].Ahead;
        Cpu[] others = [.. Alive().Where(cpu => cpu != self)];
        if (others.Length == 0)
            return;

        Cpu next = others[ahead % others.Length];
        _places.Add($"step {_steps}: CPU {self.Index} is stopped in {place}, CPU {next.Index} goes on");
        SwitchTo(self, next);
    }

    public override void Wait()
    {
        ThrowIfOver();
        Cpu self = _cpus[_running];
        self.Waits = true;
        Cpu[] able = [.. Alive().Where(cpu => !cpu.Waits)];
        if (able.Length == 0)
        {
            if (++_roundsOfWaiting > MostRoundsOfWaiting)
                Fail(new TimeoutException("deadlock: each CPU waits for another one"));
            foreach (Cpu cpu in _cpus)
                cpu.Waits = false;
            able = [.. Alive().Where(cpu => cpu != self)];
            if (able.Length == 0)
                return;
        }

        SwitchTo(self, able[0]);
    }

    public override void Keep(object finalizable) => _kept.Add(finalizable);

    public override bool Excludes(LockRank rank) => rank != _open;

    private void RunAll()
    {
        foreach (Cpu cpu in _cpus)
            StartStage(cpu);
        Resume(_cpus[0]);
        for (int left = _cpus.Length; left > 0;)
        {
            if (!_ended.TryTake(out Cpu? cpu, s_longest))
            {
                _error = new TimeoutException("a CPU is blocked unseen: a SimPoint.Gate is missing");
                return;
            }

            // Only now the next one goes on: whether a thread is alive has one answer.
            cpu.Thread!.Join();
            if (cpu.HasNextStage && _error == null)
            {
                StartStage(cpu);
                Resume(cpu);
                continue;
            }

            cpu.Ended = true;
            left--;
            if (left > 0)
                Resume(Alive().First());
        }
    }

    private void StartStage(Cpu cpu)
    {
        Action stage = cpu.NextStage();
        cpu.Thread = new Thread(() =>
        {
            cpu.Baton.Wait();
            SimPoint.Of = this;
            try
            {
                if (_error == null)
                    stage();
            }
            catch (SimulationOver)
            {
                // Another CPU failed, or this one did and said so.
            }
            catch (Exception error)
            {
                _error ??= error;
            }
            finally
            {
                SimPoint.Of = null;
                _ended.Add(cpu);
            }
        })
        {
            IsBackground = true,
            Name = $"simulated CPU {cpu.Index}",
        };
        cpu.Thread.Start();
    }

    private IEnumerable<Cpu> Alive()
    {
        for (int i = 1; i <= _cpus.Length; i++)
        {
            Cpu cpu = _cpus[(_running + i) % _cpus.Length];
            if (!cpu.Ended)
                yield return cpu;
        }
    }

    private void SwitchTo(Cpu self, Cpu next)
    {
        if (self == next)
            return;

        Resume(next);
        self.Baton.Wait();
        ThrowIfOver();
    }

    private void Resume(Cpu next)
    {
        _running = next.Index;
        _switches++;
        _hash = (_hash ^ ((ulong)_steps << 8) ^ (uint)next.Index) * 0x100_0000_01b3;
        next.Baton.Release();
    }

    private void Fail(Exception error)
    {
        _error ??= error;
        throw new SimulationOver();
    }

    private void ThrowIfOver()
    {
        if (_error != null)
            throw new SimulationOver();
    }

    private sealed class Cpu(int index, Action[] stages)
    {
        private int _stage;

        public int Index => index;

        public SemaphoreSlim Baton { get; } = new(0);

        public Thread? Thread { get; set; }

        public bool Waits { get; set; }

        public bool Ended { get; set; }

        public bool HasNextStage => _stage < stages.Length;

        public Action NextStage() => stages[_stage++];
    }

    /// <summary>The run has failed: everybody goes home.</summary>
    private sealed class SimulationOver : Exception;
}
