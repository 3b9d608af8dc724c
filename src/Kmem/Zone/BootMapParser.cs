namespace Kmem;

/// <summary>Reads <see cref="BootMemoryMap"/>s from the texts of real machines.</summary>
internal static class BootMapParser
{
    private const string E820Mark = "BIOS-e820:";

    /// <summary>
    /// <code>
    /// 00001000-0009fbff : System RAM
    /// 0009fc00-000fffff : Reserved
    /// 00100000-bfffffff : System RAM
    ///   01000000-02209987 : Kernel code        two blanks for each level; the end is inclusive
    /// </code>
    /// </summary>
    public static BootMemoryMap ParseIomem(string text)
    {
        var reader = new ProcTextReader("/proc/iomem", new StringReader(text));
        reader.RejectEmpty();
        ProcFormatException allZero = reader.Error(
            "all addresses are zero: the kernel hides them from unprivileged readers; read the file as root");

        var map = new BootMemoryMap();
        bool sawAddress = false;
        int deepest = 0;                               // the next line may be one level below the last one
        for (; reader.Line is not null; reader.Advance())
        {
            int level = IomemLevel(reader, reader.Line, deepest);
            deepest = level + 1;
            LineCursor fields = reader.Fields("a range");
            (ulong start, ulong last) = Range(reader, ref fields, prefix: "");
            fields.Expect(":");
            sawAddress |= last != 0;
            if (last == 0 && start == 0) continue;     // hidden; see allZero

            string name = fields.Rest.ToString();
            if (level == 0 && name == "System RAM") AddMemory(reader, map, start, last);
            else if (IsIomemReservation(name)) Reserve(map, start, last);
        }
        if (!sawAddress) throw allZero;
        if (map.Memory.Count == 0) throw reader.Error("no \"System RAM\" at the top level");
        return map;
    }

    /// <summary>
    /// <code>
    /// [    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
    /// </code>
    /// </summary>
    public static BootMemoryMap ParseE820(string text)
    {
        var reader = new ProcTextReader("BIOS-e820", new StringReader(text));
        var map = new BootMemoryMap();
        for (; reader.Line is not null; reader.Advance())
        {
            int mark = reader.Line.IndexOf(E820Mark, StringComparison.Ordinal);
            if (mark < 0) continue;
            var fields = new LineCursor(reader, reader.Line.AsSpan(mark + E820Mark.Length));
            fields.Expect("[mem");
            (ulong start, ulong last) = Range(reader, ref fields, prefix: "0x");
            fields.Expect("]");
            if (IsUsable(reader, fields.Rest)) AddMemory(reader, map, start, last);
            else Reserve(map, start, last);
        }

        // Only now: the more restrictive entry wins, whichever comes first. Every reservation here is such an entry.
        foreach (BootRegion region in map.Reserved) map.RemoveMemory(region.Start, region.End);
        if (map.Memory.Count == 0) throw reader.Error("no \"BIOS-e820: [mem …] usable\" line");
        return map;
    }

    private static int IomemLevel(ProcTextReader reader, string line, int deepest)
    {
        int blanks = line.AsSpan().IndexOfAnyExcept(' ');
        if (blanks % 2 != 0 || blanks / 2 > deepest)
            throw reader.Error("an entry is indented by two blanks for each level, one level more than its parent");
        return blanks / 2;
    }

    /// <summary>Reservations that lie inside System RAM. On some architectures "reserved" is what memblock reserved.
    /// </summary>
    private static bool IsIomemReservation(string name) =>
        name is "Kernel code" or "Kernel rodata" or "Kernel data" or "Kernel bss" or "Crash kernel"
        || name.Equals("Reserved", StringComparison.OrdinalIgnoreCase);

    private static bool IsUsable(ProcTextReader reader, ReadOnlySpan<char> type)
    {
        if (type is "usable") return true;
        bool known = type is "reserved" or "ACPI data" or "ACPI NVS" or "unusable" or "soft reserved"
            or "device reserved" || IsNumbered(type, "type ", "") || IsNumbered(type, "persistent (type ", ")");
        return known ? false : throw reader.Error("unknown type of memory");
    }

    private static bool IsNumbered(ReadOnlySpan<char> text, string before, string after) =>
        text.Length > before.Length + after.Length
        && text.StartsWith(before, StringComparison.Ordinal)
        && text.EndsWith(after, StringComparison.Ordinal)
        && !text[before.Length..^after.Length].ContainsAnyExceptInRange('0', '9');

    /// <summary>Reads <c>start-last</c> in hexadecimal.</summary>
    private static (ulong Start, ulong Last) Range(ProcTextReader reader, ref LineCursor fields, string prefix)
    {
        fields.Expect(prefix);
        ulong start = fields.Hex("the range's start");
        fields.Expect("-");
        fields.Expect(prefix);
        ulong last = fields.Hex("the range's end");
        return start <= last ? (start, last) : throw reader.Error("the range ends before it starts");
    }

    private static void AddMemory(ProcTextReader reader, BootMemoryMap map, ulong start, ulong last)
    {
        if (last >= BootMemoryMap.AddressLimit) throw reader.Error("memory beyond 52 address bits");
        map.AddMemory(start, last + 1);
    }

    /// <summary>Reserves the part that can be addressed; above it there is no memory to keep.</summary>
    private static void Reserve(BootMemoryMap map, ulong start, ulong last)
    {
        if (start < BootMemoryMap.AddressLimit)
            map.Reserve(start, Math.Min(last, BootMemoryMap.AddressLimit - 1) + 1);
    }
}
