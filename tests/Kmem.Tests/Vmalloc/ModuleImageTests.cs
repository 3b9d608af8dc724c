using System.Buffers.Binary;
using CsCheck;

namespace Kmem.Tests;

/// <summary>The format of module images: written and read, and what is refused.</summary>
public sealed class ModuleImageTests
{
    private const int FirstSection = 56;
    private const int FirstRelocation = FirstSection + (4 * 32);
    private const int FirstSymbol = FirstRelocation + 24;

    private static readonly Gen<ModuleSection> s_section =
        from kind in Gen.Enum<ModuleSectionKind>()
        from alignment in Gen.Int[0, 12].Select(shift => 1 << shift)
        from content in Gen.Byte.Array[0, 300]
        from more in Gen.Int[0, 5000]
        select kind == ModuleSectionKind.Bss
            ? new ModuleSection(kind, alignment, more, Array.Empty<byte>())
            : new ModuleSection(kind, alignment, content.Length + more, content);

    [Fact]
    public void What_is_written_is_read_back() => Gen.Select(s_section.List[0, 16], Gen.Int).Sample((sections, seed) =>
    {
        var random = new Random(seed);
        var image = new ModuleImage("module é " + random.Next(1000));
        foreach (ModuleSection section in sections)
            image.Sections.Add(section);
        for (int i = 0; i < sections.Count; i++)
        {
            int target = random.Next(sections.Count);
            if (sections[i].Kind != ModuleSectionKind.Bss && sections[i].Size >= 8)
            {
                var type = (ModuleRelocationType)random.Next(1, 3);
                image.Relocations.Add(new ModuleRelocation(
                    i, random.Next(sections[i].Size - 7), type, target, random.NextInt64(-1000, 1000)));
            }

            image.Symbols.Add(new ModuleSymbol("sym" + i, i, random.Next(sections[i].Size + 1)));
        }

        ModuleImage read = ModuleImage.Parse(image.ToArray());
        Assert.Equal(image.Name, read.Name);
        Assert.Equal(image.Relocations, read.Relocations);
        Assert.Equal(image.Symbols, read.Symbols);
        Assert.Equal(
            image.Sections.Select(section => (section.Kind, section.Alignment, section.Size)),
            read.Sections.Select(section => (section.Kind, section.Alignment, section.Size)));
        Assert.All(
            image.Sections.Zip(
                read.Sections), pair => Assert.Equal(pair.First.Content.ToArray(), pair.Second.Content.ToArray()));
        Assert.Equal(image.ToArray(), read.ToArray());
    });

    /// <summary>Whatever bytes come: an image, or the exception that names a rule.</summary>
    [Fact]
    public void Damaged_images_fail_with_a_rule_or_load()
    {
        byte[] good = Sample().ToArray();
        Gen.Select(Gen.Int[0, good.Length - 1], Gen.Byte, Gen.Int[0, good.Length], Gen.Int[0, 20]).Sample((at, value, cut, how) =>
        {
            byte[] bad = [.. good];
            bad[at] = value;
            if (how == 0)
                bad = bad[..cut];
            try
            {
                ModuleImage.Parse(bad).ToArray();
            }
            catch (ModuleFormatException broken)
            {
                Assert.Matches("^KMOD-[0-9]{2}$", broken.Rule);
                Assert.StartsWith(broken.Rule + ": ", broken.Message, StringComparison.Ordinal);
            }
        });
    }

