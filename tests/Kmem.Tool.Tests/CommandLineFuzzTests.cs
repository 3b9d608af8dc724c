using Kmem.Tests;
using Kmem.Tool.Commands;
using Kmem.Tool.Drawing;

namespace Kmem.Tool.Tests;

/// <summary>What a user types, damaged at random: it is understood, or refused in one line.</summary>
public sealed class CommandLineFuzzTests
{
    [Theory]
    [InlineData("replay trace.txt --profile linux-6.18 --cpus 4 --ram 16G --json")]
    [InlineData("geometry --size 600 --align 64 --hwcache-align --cpus 4")]
    [InlineData("geometry --table table.tsv --cpus 2 --json")]
    [InlineData("predict state boot-1cpu --json")]
    [InlineData("predict vmap --areas vmallocinfo.txt --trace trace.txt")]
    [InlineData("explain 0xffffc90000000000 --profile native --ram 512M")]
    [InlineData("walk 0xffffc90000000000 --json")]
    [InlineData("draw slab --out picture.svg")]
    [InlineData("serve trace.txt --port 7711 --host 127.0.0.1")]
    [InlineData("bench --only pair64 --seconds 0.1")]
    [InlineData("soak --seconds 5")]
    public void Command_lines(string line) => Fuzzer.Texts("command lines", line.Replace(' ', '\n'), 150, damaged =>
    {
        var parsed = Program.Parse(damaged.Split('\n'));
        if (parsed.Errors.Count > 0)
            Assert.NotEmpty(ParseErrors.Describe(parsed));
    });

    /// <summary>Carried out, too: a computation, whatever its numbers are.</summary>
    [Fact]
    public void Geometries_of_any_numbers() => Fuzzer.Texts("carried out command lines", "600\n64\n4", 200, damaged =>
    {
        string[] values = damaged.Split('\n');
        string[] names = ["--size", "--align", "--cpus"];
        string[] args = ["geometry", .. values.Take(3).SelectMany((value, i) => (string[])[names[i], value])];
        Outcome outcome = Tool.Run(args).Result;
        Assert.InRange(outcome.Exit, 0, 2);
        Assert.True(outcome.Exit == 0 || outcome.Error.Length > 0, damaged);
    });

    [Fact]
    public void Sizes_and_addresses()
    {
        foreach (string sample in (string[])["512M", "1.5GiB", "18446744073709551615", "64kB"])
        {
            Fuzzer.Texts("sizes", sample, 1000, text =>
            {
                if (!ByteSize.TryParse(text, out ulong bytes))
                    Assert.Equal(0UL, bytes);
                Assert.NotEmpty(ByteSize.Format(bytes));
            });
        }

        Fuzzer.Texts("addresses", "0xffffc90000000000", 3000, text =>
        {
            if (!HexAddress.TryParse(text, out _))
                Assert.Contains(text, HexAddress.Rule(text), StringComparison.Ordinal);
        });
    }

    [Theory]
    [InlineData("profile=native,ram=64M,cpus=8,nodes=2,movablecore=16M")]
    [InlineData("min_free_kbytes=4096,watermark_scale_factor=10,watermark_boost_factor=15000,seed=7")]
    [InlineData("percpu_pagelist_high_fraction=8,slab_merge=off,thp=on,slab_debug=FZPU")]
    public void Settings_to_compare(string sample) => Fuzzer.Texts("settings to compare", sample, 2000, text =>
    {
        if (ReplaySettings.Parse(text, out string? wrong) == null)
            Assert.NotEmpty(wrong!);
        else
            Assert.Null(wrong);
    });

    [Fact]
    public void Scripts_of_pictures() => Fuzzer.Texts(
        "scripts",
        "kmalloc 100 x 20; free 3-19/2; cpu 1; free 1; vmalloc 64K; keep 2-9/3; purge; pages 0 x 300; movable 9",
        3000,
        text => Script.Parse(text).Dispose(),
        typeof(ToolException));

    [Fact]
    public void Packed_texts()
    {
        byte[] packed = Tool.Gzip(File.ReadAllText(Tool.GeometryTsv));
        Fuzzer.Fuzz("packed texts", packed, 300, input =>
        {
            using var file = new TemporaryFile(input);
            InputFile.ReadText(file.Path);
        }, typeof(ToolException));
    }
}
