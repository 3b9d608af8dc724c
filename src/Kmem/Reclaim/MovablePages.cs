namespace Kmem;

/// <summary>
/// Which frames may be moved, and by whom. <see cref="Page.Mapping"/> says it:
/// <code>
///   63            12 11      3   2          1         0
///  ┌────────────────┬─────────┬──────────┬─────────┬─────┐
///  │ owner's number │    0    │ isolated │ movable │  0  │
///  └────────────────┴─────────┴──────────┴─────────┴─────┘
/// </code>
/// The page also has the flag Lru, so that it counts as movable when its pageblock is considered for claiming.
/// </summary>
internal sealed class MovablePages(PageAllocator pages, MemMap map)
{
    private const ulong Movable = 2;
    private const ulong Isolated = 4;
    private const int OwnerShift = 12;

    private readonly Lock _lock = new();
    private readonly List<IMovablePages> _owners = [];
    private int _ownerCount;

    /// <summary>Whether a frame is offered, or is just being moved; a glance without any lock.</summary>
    public static unsafe bool IsOffered(Page* page) =>
        (page->Mapping & Movable) != 0 && page->Type == PageType.None && page->AllocatedOrderPlusOne == 1;

    /// <summary>Whether anybody has ever offered a page.</summary>
    public bool HasOwners => Volatile.Read(ref _ownerCount) > 0;

    /// <summary>Whether a descriptor says that its frame may be moved. Tails of blocks have other marks.</summary>
    public static unsafe bool IsMarked(Page* page) =>
        (page->Mapping & Movable) != 0 && page->Type is PageType.None && !page->IsTail;

    /// <exception cref="ArgumentException">
    /// It is not a frame that was allocated alone, or is offered already.
    /// </exception>
    public unsafe void Set(Pfn pfn, IMovablePages owner)
    {
        if (pfn.Value >= map.EndPfn)
            throw new ArgumentOutOfRangeException(nameof(pfn), pfn, "no such page frame");

        Page* page = map.PageOf(pfn.Value);
        lock (_lock)
        {
            if (page->Type != PageType.None || page->AllocatedOrderPlusOne != 1 || page->RefCount != 1)
                throw new ArgumentException($"frame {pfn} was not allocated alone, or others hold it", nameof(pfn));
            if (page->Mapping != 0)
                throw new ArgumentException($"frame {pfn} is movable already", nameof(pfn));
            int number = _owners.IndexOf(owner);
            if (number < 0)
            {
                number = _owners.Count;
                _owners.Add(owner);
                Volatile.Write(ref _ownerCount, _owners.Count);
            }

            page->Flags |= PageFlags.Lru;
            page->Mapping = ((ulong)number << OwnerShift) | Movable;
        }
    }

    /// <returns>False if it is just being moved.</returns>
    public unsafe bool TryClear(Pfn pfn)
    {
        Page* page = map.PageOf(pfn.Value);
        lock (_lock)
        {
            if ((page->Mapping & Isolated) != 0)
                return false;
            if ((page->Mapping & Movable) == 0)
                pages.ThrowBug($"BUG: frame {pfn} is not movable");
            Forget(page);
            return true;
        }
    }

    /// <summary>Takes an offered page in hand, if its owner agrees and nobody else holds it.</summary>
    /// <returns>Its owner, or null.</returns>
    public unsafe IMovablePages? TryIsolate(Page* page, KernelLog log)
    {
        IMovablePages owner;
        lock (_lock)
        {
            if (!IsOffered(page) || (page->Mapping & Isolated) != 0 || page->RefCount != 1)
                return null;
            page->Mapping |= Isolated;
            owner = OwnerOf(page);
        }

        var pfn = new Pfn(map.PfnOf(page));
        if (Ask(() => owner.Isolate(pfn), log))
            return owner;
        Release(page);
        return null;
    }

    /// <summary>Moves an isolated page into a frame that was taken from the free ones.</summary>
    /// <returns>False if it stays; the other frame is as it was.</returns>
    public unsafe bool Move(Page* from, Page* to, IMovablePages owner, KernelLog log)
    {
        lock (_lock)
        {
            to->Flags = PageFlags.Lru;
            to->AllocatedOrderPlusOne = 1; // a byte of the flags' word
            to->RefCount = 1;
            (to->Mapping, to->Index, to->Private) = (from->Mapping, from->Index, from->Private);
        }

        Pfn source = new(map.PfnOf(from));
        Pfn target = new(map.PfnOf(to));
        bool moved = Ask(() => owner.Migrate(source, target), log);
        lock (_lock)
            Forget(moved ? from : to);
        if (!moved)
        {
            to->RefCount = 0;
            (to->Index, to->Private) = (0, 0);
            return false;
        }

        Release(to);
        return true;
    }

    /// <summary>An isolated page stays where it is.</summary>
    public unsafe void PutBack(Page* page, IMovablePages owner, KernelLog log)
    {
        var pfn = new Pfn(map.PfnOf(page));
        Ask(
            () =>
            {
                owner.PutBack(pfn);
                return true;
            },
            log);
        Release(page);
    }

    /// <summary>What is wrong with an offered page, for the validator; null if nothing is.</summary>
    public unsafe (bool IsWhole, bool IsAtRest) Check(Page* page) => (
        page->Type == PageType.None && page->RefCount > 0 && page->AllocatedOrderPlusOne == 1
            && (page->Flags & PageFlags.Lru) != 0 && page->Mapping >> OwnerShift < (ulong)_owners.Count,
        (page->Mapping & Isolated) == 0);

    private static unsafe void Forget(Page* page)
    {
        page->Mapping = 0;
        page->Flags &= ~PageFlags.Lru;
    }

    private static bool Ask(Func<bool> callback, KernelLog log)
    {
        try
        {
            return callback();
        }
        catch (Exception error)
        {
            log.Write($"WARNING: an owner of movable pages threw {error.GetType().Name}: {error.Message}");
            return false;
        }
    }

    private unsafe IMovablePages OwnerOf(Page* page) => _owners[(int)(page->Mapping >> OwnerShift)];

    private unsafe void Release(Page* page)
    {
        lock (_lock)
            page->Mapping &= ~Isolated;
    }
}
