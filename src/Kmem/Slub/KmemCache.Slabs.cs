using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>Slabs: made from pages, laid out, given back.</content>
public sealed partial class KmemCache
{
    // Object indices in the order in which a new slab's free list visits them, or null for ascending order.
    private readonly ushort[]? _sequence;

    // The constructors that this thread is in, innermost first.
    [ThreadStatic]
    private static Construction? t_constructing;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void* ObjectAt(Page* slab, int index) =>
        _slabs.Map.AddressOf(slab) + ((long)index * Geometry.Size) + _leftPad;

    private unsafe int IndexOf(Page* slab, void* obj) =>
        (int)((uint)((byte*)obj - _slabs.Map.AddressOf(slab)) / (uint)Geometry.Size);

    /// <summary>
    /// Allocates the pages of a slab and puts all objects on its free list. High orders must not disturb: the preferred
    /// order is tried without effort, then the smallest order that holds an object with the caller's flags.
    /// </summary>
    /// <returns>The slab, already frozen for the caller, who owns the whole list; or null.</returns>
    private unsafe Page* NewSlab(Gfp gfp, int node, out void* freelist)
    {
        freelist = null;
        if (_constructor != null && IsConstructing)
            _slabs.Pages.ThrowBug($"BUG: the constructor of cache {Name} allocates from its own cache");
        if ((gfp & GfpMask.SlabBug) != 0)
            gfp = _slabs.FixFlags(gfp);
        Gfp flags = (gfp & (GfpMask.Reclaim | GfpMask.Constraint)) | Geometry.AllocFlags;
        Gfp quiet = (flags | Gfp.NoWarn | Gfp.NoRetry) & ~Gfp.NoFail;
        if ((flags & Gfp.DirectReclaim) != 0 && Geometry.Order > Geometry.MinOrder)
            quiet = (quiet | Gfp.NoMemAlloc) & ~Gfp.Reclaim;

        int order = Geometry.Order;
        int objects = Geometry.ObjectsPerSlab;
        Page* slab = AllocPages(quiet, order, node);
        if (slab == null)
        {
            order = Geometry.MinOrder;
            objects = Geometry.MinObjects;
            slab = AllocPages(flags, order, node);
            if (slab == null)
                return null;
        }

        slab->SlabCache = SlabAllocator.TagOf(Id);
        slab->Type = PageType.Slab;
        _slabs.SetPlaces(slab, order, _place);
        if ((slab->Flags & PageFlags.PfMemAlloc) != 0)
            slab->Flags |= PageFlags.SlabPfMemAlloc;
        _slabs.AccountPages(slab, 1L << order, Flags);

        _debug?.InitSlab(slab, objects, order);
        int first = _constructor == null ? LayOut(slab, objects) : Construct(slab, objects);
        slab->SlabState = new SlabState(SlabState.NoFreeObject, objects, objects, frozen: true).Word;
        freelist = ObjectAt(slab, first);
        return slab;
    }

    private unsafe void CountNewSlab(Page* slab, int sign = 1) =>
        _nodes[NodeOf(slab)].CountSlab(sign, sign * SlabState.Read(slab).Objects);

    /// <summary>Links all objects in order of first use, and runs the constructor on each.</summary>
    /// <returns>Index of the first object.</returns>
    private unsafe int LayOut(Page* slab, int objects)
    {
        if (_sequence != null && objects >= 2)
            return LayOutShuffled(slab, objects);

        byte* obj = (byte*)ObjectAt(slab, 0);
        for (int i = 0; i < objects; i++)
        {
            byte* next = i + 1 < objects ? obj + Geometry.Size : null;
            SetFreePointer(obj, next);
            if (_constructor != null)
                _constructor(obj);
            obj = next;
        }

        return 0;
    }

    /// <summary>
    /// Walks the cache's random sequence from a random place, leaving out what a smaller slab does not have.
    /// </summary>
    private unsafe int LayOutShuffled(Page* slab, int objects)
    {
        ushort[] sequence = _sequence!;
        int position = (int)(_slabs.NextRandom() % (ulong)sequence.Length);
        int first = -1;
        void* previous = null;
        for (int seen = 0; seen < sequence.Length; seen++)
        {
            int index = sequence[position];
            position = position + 1 == sequence.Length ? 0 : position + 1;
            if (index >= objects)
                continue;

            void* obj = ObjectAt(slab, index);
            if (previous == null)
                first = index;
            else
                SetFreePointer(previous, obj);
            SetFreePointer(obj, null);
            if (_constructor != null)
                _constructor(obj);
            previous = obj;
        }

        return first;
    }

    /// <summary>Whether this thread is inside the cache's constructor.</summary>
    internal bool IsConstructing
    {
        get
        {
            for (Construction? at = t_constructing; at != null; at = at.Outer)
            {
                if (at.Cache == this)
                    return true;
            }

            return false;
        }
    }

