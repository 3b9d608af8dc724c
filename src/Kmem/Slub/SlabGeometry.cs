using System.Globalization;
using System.Numerics;

namespace Kmem;

/// <summary>
/// What the shape of a slab cache follows from: the arguments of its creation and the settings of the machine.
/// </summary>
/// <param name="ObjectSize">Size of an object in bytes, 1 to 4 MiB.</param>
/// <param name="Align">Requested alignment in bytes: 0 for none, else a power of two.</param>
/// <param name="Flags">How the cache behaves; the debug flags make its slots larger.</param>
/// <param name="Cpus">
/// CPUs that are present, or possible CPUs if only one is present; more CPUs get larger slabs.
/// </param>
public readonly record struct SlabGeometryRequest(int ObjectSize, int Align, SlabFlags Flags, int Cpus)
{
    /// <summary>Whether objects have a constructor; its work must survive while an object is free.</summary>
    public bool HasConstructor { get; init; }

    /// <summary>
    /// Offset in bytes of the free pointer inside the object, chosen by the cache's creator; <c>null</c> to let the
    /// allocator choose. Only with <see cref="SlabFlags.TypesafeByRcu"/>, without a constructor, below
    /// <see cref="ObjectSize"/>, a multiple of 8 (<c>kmem_cache_args.freeptr_offset</c>).
    /// </summary>
    public int? FreePointerOffset { get; init; }

    /// <summary>Bytes of a cache line, a power of two.</summary>
    public int CacheLineSize { get; init; } = 64;

    /// <summary>Lowest preferred order (boot parameter <c>slab_min_order</c>).</summary>
    public int SlabMinOrder { get; init; }

    /// <summary>Highest preferred order; objects that need more get it (<c>slab_max_order</c>).</summary>
    public int SlabMaxOrder { get; init; } = PageOrder.Costly;

    /// <summary>
    /// Objects a slab should hold; 0 derives the number from <see cref="Cpus"/> (<c>slab_min_objects</c>).
    /// </summary>
    public int SlabMinObjects { get; init; }

    /// <summary>
    /// Drops <see cref="SlabFlags.RedZone"/>, <see cref="SlabFlags.Poison"/> and <see cref="SlabFlags.StoreUser"/>
    /// where they would raise the order a single object needs (letter O of <c>slab_debug</c>).
    /// </summary>
    public bool NoHigherOrderDebug { get; init; }

    /// <summary>Bytes of one record of <see cref="SlabFlags.StoreUser"/>: 32 with a stack depot, 24 without.</summary>
    public int TrackSize { get; init; } = 32;
}

