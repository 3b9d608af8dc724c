using System.Globalization;
using System.Text;

namespace Kmem;

/// <content>What is known and said about an address (mm/kfence/report.c).</content>
public sealed partial class Kfence
{
    private const int CanaryBytesShown = 16;
    private static readonly string s_line = new('=', 66);

    private long _skippedIncompatible;
    private long _skippedCapacity;
    private long _skippedCovered;

    /// <summary>
    /// What an address belongs to, or belonged to: for the address of a fault that ended a process, from its core, or
    /// from the log of who ran it.
    /// </summary>
    /// <param name="address">Any address of this process.</param>
    /// <returns>
    /// The kernel's second line of a report (<c>Out-of-bounds access at 0x… (56B right of kfence-#38)</c>) and what is
    /// known of the object: cache, size, who allocated and freed it. For an address outside the pool a sentence that
    /// says so.
    /// </returns>
    public unsafe string Explain(void* address)
    {
        if (!Contains(address))
            return $"0x{(ulong)address:x} is not in the pool of guarded objects";

        lock (_gate)
        {
            (string title, string what, Slot? slot) = ClassifyLocked((nint)address, "access");
            var text = new StringBuilder();
            text.Append(title).Append(" at ").Append(Text((nint)address)).Append(what).Append('\n');
            if (slot != null)
                AppendObject(text.Append('\n'), slot);
            return text.ToString().TrimEnd('\n');
        }
    }

    /// <summary>
    /// Checks an access before it is made: where it would fault, or hit bytes that are nobody's, the kernel's report is
    /// written to <see cref="Machine.Dmesg"/> and thrown. Addresses outside the pool are not looked at.
    /// </summary>
    /// <param name="address">First byte.</param>
    /// <param name="bytes">How many.</param>
    /// <param name="write">Whether they are to be written.</param>
    /// <exception cref="KernelBugException">The access is out of bounds, or after a free.</exception>
    public unsafe void CheckAccess(void* address, nuint bytes, bool write)
    {
        string? report = null;
        lock (_gate)
        {
            for (nuint i = 0; i < bytes && report == null; i++)
            {
                nint at = (nint)address + (nint)i;
                if (!Contains((void*)at))
                    continue;

                Slot? slot = SlotAt(at);
                if (slot is { State: SlotState.Allocated } && at >= slot.Address && at < slot.Address + slot.Size)
                    continue;

                (string title, string what, Slot? near) = ClassifyLocked(at, write ? "write" : "read");
                report = ReportLocked(title, $"{title} at {Text(at)}{what}:", near);
            }
        }

        if (report != null)
            _slabs.Pages.ThrowBug(report);
    }

    /// <summary>Every object that was ever guarded, its last life (debugfs kfence/objects).</summary>
    /// <returns>The text, with the addresses of this process in brackets.</returns>
    public string ObjectsText()
    {
        var text = new StringBuilder();
        lock (_gate)
        {
            foreach (Slot slot in _slots)
            {
                if (slot.State == SlotState.Unused)
                    text.Append(CultureInfo.InvariantCulture, $"kfence-#{slot.Index} unused\n");
                else
                    AppendObject(text, slot);
                text.Append("---------------------------------\n");
            }
        }

        return text.ToString();
    }

    /// <summary>The counters (debugfs kfence/stats).</summary>
    /// <returns>One line for each.</returns>
    public string StatsText()
    {
        lock (_gate)
        {
            return string.Create(
                CultureInfo.InvariantCulture,
                $"""
                enabled: {(_isClosed ? 0 : 1)}
                currently allocated: {_slots.Length - _unused.Count}
                total allocations: {TotalAllocated}
                total frees: {TotalAllocated - (_slots.Length - _unused.Count)}
                zombie allocations: 0
                total bugs: {TotalBugs}
                skipped allocations (incompatible): {Volatile.Read(ref _skippedIncompatible)}
                skipped allocations (capacity): {_skippedCapacity}
                skipped allocations (covered): {_skippedCovered}

                """);
        }
    }

    /// <summary>
    /// Which kind of bug an access to an address that is not inside a live object is, and which object is concerned.
    /// </summary>
    private unsafe (string Title, string What, Slot? Slot) ClassifyLocked(nint address, string access)
    {
        Slot? own = SlotAt(address);
        if (own is { State: SlotState.Freed })
            return ($"Use-after-free {access}", $" (in kfence-#{own.Index})", own);

        if (own is not { State: SlotState.Allocated })
        {
            // A guard page: it belongs to the nearer one of its neighbours.
            long page = (address - (nint)_pool) / PageBytes;
            Slot? left = AllocatedAt((int)((page - 1) / 2) - 1);
            Slot? right = AllocatedAt((int)((page - 1) / 2));
            bool isGuard = page % 2 == 1;
            own = !isGuard ? null
                : left == null ? right
                : right == null || address - (left.Address + left.Size) <= right.Address - address ? left
                : right;
        }

        if (own == null)
            return ($"Invalid {access}", "", null);
        if (address >= own.Address && address < own.Address + own.Size)
            return ("Valid access", $" (in kfence-#{own.Index})", own);

        // Both distances are measured from the object's first byte.
        string side = address < own.Address ? "left" : "right";
        long distance = Math.Abs((long)address - own.Address);
        return ($"Out-of-bounds {access}", $" ({distance}B {side} of kfence-#{own.Index})", own);
    }

