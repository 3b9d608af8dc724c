using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem.Tests;

/// <summary>
/// Programs with one fault each, in the groups of the security part of mimalloc-bench, written anew. Each says how the
/// fault was noticed, or that it was not; some end their process.
/// </summary>
internal static class FaultPrograms
{
    /// <summary>Set in a child process: the programs to run, by number, from here on.</summary>
    private const string FromVariable = "KMEM_TEST_FAULTS_FROM";

    /// <summary>The setting to run them with.</summary>
    private const string WithVariable = "KMEM_TEST_FAULTS_WITH";

    private const string Missed = "missed";
    private const long MiB = 1 << 20;

    private static readonly int[] s_sizes = [8, 256, 4096];
    private static readonly Dictionary<string, Func<Machine, int, string>[]> s_groups = new(StringComparer.Ordinal)
    {
        ["double free"] =
        [
            (m, size) => Frees(m, size, (a, b) => [a, a]),
            (m, size) => Frees(m, size, (a, b) => [a, b, a]),
            (m, size) => Frees(m, size, (a, b) => [a], churn: 1000, again: true),
            (m, size) => Frees(m, size, (a, b) => [a, b, b]),
            FreeByTwoNames,
        ],
        ["invalid free"] =
        [
            (m, size) => Frees(m, size, (a, b) => [a + 1]),
            (m, size) => Frees(m, size, (a, b) => [a + (size / 2)]),
            (m, size) => Frees(m, size, (a, b) => [a - 1]),
            (m, size) => Frees(m, size, (a, b) => [a + size + 1]),
            (m, size) => Frees(m, size, (a, b) => [a + 4096 + 4]),
            (m, size) => Frees(m, size, (a, b) => [a + (1 << 30)]),
            FreeOfTheStack,
        ],
        ["1 byte"] = Overruns(1),
        ["32 bytes"] = Overruns(32),
        ["1 MiB"] = Overruns(MiB),
        ["write after free"] =
        [
            (m, size) => WriteAfterFree(m, size, reuse: false),
            (m, size) => WriteAfterFree(m, size, reuse: true),
        ],
        ["zero size"] =
        [
            (m, _) => Zero(m, at: 0, write: true),
            (m, _) => Zero(m, at: 0, write: false),
            (m, _) => Zero(m, at: 7, write: true),
            (m, _) => Zero(m, at: 15, write: false),
        ],
        ["reuse, downsize"] = [ReuseAtOnce, WriteBehindTheNewEnd],
        ["zeroing"] = [ReadAfterFree, ReadFresh],
        ["others"] = [(m, size) => SizeThatOverflows(m, size), WrongCache],
    };

    /// <summary>All runs: group, program, size.</summary>
    public static IReadOnlyList<(string Group, int Program, int Size)> Runs { get; } =
    [
        .. from it in s_groups
           from program in Enumerable.Range(0, it.Value.Length)
           from size in s_sizes
           select (it.Key, program, size),
    ];

    /// <summary>Runs one program on a machine of its own.</summary>
    /// <returns>How the fault was noticed, on one line; or "missed".</returns>
    public static string Run(int run, MachineOptions options)
    {
        (string group, int program, int size) = Runs[run];
        using Machine machine = Machine.Boot(options);
        string said;
        try
        {
            said = s_groups[group][program](machine, size);
        }
        catch (Exception error) when (error is KernelBugException or NullReferenceException)
        {
            said = error.GetType().Name + ": " + error.Message;
        }

        if (said == Missed && machine.Dmesg.ToString() is { Length: > 0 } log)
            said = log;
        IReadOnlyList<BrokenRule> broken = machine.Validate();
        return broken.Count == 0 ? said.ReplaceLineEndings(" ") : $"{Missed}, and broken: {broken[0]}";
    }

    /// <summary>Runs all programs with a setting, in child processes: as many as die, and one.</summary>
    /// <returns>
    /// What each said, in the order of <see cref="Runs"/>; what ended the process for those that did.
    /// </returns>
    public static List<string> RunAllInChildren(string setting)
    {
        var all = new List<string>();
        while (all.Count < Runs.Count)
        {
            var start = new ProcessStartInfo(Environment.ProcessPath!)
            {
                UseShellExecute = false,
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            };
            if (Path.GetFileNameWithoutExtension(start.FileName) == "dotnet")
                start.ArgumentList.Add(typeof(FaultPrograms).Assembly.Location);
            start.Environment[FromVariable] = all.Count.ToString(null, null);
            start.Environment[WithVariable] = setting;
            start.Environment["DOTNET_DbgEnableMiniDump"] = "0";
            using Process child = Process.Start(start)!;
            Task<string> errors = child.StandardError.ReadToEndAsync();
            while (child.StandardOutput.ReadLine() is { } line)
            {
                if (line.StartsWith("said ", StringComparison.Ordinal))
                    all.Add(line[5..]);
            }

            child.WaitForExit();
            string error = errors.Result;
            if (child.ExitCode != 0)
            {
                Assert.True(error.Contains("AccessViolationException", StringComparison.Ordinal), error);
                all.Add("fault: " + error.ReplaceLineEndings(" "));
            }
        }

        return all;
    }

