using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>
/// Debugged caches: no CPU holds anything, every object comes from a node's slab and goes back to it under the node's
/// lock, and is checked on the way.
/// </content>
/// <remarks>alloc_debug_processing, free_debug_processing, validate_slab_cache, mm/slub.c, Linux 6.18.</remarks>
public sealed partial class KmemCache
{
    private readonly SlabDebug? _debug;

    // Which way an object takes: through sheaves (1), from this CPU's slab (0), or with checks on the way (-1).
    private int _route;

    // The same, while nobody watches the machine's allocations.
    private readonly int _plainRoute;

    /// <summary>Its freed objects are looked at, so they must stay readable.</summary>
    internal bool SkipsKfence { get; set; }

    /// <summary>Sends everything the ways with checks, or not any longer.</summary>
    internal void Watch(bool on) => _route = on && !IsPrivate ? -1 : _plainRoute;

    /// <summary>The cache's slab debugging; null in an ordinary cache.</summary>
    internal SlabDebug? Debug => _debug;

    /// <summary>
    /// Checks every slab and object of a debugged cache, as writing 1 to the sysfs file validate does
    /// (validate_slab_cache, mm/slub.c, Linux 6.18): damage is reported in the log and put right. Other threads may go
    /// on meanwhile.
    /// </summary>
    /// <returns>
    /// How many slabs were at fault: 0 means that all is well. Without <see cref="SlabFlags.StoreUser"/> full slabs are
    /// on no list and are not looked at.
    /// </returns>
    /// <exception cref="InvalidOperationException">The cache was created without any debugging flag.</exception>
    public unsafe int ValidateObjects()
    {
        if (_debug == null)
            throw new InvalidOperationException($"cache {Name} is not debugged: there is nothing to compare with");

        int atFault = 0;
        SlabReport? report = null;
        foreach (KmemCacheNode node in _nodes)
        {
            node.Lock.Acquire();
            foreach (nint slab in node.ListedLocked())
            {
                if (!ValidateLocked(node, (Page*)slab, ref report))
                    atFault++;
            }

            node.Lock.Release();
        }

        if (report != null)
            _slabs.Log.Write(report.ToString());
        return atFault;
    }

    /// <summary>Address that a free list goes on with after an object, for repairs.</summary>
    internal unsafe void SetNextFree(void* obj, void* next) => SetFreePointer(obj, next);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocDebug(CpuTask* task, Gfp gfp, int node, nuint requested, bool traceAsKmalloc)
    {
        void* obj = AllocDebugObject(task, gfp, node, requested);
        if (obj == null)
            return null;

        MarkLive(obj);
        if ((gfp & Gfp.Zero) != 0)
            new Span<byte>(obj, _debug!.GuardsSlack ? (int)requested : _objectSize).Clear();
        if (_slabs.Trace != null)
            TraceAlloc(obj, requested, gfp, node, traceAsKmalloc);
        return obj;
    }

    /// <summary>One checked object, not yet marked as live; a slab that fails its checks is given up for
    /// another.</summary>
    private unsafe void* AllocDebugObject(CpuTask* task, Gfp gfp, int node, nuint requested)
    {
        if (IsClosed)
            ThrowClosed();

        if (IsToFail(gfp))
            return null;

        int stack = _debug!.StoresUser ? _slabs.Stacks.Capture() : 0;
        if (node >= 0 && (gfp & Gfp.ThisNode) == 0)
        {
            void* near = TryAllocDebug(task, Gfp.NoWait | Gfp.ThisNode, node, requested, stack, gfp);
            if (near != null)
                return near;
        }

        void* obj = TryAllocDebug(task, gfp, node, requested, stack, gfp);
        if (obj == null)
            _slabs.ReportOutOfMemory(this, gfp, node);
        return obj;
    }

