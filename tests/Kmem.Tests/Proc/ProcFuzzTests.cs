using System.Text;

namespace Kmem.Tests;

/// <summary>Damaged texts: a reader either refuses them with its own exception or understands what it then writes.
/// </summary>
public sealed class ProcFuzzTests
{
    private const int Rounds = 1500;

    private const string Iomem =
        "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n0009fc00-000fffff : Reserved\n" +
        "  000f0000-000fffff : System ROM\n00100000-bfffffff : System RAM\n  01000000-02209987 : Kernel code\n" +
        "  02400000-02e09fff : Kernel rodata\n  03000000-0327c0ff : Kernel data\n  03b34000-03c57fff : Kernel bss\n" +
        "fec00000-fec003ff : IOAPIC 0\n100000000-63fffffff : System RAM\n";

    private const string E820 =
        "[    0.000000] BIOS-provided physical RAM map:\n" +
        "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n" +
        "[    0.000000] BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved\n" +
        "[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x00000000bfffffff] usable\n" +
        "[    0.000000] BIOS-e820: [mem 0x0000000100000000-0x000000063fffffff] usable\n";

    private static readonly string[] s_insertions =
        [" ", "\n", "0", "-", ":", ">", ",", "Node", "\t", "\0", "é", "18446744073709551616", "kB", "9", "f"];

    [Theory]
    [InlineData("/proc/slabinfo")]
    [InlineData("/proc/buddyinfo")]
    [InlineData("/proc/pagetypeinfo")]
    [InlineData("/proc/zoneinfo")]
    [InlineData("/proc/vmstat")]
    [InlineData("/proc/meminfo")]
    public void Damaged_proc_texts(string file) =>
        Fuzz(Head(ProcTexts.Read("proc-git-before", file), 4000), ProcTexts.Rewrite[file]);

    [Fact]
    public void Damaged_vmallocinfo() =>
        Fuzz(Head(TestData.ReadGzip("vmap/r3/vmallocinfo.txt.gz"), 4000), VmallocInfoTests.Rewrite);

    [Theory]
    [InlineData(FragIndexKind.UnusableIndex, "0.000 0.013 1.000 ")]
    [InlineData(FragIndexKind.ExtfragIndex, "-1.000  0.013  0.999 ")]
    public void Damaged_fragmentation_indices(FragIndexKind kind, string indices) =>
        Fuzz($"Node 0, zone    DMA32 {indices}\nNode 0, zone   Normal {indices}\n",
            text => FragIndexText.Parse(text, kind).Render());

    [Fact]
    public void Damaged_cache_files()
    {
        foreach ((string file, string text) in ProcTexts.Read("slab-sysfs"))
        {
            string name = file[(file.IndexOf('/') + 1)..];
            var files = new Dictionary<string, string>(
                new SlabSysfs { Name = "demo" }.Render(), StringComparer.Ordinal);
            Fuzz(text, damaged =>
            {
                files[name] = damaged;
                return SlabSysfs.Parse("demo", files).Render()[name];
            }, rounds: 40);
        }
    }

    [Fact]
    public void Damaged_memory_maps()
    {
        Fuzz(Iomem, text => Describe(BootMemoryMap.ParseIomem(text)), again: false);
        Fuzz(E820, text => Describe(BootMemoryMap.ParseE820(text)), again: false);
    }

    private static void Fuzz(string text, Func<string, string> rewrite, bool again = true, int rounds = Rounds)
    {
        int refused = 0, understood = 0;
        for (int seed = 0; seed < rounds; seed++)
        {
            string damaged = Damage(text, new Random(seed));
            string? written = null;
            try
            {
                written = rewrite(damaged);
                understood++;
            }
            catch (ProcFormatException)
            {
                refused++;
            }
            catch (Exception e)
            {
                Assert.Fail($"seed {seed}: {e}");
            }
            if (written is not null && again) Assert.True(written == rewrite(written), $"seed {seed}: not stable");
        }
        Assert.True(rounds < 100 || (refused > 0 && understood > 0), $"{refused} refused, {understood} understood");
    }

    /// <summary>One to three small accidents: bytes changed, cut, inserted; lines lost, doubled, swapped.</summary>
    private static string Damage(string text, Random random)
    {
        var damaged = new StringBuilder(text);
        for (int i = random.Next(1, 4); i > 0 && damaged.Length > 0; i--)
        {
            int at = random.Next(damaged.Length);
            switch (random.Next(7))
            {
                case 0: damaged[at] = (char)random.Next(32, 127); break;
                case 1: damaged.Remove(at, Math.Min(random.Next(1, 12), damaged.Length - at)); break;
                case 2: damaged.Insert(at, s_insertions[random.Next(s_insertions.Length)]); break;
                case 3: damaged.Length = at; break;
                case 4: damaged[at] = (char)random.Next(0x300); break;
                default: DamageLines(damaged, random); break;
            }
        }
        return damaged.ToString();
    }

    private static void DamageLines(StringBuilder text, Random random)
    {
        List<string> lines = [.. text.ToString().Split('\n')];
        int from = random.Next(lines.Count), to = random.Next(lines.Count);
        switch (random.Next(3))
        {
            case 0: lines.RemoveAt(from); break;
            case 1: lines.Insert(to, lines[from]); break;
            default: (lines[from], lines[to]) = (lines[to], lines[from]); break;
        }
        text.Clear().AppendJoin('\n', lines);
    }

    /// <summary>The first whole lines: damage to a long text would seldom hit the lines that differ in kind.</summary>
    private static string Head(string text, int length) =>
        text.Length <= length ? text : text[..(text.LastIndexOf('\n', length) + 1)];

    private static string Describe(BootMemoryMap map) => string.Join(' ', map.FreePages());
}
