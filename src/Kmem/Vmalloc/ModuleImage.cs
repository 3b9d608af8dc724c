using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;

namespace Kmem;

/// <summary>What a section of a module holds, and so what may be done with it once it is loaded.</summary>
public enum ModuleSectionKind
{
    /// <summary>Code: read and run.</summary>
    Text = 0,

    /// <summary>Constants: read.</summary>
    ReadOnlyData = 1,

    /// <summary>Variables: read and written.</summary>
    Data = 2,

    /// <summary>Variables that begin as zero and take no place in the image.</summary>
    Bss = 3,
}

/// <summary>How a relocation computes what it writes; S the target's address, A the addend, P its own place.</summary>
public enum ModuleRelocationType
{
    /// <summary>S + A, 8 bytes (R_X86_64_64).</summary>
    Absolute64 = 1,

    /// <summary>S + A − P, 4 bytes (R_X86_64_PC32).</summary>
    Relative32 = 2,
}

/// <summary>A section of a <see cref="ModuleImage"/>.</summary>
/// <param name="Kind">What it holds.</param>
/// <param name="Alignment">Bytes, a power of two, at most 4096.</param>
/// <param name="Size">Bytes in memory; what the content does not fill is zero.</param>
/// <param name="Content">Its first bytes; empty for <see cref="ModuleSectionKind.Bss"/>.</param>
public sealed record ModuleSection(ModuleSectionKind Kind, int Alignment, int Size, ReadOnlyMemory<byte> Content);

/// <summary>A place in a section that depends on where sections are loaded.</summary>
/// <param name="Section">Index of the section that is changed.</param>
/// <param name="Offset">The place, in bytes from its start.</param>
/// <param name="Type">What is written there.</param>
/// <param name="Target">Index of the section that is meant.</param>
/// <param name="Addend">Offset into that.</param>
public readonly record struct ModuleRelocation(
    int Section, int Offset, ModuleRelocationType Type, int Target, long Addend);

/// <summary>A name for a place in a section.</summary>
/// <param name="Name">1 to 15 bytes of UTF-8.</param>
/// <param name="Section">Index of the section.</param>
/// <param name="Offset">The place, in bytes from its start.</param>
public readonly record struct ModuleSymbol(string Name, int Section, int Offset);

/// <summary>
/// An image breaks a rule of its format; the message begins with the rule's number in rules/modules.md.
/// </summary>
public sealed class ModuleFormatException : FormatException
{
    internal ModuleFormatException(string rule, string detail)
        : base($"{rule}: {detail}") => Rule = rule;

    /// <summary>The rule: for example <c>KMOD-03</c>.</summary>
    public string Rule { get; }
}

/// <summary>
/// A module on its way to or from a file: sections, what in them depends on their addresses, and names. The format is
/// Kmem's own, small enough to write by hand; all numbers are little-endian:
/// <code>
///   off  0  "KMOD"             off 16  name, 31 bytes of UTF-8 and a zero at the least
///   off  4  u16 version = 1    off 48  u64 length of the whole image
///   off  6  u16 sections       off 56  sections × 32:     u32 kind, u32 alignment, u64 size, u64 offset, u64 length
///   off  8  u32 relocations    then    relocations × 24:  u16 section, u16 type, u16 target, u16 0, u64 offset, s64 addend
///   off 12  u32 symbols        then    symbols × 32:      u16 section, 6 × 0, u64 offset, 16 bytes of name
///                              then    the contents, wherever offset and length of the sections say
/// </code>
/// </summary>
/// <remarks>Not thread safe. rules/modules.md numbers what an image must keep to.</remarks>
public sealed class ModuleImage
{
    private const int HeaderBytes = 56;
    private const int SectionBytes = 32;
    private const int RelocationBytes = 24;
    private const int SymbolBytes = 32;
    private const int NameBytes = 32;
    private const int SymbolNameBytes = 16;
    private const int MaxSections = 16;
    private const int MaxSize = 64 << 20;