/// <summary>
/// The shape of a slab cache: how an object lies in its slot and how many slots make a slab.
/// A pure function of <see cref="SlabGeometryRequest"/>.
/// </summary>
/// <remarks>
/// <c>calculate_sizes</c>, <c>calculate_order</c>, <c>mm/slub.c</c>, Linux 6.18.
/// <code>
/// slab    | slot 0 | slot 1 | ... | slot n-1 | waste |                  4096 &lt;&lt; Order bytes
///
/// slot    | left red zone | object | pad or red zone | free pointer | tracks | pad |       Size bytes
///         0               |        |                 |              |
///                         +0       +ObjectSize       +Inuse         +TrackOffset
/// </code>
/// Without debug flags, RCU or constructor there is only the object: a free object has no content worth keeping, so
/// the free pointer lies in its middle, where an overrun of the neighbour reaches it last.
/// </remarks>
public readonly record struct SlabGeometry
{
    private const int WordSize = 8;
    private const int MaxObjectSize = 4 << 20;      // KMALLOC_MAX_SIZE; larger sizes are refused at creation
    private const int MaxObjectsPerSlab = 32767;    // the count has 15 bits
    private const int PageSize = 4096;

    /// <summary>Bytes from one object to the next.</summary>
    public int Size { get; internal init; }

    /// <summary>Bytes the user asked for.</summary>
    public int ObjectSize { get; internal init; }

    /// <summary>Alignment of every object in bytes.</summary>
    public int Align { get; internal init; }

    /// <summary>Offset in bytes from the object where the allocator's own data begins.</summary>
    public int Inuse { get; internal init; }

    /// <summary>Offset in bytes from the object of the link to the next free object.</summary>
    public int FreePointerOffset { get; internal init; }

    /// <summary>Bytes of the red zone before the object; 0 without <see cref="SlabFlags.RedZone"/>.</summary>
    public int RedLeftPad { get; internal init; }

    /// <summary>Preferred order of a slab.</summary>
    public int Order { get; internal init; }

    /// <summary>Objects in a slab of <see cref="Order"/>.</summary>
    public int ObjectsPerSlab { get; internal init; }

    /// <summary>
    /// The order to fall back to when no block of <see cref="Order"/> is free: enough for one object.
    /// </summary>
    public int MinOrder { get; internal init; }

    /// <summary>Objects in a slab of <see cref="MinOrder"/>.</summary>
    public int MinObjects { get; internal init; }

    /// <summary>Slabs a node keeps on its partial list even if they are empty.</summary>
    public int MinPartial { get; internal init; }

    /// <summary>Free objects a CPU may hold in partial slabs; 0 for a debug cache.</summary>
    public int CpuPartial { get; internal init; }

    /// <summary><see cref="CpuPartial"/> in slabs, taken as half full.</summary>
    public int CpuPartialSlabs { get; internal init; }

    /// <summary>The flags in force, after <see cref="SlabGeometryRequest.NoHigherOrderDebug"/>.</summary>
    public SlabFlags Flags { get; internal init; }

    /// <summary>The flags that every request for a slab's pages carries.</summary>
    public Gfp AllocFlags { get; internal init; }

    /// <summary>Whether the bodies of free objects are filled with a pattern.</summary>
    public bool PoisonsObjects { get; internal init; }

    /// <summary>Whether the free pointer lies behind the object, not in it.</summary>
    public bool FreePointerOutside => FreePointerOffset >= Inuse;

    /// <summary>
    /// Offset in bytes from the object of the allocation record, followed by the record of the free
    /// (with <see cref="SlabFlags.StoreUser"/>).
    /// </summary>
    public int TrackOffset => FreePointerOutside ? Inuse + WordSize : Inuse;

    /// <summary>Bytes at the end of a slab that belong to no slot.</summary>
    public int WastePerSlab => (PageSize << Order) - (ObjectsPerSlab * Size);

    /// <summary>Computes the shape of a cache.</summary>
    /// <param name="request">The arguments of the creation and the settings of the machine.</param>
    /// <exception cref="ArgumentException">
    /// No such cache can exist (-EINVAL in the kernel): a size, alignment, free-pointer offset or setting is out of
    /// its range, or an object with its padding needs more than 4 MiB.
    /// </exception>
    public static SlabGeometry Compute(in SlabGeometryRequest request)
    {
        Check(request);
        SlabFlags flags = request.Flags;
        SlotLayout slot = LayOutSlot(request, flags);

        if (request.NoHigherOrderDebug
            && PageOrder.ForSize((nuint)slot.Size) > PageOrder.ForSize((nuint)request.ObjectSize))
        {
            flags &= ~SlabFlagMask.DebugMetadata;
            slot = LayOutSlot(request, flags);
        }

        int order = OrderFor(slot.Size, request);
        int size = (int)slot.Size;                      // fits: OrderFor refused what is larger than the largest block
        int minOrder = PageOrder.ForSize((nuint)size);
        int objects = (PageSize << order) / size;
        int cpuPartial = CpuPartialFor(size, flags);

        return new SlabGeometry
        {
            Size = size,
            ObjectSize = request.ObjectSize,
            Align = slot.Align,
            Inuse = slot.Inuse,
            FreePointerOffset = slot.FreePointerOffset,
            RedLeftPad = slot.RedLeftPad,
            Order = order,
            ObjectsPerSlab = objects,
            MinOrder = minOrder,
            MinObjects = (PageSize << minOrder) / size,
            MinPartial = Math.Clamp(BitOperations.Log2((uint)size) / 2, 5, 10),
            CpuPartial = cpuPartial,
            CpuPartialSlabs = DivideRoundUp(2 * cpuPartial, objects),
            Flags = flags,
            AllocFlags = AllocFlagsFor(flags),
            PoisonsObjects = slot.PoisonsObjects,
        };
    }

    /// <summary>
    /// The alignment a cache gets (<c>calculate_alignment</c>, <c>mm/slab_common.c</c>, Linux 6.18): the requested
    /// one, at least 8, and with <see cref="SlabFlags.HwcacheAlign"/> a cache line, or the smallest halved line that
    /// holds the object. Applying it to its own result changes nothing.
    /// </summary>
    /// <param name="flags">The flags of the cache.</param>
    /// <param name="align">Requested alignment in bytes: 0 for none, else a power of two.</param>
    /// <param name="objectSize">Size of an object in bytes.</param>
    /// <param name="cacheLineSize">Bytes of a cache line.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="objectSize"/> is not positive.</exception>
    public static int AlignmentOf(SlabFlags flags, int align, int objectSize, int cacheLineSize = 64)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(objectSize);
        if ((flags & SlabFlags.HwcacheAlign) != SlabFlags.None)
        {
            int line = cacheLineSize;
            while (objectSize <= line / 2) line /= 2;
            align = Math.Max(align, line);
        }
        return (int)RoundUp(Math.Max(align, WordSize), WordSize);
    }

    /// <summary>
    /// The alignment requested for a kmalloc class of this size: the largest power of two that divides it, at
    /// least 8 (<c>create_boot_cache</c>, <c>mm/slab_common.c</c>, Linux 6.18). 96 gives 32, 192 gives 64.
    /// </summary>
    /// <param name="classSize">Size of the class in bytes.</param>
    public static int KmallocAlignmentOf(int classSize) => Math.Max(WordSize, classSize & -classSize);

    /// <summary>
    /// The name under which sysfs shows a cache that may be shared, such as <c>:0000192</c> or <c>:aA-0000032</c>
    /// (<c>create_unique_id</c>, <c>mm/slub.c</c>, Linux 6.18). Caches that are never shared keep their own name.
    /// </summary>
    /// <param name="flags">The flags of the cache.</param>
    /// <param name="size">Its slot size in bytes, <see cref="Size"/>.</param>
    public static string SysfsName(SlabFlags flags, int size)
    {
        string letters = "";
        if ((flags & SlabFlags.CacheDma) != SlabFlags.None) letters += 'd';
        if ((flags & SlabFlags.CacheDma32) != SlabFlags.None) letters += 'D';
        if ((flags & SlabFlags.ReclaimAccount) != SlabFlags.None) letters += 'a';
        if ((flags & SlabFlags.ConsistencyChecks) != SlabFlags.None) letters += 'F';
        if ((flags & SlabFlags.Account) != SlabFlags.None) letters += 'A';
        string dash = letters.Length > 0 ? "-" : "";
        return string.Create(CultureInfo.InvariantCulture, $":{letters}{dash}{size:D7}");
    }

    private readonly record struct SlotLayout(
        long Size, int Align, int Inuse, int FreePointerOffset, int RedLeftPad, bool PoisonsObjects);

    private static void Check(in SlabGeometryRequest request)
    {
        Require(request.ObjectSize is > 0 and <= MaxObjectSize,
            $"object size {request.ObjectSize} is not in 1..{MaxObjectSize}");
        Require(request.Align == 0 || BitOperations.IsPow2(request.Align),
            $"alignment {request.Align} is not a power of two");
        Require(request.Cpus > 0, $"CPU count {request.Cpus} is not positive");
        Require(BitOperations.IsPow2(request.CacheLineSize),
            $"cache line size {request.CacheLineSize} is not a power of two");
        Require(request.SlabMaxOrder is >= 0 and <= PageOrder.Max,
            $"slab_max_order {request.SlabMaxOrder} is not in 0..{PageOrder.Max}");
        Require(request.SlabMinOrder >= 0 && request.SlabMinOrder <= request.SlabMaxOrder,
            $"slab_min_order {request.SlabMinOrder} is not in 0..slab_max_order ({request.SlabMaxOrder})");
        Require(request.SlabMinObjects >= 0, $"slab_min_objects {request.SlabMinObjects} is negative");
        Require(request.TrackSize is 24 or 32, $"track size {request.TrackSize} is neither 24 nor 32");

        if (request.FreePointerOffset is not { } offset) return;
        Require((request.Flags & SlabFlags.TypesafeByRcu) != SlabFlags.None && !request.HasConstructor,
            "a free-pointer offset needs a TYPESAFE_BY_RCU cache without constructor");
        Require(offset >= 0 && offset < request.ObjectSize && offset % WordSize == 0,
            $"free-pointer offset {offset} is not a multiple of {WordSize} below the object size {request.ObjectSize}");
    }

    private static SlotLayout LayOutSlot(in SlabGeometryRequest request, SlabFlags flags)
    {
        int objectSize = request.ObjectSize;
        bool redZone = (flags & SlabFlags.RedZone) != SlabFlags.None;
        bool poison = (flags & SlabFlags.Poison) != SlabFlags.None;
        bool storeUser = (flags & SlabFlags.StoreUser) != SlabFlags.None;
        bool rcu = (flags & SlabFlags.TypesafeByRcu) != SlabFlags.None;
        bool kmalloc = (flags & SlabFlags.Kmalloc) != SlabFlags.None;
        int align = AlignmentOf(flags, request.Align, objectSize, request.CacheLineSize);

        long size = RoundUp(objectSize, WordSize);
        if (redZone && size == objectSize) size += WordSize;    // the right red zone has at least one byte
        int inuse = (int)size;

        // The free pointer must not destroy what a reader under RCU, the poison check or the next user relies on, nor
        // the requested size's red zone of a kmalloc object.
        bool outside = (rcu && request.FreePointerOffset is null) || poison || request.HasConstructor
            || (redZone && (objectSize < WordSize || (storeUser && kmalloc)));
        int freePointer;
        if (outside)
        {
            freePointer = inuse;
            size += WordSize;
        }
        else
        {
            freePointer = request.FreePointerOffset ?? objectSize / 2 / WordSize * WordSize;
        }

        if (storeUser)
        {
            size += 2 * request.TrackSize;
            if (kmalloc) size += sizeof(uint);                  // the size originally asked for
        }
        int leftPad = 0;
        if (redZone)
        {
            leftPad = (int)RoundUp(WordSize, align);
            size += WordSize + leftPad;                         // padding behind, red zone before the object
        }
        bool poisonsObjects = poison && !rcu && !request.HasConstructor;
        return new SlotLayout(RoundUp(size, align), align, inuse, freePointer, leftPad, poisonsObjects);
    }

    private static int OrderFor(long size, in SlabGeometryRequest request)
    {
        int neededOrder = PageOrder.ForSize((nuint)size);
        Require(neededOrder <= PageOrder.Max, $"a slot of {size} bytes is larger than the largest block of pages");

        long wanted = request.SlabMinObjects;
        if (wanted == 0) wanted = 4 * (BitOperations.Log2((uint)request.Cpus) + 2);
        long most = Math.Max(((long)PageSize << request.SlabMaxOrder) / size, 1);
        wanted = Math.Min(wanted, most);

        int lowest = Math.Max(request.SlabMinOrder, PageOrder.ForSize((nuint)(wanted * size)));
        if (((long)PageSize << lowest) / size > MaxObjectsPerSlab)
            return PageOrder.ForSize((nuint)(size * MaxObjectsPerSlab)) - 1;

        // The smallest order that wastes at most 1/16 of the slab; failing that 1/8, 1/4, 1/2.
        for (int fraction = 16; fraction > 1; fraction /= 2)
        {
            for (int order = lowest; order <= request.SlabMaxOrder; order++)
            {
                long slabSize = (long)PageSize << order;
                if (slabSize % size <= slabSize / fraction) return order;
            }
        }
        return neededOrder;
    }

    private static int CpuPartialFor(int size, SlabFlags flags)
    {
        if ((flags & SlabFlagMask.Debug) != SlabFlags.None) return 0;
        return size switch
        {
            >= PageSize => 6,
            >= 1024 => 24,
            >= 256 => 52,
            _ => 120,
        };
    }

    private static Gfp AllocFlagsFor(SlabFlags flags)
    {
        Gfp gfp = Gfp.Comp;
        if ((flags & SlabFlags.CacheDma) != SlabFlags.None) gfp |= Gfp.Dma;
        if ((flags & SlabFlags.CacheDma32) != SlabFlags.None) gfp |= Gfp.Dma32;
        if ((flags & SlabFlags.ReclaimAccount) != SlabFlags.None) gfp |= Gfp.Reclaimable;
        return gfp;
    }

    private static long RoundUp(long value, long powerOfTwo) => (value + powerOfTwo - 1) & -powerOfTwo;

    private static int DivideRoundUp(int value, int divisor) => (value + divisor - 1) / divisor;

    private static void Require(bool condition, string message)
    {
        if (!condition) throw new ArgumentException($"No such slab cache can exist: {message}.");
    }
}