    private unsafe void* TryAllocDebug(CpuTask* task, Gfp gfp, int node, nuint requested, int stack, Gfp original)
    {
        int wanted = node >= 0 ? node : _slabs.NodeOfCpu(_cpus.CurrentCpu);
        void* obj = AllocDebugFrom(task, _nodes[wanted], original, requested, stack);
        bool mayRoam = _nodes.Length > 1 && (node < 0 || (gfp & Gfp.ThisNode) == 0)
            && RemoteNodeDefragRatio != 0 && _slabs.NextRandom() % 1024 <= (ulong)RemoteNodeDefragRatio;
        if (obj == null && mayRoam)
        {
            foreach (Zone zone in _slabs.Pages.Nodes[wanted].Fallback.Zones)
            {
                if (zone.NodeId != wanted && _nodes[zone.NodeId].NrPartial > MinPartial)
                    obj = AllocDebugFrom(task, _nodes[zone.NodeId], original, requested, stack);
                if (obj != null)
                    break;
            }
        }

        // A slab that fails its checks at birth is given up like any other; the next one is made of other pages.
        while (obj == null)
        {
            Page* slab = NewSlab(gfp, node, out void* first);
            if (slab == null)
                return null;

            obj = AllocDebugFromNew(slab, IndexOf(slab, first), requested, stack);
        }

        return obj;
    }

    private unsafe void* AllocDebugFrom(CpuTask* task, KmemCacheNode node, Gfp gfp, nuint requested, int stack)
    {
        void* obj = null;
        SlabReport? report = null;
        node.Lock.Acquire();
        for (ListHead* entry = node.Partial->Next; entry != node.Partial && obj == null;)
        {
            Page* slab = Page.FromSlabList(entry);
            entry = entry->Next;
            if (MayUse(slab, gfp, task))
                obj = TakeCheckedLocked(node, slab, requested, stack, ref report);
        }

        node.Lock.Release();
        if (report != null)
            _slabs.Log.Write(report.ToString());
        return obj;
    }

    private unsafe void* AllocDebugFromNew(Page* slab, int first, nuint requested, int stack)
    {
        KmemCacheNode node = _nodes[NodeOf(slab)];
        SlabReport? report = null;
        node.Lock.Acquire();
        if (IsClosed)
        {
            node.Lock.Release();
            ReleasePages(slab);
            ThrowClosed();
        }

        SetState(slab, SlabState.Read(slab).With(first, 0, frozen: false));
        CountNewSlab(slab);
        node.AddLocked(slab, tail: false);
        void* obj = TakeCheckedLocked(node, slab, requested, stack, ref report);
        node.Lock.Release();
        if (report != null)
            _slabs.Log.Write(report.ToString());
        return obj;
    }

    /// <summary>Takes the first object of a partial slab, if it and the slab pass their checks
    /// (alloc_debug_processing).</summary>
    /// <returns>The object; null if the slab had to be given up.</returns>
    private unsafe void* TakeCheckedLocked(
        KmemCacheNode node, Page* slab, nuint requested, int stack, ref SlabReport? report)
    {
        SlabDebug debug = _debug!;
        SlabState state = SlabState.Read(slab);
        var obj = (byte*)ObjectAt(slab, state.FreeIndex);
        void* next = FreePointer(obj);
        bool valid = next == null || debug.IsObject(slab, next);
        int head = valid && next != null ? IndexOf(slab, next) : SlabState.NoFreeObject;
        SetState(slab, state.With(head, state.InUse + 1, frozen: false));

        bool good = debug.Checks
            ? debug.CheckSlab(slab, ref report) && debug.CheckObject(slab, obj, active: false, ref report)
            : valid;
        if (!good)
        {
            if (!debug.Checks)
                (report ??= new SlabReport(debug)).ObjectError(slab, obj, "Freepointer corrupt");
            GiveUpLocked(node, slab, report!);
            return null;
        }

        debug.SetRequestedSize(obj, requested);
        if (debug.Traces)
            (report ??= new SlabReport(debug)).Trace(slab, obj, alloc: true);
        debug.InitObject(obj, active: true);
        if (debug.StoresUser)
            debug.SetTrack(obj, free: false, stack);
        ListLocked(node, slab, tail: false);
        return obj;
    }

    /// <summary>A slab in which memory was overwritten while it was free serves nobody any more.</summary>
    private unsafe void GiveUpLocked(KmemCacheNode node, Page* slab, SlabReport report)
    {
        SlabState state = SlabState.Read(slab);
        report.Fix("Marking all objects used");
        slab->Flags |= PageFlags.SlabCorrupt;
        SetState(slab, state.With(SlabState.NoFreeObject, state.Objects, frozen: true));
        node.UnlistLocked(slab);
    }

