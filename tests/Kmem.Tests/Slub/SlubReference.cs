namespace Kmem.Tests;

/// <summary>
/// The rules of slub.md, sections 5 to 8 and 10, over plain lists: where the next object comes from and where a freed
/// one goes. One thread; an object is named by its address. Only the place of a new slab is taken from the machine.
/// </summary>
internal sealed class SlubReference
{
    private readonly Dictionary<nint, Slab> _slabs = [];

    /// <summary>First addresses of the slabs and large blocks given back, in that order.</summary>
    public List<nint> GivenBack { get; } = [];

    public Slab SlabOf(nint obj) => _slabs.TryGetValue(Floor(obj), out Slab? slab)
        ? slab
        : _slabs.Values.Single(candidate => obj >= candidate.Base && obj < candidate.Base + candidate.Bytes);

    public bool IsSlabObject(nint obj) =>
        _slabs.Values.Any(slab => obj >= slab.Base && obj < slab.Base + slab.Bytes);

    public IEnumerable<Slab> SlabsOf(Cache cache) => _slabs.Values.Where(slab => slab.Cache == cache);

    /// <summary>
    /// What <c>free_bulk</c> does with an array: section 8, "exact form", public variant (chains reversed).
    /// </summary>
    public void FreeBulk(Cache? cache, int cpu, nint[] p)
    {
        int n = p.Length;
        while (n > 0)
        {
            n--;
            nint x = p[n];
            if (cache == null && !IsSlabObject(x))
            {
                GivenBack.Add(x);
                continue;
            }

            var chain = new List<nint> { x };
            int misses = 3;
            int same = n;
            for (int i = n - 1; i >= 0; i--)
            {
                if (IsSlabObject(p[i]) && SlabOf(p[i]) == SlabOf(x))
                {
                    chain.Insert(0, p[i]);
                    same--;
                    if (i != same)
                        (p[i], p[same]) = (p[same], p[i]);
                }
                else if (--misses == 0)
                {
                    break;
                }
            }

            n = same;
            chain.Reverse();
            SlabOf(x).Cache.Free(cpu, chain);
        }
    }

    private static nint Floor(nint obj) => obj & ~4095;

    /// <summary>A slab: its own free list, in order. While frozen the rest of the free objects is on a CPU.</summary>
    internal sealed class Slab(Cache cache, nint start, int node)
    {
        public Cache Cache { get; } = cache;

        public nint Base { get; } = start;

        public int Node { get; } = node;

        public int Bytes => Cache.Objects * Cache.Size;

        public List<nint> Own { get; } = [];

        public int InUse { get; set; }

        public bool Frozen { get; set; }
    }

    internal sealed class Cpu
    {
        public Slab? Slab { get; set; }

        public List<nint> Freelist { get; set; } = [];

        /// <summary>First is the head, pushed last.</summary>
        public List<Slab> Chain { get; set; } = [];
    }

    internal sealed class Cache(SlubReference all, KmemCache real, int[] nodeOfCpu, int nodes, bool useRemoteNodes)
    {
        public int Size { get; } = real.SlotSize;

        public int Objects { get; } = real.Geometry.ObjectsPerSlab;

        public Cpu[] Cpus { get; } = nodeOfCpu.Select(_ => new Cpu()).ToArray();

        public List<Slab>[] Partial { get; } = Enumerable.Range(0, nodes).Select(_ => new List<Slab>()).ToArray();

        /// <summary>The address of the next object on a CPU.</summary>
        /// <param name="cpu">The CPU.</param>
        /// <param name="node">The node wanted, or -1.</param>
        /// <param name="got">What the machine returned: tells where a new slab lies.</param>
        public nint Alloc(int cpu, int node, nint got)
        {
            Cpu c = Cpus[cpu];
            if (c.Freelist.Count == 0 || (node >= 0 && c.Slab!.Node != node))
                Refill(c, cpu, node, got);
            nint obj = c.Freelist[0];
            c.Freelist.RemoveAt(0);
            return obj;
        }

        public void Free(int cpu, List<nint> chain)
        {
            Cpu c = Cpus[cpu];
            Slab slab = all.SlabOf(chain[0]);
            if (c.Slab == slab)
            {
                c.Freelist.InsertRange(0, chain);
                return;
            }

            bool wasFull = slab.Own.Count == 0;
            slab.Own.InsertRange(0, chain);
            slab.InUse -= chain.Count;
            if (slab.Frozen)
                return;

            List<Slab> list = Partial[slab.Node];
            if (wasFull)
            {
                PutCpuPartial(c, slab);
            }
            else if (slab.InUse == 0 && list.Contains(slab) && list.Count >= real.MinPartial)
            {
                list.Remove(slab);
                Discard(slab);
            }
        }

