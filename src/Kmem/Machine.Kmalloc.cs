using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <content>kmalloc and its relatives.</content>
public sealed partial class Machine
{
    /// <summary>
    /// The largest size that <see cref="Kmalloc(nuint, Gfp)"/> can give: 4 MiB (KMALLOC_MAX_SIZE).
    /// </summary>
    public const int KmallocMaxSize = KmallocClasses.MaxSize;

    /// <summary>
    /// Allocates physically contiguous memory (kmalloc, include/linux/slab.h, Linux 6.18).
    /// </summary>
    /// <param name="size">Bytes, 0 to <see cref="KmallocMaxSize"/>.</param>
    /// <param name="gfp">What may be done to get it; selects the set of caches, too.</param>
    /// <returns>
    /// The address, aligned to at least 8 bytes, and to the size if that is a power of two; content undefined unless
    /// <see cref="Gfp.Zero"/>. Null if there is no memory or the size is too large. For size 0 an address that must not
    /// be touched (ZERO_SIZE_PTR).
    /// </returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* Kmalloc(nuint size, Gfp gfp) => _kmalloc.AllocFast(size, gfp);

    /// <summary>As <see cref="Kmalloc(nuint, Gfp)"/>, on a node if possible (kmalloc_node).</summary>
    /// <param name="size">Bytes.</param>
    /// <param name="gfp">Flags; with <see cref="Gfp.ThisNode"/> only this node will do.</param>
    /// <param name="node">Node number, or -1 for the CPU's own.</param>
    /// <returns>The address, or null.</returns>
    public unsafe void* KmallocNode(nuint size, Gfp gfp, int node)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        return _kmalloc.Alloc(size, gfp, Math.Max(node, -1));
    }

    /// <summary>Allocates cleared memory (kzalloc).</summary>
    /// <param name="size">Bytes.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* Kzalloc(nuint size, Gfp gfp) => _kmalloc.AllocFast(size, gfp | Gfp.Zero);

    /// <summary>Allocates an array (kmalloc_array).</summary>
    /// <param name="count">Elements.</param>
    /// <param name="size">Bytes of an element.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">count × size does not fit into an address.</exception>
    public unsafe void* KmallocArray(nuint count, nuint size, Gfp gfp) => _kmalloc.AllocArray(count, size, gfp);

    /// <summary>Allocates a cleared array (kcalloc).</summary>
    /// <param name="count">Elements.</param>
    /// <param name="size">Bytes of an element.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">count × size does not fit into an address.</exception>
    public unsafe void* Kcalloc(nuint count, nuint size, Gfp gfp) => _kmalloc.AllocArray(count, size, gfp | Gfp.Zero);

    /// <summary>
    /// Changes the size of a block (krealloc). Shrinking never moves; growing moves if the block's slot is too small.
    /// </summary>
    /// <param name="pointer">A block, or null to allocate.</param>
    /// <param name="size">New size in bytes; 0 frees the block.</param>
    /// <param name="gfp">
    /// Flags; <see cref="Gfp.Zero"/> clears what is added, if every call for this block had it.
    /// </param>
    /// <returns>The block, perhaps elsewhere; null if it could not grow, and then the old block is untouched.</returns>
    public unsafe void* Krealloc(void* pointer, nuint size, Gfp gfp) => _kmalloc.Realloc(pointer, size, gfp);

    /// <summary>Changes the size of an array (krealloc_array).</summary>
    /// <param name="pointer">A block, or null.</param>
    /// <param name="count">Elements.</param>
    /// <param name="size">Bytes of an element.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The block, perhaps elsewhere; or null.</returns>
    /// <exception cref="KernelBugException">count × size does not fit into an address.</exception>
    public unsafe void* KreallocArray(void* pointer, nuint count, nuint size, Gfp gfp) =>
        _kmalloc.Realloc(pointer, _kmalloc.Product(count, size), gfp);

    /// <summary>Frees anything that kmalloc or a cache of this machine gave out (kfree). Null is allowed.</summary>
    /// <param name="pointer">The address that the allocation returned. Any thread may free.</param>
    /// <exception cref="KernelBugException">
    /// It is free already, or no allocation begins there, or it is not memory of this machine. Nothing was changed.
    /// </exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Kfree(void* pointer) => _kmalloc.FreeFast(pointer);

    /// <summary>Clears a block and frees it (kfree_sensitive).</summary>
    /// <param name="pointer">A block, or null.</param>
    public unsafe void KfreeSensitive(void* pointer) => _kmalloc.FreeSensitive(pointer);

    /// <summary>Frees many blocks, of any caches and sizes (kfree_bulk).</summary>
    /// <param name="pointers">Addresses, none of them null; their order is changed.</param>
    public void KfreeBulk(Span<nint> pointers) => _slabs.FreeBulk(null, pointers);

    /// <summary>
    /// Frees a block when every reader that may see it now is done (kfree_rcu); see <see cref="RcuRead"/>.
    /// </summary>
    /// <param name="pointer">A block, or null.</param>
    /// <exception cref="KernelBugException">
    /// No allocation begins there. A block that was handed in twice is found when it is freed, and only reported in the
    /// log: there is no caller any more.
    /// </exception>
    public unsafe void KfreeRcu(void* pointer)
    {
        if ((nuint)pointer <= KmallocAllocator.ZeroSizePointer)
            return;

        _ = _kmalloc.SizeOf(pointer, "kfree_rcu");
        _kmalloc.FreeRcu(pointer);
    }

    /// <summary>Bytes that may be used at an address from kmalloc (ksize); 0 for null.</summary>
    /// <param name="pointer">A block, or null.</param>
    /// <returns>At least the size that was asked for.</returns>
    /// <exception cref="KernelBugException">No allocation begins there.</exception>
    public unsafe nuint Ksize(void* pointer) => _kmalloc.SizeOf(pointer);

    /// <summary>
    /// The size to ask for if as much as comes of a size in any profile is to be used (kmalloc_size_roundup). What a
    /// block really has is what <see cref="Ksize"/> says; the native profile has classes between the kernel's.
    /// </summary>
    /// <param name="size">Bytes.</param>
    /// <returns>
    /// The size of the slot or of the block of pages; 0 and sizes above the maximum come back unchanged.
    /// </returns>
    public static nuint KmallocSizeRoundup(nuint size) => KmallocAllocator.SizeRoundup(size);

    /// <summary>Copies bytes into a new block (kmemdup).</summary>
    /// <param name="content">What to copy.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The copy, or null.</returns>
    public unsafe void* Kmemdup(ReadOnlySpan<byte> content, Gfp gfp) => _kmalloc.Duplicate(content, gfp);

    /// <summary>Copies a text as zero-terminated UTF-8 into a new block (kstrdup).</summary>
    /// <param name="text">The text, or null.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The copy; null if there is no text or no memory.</returns>
    public unsafe byte* Kstrdup(string? text, Gfp gfp) => text == null ? null : Kstrndup(text, nuint.MaxValue, gfp);

    /// <summary>Copies at most a number of UTF-8 bytes of a text, and a zero, into a new block (kstrndup).</summary>
    /// <param name="text">The text, or null.</param>
    /// <param name="most">Bytes of the text to copy at most.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The copy; null if there is no text or no memory.</returns>
    public unsafe byte* Kstrndup(string? text, nuint most, Gfp gfp)
    {
        if (text == null)
            return null;

        byte[] bytes = Encoding.UTF8.GetBytes(text);
        int length = (int)Math.Min((nuint)bytes.Length, most);
        var copy = (byte*)_kmalloc.Alloc((nuint)length + 1, gfp);
        if (copy != null)
        {
            bytes.AsSpan(0, length).CopyTo(new Span<byte>(copy, length));
            copy[length] = 0;
        }

        return copy;
    }

    /// <summary>
    /// Checks that bytes of a block may be copied to or from user space: they must lie within the cache's window
    /// (__check_heap_object, hardened usercopy).
    /// </summary>
    /// <param name="pointer">First byte.</param>
    /// <param name="count">Bytes.</param>
    /// <exception cref="KernelBugException">They do not.</exception>
    public unsafe void CheckUserCopy(void* pointer, nuint count)
    {
        Page* slab = _slabs.SlabOf(pointer);
        if (slab == null)
        {
            if (!_map.Contains(pointer))
                _slabs.ThrowNotASlab(pointer, "usercopy");
            if (Kfence is { } kfence && kfence.Contains(pointer))
            {
                kfence.CheckAccess(pointer, count, write: false);
                return;
            }

            Page* head = Page.HeadOf(_map.PageAt(pointer));
            ulong end = (ulong)_map.AddressOf(head) + ((ulong)Pfn.PageSize << PageAllocator.CompoundOrder(head));
            if (count > end - (ulong)pointer)
                _pages.ThrowBug($"usercopy: Kernel memory exposure attempt detected: {count} bytes pass the block's end");
            return;
        }

        KmemCache cache = _slabs.CacheOf(slab);
        nuint offset = (nuint)((byte*)pointer - _map.AddressOf(slab)) % (nuint)cache.SlotSize;
        offset -= (nuint)cache.Geometry.RedLeftPad; // in the red zone: a huge number, which is refused
        if (offset < (nuint)cache.UserOffset || count > (nuint)cache.UserSize
            || offset - (nuint)cache.UserOffset > (nuint)cache.UserSize - count)
        {
            _pages.ThrowBug(
                $"usercopy: Kernel memory exposure attempt detected from SLUB object '{cache.Name}' "
                + $"(offset {offset}, size {count}): allowed are {cache.UserSize} bytes at {cache.UserOffset}");
        }
    }

    /// <summary>
    /// Creates a pool of cache objects that never fails callers who may wait (mempool_create_slab_pool).
    /// </summary>
    /// <param name="minimum">Objects that can be in use at the same time, whatever else happens.</param>
    /// <param name="cache">Where they come from.</param>
    /// <returns>The pool, its reserve filled.</returns>
    /// <exception cref="OutOfMemoryException">The reserve could not be filled.</exception>
    public unsafe Mempool CreateMempool(int minimum, KmemCache cache)
    {
        ArgumentNullException.ThrowIfNull(cache);
        return new Mempool(
            minimum,
            gfp => (nint)cache.Alloc(gfp),
            element => cache.Free((void*)element),
            CheckContext,
            cache.HasConstructor ? null : PoisonOf(cache.ObjectSize));
    }

    /// <summary>Creates a pool of kmalloc blocks (mempool_create_kmalloc_pool).</summary>
    /// <param name="minimum">Blocks that can be in use at the same time.</param>
    /// <param name="size">Bytes of a block.</param>
    /// <returns>The pool, its reserve filled.</returns>
    /// <exception cref="OutOfMemoryException">The reserve could not be filled.</exception>
    public unsafe Mempool CreateMempool(int minimum, nuint size) => new(
        minimum,
        gfp => (nint)Kmalloc(size, gfp),
        element => Kfree((void*)element),
        CheckContext,
        size is 0 or > KmallocClasses.MaxSize ? null : PoisonOf((int)size));

    /// <summary>Creates a pool of blocks of page frames, by their addresses (mempool_create_page_pool).</summary>
    /// <param name="minimum">Blocks that can be in use at the same time.</param>
    /// <param name="order">A block has 2^order frames.</param>
    /// <returns>The pool, its reserve filled.</returns>
    /// <exception cref="OutOfMemoryException">The reserve could not be filled.</exception>
    public unsafe Mempool CreatePageMempool(int minimum, int order)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(order);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(order, PageOrder.Max);
        return new Mempool(
            minimum,
            gfp => (nint)GetFreePages(gfp, order),
            element => FreePages((void*)element, order),
            CheckContext,
            PoisonOf(Pfn.PageSize << order));
    }

    /// <summary>Creates a pool of kvmalloc memory (mempool_create_kvmalloc_pool).</summary>
    /// <param name="minimum">Elements that can be in use at the same time.</param>
    /// <param name="size">
    /// Bytes of an element. Beyond what kmalloc has, requests that may not sleep get the reserve only.
    /// </param>
    /// <returns>The pool, its reserve filled.</returns>
    /// <exception cref="OutOfMemoryException">The reserve could not be filled.</exception>
    /// <exception cref="NotSupportedException">
    /// The size is beyond kmalloc, and the RAM cannot be mapped a second time.
    /// </exception>
    public unsafe Mempool CreateKvmallocMempool(int minimum, nuint size)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(size, (nuint)int.MaxValue);
        bool contiguous = size <= KmallocClasses.MaxSize;
        return new Mempool(
            minimum,
            gfp => contiguous ? (nint)Kmalloc(size, gfp)
                : (gfp & Gfp.DirectReclaim) != 0 ? (nint)Kvmalloc(size, gfp)
                : 0,
            element => Kvfree((void*)element),
            CheckContext);
    }

    private MempoolPoison? PoisonOf(int bytes) =>
        Options.SlubDebug == null ? null : new MempoolPoison(bytes, Dmesg);

    private unsafe void CheckContext(Gfp gfp) => _pages.CheckContext(gfp, _cpus.Current);
}