    /// <summary>
    /// Frees an object that was live and is marked free. If a check fails it is kept out instead, which is reported.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeDebug(Page* slab, void* obj)
    {
        if (FreeDebugObject(slab, obj, out SlabReport? report, out bool disabled))
        {
            if (report != null)
                _slabs.Log.Write(report.ToString());
            return;
        }

        // Who frees into a slab that was given up did nothing wrong.
        if (disabled)
        {
            _slabs.Log.Write(report!.ToString());
            return;
        }

        MarkLive(obj);
        _slabs.Pages.ThrowBug(report!.ToString());
    }

    /// <summary>A chain of objects that are marked free: what came out of a sheaf that was made for one
    /// occasion.</summary>
    private unsafe void FreeChainDebug(Page* slab, void* head, int count)
    {
        for (void* obj = head; count > 0; count--)
        {
            void* next = FreePointer(obj);
            FreeDebug(slab, obj);
            obj = next;
        }
    }

    private unsafe bool FreeDebugObject(Page* slab, void* obj, out SlabReport? report, out bool disabled)
    {
        report = null;
        SlabDebug debug = _debug!;
        int stack = debug.StoresUser ? _slabs.Stacks.Capture() : 0;
        KmemCacheNode node = _nodes[NodeOf(slab)];
        bool discard = false;
        node.Lock.Acquire();
        disabled = SlabState.Read(slab).Frozen;
        bool good = CheckFreeLocked(node, slab, (byte*)obj, ref report);
        if (good)
        {
            if (debug.StoresUser)
                debug.SetTrack(obj, free: true, stack);
            if (debug.Traces)
                (report ??= new SlabReport(debug)).Trace(slab, (byte*)obj, alloc: false);
            debug.InitObject((byte*)obj, active: false);
            SlabState state = SlabState.Read(slab);
            SetFreePointer(obj, state.HasFree ? ObjectAt(slab, state.FreeIndex) : null);
            SetState(slab, state.With(IndexOf(slab, obj), state.InUse - 1, frozen: false));
            discard = state.InUse == 1 && node.NrPartial >= MinPartial;
            if (discard)
                node.UnlistLocked(slab);
            else
                ListLocked(node, slab, tail: true);
        }
        else
        {
            report!.Fix($"Object at {report.Address(obj)} not freed");
        }

        node.Lock.Release();
        if (discard)
            Discard(slab);
        return good;
    }

    /// <summary>Whether an object may be freed (free_consistency_checks).</summary>
    private unsafe bool CheckFreeLocked(KmemCacheNode node, Page* slab, byte* obj, ref SlabReport? report)
    {
        SlabDebug debug = _debug!;
        SlabState state = SlabState.Read(slab);
        if (state.InUse < 1 || state.Frozen)
        {
            (report ??= new SlabReport(debug)).SlabError(slab, state.Frozen
                ? "Slab disabled since SLUB metadata consistency check failed"
                : $"Slab has {state.InUse} allocated objects but 1 are to be freed");
            return false;
        }

        if (!debug.Checks)
            return true;
        if (!debug.CheckSlab(slab, ref report))
            return false;

        if (WalkFreeListLocked(node, slab, obj, out _, ref report))
        {
            (report ??= new SlabReport(debug)).ObjectError(slab, obj, "Object already free");
            return false;
        }

        return debug.CheckObject(slab, obj, active: true, ref report);
    }

    /// <summary>
    /// Walks a slab's free list, looking for an object, and puts right what is wrong with the list (on_freelist).
    /// </summary>
    /// <param name="node">Whose lock is held.</param>
    /// <param name="slab">The slab.</param>
    /// <param name="search">The object, or null for none.</param>
    /// <param name="free">Which objects were met, by index; complete unless <paramref name="search"/> was
    /// found.</param>
    /// <param name="report">Gets what was wrong.</param>
    /// <returns>Whether the object is on the list.</returns>
    private unsafe bool WalkFreeListLocked(
        KmemCacheNode node, Page* slab, void* search, out HashSet<int> free, ref SlabReport? report)
    {
        SlabDebug debug = _debug!;
        SlabState state = SlabState.Read(slab);
        free = [];
        byte* before = null;
        void* obj = state.HasFree ? ObjectAt(slab, state.FreeIndex) : null;
        while (obj != null)
        {
            if (obj == search)
                return true;

            if (!debug.IsObject(slab, obj))
            {
                report ??= new SlabReport(debug);
                if (before == null)
                {
                    report.SlabError(slab, "Freepointer corrupt");
                    ClearFreeListLocked(node, slab, report);
                    free = [];
                    return false;
                }

                report.ObjectError(slab, before, "Freechain corrupt");
                SetFreePointer(before, null);
                report.Fix("Isolate corrupted freechain");
                slab->Flags |= PageFlags.SlabCorrupt;
                break;
            }

            if (!free.Add(IndexOf(slab, obj)))
            {
                report ??= new SlabReport(debug);
                report.SlabError(slab, "Freelist cycle detected");
                ClearFreeListLocked(node, slab, report);
                free = [];
                return false;
            }

            before = (byte*)obj;
            obj = FreePointer(obj);
        }

        if (state.InUse != state.Objects - free.Count)
        {
            report ??= new SlabReport(debug);
            report.SlabError(
                slab, $"Wrong object count. Counter is {state.InUse} but counted were {state.Objects - free.Count}");
            SetState(slab, state.With(state.FreeIndex, state.Objects - free.Count, state.Frozen));
            report.Fix("Object count adjusted");
            slab->Flags |= PageFlags.SlabCorrupt;
        }

        return false;
    }