        public void Flush()
        {
            foreach (Cpu c in Cpus)
            {
                if (c.Slab != null)
                    Deactivate(c);
                Drain(c.Chain);
                c.Chain = [];
            }
        }

        public void Shrink()
        {
            Flush();
            foreach (List<Slab> list in Partial)
            {
                var empty = new List<Slab>();
                var few = new List<Slab>[33];
                for (int free = 0; free <= 32; free++)
                    few[free] = [];
                var rest = new List<Slab>();
                foreach (Slab slab in list)
                {
                    if (slab.InUse == 0)
                        empty.Insert(0, slab);
                    else if (slab.Own.Count <= 32)
                        few[slab.Own.Count].Insert(0, slab);
                    else
                        rest.Add(slab);
                }

                list.Clear();
                list.AddRange(few.SelectMany(bucket => bucket));
                list.AddRange(rest);
                empty.ForEach(Discard);
            }
        }

        private void Refill(Cpu c, int cpu, int node, nint got)
        {
            if (c.Slab != null && node >= 0 && c.Slab.Node != node)
            {
                Deactivate(c);
            }
            else if (c.Slab != null)
            {
                if (c.Slab.Own.Count > 0)
                {
                    TakeList(c, c.Slab);
                    return;
                }

                c.Slab.Frozen = false; // full
                c.Slab = null;
            }

            while (c.Chain.Count > 0)
            {
                Slab head = c.Chain[0];
                c.Chain.RemoveAt(0);
                if (node < 0 || head.Node == node)
                {
                    TakeList(c, head);
                    return;
                }

                Drain([head]);
            }

            int wanted = node >= 0 ? node : nodeOfCpu[cpu];
            if (TakePartial(c, Partial[wanted]))
                return;
            for (int other = 0; node < 0 && useRemoteNodes && other < Partial.Length; other++)
            {
                if (other != wanted && Partial[other].Count > real.MinPartial && TakePartial(c, Partial[other]))
                    return;
            }

            NewSlab(c, wanted, got);
        }

        private void TakeList(Cpu c, Slab slab)
        {
            c.Slab = slab;
            c.Freelist = [.. slab.Own];
            slab.Own.Clear();
            slab.InUse = Objects;
            slab.Frozen = true;
        }

        private bool TakePartial(Cpu c, List<Slab> list)
        {
            if (list.Count == 0)
                return false;

            Slab first = list[0];
            list.RemoveAt(0);
            int most = real.CpuPartialSlabs > 0 ? (real.CpuPartialSlabs / 2) + 1 : 0;
            for (int i = 0; i < most && list.Count > 0; i++)
            {
                c.Chain.Insert(0, list[0]);
                list.RemoveAt(0);
            }

            TakeList(c, first);
            return true;
        }

        private void NewSlab(Cpu c, int node, nint got)
        {
            var slab = new Slab(this, got, node) { InUse = Objects, Frozen = true };
            for (int i = 0; i < Objects; i++)
                c.Freelist.Add(got + (i * Size));
            c.Slab = slab;
            all._slabs.Add(got, slab);
        }

        private void PutCpuPartial(Cpu c, Slab slab)
        {
            if (c.Chain.Count > 0 && c.Chain.Count >= real.CpuPartialSlabs)
            {
                List<Slab> old = c.Chain;
                c.Chain = [slab];
                Drain(old);
            }
            else
            {
                c.Chain.Insert(0, slab);
            }
        }

        private void Drain(List<Slab> chain)
        {
            var empty = new List<Slab>();
            foreach (Slab slab in chain)
            {
                if (slab.InUse == 0 && Partial[slab.Node].Count >= real.MinPartial)
                    empty.Insert(0, slab);
                else
                    Partial[slab.Node].Add(slab);
            }

            empty.ForEach(Discard);
        }

        private void Deactivate(Cpu c)
        {
            Slab slab = c.Slab!;
            bool freedInto = slab.Own.Count > 0;
            slab.Own.InsertRange(0, c.Freelist);
            slab.InUse -= c.Freelist.Count;
            slab.Frozen = false;
            c.Slab = null;
            c.Freelist = [];
            if (slab.InUse == 0 && Partial[slab.Node].Count >= real.MinPartial)
                Discard(slab);
            else if (slab.Own.Count > 0)
                Partial[slab.Node].Insert(freedInto ? Partial[slab.Node].Count : 0, slab);
        }

        private void Discard(Slab slab)
        {
            all._slabs.Remove(slab.Base);
            all.GivenBack.Add(slab.Base);
        }
    }
}
