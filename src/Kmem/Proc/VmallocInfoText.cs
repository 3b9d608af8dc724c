using System.Globalization;

namespace Kmem;

/// <summary>/proc/vmallocinfo: busy areas, vmap node by vmap node, and then the lazily freed ones.</summary>
/// <remarks>
/// <code>
/// 0xffffc90000005000-0xffffc90000007000    8192 acpi_os_map_iomem+0x19d/0x1c0 phys=0x0000000027fe1000 ioremap
/// 0xffffc9000000c000-0xffffc90000011000   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4
/// 0xffffc900032ac000-0xffffc900032b1000   20480 unpurged vm_area
/// </code>
/// Addresses may be hashed or zero: the kernel shows real ones to privileged readers only. Kernel:
/// <c>vmalloc_info_show</c>, mm/vmalloc.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class VmallocInfoText
{
    private const string Kind = "/proc/vmallocinfo";
    private const string UnpurgedWords = "unpurged vm_area";
    private const string MapRamWord = "vm_map_ram";

    /// <summary>The words for flags, in the order in which the kernel prints them.</summary>
    private static readonly (VmallocInfoFlags Flag, string Word)[] s_words =
    [
        (VmallocInfoFlags.IoRemap, "ioremap"),
        (VmallocInfoFlags.Sparse, "sparse"),
        (VmallocInfoFlags.Vmalloc, "vmalloc"),
        (VmallocInfoFlags.Vmap, "vmap"),
        (VmallocInfoFlags.User, "user"),
        (VmallocInfoFlags.DmaCoherent, "dma-coherent"),
        (VmallocInfoFlags.Vpages, "vpages"),
    ];

    /// <summary>The lines in the text's order.</summary>
    public List<VmallocInfoRow> Rows { get; init; } = [];

    /// <summary>Reads the text of /proc/vmallocinfo; an empty one has no rows.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format.</exception>
    public static VmallocInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static VmallocInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        var info = new VmallocInfoText();
        for (; reader.Line is not null; reader.Advance())
            info.Rows.Add(ParseRow(reader));
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (VmallocInfoRow row in Rows)
        {
            text.Text(Hex(row.Start)).Text("-").Text(Hex(row.End)).Text(" ").Number(row.Size, 7);
            if (row.Kind == VmallocInfoKind.Unpurged)
                text.Line(" " + UnpurgedWords);
            else if (row.Kind == VmallocInfoKind.MapRam)
                text.Line(" " + MapRamWord);
            else
                RenderDetails(text, row);
        }

        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    private static void RenderDetails(ProcTextWriter text, VmallocInfoRow row)
    {
        if (row.Caller != null) text.Text(" ").Text(row.Caller);
        if (row.Pages != 0) text.Text(" pages=").Number(row.Pages);
        if (row.PhysicalAddress != 0)
            text.Text(" phys=0x").Text(row.PhysicalAddress.ToString("x16", CultureInfo.InvariantCulture));
        foreach ((VmallocInfoFlags flag, string word) in s_words)
        {
            if ((row.Flags & flag) != 0) text.Text(" ").Text(word);
        }

        foreach (VmallocNodePages node in row.NodePages)
            text.Text(" N").Number((ulong)node.Node).Text("=").Number(node.Pages);
        text.Line();
    }

    private static VmallocInfoRow ParseRow(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("an area");
        fields.Expect("0x");
        ulong start = fields.Hex("the start");
        fields.Expect("-0x");
        ulong end = fields.Hex("the end");
        ulong size = fields.ULong("the size");
        var row = new VmallocInfoRow(start, end, size);
        if (fields.Rest.SequenceEqual(UnpurgedWords)) return row with { Kind = VmallocInfoKind.Unpurged };
        if (fields.Rest.SequenceEqual(MapRamWord)) return row with { Kind = VmallocInfoKind.MapRam };
        return ParseDetails(reader, fields, row);
    }

    /// <summary>
    /// What is none of the known words, and stands before them, is the caller: with its module it has two words.
    /// </summary>
    private static VmallocInfoRow ParseDetails(ProcTextReader reader, LineCursor fields, VmallocInfoRow row)
    {
        var nodes = new List<VmallocNodePages>();
        for (bool first = true; !fields.AtEnd; first = false)
        {
            int flag = FlagAt(fields.Rest);
            if (flag >= 0)
            {
                fields.Expect(s_words[flag].Word);
                row = row with { Flags = row.Flags | s_words[flag].Flag };
            }
            else if (fields.TryTake("pages="))
            {
                row = row with { Pages = fields.ULong("the number of pages") };
            }
            else if (fields.TryTake("phys=0x"))
            {
                row = row with { PhysicalAddress = fields.Hex("the physical address") };
            }
            else if (fields.Rest[0] == 'N' && fields.Rest.Length > 1 && char.IsAsciiDigit(fields.Rest[1]))
            {
                nodes.Add(ParseNode(ref fields));
            }
            else
            {
                if (!first) throw reader.Error("a word that vmallocinfo does not have");
                row = row with { Caller = ParseCaller(ref fields) };
            }
        }

        return row with { NodePages = nodes };
    }

    private static VmallocNodePages ParseNode(ref LineCursor fields)
    {
        fields.Expect("N");
        int node = fields.Int("the node");
        fields.Expect("=");
        return new VmallocNodePages(node, fields.ULong("the number of pages"));
    }

    private static string ParseCaller(ref LineCursor fields)
    {
        var caller = fields.Word("the caller").ToString();
        return fields.Rest.StartsWith('[') ? $"{caller} {fields.Word("the module")}" : caller;
    }

    private static int FlagAt(ReadOnlySpan<char> rest)
    {
        int end = rest.IndexOf(' ');
        ReadOnlySpan<char> word = end < 0 ? rest : rest[..end];
        for (int i = 0; i < s_words.Length; i++)
        {
            if (word.SequenceEqual(s_words[i].Word)) return i;
        }

        return -1;
    }

    private static string Hex(ulong address) => string.Create(CultureInfo.InvariantCulture, $"0x{address:x16}");
}