    [Theory]
    [Trait("rule", "KMOD-01")]
    [Trait("rule", "KMOD-02")]
    [Trait("rule", "KMOD-03")]
    [Trait("rule", "KMOD-04")]
    [Trait("rule", "KMOD-05")]
    [Trait("rule", "KMOD-06")]
    [Trait("rule", "KMOD-07")]
    [Trait("rule", "KMOD-08")]
    [Trait("rule", "KMOD-09")]
    [Trait("rule", "KMOD-10")]
    [Trait("rule", "KMOD-11")]
    [Trait("rule", "KMOD-12")]
    [Trait("rule", "KMOD-13")]
    [Trait("rule", "KMOD-14")]
    [InlineData("KMOD-01", 0, 'X', 1)]
    [InlineData("KMOD-02", 4, 2, 2)]
    [InlineData("KMOD-03", 48, 1, 8)]
    [InlineData("KMOD-03", 8, 1_000_000, 4)]
    [InlineData("KMOD-03", 12, -1, 4)]
    [InlineData("KMOD-04", 6, 17, 2)]
    [InlineData("KMOD-05", FirstSection + 16, 8, 8)]
    [InlineData("KMOD-05", FirstSection + 16, -8, 8)]
    [InlineData("KMOD-05", FirstSection + 24, 1_000_000, 8)]
    [InlineData("KMOD-05", FirstSection + 24, -1, 8)]
    [InlineData("KMOD-06", FirstSection, 4, 4)]
    [InlineData("KMOD-06", FirstSection, -1, 4)]
    [InlineData("KMOD-07", FirstSection + 4, 0, 4)]
    [InlineData("KMOD-07", FirstSection + 4, 3, 4)]
    [InlineData("KMOD-07", FirstSection + 4, 8192, 4)]
    [InlineData("KMOD-08", FirstSection + 8, 15, 8)]
    [InlineData("KMOD-08", FirstSection + 8, 65 << 20, 8)]
    [InlineData("KMOD-08", FirstSection + 8, -1, 8)]
    [InlineData("KMOD-09", FirstSection, 3, 4)]
    [InlineData("KMOD-10", FirstRelocation, 4, 2)]
    [InlineData("KMOD-10", FirstRelocation + 4, 4, 2)]
    [InlineData("KMOD-11", FirstRelocation + 2, 3, 2)]
    [InlineData("KMOD-12", FirstRelocation + 8, 9, 8)]
    [InlineData("KMOD-12", FirstRelocation + 8, -1, 8)]
    [InlineData("KMOD-12", FirstRelocation, 3, 2)]
    [InlineData("KMOD-13", FirstSymbol, 4, 2)]
    [InlineData("KMOD-13", FirstSymbol + 8, 17, 8)]
    [InlineData("KMOD-13", FirstSymbol + 16 + 32, 'a', 1)]
    [InlineData("KMOD-14", 16, 0, 1)]
    [InlineData("KMOD-14", FirstSymbol + 16, 0xff, 1)]
    public void Bad_images_name_the_rule(string rule, int at, int value, int width)
    {
        byte[] image = Sample().ToArray();
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, value);
        bytes[..width].CopyTo(image.AsSpan(at));

        Assert.Equal(rule, Assert.Throws<ModuleFormatException>(() => ModuleImage.Parse(image)).Rule);
    }

    [Fact]
    public void Names_have_an_end_and_the_header_is_whole()
    {
        byte[] image = Sample().ToArray();
        image.AsSpan(16, 32).Fill((byte)'n');
        Assert.Equal("KMOD-14", Assert.Throws<ModuleFormatException>(() => ModuleImage.Parse(image)).Rule);
        Assert.Equal(
            "KMOD-01", Assert.Throws<ModuleFormatException>(() => ModuleImage.Parse(image.AsSpan(0, 55))).Rule);
        Assert.Equal(
            "KMOD-14", Assert.Throws<ModuleFormatException>(() => new ModuleImage(new string('n', 32)).ToArray()).Rule);
        Assert.Equal("KMOD-01", Assert.Throws<ModuleFormatException>(() => ModuleImage.Parse([])).Rule);
    }

    /// <summary>Four sections of 16 bytes, the last one bss; a relocation, two symbols.</summary>
    private static ModuleImage Sample()
    {
        var image = new ModuleImage("sample");
        foreach (ModuleSectionKind kind in Enum.GetValues<ModuleSectionKind>())
            image.Sections.Add(new ModuleSection(kind, 16, 16, kind == ModuleSectionKind.Bss ? [] : new byte[16]));
        image.Relocations.Add(new ModuleRelocation(2, 8, ModuleRelocationType.Absolute64, 3, 0));
        image.Symbols.Add(new ModuleSymbol("a", 0, 16));
        image.Symbols.Add(new ModuleSymbol("b", 1, 0));
        return image;
    }
}