    private Slot? AllocatedAt(int index) =>
        index >= 0 && index < _slots.Length && _slots[index].State == SlotState.Allocated ? _slots[index] : null;

    private string InvalidFreeReportLocked(Slot? slot, nint address)
    {
        Slot? known = slot?.State == SlotState.Unused ? null : slot;
        string of = known == null ? "" : $" (in kfence-#{known.Index})";
        return ReportLocked("Invalid free", $"Invalid free of {Text(address)}{of}:", known);
    }

    /// <summary>
    /// Bytes beside an object were changed: they are put right, and the object stays allocated, as with red zones.
    /// </summary>
    private unsafe string? CanaryReportLocked(Slot slot)
    {
        nint first = FirstDamage(slot);
        if (first == 0)
            return null;

        var line = new StringBuilder($"Corrupted memory at {Text(first)} [");
        byte* end = PageOf(slot.Index) + PageBytes;
        byte* limit = first < slot.Address ? (byte*)slot.Address : end;
        for (byte* at = (byte*)first; at < limit && at < (byte*)first + CanaryBytesShown; at++)
            line.Append(*at == Canary(at) ? " ." : $" 0x{*at:x2}");
        line.Append(CultureInfo.InvariantCulture, $" ] (in kfence-#{slot.Index}):");
        string report = ReportLocked("Memory corruption", line.ToString(), slot);
        for (byte* at = PageOf(slot.Index); at < end; at++)
        {
            if (at < (byte*)slot.Address || at >= (byte*)slot.Address + slot.Size)
                *at = Canary(at);
        }

        return report;
    }

    /// <summary>Without guard pages a write after a free is seen when the place is used again.</summary>
    private unsafe void ReportIfTouchedLocked(Slot slot, byte* page)
    {
        if (slot.State != SlotState.Freed)
            return;

        for (byte* at = page; at < page + PageBytes; at++)
        {
            if (*at == Canary(at))
                continue;

            _slabs.Log.Write(ReportLocked(
                "Use-after-free write",
                $"Use-after-free write at {Text((nint)at)} [ 0x{*at:x2} ] (in kfence-#{slot.Index}):",
                slot));
            return;
        }
    }

    private string ReportLocked(string title, string line, Slot? slot)
    {
        TotalBugs++;
        string[] stack = StackOf(_slabs.Stacks.Capture());
        string kind = char.ToLowerInvariant(title[0]) + title[1..];
        var text = new StringBuilder();
        text.Append(s_line).Append('\n')
            .Append(CultureInfo.InvariantCulture, $"BUG: KFENCE: {kind} in {stack[0]}\n\n")
            .Append(line).Append('\n');
        AppendStack(text, stack);
        text.Append('\n');
        if (slot != null)
        {
            AppendObject(text, slot);
            text.Append('\n');
        }

        string taint = _slabs.IsTainted ? "Tainted: B" : "Not tainted";
        _slabs.IsTainted = true;
        text.Append(CultureInfo.InvariantCulture, $"CPU: {CpuHere()} UID: 0 PID: {Environment.CurrentManagedThreadId} ")
            .Append(CultureInfo.InvariantCulture, $"Comm: {Thread.CurrentThread.Name ?? "thread"} {taint}\n")
            .Append("Hardware name: Kmem\n").Append(s_line);
        return text.ToString();
    }

    private unsafe string ObjectLine(Slot slot) => string.Create(
        CultureInfo.InvariantCulture,
        $"kfence-#{slot.Index}: {Text(slot.Address)}-{Text(slot.Address + slot.Size - 1)}, size={slot.Size}, "
        + $"cache={slot.CacheName}");

    private void AppendObject(StringBuilder text, Slot slot)
    {
        text.Append(ObjectLine(slot)).Append("\n\n");
        AppendTrack(text, "allocated", slot.Alloc);
        if (slot.State == SlotState.Freed)
            AppendTrack(text.Append('\n'), "freed", slot.Free);
    }

    private void AppendTrack(StringBuilder text, string what, in Track track)
    {
        double ago = System.Diagnostics.Stopwatch.GetElapsedTime(_boot).TotalSeconds - track.At;
        text.Append(
            CultureInfo.InvariantCulture,
            $"{what} by task {track.Thread} on cpu {track.Cpu} at {track.At:F6}s ({ago:F6}s ago):\n");
        AppendStack(text, StackOf(track.Stack));
    }

    /// <summary>The frames of the allocators' user: a stack begins with the allocators' own entry.</summary>
    private string[] StackOf(int stack) => _slabs.Stacks.Find(stack) is { } frames
        ? frames.Length > 1 ? frames[1..] : frames
        : ["unknown"];

    private static void AppendStack(StringBuilder text, string[] frames)
    {
        foreach (string frame in frames)
            text.Append(' ').Append(frame).Append('\n');
    }

    private unsafe string Text(nint address) => $"0x{_slabs.KernelAddress((void*)address):x16}";
}
