using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>
/// The ways with checks, which a cache's objects take if it is debugged or its machine is hardened: an object is taken
/// from where others come from, too, but looked at, cleared and kept back.
/// </content>
public sealed partial class KmemCache
{
    /// <summary>Objects that leave the quarantine at a time.</summary>
    private const int LeaveBatch = 32;

    // What is done for each object besides; null for nothing, or if the cache is debugged, which does all that and
    // more.
    private readonly Hardening? _hardening;

    // Objects may be cleared: nobody expects to find anything in them.
    private readonly bool _clears;

    /// <summary>Its objects are clear whenever they are allocated.</summary>
    internal bool ClearsOnAlloc => _clears && _hardening is { InitOnAlloc: true };

    /// <summary>The object just allocated is for the allocators' own use.</summary>
    internal unsafe void Disown(void* obj) => _slabs.Watch?.Disown((nint)obj);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocChecked(CpuTask* task, Gfp gfp, int node, nuint requested, bool traceAsKmalloc)
    {
        void* obj = AllocSpecial(task, gfp, node, requested, traceAsKmalloc);
        if (obj != null && _slabs.Watch is { } watch)
        {
            watch.Allocated((nint)obj, requested, AllocationKind.Object, Name);
            if (SkipsKfence || (Flags & SlabFlags.NoLeakTrace) != 0)
                watch.Disown((nint)obj);
        }

        return obj;
    }

    private unsafe void* AllocSpecial(CpuTask* task, Gfp gfp, int node, nuint requested, bool traceAsKmalloc)
    {
        if (_debug == null && IsToFail(gfp))
            return null;

        if (_slabs.Kfence is { IsOpen: true } kfence)
        {
            void* guarded = kfence.TryAlloc(this, requested, gfp, node);
            if (guarded != null)
            {
                if (_slabs.Trace != null)
                    TraceAlloc(guarded, requested, gfp, node, traceAsKmalloc);
                return guarded;
            }
        }

        if (_debug != null)
            return AllocDebug(task, gfp, node, requested, traceAsKmalloc);

        void* obj = AllocKeptBack(task, gfp, node);
        if (obj == null)
            return null;

        if (_clears && _hardening is { InitOnFree: true })
            CheckUntouched(obj);
        if ((gfp & Gfp.Zero) != 0 || (_clears && _hardening is { InitOnAlloc: true }))
            new Span<byte>(obj, _objectSize).Clear();
        MarkLive(obj);
        if (_slabs.Trace != null)
            TraceAlloc(obj, requested, gfp, node, traceAsKmalloc);
        return obj;
    }

    /// <summary>Memory is not out while freed objects are kept back, for those who may wait for them.</summary>
    private unsafe void* AllocKeptBack(CpuTask* task, Gfp gfp, int node)
    {
        bool hasMore = _slabs.Quarantine != null && (gfp & Gfp.DirectReclaim) != 0;
        if (!hasMore)
            return AllocUnmarked(task, gfp, node);

        // An object that comes back is better than its frame, which may be one of those below a watermark then.
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.WantsObject;
        void* obj;
        try
        {
            obj = AllocUnmarked(task, gfp | Gfp.NoWarn, node);
        }
        finally
        {
            task->Flags = before;
        }

        if (obj == null)
        {
            _slabs.Quarantine!.Flush(null);
            obj = AllocUnmarked(task, gfp, node);
        }

        return obj;
    }

    private unsafe void* AllocUnmarked(CpuTask* task, Gfp gfp, int node)
    {
        void* obj = _sheafCapacity > 0 ? AllocFromSheaf(task, gfp, node) : null;
        return obj != null ? obj : AllocFromSlabs(task, gfp, node);
    }

