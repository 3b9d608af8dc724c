using System.Diagnostics;

namespace Kmem;

/// <content>What a debugger shows.</content>
[DebuggerDisplay("{DebuggerText,nq}")]
[DebuggerTypeProxy(typeof(DebuggerView))]
public sealed partial class KmemCache
{
    private string DebuggerText => IsClosed
        ? $"{Name}: destroyed"
        : $"{Name}: {SlotSize} bytes a slot, {SlabCount} slabs, {TotalObjects} objects";

    /// <summary>The cache by its numbers; none of them walks a list or takes a lock.</summary>
    private sealed class DebuggerView(KmemCache cache)
    {
        public string Name => cache.Name;

        public SlabFlags Flags => cache.Flags;

        public SlabGeometry Geometry => cache.Geometry;

        public long Slabs => cache.SlabCount;

        public long TotalObjects => cache.TotalObjects;

        public long SlabBytes => (cache.SlabCount * Pfn.PageSize) << cache.Geometry.Order;

        public int Aliases => cache.Aliases;
    }
}
