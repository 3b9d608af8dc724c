namespace Kmem;

/// <content>Being looked at while it is at work.</content>
public sealed partial class KmemCache
{
    /// <summary>A CPU's state as it is, without the settling that <see cref="StateOf"/> does: nothing is
    /// written.</summary>
    internal unsafe KmemCacheCpu* ObserveCpu(int cpu) => CpuAt(cpu);

    /// <summary>
    /// Objects of a slab, never more than fit: a descriptor that has just become another thing may say anything.
    /// </summary>
    internal unsafe int ObserveObjects(Page* slab) => Math.Min(SlabState.Read(slab).Objects, Geometry.ObjectsPerSlab);

    /// <summary>Objects of a slab that are given out.</summary>
    internal unsafe int ObserveLive(Page* slab)
    {
        int live = 0;
        for (int i = ObserveObjects(slab) - 1; i >= 0; i--)
            live += IsLive(ObjectAt(slab, i)) ? 1 : 0;
        return live;
    }
}