    /// <summary>Links all objects and runs the constructor on each; if it throws, the slab's pages go back.</summary>
    /// <returns>Index of the first object.</returns>
    private unsafe int Construct(Page* slab, int objects)
    {
        LockOrder.AssertNoneHeld();
        Construction? outer = t_constructing;
        t_constructing = new Construction(this, outer);
        try
        {
            return LayOut(slab, objects);
        }
        catch
        {
            ReleasePages(slab);
            throw;
        }
        finally
        {
            t_constructing = outer;
        }
    }

    /// <summary>Runs the constructor on an object that is in no slab.</summary>
    internal unsafe void ConstructOne(void* obj)
    {
        LockOrder.AssertNoneHeld();
        Construction? outer = t_constructing;
        t_constructing = new Construction(this, outer);
        try
        {
            _constructor!(obj);
        }
        finally
        {
            t_constructing = outer;
        }
    }

    /// <summary>
    /// Gives an empty slab's pages back, after a grace period if readers may still look at its objects.
    /// </summary>
    private unsafe void Discard(Page* slab)
    {
        Bug.OnVm(SlabState.Read(slab).InUse != 0, "slab with objects discarded");
        if (_debug is { Checks: true })
            CheckBeforeDiscard(slab);
        _nodes[NodeOf(slab)].CountSlab(-1, -SlabState.Read(slab).Objects);
        if ((Flags & SlabFlags.TypesafeByRcu) != 0)
            _slabs.Rcu.Call(new RcuPageFree(this, (nint)slab).Run);
        else
            ReleasePages(slab);
    }

    /// <summary>Gives a discarded slab's pages back; its grace period, if it needs one, is over.</summary>
    internal unsafe void ReleasePages(Page* slab)
    {
        int order = PageAllocator.CompoundOrder(slab);
        _slabs.AccountPages(slab, -(1L << order), Flags);
        _slabs.SetPlaces(slab, order, 0);
        slab->Type = PageType.None;
        slab->Mapping = 0;
        slab->SlabCache = 0;
        slab->Private = 0;
        slab->Flags &= ~(PageFlags.SlabPfMemAlloc | PageFlags.SlabOnPartialList | PageFlags.SlabCorrupt);
        if (_slabs.PageSink == null)
            _slabs.Pages.FreeFrozen(slab, order);
        else
            _slabs.PageSink((nint)slab, order);
        _slabs.CountReleased(1L << order);
    }

    private unsafe Page* AllocPages(Gfp gfp, int order, int node) =>
        _slabs.PageSource == null
            ? _slabs.Pages.AllocFrozen(gfp, order, node)
            : (Page*)_slabs.PageSource(gfp, order, node);

    /// <summary>
    /// A free list's next object; a link that leaves the slab ends the list, with a report. Only for a list that nobody
    /// else can reach.
    /// </summary>
    private unsafe void* NextChecked(Page* slab, void* obj)
    {
        void* next = FreePointer(obj);
        if (IsSameSlabOrNull(obj, next))
            return next;

        slab->Flags |= PageFlags.SlabCorrupt;
        _slabs.Log.Write(CorruptReport(obj, next));
        SetFreePointer(obj, null);
        return null;
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowCorruptFreelist(CpuTask* task, KmemCacheCpu* c, void* obj, void* next)
    {
        // The rest of the list is lost: nobody knows where it is. The objects on it count as in use from now on.
        c->Freelist = null;
        c->Slab->Flags |= PageFlags.SlabCorrupt;
        _cpus.Leave(task);
        _slabs.Pages.ThrowBug(CorruptReport(obj, next));
    }

    private unsafe string CorruptReport(void* obj, void* next) =>
        $"BUG {Name}: Freepointer corrupt\n"
        + $"Object 0x{_slabs.KernelAddress(obj):x16} @offset={(ulong)obj & ~_slabMask} fp=0x{(ulong)next:x16}: "
        + "something wrote to the object after it was freed, or past the end of its neighbour; "
        + "the rest of this free list is given up";

    /// <summary>Fisher–Yates from the top, as the kernel shuffles (freelist_randomize).</summary>
    private ushort[]? RandomSequence(int objects)
    {
        if (objects < 2)
            return null;

        var sequence = new ushort[objects];
        for (int i = 0; i < objects; i++)
            sequence[i] = (ushort)i;
        for (int i = objects - 1; i > 0; i--)
        {
            int other = (int)(_slabs.NextRandom() % (ulong)(i + 1));
            (sequence[i], sequence[other]) = (sequence[other], sequence[i]);
        }

        return sequence;
    }

    /// <summary>An empty slab that waits for its readers.</summary>
    private sealed class RcuPageFree(KmemCache cache, nint slab)
    {
        public unsafe void Run() => cache.ReleasePages((Page*)slab);
    }

    /// <summary>A constructor at work, and the one that called it.</summary>
    private sealed record Construction(KmemCache Cache, Construction? Outer);
}