    /// <summary>What a child does instead of testing.</summary>
#pragma warning disable CA2255 // a test assembly is its own program, and this is the way in before the test runner's
    [ModuleInitializer]
    internal static void RunAsChild()
#pragma warning restore CA2255
    {
        if (Environment.GetEnvironmentVariable(FromVariable) is not { } from)
            return;

        MachineOptions options = OptionsOf(Environment.GetEnvironmentVariable(WithVariable)!);
        for (int run = int.Parse(from, null); run < Runs.Count; run++)
        {
            Console.WriteLine("said " + Run(run, options));
            Console.Out.Flush();
        }

        Environment.Exit(0);
    }

    /// <summary>
    /// The options of a setting; <c>debug</c> is everything that finds faults: slab debugging, and every object
    /// guarded.
    /// </summary>
    public static MachineOptions OptionsOf(string setting)
    {
        var common = new MachineOptions
        {
            Profile = KernelProfile.Find(setting) ?? KernelProfile.Hardened,
            RamBytes = 64 << 20,
            Cpus = 2,
            DecaySeconds = 0,
        };
        return setting != "debug" ? common : common with
        {
            SlubDebug = "FZPU",
            Kfence = new KfenceOptions { EveryNth = 1 },
        };
    }

    public static bool IsCaught(string said) => !said.StartsWith(Missed, StringComparison.Ordinal);

    private static unsafe nint Alloc(Machine machine, int size) => (nint)machine.Kmalloc((nuint)size, Gfp.Kernel);

    private static unsafe void Free(Machine machine, nint p) => machine.Kfree((void*)p);

    private static string Frees(
        Machine machine, int size, Func<nint, nint, nint[]> frees, int churn = 0, bool again = false)
    {
        nint a = Alloc(machine, size);
        nint b = Alloc(machine, size);
        foreach (nint p in frees(a, b))
            Free(machine, p);
        for (int i = 0; i < churn; i++)
            Free(machine, Alloc(machine, 500));
        if (again)
            Free(machine, a);
        return Missed;
    }

    private static unsafe string FreeByTwoNames(Machine machine, int size)
    {
        KmemCache cache = machine.CreateCache("fault", size, flags: SlabFlags.NoMerge);
        void* a = cache.Alloc(Gfp.Kernel);
        machine.Kfree(a);
        cache.Free(a);
        return Missed;
    }

    private static unsafe string FreeOfTheStack(Machine machine, int size)
    {
        long local = size;
        machine.Kfree(&local);
        return Missed;
    }

    private static Func<Machine, int, string>[] Overruns(long bytes) =>
    [
        (m, size) => Overrun(m, size, at: size + bytes - 1, from: size + bytes - 1),
        (m, size) => Overrun(m, size, at: size + bytes - 1, from: size),
        (m, size) => Overrun(m, size, at: -bytes, from: -bytes),
        (m, size) => Overrun(m, size, at: -1, from: -bytes),
    ];

    /// <summary>Writes from one offset to another, with a neighbour on each side, and frees all three.</summary>
    private static unsafe string Overrun(Machine machine, int size, long at, long from)
    {
        nint before = Alloc(machine, size);
        var p = (byte*)Alloc(machine, size);
        nint behind = Alloc(machine, size);
        for (long i = from; i <= at; i++)
            p[i] = 0x41;
        machine.Kfree(p);
        Free(machine, before);
        Free(machine, behind);
        return Missed;
    }

    private static unsafe string WriteAfterFree(Machine machine, int size, bool reuse)
    {
        var p = (byte*)Alloc(machine, size);
        machine.Kfree(p);
        if (reuse)
            Alloc(machine, size);
        p[0] = 0x41;
        for (int i = 0; i < 1000; i++)
            Alloc(machine, size);
        machine.ShrinkCaches();
        return Missed;
    }

    private static unsafe string Zero(Machine machine, int at, bool write)
    {
        var p = (byte*)Alloc(machine, 0);
        if (write)
            Volatile.Write(ref p[at], 1);
        else
            Volatile.Read(ref p[at]);
        return Missed;
    }

    private static string ReuseAtOnce(Machine machine, int size)
    {
        nint a = Alloc(machine, size);
        Free(machine, a);
        return Alloc(machine, size) == a ? Missed : "another address";
    }