    /// <summary>Starts an empty image.</summary>
    /// <param name="name">1 to 31 bytes of UTF-8.</param>
    public ModuleImage(string name) => Name = name;

    /// <summary>The module's name.</summary>
    public string Name { get; }

    /// <summary>The sections; others refer to them by index.</summary>
    public IList<ModuleSection> Sections { get; } = [];

    /// <summary>What depends on the sections' addresses.</summary>
    public IList<ModuleRelocation> Relocations { get; } = [];

    /// <summary>The names.</summary>
    public IList<ModuleSymbol> Symbols { get; } = [];

    /// <summary>Reads an image and checks all its rules.</summary>
    /// <param name="image">The bytes.</param>
    /// <returns>The image; the contents are copies.</returns>
    /// <exception cref="ModuleFormatException">A rule is broken.</exception>
    public static ModuleImage Parse(ReadOnlySpan<byte> image)
    {
        Require(image.Length >= HeaderBytes, "KMOD-01", $"{image.Length} bytes are no header of {HeaderBytes}");
        Require(image.StartsWith("KMOD"u8), "KMOD-01", "it does not begin with KMOD");
        int version = BinaryPrimitives.ReadUInt16LittleEndian(image[4..]);
        Require(version == 1, "KMOD-02", $"version {version} is unknown, this is 1");
        int sections = BinaryPrimitives.ReadUInt16LittleEndian(image[6..]);
        long relocations = BinaryPrimitives.ReadUInt32LittleEndian(image[8..]);
        long symbols = BinaryPrimitives.ReadUInt32LittleEndian(image[12..]);
        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(image[48..]);
        Require(length == (ulong)image.Length, "KMOD-03", $"it says {length} bytes and has {image.Length}");
        Require(sections <= MaxSections, "KMOD-04", $"{sections} sections, at most {MaxSections}");
        long tables = HeaderBytes + (sections * (long)SectionBytes) + (relocations * RelocationBytes)
            + (symbols * SymbolBytes);
        Require(tables <= image.Length, "KMOD-03", $"its tables need {tables} bytes, it has {image.Length}");

        var parsed = new ModuleImage(ReadName(image.Slice(16, NameBytes), "the module"));
        int at = HeaderBytes;
        for (int i = 0; i < sections; i++, at += SectionBytes)
            parsed.Sections.Add(ReadSection(image, at, tables, i));
        for (int i = 0; i < relocations; i++, at += RelocationBytes)
            parsed.Relocations.Add(ReadRelocation(image[at..]));
        for (int i = 0; i < symbols; i++, at += SymbolBytes)
            parsed.Symbols.Add(ReadSymbol(image[at..]));
        parsed.Check();
        return parsed;
    }

    /// <summary>Writes the image.</summary>
    /// <returns>Bytes that <see cref="Parse"/> reads back.</returns>
    /// <exception cref="ModuleFormatException">The image breaks a rule.</exception>
    public byte[] ToArray()
    {
        Check();
        int tables = HeaderBytes + (Sections.Count * SectionBytes) + (Relocations.Count * RelocationBytes)
            + (Symbols.Count * SymbolBytes);
        var image = new byte[tables + Sections.Sum(section => section.Content.Length)];
        Span<byte> to = image;
        "KMOD"u8.CopyTo(to);
        BinaryPrimitives.WriteUInt16LittleEndian(to[4..], 1);
        BinaryPrimitives.WriteUInt16LittleEndian(to[6..], (ushort)Sections.Count);
        BinaryPrimitives.WriteUInt32LittleEndian(to[8..], (uint)Relocations.Count);
        BinaryPrimitives.WriteUInt32LittleEndian(to[12..], (uint)Symbols.Count);
        Encoding.UTF8.GetBytes(Name, to[16..]);
        BinaryPrimitives.WriteUInt64LittleEndian(to[48..], (ulong)image.Length);
        int at = HeaderBytes;
        int content = tables;
        foreach (ModuleSection section in Sections)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(to[at..], (uint)section.Kind);
            BinaryPrimitives.WriteUInt32LittleEndian(to[(at + 4)..], (uint)section.Alignment);
            BinaryPrimitives.WriteUInt64LittleEndian(to[(at + 8)..], (ulong)section.Size);
            BinaryPrimitives.WriteUInt64LittleEndian(to[(at + 16)..], (ulong)content);
            BinaryPrimitives.WriteUInt64LittleEndian(to[(at + 24)..], (ulong)section.Content.Length);
            section.Content.Span.CopyTo(to[content..]);
            content += section.Content.Length;
            at += SectionBytes;
        }

