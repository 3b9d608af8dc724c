using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// docs/misuse.md, row by row and setting by setting: each misuse is committed, what is said must be what the table
/// promises, nothing is broken afterwards, and the machine goes on.
/// </summary>
public sealed class MisuseTableTests
{
    private const int Rows = 24;
    private static readonly string[] s_settings = ["Native", "Linux618", "Hardened", "FZPU", "KFENCE"];
    private static readonly byte[] s_static = GC.AllocateArray<byte>(64, pinned: true);

    public static TheoryData<int, string> Cells
    {
        get
        {
            var cells = new TheoryData<int, string>();
            foreach (string setting in s_settings)
            {
                for (int row = 1; row <= Rows; row++)
                    cells.Add(row, setting);
            }

            return cells;
        }
    }

    [Theory]
    [MemberData(nameof(Cells))]
    public void What_the_table_promises_is_said(int row, string setting)
    {
        string promise = Promise(row, setting, out string cell);
        using Machine machine = Boot(setting);
        string said = Commit(row, machine) + "\n" + machine.Dmesg;
        if (promise.Length == 0)
            Assert.Equal("\n", said);
        else
            Assert.Contains(promise, said);
        if (cell.Contains("both stacks", StringComparison.Ordinal))
        {
            bool guarded = setting == "KFENCE";
            Assert.Contains(guarded ? "\nallocated by task " : "\nAllocated in Kmem.Tests.MisuseTableTests", said);
            if (row != 8)
                Assert.Contains(guarded ? "\nfreed by task " : "\nFreed in Kmem.Tests.MisuseTableTests", said);
        }

        Assert.Empty(machine.Validate());
        GoesOn(machine);
    }

    /// <summary>What rows 1, 5, 6, 7 and 9 say of one size is so at all of them, in every setting.</summary>
    [Theory]
    [InlineData("Native")]
    [InlineData("Linux618")]
    [InlineData("Hardened")]
    [InlineData("FZPU")]
    [InlineData("KFENCE")]
    public unsafe void Wrong_frees_of_every_size_are_refused(string setting)
    {
        using Machine machine = Boot(setting);
        foreach (int size in (int[])[8, 64, 96, 192, 1024, 4096, 8192, 3 * 4096, 1 << 20])
        {
            var p = (byte*)machine.Kmalloc((nuint)size, Gfp.Kernel);
            new Span<byte>(p, size).Fill(0x5c);
            foreach (byte* wrong in (byte*[])[p + 1, p + (size / 2), p + size - 1, p + (1 << 30), (byte*)1])
                Refused(() => machine.Kfree(wrong));
            Refused(() => machine.Vfree(p));
            Refused(() => machine.FreePage(machine.PfnOf(p)));
            Assert.False(new Span<byte>(p, size).ContainsAnyExcept((byte)0x5c), $"{size} bytes: they changed");
            machine.Kfree(p);
            Refused(() => machine.Kfree(p));

            void* v = machine.Vmalloc((nuint)size);
            Refused(() => machine.Kfree(v));
            machine.Vfree(v);
            Refused(() => machine.Vfree(v));
            Assert.Empty(machine.Validate());
        }

        GoesOn(machine);
    }

    [Fact]
    public void Every_cell_of_the_table_says_something() => Assert.All(TableRows(), cells =>
    {
        Assert.Equal(3 + s_settings.Length + 3 + 1, cells.Length);
        Assert.All(cells[1..^1], cell => Assert.False(
            string.IsNullOrWhiteSpace(cell), $"row {cells[1]} has an empty cell"));
    });

    [Fact]
    public void The_table_has_every_row_once() => Assert.Equal(
        Enumerable.Range(1, Rows), TableRows().Select(cells => int.Parse(cells[1].Trim(), null)));

    private static IEnumerable<string[]> TableRows() => File.ReadLines(
            Path.Combine(Path.GetDirectoryName(TestData.PathOf("gfp-flags.txt"))!, "..", "..", "docs", "misuse.md"))
        .Where(line => Regex.IsMatch(line, @"^\| \d+ \|")).Select(line => line.Split('|'));