    /// <summary>All or none, one after the other.</summary>
    private unsafe int AllocBulkChecked(Gfp gfp, Span<nint> objects)
    {
        for (int i = 0; i < objects.Length; i++)
        {
            objects[i] = (nint)AllocCore(gfp, -1, (nuint)_objectSize, traceAsKmalloc: false);
            if (objects[i] != 0)
                continue;

            for (int j = 0; j < i; j++)
                FreeCore(_slabs.SlabOf((void*)objects[j]), (void*)objects[j]);
            objects.Clear();
            return 0;
        }

        return objects.Length;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeChecked(Page* slab, void* obj)
    {
        if (!TryMarkFreeOnce(obj))
            _slabs.ThrowBadFree(this, slab, obj);
        _slabs.Watch?.Freed((nint)obj);
        if (_debug != null)
        {
            FreeDebug(slab, obj);
            return;
        }

        if (_clears && _hardening is { InitOnFree: true })
            new Span<byte>(obj, _objectSize).Clear();
        CpuTask* task = _cpus.Current;
        if (_hardening == null || _slabs.Quarantine is not { } quarantine || SlotSize > quarantine.Share / 4)
        {
            GiveBack(task, slab, obj);
            return;
        }

        Span<nint> leaving = stackalloc nint[LeaveBatch];
        int count = quarantine.Exchange(task, obj, SlotSize, leaving);
        while (count > 0)
        {
            foreach (nint other in leaving[..count])
            {
                Page* its = _slabs.SlabOf((void*)other);
                _slabs.CacheOf(its).GiveBack(task, its, (void*)other);
            }

            quarantine.Left();
            count = count < LeaveBatch ? 0 : quarantine.Exchange(task, null, 0, leaving);
        }
    }

    /// <summary>An object that is marked free and was kept back goes where freed objects go.</summary>
    internal unsafe void GiveBack(CpuTask* task, Page* slab, void* obj)
    {
        if (_sheafCapacity > 0 && FreeToSheaf(task, slab, obj))
            return;

        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        if (c->Slab == slab)
        {
            SetFreePointer(obj, c->Freelist);
            c->Freelist = obj;
            _cpus.Leave(task);
            return;
        }

        FreeSlow(task, cpu, slab, obj, obj, 1);
    }

    /// <summary>Looks at an object that leaves the quarantine before its time.</summary>
    internal unsafe void CheckKeptBack(void* obj)
    {
        if (_clears && _hardening is { InitOnFree: true })
            CheckUntouched(obj);
    }

    /// <summary>As <see cref="TryMarkFree(void*)"/>, but of two threads with one object only one succeeds.</summary>
    private unsafe bool TryMarkFreeOnce(void* obj)
    {
        var mark = (byte)LiveObjects.Mark((nuint)obj);
        return Interlocked.CompareExchange(ref _live[(nuint)obj >> _liveShift], 0, mark) == mark;
    }

    /// <summary>
    /// An object that was cleared when it was freed must be clear when it is allocated again, except for the word that
    /// links it to others. If not, that is reported in the log: who is to blame is not the one who allocates.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void CheckUntouched(void* obj)
    {
        var all = new Span<byte>(obj, _objectSize);
        int link = Math.Min(_freePointerOffset, _objectSize);
        if (all[..link].ContainsAnyExcept((byte)0)
            || all[Math.Min(link + sizeof(nint), _objectSize)..].ContainsAnyExcept((byte)0))
        {
            ReportTouched(obj, link);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ReportTouched(void* obj, int link)
    {
        var all = new Span<byte>(obj, _objectSize);
        all.Slice(link, Math.Min(sizeof(nint), _objectSize - link)).Clear();
        int first = all.IndexOfAnyExcept((byte)0);
        int last = all.LastIndexOfAnyExcept((byte)0);
        Page* slab = _slabs.SlabOf(obj);
        var report = new SlabReport(new SlabDebug(this, _slabs));
        report.Overwritten(slab, "Poison", (byte*)obj + first, (byte*)obj + last, 0);
        report.ObjectError(slab, (byte*)obj, "Object corrupt");
        all.Clear();
        report.Fix($"Restoring Poison {report.Address((byte*)obj + first)}-{report.Address((byte*)obj + last)}=0x0");
        _slabs.Log.Write(report.ToString());
    }
}
