namespace Kmem.Tests;

/// <summary>Machines for the tests of areas, and what is asked of them again and again.</summary>
internal static class VmallocMachine
{

    public static Machine Boot(
        int cpus = 2, ulong ramBytes = 64UL << 20, Func<MachineOptions, MachineOptions>? change = null)
    {
        Assert.SkipUnless(
            HostMemory.IsLinux && HostInfo.PageBytes == Pfn.PageSize, "vmalloc needs Linux with 4 KiB pages");
        var options = new MachineOptions { Profile = KernelProfile.Linux618, Cpus = cpus, RamBytes = ramBytes };
        return Machine.Boot(change == null ? options : change(options));
    }

    public static void AssertWhole(Machine machine) => Assert.Empty(machine.Validate());

    public static void AssertRefused(Machine machine, Action misuse, params string[] words)
    {
        long lines = machine.Dmesg.TotalLines;
        KernelBugException bug = Assert.Throws<KernelBugException>(misuse);
        Assert.All(words, word => Assert.Contains(word, bug.Message, StringComparison.Ordinal));
        Assert.True(machine.Dmesg.TotalLines > lines, "the report is not in the log");
        AssertWhole(machine);
    }

    public static Pfn[] AllocPages(Machine machine, int count) =>
        Enumerable.Range(0, count).Select(_ => machine.AllocPage(Gfp.Kernel)).ToArray();

    /// <summary>The one line of vmallocinfo about the area that starts at a pointer, from the size on.</summary>
    public static unsafe string InfoLine(Machine machine, void* pointer)
    {
        ulong va = machine.VmallocIfUsed!.AddressOf(pointer);
        string line = Assert.Single(
            machine.Proc.VmallocInfo().Split('\n'),
            line => line.StartsWith($"0x{va:x16}-", StringComparison.Ordinal));
        return line[37..].TrimStart();
    }

    public static unsafe PageWalk Walk(Machine machine, void* pointer) =>
        machine.VmallocIfUsed!.Tables.Walk(machine.VmallocIfUsed.AddressOf(pointer));
}