    private static string Promise(int row, string setting, out string cell)
    {
        string[] cells = TableRows().Single(cells => cells[1].Trim() == row.ToString(null, null));
        cell = cells[3 + Array.IndexOf(s_settings, setting)];
        if (cell.Trim().StartsWith("nothing", StringComparison.Ordinal))
            return "";

        Match promise = Regex.Match(cell, "`([^`]+)`");
        Assert.True(promise.Success, $"row {row}, {setting}: no promise in backticks");
        return promise.Groups[1].Value;
    }

    private static void Refused(Action misuse) => Assert.True(Try(misuse).Length > 0, "it was not refused");

    private static Machine Boot(string setting) => Machine.Boot(new MachineOptions
    {
        Profile = setting switch
        {
            "Linux618" or "FZPU" => KernelProfile.Linux618,
            "Hardened" => KernelProfile.Hardened,
            _ => KernelProfile.Native,
        },
        RamBytes = 64 << 20,
        Cpus = 2,
        SlubDebug = setting == "FZPU" ? "FZPU" : null,
        Kfence = setting == "KFENCE" ? new KfenceOptions { EveryNth = 1 } : null,
    });

    private static unsafe void GoesOn(Machine machine)
    {
        var live = new HashSet<nint>();
        foreach (int size in (int[])[8, 64, 96, 1000, 8192, 20000])
        {
            void* p = machine.Kmalloc((nuint)size, Gfp.Kernel);
            Assert.True(p != null);
            new Span<byte>(p, size).Fill(1);
            Assert.True(live.Add((nint)p));
        }

        foreach (nint p in live)
            machine.Kfree((void*)p);
        Assert.Empty(machine.Validate());
    }

    private static string Try(Action misuse)
    {
        Exception? error = Record.Exception(misuse);
        return error switch
        {
            null => "",
            KernelBugException => error.Message,
            _ => error.GetType().Name,
        };
    }

    private static unsafe nint Alloc(Machine machine, int size = 100) => (nint)machine.Kmalloc((nuint)size, Gfp.Kernel);

    private static unsafe void Free(Machine machine, nint p) => machine.Kfree((void*)p);

    private static string Commit(int row, Machine machine) => row switch
    {
        <= 4 => FreeTwice(row, machine),
        <= 8 => FreeWrongly(row, machine),
        <= 10 => FreePagesWrongly(row, machine),
        <= 13 => Write(row, machine),
        14 => Sizes(machine),
        15 => SleepWhileAtomic(machine),
        16 => RunOut(machine),
        17 => Try(() => Machine.Boot(new MachineOptions { RamBytes = 1UL << 50, Cpus = 1 }).Dispose()),
        18 => DestroyTooEarly(machine),
        19 => ThreadsThatEnd(machine),
        20 => Recursion(machine),
        21 => Reallocate(machine),
        22 => UseAfterDispose(machine),
        23 => FreeElsewhere(machine),
        _ => ReplayNonsense(),
    };

    private static string FreeTwice(int row, Machine machine)
    {
        nint a = Alloc(machine);
        nint b = Alloc(machine);
        Free(machine, a);
        if (row == 2)
        {
            for (int i = 0; i < 1024; i++)
                Free(machine, Alloc(machine, 500));
        }
        else if (row == 3)
        {
            Free(machine, b);
        }
        else if (row == 4)
        {
            // Where freed objects are kept back, the stale pointer is nobody's yet.
            nint other = Alloc(machine);
            bool keptBack = machine.Kfence != null || machine.Options.Profile == KernelProfile.Hardened;
            Assert.Equal(keptBack, a != other);
            Free(machine, keptBack ? other : a);
        }

        string said = Try(() => Free(machine, a));
        if (row != 3)
            Free(machine, b);
        return said;
    }