/// <summary>What a line of /proc/vmallocinfo is about.</summary>
public enum VmallocInfoKind
{
    /// <summary>An area in use.</summary>
    Area,

    /// <summary>A block of vm_map_ram.</summary>
    MapRam,

    /// <summary>A freed area whose addresses are not usable again yet.</summary>
    Unpurged,
}

/// <summary>The words of a line that say what an area is for.</summary>
[Flags]
public enum VmallocInfoFlags
{
    /// <summary>None of them.</summary>
    None = 0,

    /// <summary><c>ioremap</c>: device memory.</summary>
    IoRemap = 1,

    /// <summary><c>sparse</c>: pages are mapped piecemeal.</summary>
    Sparse = 2,

    /// <summary><c>vmalloc</c>: memory of the vmalloc family.</summary>
    Vmalloc = 4,

    /// <summary><c>vmap</c>: pages that the user brought.</summary>
    Vmap = 8,

    /// <summary><c>user</c>: may be mapped into a process.</summary>
    User = 16,

    /// <summary><c>dma-coherent</c>: memory shared with a device.</summary>
    DmaCoherent = 32,

    /// <summary><c>vpages</c>: the array of pages is itself in vmalloc space.</summary>
    Vpages = 64,
}

/// <summary>How many pages of an area are on a NUMA node.</summary>
/// <param name="Node">The node's number.</param>
/// <param name="Pages">Pages of 4 KiB.</param>
public readonly record struct VmallocNodePages(int Node, ulong Pages);

/// <summary>One line of /proc/vmallocinfo.</summary>
/// <param name="Start">First byte of the area.</param>
/// <param name="End">One past its last byte.</param>
/// <param name="Size">Bytes as printed, guard page included; the difference of the two unless they are hashed.</param>
public sealed record VmallocInfoRow(ulong Start, ulong End, ulong Size)
{
    /// <summary>What the line is about; only lines about areas have the fields below.</summary>
    public VmallocInfoKind Kind { get; init; }

    /// <summary>Who allocated it, as <c>symbol+0xoffset/0xlength [module]</c>; null if unknown.</summary>
    public string? Caller { get; init; }

    /// <summary>Pages of 4 KiB behind the area that belong to it.</summary>
    public ulong Pages { get; init; }

    /// <summary>Physical address of a device's memory; 0 none.</summary>
    public ulong PhysicalAddress { get; init; }

    /// <summary>What it is for.</summary>
    public VmallocInfoFlags Flags { get; init; }

    /// <summary>Its pages by NUMA node, nodes without pages left out.</summary>
    public IReadOnlyList<VmallocNodePages> NodePages { get; init; } = [];
}
