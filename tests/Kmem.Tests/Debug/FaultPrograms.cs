using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>
/// The 42 programs with one fault each of the security part of mimalloc-bench, written anew, 37 of them at three sizes:
/// 116 runs, and some that only Kmem has. Each says how the fault was noticed, or that it was not; some end their
/// process.
/// </summary>
internal static class FaultPrograms
{
    /// <summary>The group that is not among the 116.</summary>
    public const string Own = "more";

    /// <summary>Set in a child process: the programs to run, by number, from here on.</summary>
    private const string FromVariable = "KMEM_TEST_FAULTS_FROM";

    /// <summary>The setting to run them with.</summary>
    private const string WithVariable = "KMEM_TEST_FAULTS_WITH";

    private const string Missed = "missed";
    private const int SegmentationFault = 128 + 11;
    private const long MiB = 1 << 20;

    private static readonly int[] s_sizes = [8, 4096, 256 * 1024];

    private static readonly Dictionary<string, Func<FaultHeap, string>[]> s_groups = new(StringComparer.Ordinal)
    {
        ["double free"] =
        [
            heap => Frees(heap, a => [a, a]),
            heap => Frees(heap, a => [a], churn: 1024, again: true),
            DoubleFreeInterleaved,
            heap => Frees(heap, a => [a, a], churn: 1024),
            DoubleFreeAfterReuse,
        ],
        ["invalid free"] =
        [
            heap => Frees(heap, _ => [1]),
            FreeOfTheStack,
            heap => Frees(heap, a => [a + 4096]),
            heap => Frees(heap, a => [a + (1 << 30)]),
            FreeOfALocal,
            heap => Frees(heap, a => [a + 1]),
            heap => Frees(heap, a => [a + 8]),
        ],
        ["1 byte"] = Overruns(1),
        ["32 bytes"] = Overruns(32),
        ["1 MiB"] = Overruns(MiB),
        ["write after free"] = [heap => WriteAfterFree(heap, reuse: false), heap => WriteAfterFree(heap, reuse: true)],
        ["zero size"] =
        [
            heap => Zero(heap, write: false, free: false),
            heap => Zero(heap, write: false, free: true),
            heap => Zero(heap, write: true, free: false),
            heap => Zero(heap, write: true, free: true),
        ],
        ["reuse, downsize"] =
        [
            heap => ReuseAtOnce(heap, heap.Size),
            heap => ReuseAtOnce(heap, heap.Size / 2),
        ],
        ["zeroing"] = [ReadAfterFree, ReadFresh],
        ["realloc in place"] = [ReallocInPlace],
        ["impossible size"] = [ImpossibleSize],
        ["code on the heap"] = [CodeOnTheHeap],
        ["wrong delete"] = [WrongSize, KmallocToVfree, CacheToFreePages, VmallocToKfree, PagesToKfree],
        [Own] = [SizeThatOverflows, WrongCache, WriteBehindTheNewEnd, FreeByTwoNames],
    };

    /// <summary>All runs: group, program, size. The programs in C++ have one size.</summary>
    public static IReadOnlyList<(string Group, int Program, int Size)> Runs { get; } =
    [
        .. from it in s_groups
           from program in Enumerable.Range(0, it.Value.Length)
           from size in it.Key == "wrong delete" ? s_sizes.AsSpan(1, 1).ToArray() : s_sizes
           select (it.Key, program, size),
    ];

    /// <summary>The runs that a setting makes a difference to, by number.</summary>
    public static List<int> RunsOf(string setting) => [.. Enumerable.Range(0, Runs.Count).Where(
        run => !IsLargeByVmalloc(setting) || (Runs[run].Size > FaultHeap.Large && Runs[run].Group != Own))];

