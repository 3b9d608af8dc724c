namespace Kmem.Tool.Commands;

/// <summary>
/// A small machine with something going on in it: objects of several caches, pages and areas come and go at a pace that
/// the eye can follow, on all CPUs in turn, in waves, so that lists fill and drain.
/// </summary>
internal sealed class DemoMachine : IDisposable
{
    private const ulong DefaultRam = 512UL << 20;
    private const int DefaultCpus = 2;
    private const int MostObjects = 60_000, MostBlocks = 1500, MostAreas = 40;
    private const int StepsPerBurst = 400;
    private const int WaveBursts = 600;
    private static readonly int[] s_sizes = [32, 64, 96, 192, 512, 1000, 2048, 4000, 12_000];
    private static readonly (string Name, int Size)[] s_cacheNames =
        [("inode", 600), ("dentry", 192), ("buffer", 104), ("task", 3200)];

    private readonly Random _random = new(1);
    private readonly KmemCache[] _caches;
    private readonly List<(nint Object, int Cache)> _objects = [];
    private readonly List<(Pfn Pfn, int Order)> _blocks = [];
    private readonly List<nint> _areas = [];
    private readonly CancellationTokenSource _stop = new();
    private readonly Thread _worker;

    public DemoMachine(ulong? ramBytes, int? cpus, KernelProfile? profile)
    {
        Machine = Machine.Boot(new MachineOptions
        {
            Name = "demo",
            RamBytes = ramBytes ?? DefaultRam,
            Cpus = cpus ?? DefaultCpus,
            Profile = profile ?? KernelProfile.Linux618,
        });
        _caches = [.. s_cacheNames.Select(cache => Machine.CreateCache(cache.Name, cache.Size))];
        _worker = new Thread(Work) { IsBackground = true, Name = "kmem demo" };
        _worker.Start();
    }

    public Machine Machine { get; }

    public void Dispose()
    {
        _stop.Cancel();
        _worker.Join();
        _stop.Dispose();
        Machine.Dispose();
    }

    private void Work()
    {
        for (int burst = 0; !_stop.IsCancellationRequested; burst++)
        {
            // More comes than goes for the first half of a wave, and the other way round.
            double growth = 0.5 + (0.12 * Math.Sin(2 * Math.PI * burst / WaveBursts));
            using (Machine.RunOn(burst % Machine.Cpus))
            {
                for (int i = 0; i < StepsPerBurst; i++)
                    Step(_random.NextDouble() < growth);
            }

            _stop.Token.WaitHandle.WaitOne(TimeSpan.FromMilliseconds(20));
        }
    }

    private void Step(bool grow)
    {
        int what = _random.Next(1000);
        if (what < 2)
            StepArea(grow);
        else if (what < 60)
            StepBlock(grow);
        else
            StepObject(grow);
    }

    private unsafe void StepObject(bool grow)
    {
        if (grow ? _objects.Count < MostObjects : _objects.Count == 0)
        {
            int cache = _random.Next(-2, _caches.Length);
            void* obj = cache < 0
                ? Machine.Kmalloc((nuint)s_sizes[_random.Next(s_sizes.Length)], Gfp.Kernel)
                : _caches[cache].Alloc(Gfp.Kernel);
            if (obj != null)
                _objects.Add(((nint)obj, cache));
            return;
        }

        (nint old, int its) = Take(_objects);
        if (its < 0)
            Machine.Kfree((void*)old);
        else
            _caches[its].Free((void*)old);
    }

    private void StepBlock(bool grow)
    {
        if (grow ? _blocks.Count < MostBlocks : _blocks.Count == 0)
        {
            int order = _random.Next(10) < 7 ? 0 : _random.Next(1, 6);
            Gfp gfp = _random.Next(4) > 0 ? Gfp.HighUserMovable : Gfp.Kernel;
            Pfn pfn = Machine.AllocPages(gfp, order);
            if (pfn.IsValid)
                _blocks.Add((pfn, order));
            return;
        }

        (Pfn old, int its) = Take(_blocks);
        Machine.FreePages(old, its);
    }

    private unsafe void StepArea(bool grow)
    {
        if (grow ? _areas.Count < MostAreas : _areas.Count == 0)
        {
            void* area = Machine.Vmalloc((nuint)_random.Next(1, 200) * 4096);
            if (area != null)
                _areas.Add((nint)area);
            return;
        }

        Machine.Vfree((void*)Take(_areas));
    }

    private T Take<T>(List<T> list)
    {
        int index = _random.Next(list.Count);
        T item = list[index];
        list[index] = list[^1];
        list.RemoveAt(list.Count - 1);
        return item;
    }
}