    private static unsafe string FreeWrongly(int row, Machine machine)
    {
        if (row == 8)
        {
            KmemCache a = machine.CreateCache("table-a", 100, flags: SlabFlags.NoMerge);
            KmemCache b = machine.CreateCache("table-b", 100, flags: SlabFlags.NoMerge);
            void* obj = b.Alloc(Gfp.Kernel);
            a.Free(obj);
            Assert.Equal(0, b.LiveCount);
            return "";
        }

        if (row == 5)
        {
            int local = 0;
            var stack = (nint)(&local);
            var fixedArray = Marshal.UnsafeAddrOfPinnedArrayElement(s_static, 0);
            var native = (nint)NativeMemory.Alloc(100);
            string[] all = [.. ((nint[])[stack, fixedArray, native]).Select(p => Try(() => Free(machine, p)))];
            NativeMemory.Free((void*)native);
            Assert.All(all, said => Assert.Contains("not memory of this machine", said));
            return all[0];
        }

        nint whole = Alloc(machine, 1000);
        nint[] wrong = row == 6 ? [whole + 1, whole + 8, whole + 500] : [whole + (1 << 30)];
        string[] reports = [.. wrong.Select(p => Try(() => Free(machine, p)))];
        Free(machine, whole);
        Assert.All(reports, said => Assert.StartsWith(reports[0][..10], said));
        return string.Join('\n', reports);
    }

    private static unsafe string FreePagesWrongly(int row, Machine machine)
    {
        Pfn pages = machine.AllocPages(Gfp.Kernel, 2);
        var address = (nint)machine.AddressOf(pages);
        string said = Try(() =>
        {
            if (row == 9)
                Free(machine, address);
            else
                machine.FreePages(pages, 1);
        });
        machine.FreePages(pages, 2);
        return said;
    }

    private static unsafe string Write(int row, Machine machine)
    {
        // Alone in its cache, so that what lies beside an object is free or the object's own.
        KmemCache cache = machine.CreateCache("table", 104, flags: SlabFlags.NoMerge);
        if (machine.Kfence is { } kfence)
            return WriteGuarded(row, machine, kfence, cache);

        var p = (byte*)cache.Alloc(Gfp.Kernel);
        if (row == 11)
        {
            p[104] = 1;
            string after = Try(() => cache.Free(p));
            if (after.Length == 0)
                return "";

            p[-1] = 1;
            string before = Try(() => cache.Free(p));
            Assert.Contains("Left Redzone overwritten", before);
            cache.Free(p);
            return after + before;
        }

        cache.Free(p);
        if (row == 12)
            p[0] = 1;
        else
            *(ulong*)(p + cache.Geometry.FreePointerOffset) = 0x4141_4141_4141_4141;
        if (machine.Slabs.Quarantine is { } quarantine)
        {
            quarantine.Flush(null); // as if enough others had been freed
            if (row == 13)
                machine.Dmesg.Clear();
        }

        return Try(() => cache.Free(cache.Alloc(Gfp.Kernel)));
    }

    /// <summary>
    /// What would fault is asked for instead; <see cref="FaultProgramTests"/> do it, in child processes.
    /// </summary>
    private static unsafe string WriteGuarded(int row, Machine machine, Kfence kfence, KmemCache cache)
    {
        byte* Object(bool left)
        {
            byte* p;
            while (((nint)(p = (byte*)cache.Alloc(Gfp.Kernel)) % 4096 == 0) != left)
                cache.Free(p);
            return p;
        }

        if (row != 11)
        {
            byte* p = Object(left: true);
            cache.Free(p);
            return Try(() => kfence.CheckAccess(p, 1, write: true));
        }

        byte* first = Object(left: true);
        first[104] = 1;
        string after = Try(() => cache.Free(first));
        cache.Free(first);
        byte* last = Object(left: false);
        last[-1] = 1;
        string before = Try(() => cache.Free(last));
        cache.Free(last);
        Assert.Contains("Corrupted memory at", before);
        return after;
    }

    private static unsafe string Sizes(Machine machine)
    {
        void* none = machine.Kmalloc(0, Gfp.Kernel);
        machine.Kfree(none);
        void* huge = machine.Kmalloc(nuint.MaxValue, Gfp.Kernel);
        Assert.True(huge == null);
        Assert.True(machine.Kmalloc((4 << 20) + 1, Gfp.Kernel) == null);
        string overflow = Try(() => machine.KmallocArray(nuint.MaxValue / 8, 16, Gfp.Kernel));
        return $"{(nint)none}, null, {overflow[overflow.IndexOf("the size", StringComparison.Ordinal)..]}";
    }

