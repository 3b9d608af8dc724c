namespace Kmem.Tests;

/// <summary>
/// A machine whose CPUs do random things that follow from a seed alone. Everything is stamped word by word when it is
/// got and verified when it is freed; half of it goes through a shelf, from where any CPU may free it.
/// </summary>
internal abstract class SimulatedMachine : ISimulated
{
    private readonly Stamped?[] _shelf = new Stamped?[6];
    private readonly List<Action[]> _work = [];
    private readonly Inventory _before;

    /// <param name="seed">Of the machine and of all that its CPUs do.</param>
    /// <param name="profile">Whose rules it follows.</param>
    /// <param name="cpus">How many CPUs it has.</param>
    /// <param name="ramBytes">How large it is.</param>
    /// <param name="prepare">Makes what is made at first use and stays.</param>
    protected SimulatedMachine(
        int seed, KernelProfile profile, int cpus, ulong ramBytes = 16 << 20, Action<Machine>? prepare = null)
    {
        Seed = seed;
        Machine = Machine.Boot(new MachineOptions
        {
            Profile = profile,
            Cpus = cpus,
            RamBytes = ramBytes,
            DecaySeconds = 0,
            Seed = (ulong)seed + 1,
        });
        prepare?.Invoke(Machine);
        _before = Inventory.Take(Machine);
    }

    public int Seed { get; }

    public Machine Machine { get; }

    public IReadOnlyList<Action[]> Work => _work;

    /// <summary>Made for the work, and destroyed after it.</summary>
    protected List<KmemCache> Caches { get; } = [];

    public virtual void Check()
    {
        for (int i = 0; i < _shelf.Length; i++)
            Exchange(i, null);
        Machine.RcuBarrier();
        Whole();
        foreach (KmemCache cache in Caches)
            cache.Destroy();
        Assert.Equal(_before, Inventory.Take(Machine));
        Whole();
    }

    public void Dispose() => Machine.Dispose();

    /// <summary>Adds a CPU that does a number of things, each chosen by its own random numbers.</summary>
    protected void AddCpu(int things, Action<Random, List<Stamped>, ulong> thing, int? runOn = null, int stages = 1)
    {
        int index = _work.Count;
        var random = new Random((Seed * 64) + index);
        var kept = new List<Stamped>();
        ulong counter = (ulong)(index + 1) << 48;
        _work.Add([.. Enumerable.Range(0, stages).Select(stage => (Action)(() =>
        {
            using CpuBinding binding = runOn is { } cpu ? Machine.RunOn(cpu) : default;
            for (int i = 0; i < things; i++)
                thing(random, kept, counter += 1 << 16);
            if (stage < stages - 1)
                return;

            kept.ForEach(block => block.Free(Machine));
            kept.Clear();
        }))]);
    }

    /// <summary>Keeps a block or puts it onto the shelf.</summary>
    protected void Place(Random random, List<Stamped> kept, Stamped block)
    {
        if (random.Next(2) == 0)
            kept.Add(block);
        else
            Exchange(random.Next(_shelf.Length), block);
    }

    protected void FreeOne(Random random, List<Stamped> kept)
    {
        if (kept.Count == 0 || random.Next(3) == 0)
        {
            Exchange(random.Next(_shelf.Length), null);
            return;
        }

        int at = random.Next(kept.Count);
        Stamped block = kept[at];
        kept.RemoveAt(at);
        block.Free(Machine);
    }

    /// <summary>Takes what lies at a place of the shelf, which is one step, and frees it.</summary>
    protected void Exchange(int place, Stamped? block)
    {
        Stamped? before = _shelf[place];
        _shelf[place] = block;
        before?.Free(Machine);
    }

    private void Whole() => Assert.Empty(Machine.Validate());
}
