using System.Reflection;

namespace Kmem.Tests;

/// <summary>A deliberate error in a live machine, and the way back.</summary>
internal sealed class LivePatch
{
    private readonly Stack<Action> _undo = [];

    /// <summary>Writes a value over another one.</summary>
    public unsafe void Set<T>(T* place, T value)
        where T : unmanaged
    {
        T before = *place;
        *place = value;
        _undo.Push(() => *place = before);
    }

    public unsafe void SetLink(ListHead** place, ListHead* value) => Set((nint*)place, (nint)value);

    public void Do(Action change, Action back)
    {
        change();
        _undo.Push(back);
    }

    /// <summary>Raises or lowers the number of free blocks of an order.</summary>
    public unsafe void AddNrFree(Buddy buddy, int order, long blocks)
    {
        FieldInfo field = typeof(Buddy).GetField("_nrFree", BindingFlags.Instance | BindingFlags.NonPublic)!;
        long* counts = (long*)Pointer.Unbox(field.GetValue(buddy)!);
        Set(counts + order, counts[order] + blocks);
    }

    /// <summary>Unlinks a page that is on a list.</summary>
    public unsafe void Unlink(Page* page)
    {
        SetLink(&page->Lru.Prev->Next, page->Lru.Next);
        SetLink(&page->Lru.Next->Prev, page->Lru.Prev);
    }

    /// <summary>Links a page into a list, as its first entry.</summary>
    public unsafe void Link(ListHead* list, Page* page)
    {
        SetLink(&page->Lru.Prev, list);
        SetLink(&page->Lru.Next, list->Next);
        SetLink(&list->Next->Prev, &page->Lru);
        SetLink(&list->Next, &page->Lru);
    }

    /// <summary>Makes a page the descriptor of a free block, or none.</summary>
    public unsafe void Describe(Page* page, PageType type, int order)
    {
        Set(&page->Type, type);
        Set(&page->Private, (ulong)order);
    }

    public void Undo()
    {
        while (_undo.TryPop(out Action? back))
            back();
    }
}
