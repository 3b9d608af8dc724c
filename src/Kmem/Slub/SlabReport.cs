using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>
/// The words in which slab debugging reports a finding, put together under list_lock and logged after it.
/// <code>
///   [Right Redzone overwritten] 0x…-0x… @offset=520. First byte 0x41 instead of 0xcc
///   =====
///   BUG demo_node (Not tainted): Object corrupt
///   -----
///   Allocated in … / Freed in …           with U
///   Slab 0x… objects=26 used=12 fp=0x… flags=0x…(workingset|node=0|zone=2)
///   Object 0x… @offset=464 fp=0x…
///   Redzone, Object, Redzone, Padding     hex dumps
///   cut here, who noticed
///   FIX demo_node: what was done about it
/// </code>
/// </summary>
/// <remarks>slab_bug, print_trailer, slab_fix, mm/slub.c, Linux 6.18.</remarks>
internal sealed class SlabReport(SlabDebug debug)
{
    private const int BytesPerRow = 16;

    /// <summary>
    /// Bytes shown of a red zone or padding in a profile of kmalloc objects up to 32 KiB: they are as large as the
    /// object, because it is aligned, and more than the log holds. The kernel shows all; its largest have 8 KiB.
    /// </summary>
    private const int MostShown = 8192;
    private const int ZoneShift = 56;
    private const int NodeShift = 58;

    private readonly StringBuilder _text = new();

    /// <summary>Whether any finding is in it; a report of mere trace lines has none.</summary>
    public bool HasFinding { get; private set; }

    public override string ToString() => _text.ToString().TrimEnd('\n');

    public void Append(SlabReport other)
    {
        HasFinding |= other.HasFinding;
        _text.Append(other._text);
    }

    public unsafe string Address(void* address) => $"0x{debug.Slabs.KernelAddress(address):x16}";

    public unsafe void Overwritten(Page* slab, string what, byte* first, byte* last, byte expected)
    {
        HasFinding = true;
        _text.Append(
            CultureInfo.InvariantCulture,
            $"[{what} overwritten] {Address(first)}-{Address(last)} @offset={first - StartOf(slab)}. ")
            .Append(CultureInfo.InvariantCulture, $"First byte 0x{*first:x} instead of 0x{expected:x}\n");
    }

    /// <summary>A finding about an object: everything that is known about it (object_err).</summary>
    public unsafe void ObjectError(Page* slab, byte* obj, string reason)
    {
        Header(reason);
        if (debug.IsObject(slab, obj))
        {
            Tracks(obj);
            SlabLine(slab);
            Object(slab, obj);
        }
        else
        {
            SlabLine(slab);
            _text.Append(CultureInfo.InvariantCulture, $"Invalid pointer {Address(obj)}\n");
        }

        Warning("object_err");
    }

    /// <summary>A finding about a slab (slab_err).</summary>
    public unsafe void SlabError(Page* slab, string reason)
    {
        Header(reason);
        SlabLine(slab);
        Warning("slab_err");
    }

    public unsafe void TailOverwritten(Page* slab, byte* first, byte* last, int length)
    {
        long offset = first - StartOf(slab);
        Header($"Padding overwritten. {Address(first)}-{Address(last)} @offset={offset}");
        int order = PageAllocator.CompoundOrder(slab);
        byte* end = StartOf(slab) + ((long)Pfn.PageSize << order);
        Dump("Padding  ", end - length, length);
        SlabLine(slab);
        Warning("slab_err");
    }

    /// <summary>What was done about a finding.</summary>
    public void Fix(string what) =>
        _text.Append(CultureInfo.InvariantCulture, $"FIX {debug.Cache.Name}: {what}\n");

    /// <summary>An operation of a cache that is traced.</summary>
    public unsafe void Trace(Page* slab, byte* obj, bool alloc)
    {
        SlabState state = SlabState.Read(slab);
        _text.Append(
            CultureInfo.InvariantCulture,
            $"TRACE {debug.Cache.Name} {(alloc ? "alloc" : "free")} {Address(obj)} inuse={state.InUse} ")
            .Append(CultureInfo.InvariantCulture, $"fp={FreePointer(slab, state)}\n");
        if (!alloc)
            Dump("Object   ", obj, debug.Cache.Geometry.ObjectSize);
        Stack();
    }

    /// <summary>Who allocated and freed an object, as far as it is known (print_tracking).</summary>
    public unsafe void Tracks(void* obj)
    {
        if (!debug.StoresUser)
            return;

        Track("Allocated", "allocation", debug.TrackOf(obj, free: false));
        Track("Freed", "free", debug.TrackOf(obj, free: true));
    }

    public unsafe void SlabLine(Page* slab)
    {
        SlabState state = SlabState.Read(slab);
        _text.Append(
            CultureInfo.InvariantCulture,
            $"Slab 0x{debug.Slabs.KernelPageAddress(slab):x16} objects={state.Objects} used={state.InUse} ")
            .Append(CultureInfo.InvariantCulture, $"fp={FreePointer(slab, state)} flags={Flags(slab)}\n");
    }

