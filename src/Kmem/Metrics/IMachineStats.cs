namespace Kmem;

/// <summary>What the instruments read from a machine. Called on any thread, while others are at work.</summary>
internal interface IMachineStats
{
    string Name { get; }

    PageAllocator Pages { get; }

    SlabAllocator Slabs { get; }

    VmallocAllocator? Vmalloc { get; }

    BufferAccount Floor { get; }

    ulong RamBytes { get; }

    ulong ResidentBytes { get; }
}