        foreach (ModuleRelocation relocation in Relocations)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(to[at..], (ushort)relocation.Section);
            BinaryPrimitives.WriteUInt16LittleEndian(to[(at + 2)..], (ushort)relocation.Type);
            BinaryPrimitives.WriteUInt16LittleEndian(to[(at + 4)..], (ushort)relocation.Target);
            BinaryPrimitives.WriteUInt64LittleEndian(to[(at + 8)..], (ulong)relocation.Offset);
            BinaryPrimitives.WriteInt64LittleEndian(to[(at + 16)..], relocation.Addend);
            at += RelocationBytes;
        }

        foreach (ModuleSymbol symbol in Symbols)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(to[at..], (ushort)symbol.Section);
            BinaryPrimitives.WriteUInt64LittleEndian(to[(at + 8)..], (ulong)symbol.Offset);
            Encoding.UTF8.GetBytes(symbol.Name, to[(at + 16)..]);
            at += SymbolBytes;
        }

        return image;
    }

    /// <summary>Bytes that a relocation writes.</summary>
    internal static int WidthOf(ModuleRelocationType type) => type == ModuleRelocationType.Absolute64 ? 8 : 4;

    /// <summary>Checks all rules that do not depend on the bytes.</summary>
    internal void Check()
    {
        CheckName(Name, NameBytes, "the module");
        Require(Sections.Count <= MaxSections, "KMOD-04", $"{Sections.Count} sections, at most {MaxSections}");
        long total = 0;
        for (int i = 0; i < Sections.Count; i++)
        {
            ModuleSection section = Sections[i];
            Require(Enum.IsDefined(section.Kind), "KMOD-06", $"section {i}: kind {(int)section.Kind} is unknown");
            Require(
                section.Alignment is > 0 and <= Pfn.PageSize && BitOperations.IsPow2(section.Alignment),
                "KMOD-07",
                $"section {i}: alignment {section.Alignment} is no power of two up to {Pfn.PageSize}");
            total += section.Size;
            Require(
                section.Size >= 0 && section.Content.Length <= section.Size && total <= MaxSize,
                "KMOD-08",
                $"section {i}: {section.Content.Length} bytes of content in {section.Size}, {total} in all sections");
            Require(
                section.Kind != ModuleSectionKind.Bss || section.Content.IsEmpty,
                "KMOD-09",
                $"section {i}: bss with {section.Content.Length} bytes of content");
        }

        for (int i = 0; i < Relocations.Count; i++)
            CheckRelocation(Relocations[i], i);
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (ModuleSymbol symbol in Symbols)
        {
            CheckName(symbol.Name, SymbolNameBytes, "a symbol");
            Require(names.Add(symbol.Name), "KMOD-13", $"the symbol {symbol.Name} is there twice");
            Require(
                symbol.Section >= 0 && symbol.Section < Sections.Count && symbol.Offset >= 0
                && symbol.Offset <= Sections[symbol.Section].Size,
                "KMOD-13",
                $"the symbol {symbol.Name} is at {symbol.Section}+{symbol.Offset}, outside its section");
        }
    }

    internal static void Require(bool holds, string rule, string detail)
    {
        if (!holds)
            throw new ModuleFormatException(rule, detail);
    }

    private void CheckRelocation(ModuleRelocation relocation, int i)
    {
        Require(
            relocation.Section >= 0 && relocation.Section < Sections.Count
            && relocation.Target >= 0 && relocation.Target < Sections.Count,
            "KMOD-10",
            $"relocation {i}: from section {relocation.Section} to {relocation.Target} of {Sections.Count}");
        Require(
            Enum.IsDefined(relocation.Type), "KMOD-11", $"relocation {i}: type {(int)relocation.Type} is unknown");
        ModuleSection at = Sections[relocation.Section];
        Require(
            at.Kind != ModuleSectionKind.Bss && relocation.Offset >= 0
            && relocation.Offset <= at.Size - WidthOf(relocation.Type),
            "KMOD-12",
            $"relocation {i}: at {relocation.Section}+{relocation.Offset}, outside what the section has");
    }

    private static ModuleSection ReadSection(ReadOnlySpan<byte> image, int at, long tables, int i)
    {
        ulong kind = BinaryPrimitives.ReadUInt32LittleEndian(image[at..]);
        ulong align = BinaryPrimitives.ReadUInt32LittleEndian(image[(at + 4)..]);
        ulong size = BinaryPrimitives.ReadUInt64LittleEndian(image[(at + 8)..]);
        ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(image[(at + 16)..]);
        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(image[(at + 24)..]);
        Require(
            length == 0 || (offset >= (ulong)tables && offset <= (ulong)image.Length
            && length <= (ulong)image.Length - offset),
            "KMOD-05",
            string.Create(
                CultureInfo.InvariantCulture, $"section {i}: content 0x{offset:x} + 0x{length:x} is not there"));
        Require(kind <= int.MaxValue, "KMOD-06", $"section {i}: kind {kind} is unknown");
        Require(align <= int.MaxValue, "KMOD-07", $"section {i}: alignment {align}");
        Require(size <= MaxSize, "KMOD-08", $"section {i}: {size} bytes, at most {MaxSize}");
        byte[] content = length == 0 ? [] : image.Slice((int)offset, (int)length).ToArray();
        return new ModuleSection((ModuleSectionKind)kind, (int)align, (int)size, content);
    }

    private static ModuleRelocation ReadRelocation(ReadOnlySpan<byte> from) => new(
        BinaryPrimitives.ReadUInt16LittleEndian(from),
        OffsetAt(from[8..]),
        (ModuleRelocationType)BinaryPrimitives.ReadUInt16LittleEndian(from[2..]),
        BinaryPrimitives.ReadUInt16LittleEndian(from[4..]),
        BinaryPrimitives.ReadInt64LittleEndian(from[16..]));

    private static ModuleSymbol ReadSymbol(ReadOnlySpan<byte> from) => new(
        ReadName(from.Slice(16, SymbolNameBytes), "a symbol"),
        BinaryPrimitives.ReadUInt16LittleEndian(from),
        OffsetAt(from[8..]));

    /// <summary>An offset; one that no section can have becomes −1, which no rule lets pass.</summary>
    private static int OffsetAt(ReadOnlySpan<byte> from)
    {
        ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(from);
        return offset <= MaxSize ? (int)offset : -1;
    }

    private static string ReadName(ReadOnlySpan<byte> field, string whose)
    {
        int end = field.IndexOf((byte)0);
        Require(end > 0, "KMOD-14", $"the name of {whose} is empty or has no end");
        string name = Encoding.UTF8.GetString(field[..end]);
        CheckName(name, field.Length, whose);
        return name;
    }

    private static void CheckName(string name, int limit, string whose) => Require(
        name.Length > 0 && Encoding.UTF8.GetByteCount(name) < limit && !name.Contains('\0', StringComparison.Ordinal)
        && !name.Contains('\ufffd', StringComparison.Ordinal),
        "KMOD-14",
        $"the name of {whose} is empty, no UTF-8, or longer than {limit - 1} bytes");
}
