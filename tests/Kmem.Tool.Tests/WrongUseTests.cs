namespace Kmem.Tool.Tests;

/// <summary>Wrong use: exit code 2, nothing on standard output, one line that names the input and the rule.</summary>
public sealed class WrongUseTests
{
    [Theory]
    [InlineData("", "no command given", "'replay'", "'geometry'")]
    [InlineData("foo", "unknown command 'foo'", "'replay'", "kmem --help")]
    [InlineData("geomtry", "unknown command 'geomtry'", "did you mean 'geometry'?")]
    [InlineData("geometry", "--table FILE or --size N", "kmem geometry --help")]
    [InlineData("geometry --sizee 4", "unknown option '--sizee'", "did you mean '--size'?")]
    [InlineData("geometry --size 8 more", "unexpected argument 'more'")]
    [InlineData("geometry --size", "--size")]
    [InlineData("geometry --size 0", "--size is '0'", "1 to 4194304")]
    [InlineData("geometry --size 8 --align 24", "--align is '24'", "power of two")]
    [InlineData("geometry --size 8 --freeptr 0", "TYPESAFE_BY_RCU")]
    [InlineData("geometry --size 8 --freeptr a=0", "--freeptr is 'a=0'")]
    [InlineData("geometry --size 8 --min-order 5", "slab_min_order 5")]
    [InlineData("geometry --size 8 --table x", "exclude each other")]
    [InlineData("geometry --table x", "--table needs --cpus N")]
    [InlineData("geometry --table x --cpus 0", "--cpus is '0'", "1 to 8192")]
    [InlineData("geometry --table x --cpus 2 --ctor", "--ctor goes with --size")]
    [InlineData("geometry --table no/such/file --cpus 2", "no/such/file: no such file")]
    [InlineData("geometry --table . --cpus 2", ".: is a directory")]
    [InlineData("geometry --table Kmem.Tool.dll --cpus 2", "Kmem.Tool.dll: expected a table of slab caches", "Line 1")]
    [InlineData("geometry --table GEOMETRY --cpus 2 --freeptr vma=0", "no cache named vma")]
    [InlineData("geometry --table GEOMETRY --cpus 2 --freeptr vma", "--freeptr is 'vma'", "NAME=OFFSET")]
    [InlineData("geometry --table GEOMETRY --cpus 2 --freeptr a=0 --freeptr a=8", "names a twice")]
    [InlineData("replay", "TRACE")]
    [InlineData("replay no/such/file", "no/such/file: no such file")]
    [InlineData("replay .", ".: is a directory")]
    [InlineData("replay GEOMETRY", "slab-geometry.tsv: expected ftrace text")]
    [InlineData("replay Kmem.Tool.dll", "Kmem.Tool.dll: expected ftrace text", "binary")]
    [InlineData("replay x --profile linux-2.4", "--profile is 'linux-2.4'", "linux-6.18")]
    [InlineData("replay x --cpus 0", "--cpus is '0'", "1 to 1024")]
    [InlineData("replay x --ram 4X", "--ram is '4X'", "64GiB")]
    [InlineData("replay x --ram 0", "--ram is '0'")]
    [InlineData("replay x --proc cpuinfo", "--proc is 'cpuinfo'", "slabinfo, buddyinfo")]
    [InlineData("replay x --proc slabinfo --json", "--proc and --json exclude each other")]
    [InlineData("bench --only pair65", "--only is 'pair65'", "pair64c, pair64")]
    [InlineData("bench --against phkmalloc", "--against is 'phkmalloc'", "mimalloc, tcmalloc")]
    [InlineData("bench --seconds 0", "--seconds is '0'", "0.001 to 3600")]
    [InlineData("bench --seconds x", "--seconds is 'x'")]
    [InlineData("bench pair64", "unexpected argument 'pair64'")]
    [InlineData("bench-child {", "for 'kmem bench' only")]
    public async Task IsOneClearLine(string line, params string[] parts)
    {
        string[] args = [.. line.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(word => word switch
        {
            "GEOMETRY" => Tool.GeometryTsv,
            "Kmem.Tool.dll" => Path.Combine(AppContext.BaseDirectory, word),
            _ => word,
        })];
        AssertOneLine(await Tool.Run(args), parts);
    }

    [Fact]
    public async Task BrokenGzipIsNamed()
    {
        byte[] table = Tool.Gzip(await File.ReadAllBytesAsync(Tool.GeometryTsv, TestContext.Current.CancellationToken));
        using var cut = new TemporaryFile(table[..(table.Length / 2)]);
        AssertOneLine(await Tool.Run("geometry", "--table", cut.Path, "--cpus", "2"), cut.Path, "damaged or cut off");

        using var noTrace = new TemporaryFile([0x1f, 0x8b, 8, 0, 1, 2, 3]);
        AssertOneLine(await Tool.Run("replay", noTrace.Path), noTrace.Path, "damaged or cut off");
    }

    [Fact]
    public async Task AFileThatMayNotBeReadIsNamed()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "file modes of Unix");
        Assert.SkipWhen(Environment.IsPrivilegedProcess, "root may read every file");
        using var secret = new TemporaryFile("secret");
        if (!OperatingSystem.IsWindows()) File.SetUnixFileMode(secret.Path, UnixFileMode.None);
        AssertOneLine(await Tool.Run("replay", secret.Path), secret.Path, "no permission");
    }

    private static void AssertOneLine(Outcome outcome, params string[] parts)
    {
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.StartsWith("kmem: ", outcome.Error, StringComparison.Ordinal);
        Assert.Equal(outcome.Error.Length - Environment.NewLine.Length,
            outcome.Error.IndexOf(Environment.NewLine, StringComparison.Ordinal));
        Assert.All(parts, part => Assert.Contains(part, outcome.Error, StringComparison.Ordinal));
    }
}