    /// <summary>Runs one program on a machine of its own.</summary>
    /// <returns>How the fault was noticed, on one line; or "missed".</returns>
    public static string Run(int run, string setting)
    {
        (string group, int program, int size) = Runs[run];
        using Machine machine = Machine.Boot(OptionsOf(setting));
        string said;
        try
        {
            said = s_groups[group][program](new FaultHeap(machine, size, LargeByVmalloc: IsLargeByVmalloc(setting)));
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

    /// <summary>Runs a setting's programs in child processes: as many as die, and one.</summary>
    /// <returns>
    /// What each said, in the order of <see cref="RunsOf"/>; what ended the process for those that did.
    /// </returns>
    public static List<string> RunAllInChildren(string setting)
    {
        var all = new List<string>();
        List<int> runs = RunsOf(setting);
        while (all.Count < runs.Count)
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
                // Where no managed code was running there is no text of the runtime's.
                Assert.True(
                    child.ExitCode == SegmentationFault
                    || error.Contains("AccessViolationException", StringComparison.Ordinal),
                    $"{Runs[runs[all.Count]]} ended with {child.ExitCode}: {error}");
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

        string setting = Environment.GetEnvironmentVariable(WithVariable)!;
        foreach (int run in RunsOf(setting).Skip(int.Parse(from, null)))
        {
            Console.WriteLine("said " + Run(run, setting));
            Console.Out.Flush();
        }

        Environment.Exit(0);
    }

    /// <summary>
    /// The options of a setting; <c>debug</c> is everything that finds faults: slab debugging, and every object
    /// guarded. With <c>+vmalloc</c> blocks of 256 KiB come from vmalloc instead of kmalloc.
    /// </summary>
    private static MachineOptions OptionsOf(string setting)
    {
        string name = setting.Split('+')[0];
        var common = new MachineOptions
        {
            Profile = KernelProfile.Find(name) ?? KernelProfile.Hardened,
            RamBytes = 64 << 20,
            Cpus = 2,
            DecaySeconds = 0,
        };
        return name != "debug" ? common : common with
        {
            SlubDebug = "FZPU",
            Kfence = new KfenceOptions { EveryNth = 1 },
        };
    }

    private static bool IsLargeByVmalloc(string setting) => setting.EndsWith("+vmalloc", StringComparison.Ordinal);

    public static bool IsCaught(string said) => !said.StartsWith(Missed, StringComparison.Ordinal);

    private static string Frees(FaultHeap heap, Func<nint, nint[]> frees, int churn = 0, bool again = false)
    {
        nint a = heap.Alloc();
        foreach (nint p in frees(a))
            heap.Free(p);
        for (int i = 0; i < churn; i++)
            heap.Free(heap.Alloc());
        if (again)
            heap.Free(a);
        return Missed;
    }

    private static string DoubleFreeInterleaved(FaultHeap heap)
    {
        nint a = heap.Alloc();
        nint b = heap.Alloc();
        heap.Free(a);
        heap.Free(b);
        heap.Free(a);
        return Missed;
    }

    private static string DoubleFreeAfterReuse(FaultHeap heap)
    {
        nint stale = heap.Alloc();
        heap.Free(stale);
        nint again = heap.Alloc();
        heap.Free(stale);
        heap.Free(again);
        return Missed;
    }

    private static unsafe string FreeOfTheStack(FaultHeap heap)
    {
        byte* local = stackalloc byte[4096];
        heap.Free((nint)local);
        return Missed;
    }

    private static unsafe string FreeOfALocal(FaultHeap heap)
    {
        long local = heap.Size;
        heap.Free((nint)(&local));
        return Missed;
    }

    private static Func<FaultHeap, string>[] Overruns(long bytes) =>
    [
        heap => Overrun(heap, at: heap.Size + bytes - 1, from: heap.Size + bytes - 1),
        heap => Overrun(heap, at: heap.Size + bytes - 1, from: heap.Size),
        heap => Overrun(heap, at: -bytes, from: -bytes),
        heap => Overrun(heap, at: -1, from: -bytes),
    ];

    /// <summary>Writes from one offset to another, with a neighbour on each side, and frees all three.</summary>
    private static unsafe string Overrun(FaultHeap heap, long at, long from)
    {
        nint before = heap.Alloc();
        var p = (byte*)heap.Alloc();
        nint behind = heap.Alloc();
        for (long i = from; i <= at; i++)
            p[i] ^= 0x41;
        heap.Free((nint)p);
        heap.Free(before);
        heap.Free(behind);
        return Missed;
    }

    private static unsafe string WriteAfterFree(FaultHeap heap, bool reuse)
    {
        var p = (byte*)heap.Alloc();
        heap.Free((nint)p);
        if (reuse)
            heap.Alloc();
        p[0] ^= 0x41;
        for (int i = 0; i < heap.Many; i++)
            heap.Alloc();
        heap.Machine.ShrinkCaches();
        return Missed;
    }

    private static unsafe string Zero(FaultHeap heap, bool write, bool free)
    {
        var p = (byte*)heap.Machine.Kmalloc(0, Gfp.Kernel);
        if (write)
            Volatile.Write(ref *p, 1);
        else
            Volatile.Read(ref *p);
        if (free)
            heap.Machine.Kfree(p);
        return Missed;
    }

    private static string ReuseAtOnce(FaultHeap heap, int size)
    {
        nint a = heap.Alloc();
        heap.Free(a);
        return heap.Alloc(size) == a ? Missed : "another address";
    }

    private static unsafe string ReadAfterFree(FaultHeap heap)
    {
        var p = (byte*)heap.Alloc();
        new Span<byte>(p, heap.Size).Fill(0x53);
        heap.Free((nint)p);
        return new Span<byte>(p, heap.Size).Contains((byte)0x53) ? Missed : "nothing is left of it";
    }

    private static unsafe string ReadFresh(FaultHeap heap)
    {
        for (int i = 0; i < heap.Many; i++)
        {
            var p = (byte*)heap.Alloc();
            if (new Span<byte>(p, heap.Size).Contains((byte)0x53))
                return Missed;

            new Span<byte>(p, heap.Size).Fill(0x53);
            heap.Free((nint)p);
        }

        return "never seen again";
    }

    private static unsafe string ReallocInPlace(FaultHeap heap)
    {
        void* p = heap.Machine.Kmalloc(8, Gfp.Kernel);
        return heap.Machine.Krealloc(p, 1024, Gfp.Kernel) == p ? Missed : "another address";
    }

    private static unsafe string ImpossibleSize(FaultHeap heap) =>
        heap.Machine.Kmalloc(nuint.MaxValue - 1, Gfp.Kernel | Gfp.NoWarn) == null ? "null" : Missed;

    /// <summary>Calls a block that holds the machine code of a return.</summary>
    private static unsafe string CodeOnTheHeap(FaultHeap heap)
    {
        var p = (byte*)heap.Alloc();
        if (RuntimeInformation.ProcessArchitecture == Architecture.Arm64)
            *(uint*)p = 0xd65f03c0;
        else
            *p = 0xc3;
        ((delegate* unmanaged<void>)p)();
        return Missed;
    }

    /// <summary>delete of a type with another size: an object goes to the cache of a larger type.</summary>
    private static unsafe string WrongSize(FaultHeap heap)
    {
        KmemCache small = heap.Machine.CreateCache("fault-char", 1, flags: SlabFlags.NoMerge);
        KmemCache large = heap.Machine.CreateCache("fault-struct", 72, flags: SlabFlags.NoMerge);
        large.Free(small.Alloc(Gfp.Kernel));
        return Missed;
    }

    // C++ has new and delete, new[] and delete[]; here are more kinds that must not be mixed.
    private static unsafe string KmallocToVfree(FaultHeap heap)
    {
        heap.Machine.Vfree(heap.Machine.Kmalloc((nuint)heap.Size, Gfp.Kernel));
        return Missed;
    }

    private static unsafe string CacheToFreePages(FaultHeap heap)
    {
        KmemCache cache = heap.Machine.CreateCache("fault", heap.Size, flags: SlabFlags.NoMerge);
        heap.Machine.FreePage(heap.Machine.PfnOf(cache.Alloc(Gfp.Kernel)));
        return Missed;
    }

    private static unsafe string VmallocToKfree(FaultHeap heap)
    {
        heap.Machine.Kfree(heap.Machine.Vmalloc((nuint)heap.Size));
        return Missed;
    }

    private static unsafe string PagesToKfree(FaultHeap heap)
    {
        heap.Machine.Kfree(heap.Machine.AddressOf(heap.Machine.AllocPage(Gfp.Kernel)));
        return Missed;
    }

    private static unsafe string SizeThatOverflows(FaultHeap heap) =>
        heap.Machine.KmallocArray(nuint.MaxValue / 4, (nuint)heap.Size, Gfp.Kernel) == null ? "null" : Missed;

    private static unsafe string WrongCache(FaultHeap heap)
    {
        KmemCache a = heap.Machine.CreateCache("fault-a", heap.Size, flags: SlabFlags.NoMerge);
        KmemCache b = heap.Machine.CreateCache("fault-b", heap.Size, flags: SlabFlags.NoMerge);
        a.Free(b.Alloc(Gfp.Kernel));
        return Missed;
    }

    private static unsafe string WriteBehindTheNewEnd(FaultHeap heap)
    {
        int size = Math.Min(heap.Size, 4096);
        var p = (byte*)heap.Machine.Kmalloc((nuint)size, Gfp.Kernel);
        p = (byte*)heap.Machine.Krealloc(p, (nuint)size / 2, Gfp.Kernel);
        p[size / 2] = 0x41;
        heap.Machine.Kfree(p);
        return Missed;
    }

    private static unsafe string FreeByTwoNames(FaultHeap heap)
    {
        KmemCache cache = heap.Machine.CreateCache("fault", heap.Size, flags: SlabFlags.NoMerge);
        void* a = cache.Alloc(Gfp.Kernel);
        heap.Machine.Kfree(a);
        cache.Free(a);
        return Missed;
    }
}

/// <summary>What a program with a fault calls malloc and free.</summary>
internal sealed record FaultHeap(Machine Machine, int Size, bool LargeByVmalloc)
{
    /// <summary>Above it blocks are not objects of a slab.</summary>
    public const int Large = 8192;

    private bool ByVmalloc => LargeByVmalloc && Size > Large;

    /// <summary>Enough to come by a freed block again, and no shortage of memory.</summary>
    public int Many => Size > Large ? 64 : 1000;

    public nint Alloc() => Alloc(Size);

    public unsafe nint Alloc(int size) => (nint)(ByVmalloc
        ? Machine.Vmalloc((nuint)size)
        : Machine.Kmalloc((nuint)size, Gfp.Kernel));

    public unsafe void Free(nint p)
    {
        if (ByVmalloc)
            Machine.Vfree((void*)p);
        else
            Machine.Kfree((void*)p);
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
        int[] frees = [.. Enumerable.Range(0, FaultPrograms.Runs.Count).Where(
            run => FaultPrograms.Runs[run].Group.EndsWith(" free", StringComparison.Ordinal)
                && FaultPrograms.Runs[run].Group != "write after free")];
        Assert.Equal(36, frees.Length);
        string[] missed = [.. frees.Where(run => !FaultPrograms.IsCaught(FaultPrograms.Run(run, profile))).Select(
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
        Dictionary<int, string> said = Said(setting);
        Compare(setting, said, column);
        if (setting != "debug")
            return;

        Assert.Contains(said.Values, it => it.StartsWith("fault: Fatal error", StringComparison.Ordinal));
        foreach ((int run, string text) in Said("debug+vmalloc"))
            said[run] = text;
        Compare("debug+vmalloc", said, column + 1);
    }

    private static Dictionary<int, string> Said(string setting) => FaultPrograms.RunsOf(setting)
        .Zip(FaultPrograms.RunAllInChildren(setting)).ToDictionary(it => it.First, it => it.Second);

    private static void Compare(string setting, Dictionary<int, string> said, int column)
    {
        var seen = new Dictionary<string, (int Runs, int Caught)>(StringComparer.Ordinal) { ["all"] = (0, 0) };
        foreach ((int run, string text) in said.OrderBy(it => it.Key))
        {
            bool caught = FaultPrograms.IsCaught(text);
            if (!caught)
                TestContext.Current.TestOutputHelper?.WriteLine($"{setting} {FaultPrograms.Runs[run]}: {text}");
            string own = FaultPrograms.Runs[run].Group;
            foreach (string group in own == FaultPrograms.Own ? (string[])[own] : ["all", own])
            {
                (int runs, int hits) = seen.GetValueOrDefault(group);
                seen[group] = (runs + 1, hits + (caught ? 1 : 0));
            }
        }

        foreach ((string group, (int runs, int caught)) in seen)
            TestContext.Current.TestOutputHelper?.WriteLine($"counted {setting}|{group}|{runs}|{caught}");
        Assert.Equal(
            seen.OrderBy(it => it.Key, StringComparer.Ordinal),
            Promised(column).OrderBy(it => it.Key, StringComparer.Ordinal));
    }

    private static Dictionary<string, (int Runs, int Caught)> Promised(int column)
    {
        var promised = new Dictionary<string, (int Runs, int Caught)>(StringComparer.Ordinal);
        string document = Path.Combine(
            Path.GetDirectoryName(TestData.PathOf("gfp-flags.txt"))!, "..", "..", "docs", "misuse.md");
        IEnumerable<string> section = File.ReadLines(document).SkipWhile(line => line != "## One-fault programs")
            .Skip(1).TakeWhile(line => !line.StartsWith("## ", StringComparison.Ordinal));
        foreach (string line in section)
        {
            string[] cells = line.Split('|', StringSplitOptions.TrimEntries);
            if (cells.Length > column && int.TryParse(cells[2], out int runs))
                promised[cells[1]] = (runs, int.Parse(cells[column], null));
        }

        return promised;
    }
}
