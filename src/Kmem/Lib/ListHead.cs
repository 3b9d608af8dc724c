using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A circular doubly linked list through nodes embedded in other structures (<c>struct list_head</c>).
/// <code>
///   head ⇄ first ⇄ second ⇄ … ⇄ last ⇄ head        an empty head points to itself
/// </code>
/// The list never owns memory; who embeds the node decides its lifetime and holds the lock.
/// </summary>
internal struct ListHead
{
    public unsafe ListHead* Next;
    public unsafe ListHead* Prev;

    public static unsafe void Init(ListHead* head)
    {
        head->Next = head;
        head->Prev = head;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe bool IsEmpty(ListHead* head) => head->Next == head;

    /// <summary>Inserts <paramref name="node"/> as the first entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void AddHead(ListHead* head, ListHead* node) => Insert(node, head, head->Next);

    /// <summary>Inserts <paramref name="node"/> as the last entry.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void AddTail(ListHead* head, ListHead* node) => Insert(node, head->Prev, head);

    /// <summary>Takes <paramref name="node"/> out of its list and leaves it unlinked (both links null).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void Remove(ListHead* node)
    {
        ListHead* next = node->Next;
        ListHead* prev = node->Prev;
        Bug.OnVm(next->Prev != node || prev->Next != node, "list corrupted");
        next->Prev = prev;
        SimPoint.Here();
        prev->Next = next;
        node->Next = null;
        node->Prev = null;
    }

    /// <summary>Entries from the first to the last; O(n), for reports and checks.</summary>
    public static unsafe int Count(ListHead* head)
    {
        int count = 0;
        for (ListHead* node = head->Next; node != head; node = node->Next)
            count++;
        return count;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static unsafe void Insert(ListHead* node, ListHead* prev, ListHead* next)
    {
        SimPoint.Here();
        next->Prev = node;
        node->Next = next;
        node->Prev = prev;
        prev->Next = node;
    }
}
