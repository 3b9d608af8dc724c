using System.Diagnostics;
using System.Reflection;
using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>What a debugger evaluates exists and does not throw, for live and for dead objects.</summary>
public sealed partial class DebuggerViewTests
{
    private const BindingFlags Any = BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic;

    [Fact]
    public unsafe void Displays_and_proxies_work_before_and_after_dispose()
    {
        Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 1, Name = "seen" });
        KmemOwner<int> owner = machine.Rent<int>(3);
        new[] { 1, 2, 3 }.CopyTo(owner.Span);
        KmemCache<long> cache = machine.CreateCache<long>("typed");
        KmemBufferWriter writer = machine.CreateWriter();
        object[] all =
        [
            machine, owner, cache, cache.Cache, machine.CreatePool("p"), machine.CreateRegion(10), writer,
            machine.CreateSequenceWriter(), machine.CreateGrowingBuffer(4096), machine.CreateRing(4096),
        ];

        Assert.Matches("^Machine 'seen': 6[0-4] MiB, 6[0-4] MiB free, 5 outstanding$", Display(machine));
        Assert.StartsWith("Machine.Rent: 3 x Int32 at 0x", Display(owner), StringComparison.Ordinal);
        Assert.Equal([1, 2, 3], (int[])Proxy(owner)["Items"]!);
        Assert.Equal("typed: 16 bytes a slot, 0 slabs, 0 objects", Display(cache.Cache));
        Assert.Contains("1 x Machine.Rent, 12 bytes", (string[])Proxy(machine)["Outstanding"]!, StringComparer.Ordinal);
        Assert.Equal(2, ((string[])Proxy(machine)["Zones"]!).Length);
        foreach (object seen in all)
        {
            Assert.NotEmpty(Display(seen));
            Proxy(seen);
        }

        machine.Dispose();
        Assert.Equal("Machine 'seen', disposed", Display(machine));
        Assert.Empty((int[])Proxy(owner)["Items"]!);
        foreach (object seen in all)
        {
            Assert.NotEmpty(Display(seen));
            Proxy(seen);
        }
    }

    [Fact]
    public unsafe void A_page_says_what_it_is()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 1 });
        Pfn frames = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 3);
        void* obj = machine.Kmalloc(100, Gfp.Kernel);
        Assert.StartsWith(
            "block of order 3, references 1", Display(*machine.Map.PageOf(frames.Value)), StringComparison.Ordinal);
        Assert.Equal("tail of a compound block", Display(*machine.Map.PageOf(frames.Value + 1)));
        Assert.StartsWith(
            "Slab, order 0", Display(*machine.Map.PageOf(machine.PfnOf(obj).Value)), StringComparison.Ordinal);
        machine.FreePages(frames, 3);
        machine.Kfree(obj);
    }

    [Fact]
    public void Every_display_names_members_that_exist()
    {
        (Type Type, string Name)[] names = typeof(Machine).Assembly.GetTypes()
            .Select(type => (type, type.GetCustomAttribute<DebuggerDisplayAttribute>()?.Value ?? ""))
            .SelectMany(entry => Names(entry.Item2).Select(name => (entry.type, name)))
            .ToArray();
        Assert.True(names.Length > 10);
        Assert.All(names, entry => Assert.NotNull(entry.Type.GetProperty(entry.Name, Any)));
    }

    private static string Display(object seen)
    {
        string display = seen.GetType().GetCustomAttribute<DebuggerDisplayAttribute>()!.Value;
        return Expression().Replace(
            display, match => seen.GetType().GetProperty(match.Groups["name"].Value, Any)!.GetValue(seen)!.ToString()!);
    }

    /// <summary>All properties of the type's proxy, evaluated; empty if it has none.</summary>
    private static Dictionary<string, object?> Proxy(object seen)
    {
        string? name = seen.GetType().GetCustomAttribute<DebuggerTypeProxyAttribute>()?.ProxyTypeName;
        if (name == null)
            return [];

        Type type = Type.GetType(name)!;
        if (type.IsGenericTypeDefinition)
            type = type.MakeGenericType(seen.GetType().GetGenericArguments());
        object proxy = Activator.CreateInstance(type, Any, null, [seen], null)!;
        return type.GetProperties().ToDictionary(
            property => property.Name, property => property.GetValue(proxy), StringComparer.Ordinal);
    }

    private static IEnumerable<string> Names(string display) =>
        Expression().Matches(display).Select(match => match.Groups["name"].Value);

    [GeneratedRegex(@"\{(?<name>\w+)(,nq)?\}", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Expression();
}