    private static unsafe string WriteBehindTheNewEnd(Machine machine, int size)
    {
        var p = (byte*)Alloc(machine, size);
        p = (byte*)machine.Krealloc(p, (nuint)size / 2, Gfp.Kernel);
        p[size / 2] = 0x41;
        machine.Kfree(p);
        return Missed;
    }

    private static unsafe string ReadAfterFree(Machine machine, int size)
    {
        var p = (byte*)Alloc(machine, size);
        new Span<byte>(p, size).Fill(0x53);
        machine.Kfree(p);
        return new Span<byte>(p, size).Contains((byte)0x53) ? Missed : "nothing is left of it";
    }

    private static unsafe string ReadFresh(Machine machine, int size)
    {
        for (int i = 0; i < 1000; i++)
        {
            var p = (byte*)Alloc(machine, size);
            if (new Span<byte>(p, size).Contains((byte)0x53))
                return Missed;

            new Span<byte>(p, size).Fill(0x53);
            machine.Kfree(p);
        }

        return "never seen again";
    }

    private static unsafe string SizeThatOverflows(Machine machine, int size) =>
        machine.KmallocArray(nuint.MaxValue / 4, (nuint)size, Gfp.Kernel) == null ? "null" : Missed;

    private static unsafe string WrongCache(Machine machine, int size)
    {
        KmemCache a = machine.CreateCache("fault-a", size, flags: SlabFlags.NoMerge);
        KmemCache b = machine.CreateCache("fault-b", size, flags: SlabFlags.NoMerge);
        a.Free(b.Alloc(Gfp.Kernel));
        return Missed;
    }
}

/// <summary>How many of the one-fault programs are caught; docs/misuse.md has the peers' numbers.</summary>
public sealed class FaultProgramTests
{
    [Theory]
    [InlineData("native")]
    [InlineData("linux-6.18")]
    [InlineData("hardened")]
    public void By_default_every_double_and_invalid_free_is_caught(string profile)
    {
        MachineOptions options = FaultPrograms.OptionsOf(profile);
        int[] frees = [.. Enumerable.Range(0, FaultPrograms.Runs.Count).Where(
            run => FaultPrograms.Runs[run].Group.EndsWith(" free", StringComparison.Ordinal)
                && FaultPrograms.Runs[run].Group != "write after free")];
        Assert.Equal(36, frees.Length);
        string[] missed = [.. frees.Where(run => !FaultPrograms.IsCaught(FaultPrograms.Run(run, options))).Select(
            run => $"{FaultPrograms.Runs[run]}")];
        Assert.Empty(missed);
    }

    /// <summary>The table "One-fault programs" of docs/misuse.md says how many of each group are caught.</summary>
    [Theory]
    [InlineData("native", 3)]
    [InlineData("hardened", 4)]
    [InlineData("debug", 5)]
    public void As_many_are_caught_as_the_table_says(string setting, int column)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "guard pages are for Linux");
        List<string> said = FaultPrograms.RunAllInChildren(setting);
        var promised = new Dictionary<string, (int Runs, int Caught)>(StringComparer.Ordinal);
        string document = Path.Combine(
            Path.GetDirectoryName(TestData.PathOf("gfp-flags.txt"))!, "..", "..", "docs", "misuse.md");
        foreach (string line in File.ReadLines(document).SkipWhile(line => line != "## One-fault programs"))
        {
            string[] cells = line.Split('|', StringSplitOptions.TrimEntries);
            if (cells.Length > column && int.TryParse(cells[2], out int runs))
                promised[cells[1]] = (runs, int.Parse(cells[column], null));
        }

        var seen = new Dictionary<string, (int Runs, int Caught)>(StringComparer.Ordinal) { ["all"] = (0, 0) };
        for (int run = 0; run < said.Count; run++)
        {
            bool caught = FaultPrograms.IsCaught(said[run]);
            if (!caught)
                TestContext.Current.TestOutputHelper?.WriteLine($"{FaultPrograms.Runs[run]}: {said[run]}");
            foreach (string group in (string[])["all", FaultPrograms.Runs[run].Group])
            {
                (int runs, int hits) = seen.GetValueOrDefault(group);
                seen[group] = (runs + 1, hits + (caught ? 1 : 0));
            }
        }

        foreach ((string group, (int runs, int caught)) in seen)
            TestContext.Current.TestOutputHelper?.WriteLine($"counted {setting}|{group}|{runs}|{caught}");
        Assert.Equal(
            seen.OrderBy(it => it.Key, StringComparer.Ordinal),
            promised.OrderBy(it => it.Key, StringComparer.Ordinal));
        if (setting == "debug")
            Assert.Contains(said, it => it.StartsWith("fault: Fatal error", StringComparison.Ordinal));
    }
}