    private unsafe void ClearFreeListLocked(KmemCacheNode node, Page* slab, SlabReport report)
    {
        SlabState state = SlabState.Read(slab);
        SetState(slab, state.With(SlabState.NoFreeObject, state.Objects, frozen: false));
        slab->Flags |= PageFlags.SlabCorrupt;
        report.Fix("Freelist cleared");
        ListLocked(node, slab, tail: false);
    }

    /// <summary>All of one slab (validate_slab).</summary>
    private unsafe bool ValidateLocked(KmemCacheNode node, Page* slab, ref SlabReport? report)
    {
        var findings = new SlabReport(_debug!);
        SlabReport? its = findings;
        bool good = _debug!.CheckSlab(slab, ref its);
        if (good)
        {
            WalkFreeListLocked(node, slab, null, out HashSet<int> free, ref its);
            int objects = SlabState.Read(slab).Objects;
            for (int i = 0; i < objects && !findings.HasFinding; i++)
                _debug.CheckObject(slab, (byte*)ObjectAt(slab, i), active: !free.Contains(i), ref its);
        }

        if (!findings.HasFinding)
            return true;

        report ??= new SlabReport(_debug);
        report.Append(findings);
        return false;
    }

    /// <summary>An empty slab's objects must all be free and whole when its pages go back (free_slab).</summary>
    private unsafe void CheckBeforeDiscard(Page* slab)
    {
        SlabReport? report = null;
        _debug!.CheckSlab(slab, ref report);
        int objects = SlabState.Read(slab).Objects;
        for (int i = 0; i < objects; i++)
            _debug.CheckObject(slab, (byte*)ObjectAt(slab, i), active: false, ref report);
        if (report != null)
            _slabs.Log.Write(report.ToString());
    }

    /// <summary>Puts a slab where it belongs: with free objects on the partial list, without on the full one.</summary>
    private unsafe void ListLocked(KmemCacheNode node, Page* slab, bool tail)
    {
        bool partial = SlabState.Read(slab).HasFree;
        bool isPartial = (slab->Flags & PageFlags.SlabOnPartialList) != 0;
        if (partial == isPartial && (partial || (slab->Flags & PageFlags.SlabOnFullList) != 0))
            return;

        node.UnlistLocked(slab);
        if (partial)
            node.AddLocked(slab, tail);
        else if (_debug!.StoresUser)
            node.AddFullLocked(slab);
    }

    /// <summary>An address of one of the cache's slabs that no live object begins at is to be freed.</summary>
    [DoesNotReturn]
    internal unsafe void ThrowBadFreeDebug(Page* slab, void* address)
    {
        var report = new SlabReport(_debug!);
        if (_debug!.IsObject(slab, address))
            report.ObjectError(slab, (byte*)address, "Object already free");
        else
            report.SlabError(slab, $"Invalid object pointer {report.Address(address)}");
        report.Fix($"Object at {report.Address(address)} not freed");
        _slabs.Pages.ThrowBug(report.ToString());
    }

    [DoesNotReturn]
    private void ThrowClosed() =>
        _slabs.Pages.ThrowBug($"BUG: kmem_cache_alloc({Name}): the cache is being destroyed, or is gone");

    private static unsafe void SetState(Page* slab, SlabState state) =>
        Volatile.Write(ref slab->SlabState, state.Word);
}