    private static unsafe string SleepWhileAtomic(Machine machine)
    {
        using ContextScope atomic = machine.Atomic();
        string said = "";
        try
        {
            machine.Kmalloc(100, Gfp.Kernel);
        }
        catch (KernelBugException error)
        {
            said = error.Message;
        }

        void* p = machine.Kmalloc(100, Gfp.Atomic);
        Assert.True(p != null);
        machine.Kfree(p);
        return said;
    }

    private static unsafe string RunOut(Machine machine)
    {
        KmemCache cache = machine.CreateCache("table", 2000, flags: SlabFlags.NoMerge);
        var blocks = new List<(Pfn Pfn, int Order)>();
        for (int order = PageOrder.Max; order >= 0; order--)
        {
            Pfn block;
            while ((block = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, order)) != Pfn.None)
                blocks.Add((block, order));
        }

        var objects = new List<nint>();
        void* obj;
        while ((obj = cache.Alloc(Gfp.Kernel)) != null)
            objects.Add((nint)obj);
        Assert.Empty(machine.Validate());
        foreach (nint live in objects)
            cache.Free((void*)live);
        foreach ((Pfn block, int order) in blocks)
            machine.FreePages(block, order);
        cache.Destroy();
        return "";
    }

    private static unsafe string DestroyTooEarly(Machine machine)
    {
        KmemCache cache = machine.CreateCache("table", 104, flags: SlabFlags.NoMerge);
        void* p = cache.Alloc(Gfp.Kernel);
        string said = Try(cache.Destroy);
        cache.Free(p);
        cache.Destroy();
        Assert.Contains("destroyed before", Try(cache.Destroy));
        return said;
    }

    private static unsafe string ThreadsThatEnd(Machine machine)
    {
        KmemCache cache = machine.CreateCache("table", 104, flags: SlabFlags.NoMerge);
        for (int i = 0; i < 50; i++)
        {
            var thread = new Thread(() =>
            {
                void* a = cache.Alloc(Gfp.Kernel);
                void* b = cache.Alloc(Gfp.Kernel);
                cache.Free(a);
                cache.Free(b);
            });
            thread.Start();
            thread.Join();
        }

        Assert.Equal(0, cache.LiveCount);
        Assert.False(cache.Shrink());
        cache.Destroy();
        return "";
    }

    private static unsafe string Recursion(Machine machine)
    {
        KmemCache? cache = null;
        cache = machine.CreateCache("table", 104, constructor: _ => cache!.Alloc(Gfp.Kernel));
        string said = Try(() => cache.Alloc(Gfp.Kernel));
        cache.Destroy();
        return said;
    }

    private static unsafe string Reallocate(Machine machine)
    {
        int local = 0;
        var foreign = (nint)(&local);
        string said = Try(() => machine.Krealloc((void*)foreign, 200, Gfp.Kernel));
        void* p = machine.Kmalloc(100, Gfp.Kernel);
        p = machine.Krealloc(p, 300, Gfp.Kernel);
        p = machine.Krealloc(p, 10, Gfp.Kernel);
        void* none = machine.Krealloc(p, 0, Gfp.Kernel);
        return $"{said}, {(nint)none}";
    }

    private static string UseAfterDispose(Machine machine)
    {
        KmemOwner<byte> owner = machine.Rent<byte>(100);
        owner.Dispose();
        return Try(() => owner.Memory.Span.Fill(1));
    }

    private static unsafe string FreeElsewhere(Machine machine)
    {
        KmemCache cache = machine.CreateCache("table", 104, flags: SlabFlags.NoMerge);
        using var queue = new System.Collections.Concurrent.BlockingCollection<nint>(64);
        Task[] consumers = [.. Enumerable.Range(0, 3).Select(_ => Task.Run(() =>
        {
            foreach (nint p in queue.GetConsumingEnumerable())
                cache.Free((void*)p);
        }))];
        for (int i = 0; i < 3000; i++)
            queue.Add((nint)cache.Alloc(Gfp.Kernel));
        queue.CompleteAdding();
        Assert.True(Task.WaitAll(consumers, TimeSpan.FromMinutes(1)));
        Assert.Equal(0, cache.LiveCount);
        return "";
    }

    private static string ReplayNonsense()
    {
        using ReplayResult result = new TraceWriter().Kfree(0xffff_8880_0123_4000).Run();
        return $"{result.Report.UnknownFrees} unknown free";
    }
}