    private void Header(string reason)
    {
        HasFinding = true;
        string taint = debug.Slabs.IsTainted ? "Tainted: B" : "Not tainted";
        _text.Append('=', 77).Append('\n')
            .Append(CultureInfo.InvariantCulture, $"BUG {debug.Cache.Name} ({taint}): {reason}\n")
            .Append('-', 77).Append("\n\n");
        debug.Slabs.IsTainted = true;
    }

    private void Track(string what, string kind, in ObjectTrack track)
    {
        if (track.Address == 0)
            return;

        string[]? stack = debug.Slabs.Stacks.Find(track.Stack);
        string caller = stack == null ? $"0x{track.Address:x}" : StackDepot.CallerIn(stack);
        long age = Environment.TickCount64 - track.When;
        _text.Append(CultureInfo.InvariantCulture, $"{what} in {caller} age={age} ")
            .Append(CultureInfo.InvariantCulture, $"cpu={track.Cpu} pid={track.Thread}\n");
        if (stack == null)
        {
            _text.Append(CultureInfo.InvariantCulture, $"object {kind} stack trace missing\n");
            return;
        }

        foreach (string frame in stack)
            _text.Append(' ').Append(frame).Append('\n');
    }

    private unsafe void Object(Page* slab, byte* obj)
    {
        SlabGeometry geometry = debug.Cache.Geometry;
        byte* start = StartOf(slab);
        ulong next = (ulong)debug.Cache.NextFree(obj);
        string pointer = debug.Slabs.Map.Contains((void*)next) ? Address((void*)next) : $"0x{next:x16}";
        _text.Append(CultureInfo.InvariantCulture, $"Object {Address(obj)} @offset={obj - start} fp={pointer}\n\n");
        int most = debug.Slabs.Options.SheavesEverywhere ? MostShown : int.MaxValue;
        int red = Math.Min(geometry.RedLeftPad, most);
        if (debug.HasRedZones)
            Dump("Redzone  ", obj - red, red);
        else if (obj > start + BytesPerRow)
            Dump("Bytes b4 ", obj - BytesPerRow, BytesPerRow);
        Dump("Object   ", obj, Math.Min(geometry.ObjectSize, (int)Pfn.PageSize));
        if (debug.HasRedZones)
            Dump("Redzone  ", obj + geometry.ObjectSize, geometry.Inuse - geometry.ObjectSize);
        (int from, int to) = debug.Padding;
        Dump("Padding  ", obj + from, Math.Min(to - from, most));
    }

    private unsafe void Dump(string label, byte* from, int length)
    {
        for (int row = 0; row < length; row += BytesPerRow)
        {
            int count = Math.Min(BytesPerRow, length - row);
            _text.Append(label)
                .Append(CultureInfo.InvariantCulture, $"{debug.Slabs.KernelAddress(from + row):x16}: ");
            for (int i = 0; i < count; i++)
                _text.Append(CultureInfo.InvariantCulture, $"{from[row + i]:x2} ");
            _text.Append(' ', (3 * (BytesPerRow - count)) + 1);
            for (int i = 0; i < count; i++)
                _text.Append(from[row + i] is >= 0x20 and < 0x7f ? (char)from[row + i] : '.');
            _text.Append('\n');
        }
    }

    /// <summary>Who noticed. The kernel prints registers, too.</summary>
    private void Warning(string function)
    {
        _text.Append("------------[ cut here ]------------\n")
            .Append(CultureInfo.InvariantCulture, $"WARNING: CPU: {debug.CpuHere} ")
            .Append(CultureInfo.InvariantCulture, $"PID: {Environment.CurrentManagedThreadId} ")
            .Append(CultureInfo.InvariantCulture, $"at mm/slub.c: {function}\n");
        Stack();
        _text.Append("---[ end trace 0000000000000000 ]---\n");
    }

    private void Stack()
    {
        _text.Append("Call Trace:\n <TASK>\n");
        foreach (string frame in debug.Slabs.Stacks.Find(debug.Slabs.Stacks.Capture()) ?? [])
            _text.Append(' ').Append(frame).Append('\n');
        _text.Append(" </TASK>\n");
    }

    private unsafe byte* StartOf(Page* slab) => debug.Slabs.Map.AddressOf(slab);

    private unsafe string FreePointer(Page* slab, SlabState state) =>
        state.HasFree ? Address(debug.Cache.ObjectOf(slab, state.FreeIndex)) : $"0x{0:x16}";

    private unsafe string Flags(Page* slab)
    {
        ulong pfn = debug.Slabs.Map.PfnOf(slab);
        int node = debug.Slabs.NodeOf(slab);
        int zone = (int)debug.Slabs.Pages.ZoneOf(pfn).Zone.Type;
        bool partial = (slab->Flags & PageFlags.SlabOnPartialList) != 0;
        ulong word = ((ulong)zone << ZoneShift) | ((ulong)node << NodeShift)
            | (ulong)(slab->Flags & (PageFlags.Head | PageFlags.SlabOnPartialList));
        string names = (partial ? "workingset|" : "") + (slab->IsHead ? "head|" : "");
        return $"0x{word:x}({names}node={node}|zone={zone})";
    }
}
