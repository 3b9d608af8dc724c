using System.Globalization;
using Kmem;
using Kmem.Samples;

// A cache of a million entries, off the heap and on it. Run one at a time: each process then has its own memory to show.
//   dotnet run -c Release --project samples/Kmem.Sample.OffHeapCache -- kmem|heap [entries] [lookups]
if (args.Length == 0 || args[0] is not ("kmem" or "heap"))
{
    Console.Error.WriteLine("usage: kmem|heap [entries] [lookups]");
    return 2;
}

int Argument(int index, int otherwise) =>
    args.Length > index ? int.Parse(args[index], CultureInfo.InvariantCulture) : otherwise;
int entries = Argument(1, 1_000_000), lookups = Argument(2, 5_000_000);
bool offHeap = args[0] == "kmem";

using Machine? machine = offHeap
    ? Machine.Boot(new MachineOptions { Name = "cache", RamBytes = 1UL << 30, Profile = KernelProfile.Find("native") ?? KernelProfile.Linux618 })
    : null;
WorkloadResult result;
ulong resident;
using (ILruCache cache = offHeap ? new OffHeapCache(machine!, entries) : new HeapCache(entries))
{
    result = Workload.Run(cache, entries, lookups);
    resident = machine?.ResidentBytes ?? 0;
    Console.WriteLine($"{args[0]}: {cache.Count:N0} entries, {lookups:N0} lookups, {cache.Evictions:N0} evictions");
}

Console.WriteLine($"  throughput          {result.Operations / result.Elapsed.TotalSeconds,12:N0} lookups/s, {100.0 * result.Hits / result.Operations:N1} % hits");
Console.WriteLine($"  collector's pauses  {result.TotalPause.TotalMilliseconds,12:N1} ms in all, longest {result.LongestPause.TotalMilliseconds:N1} ms, {result.FullCollections} full");
Console.WriteLine($"  GC heap             {result.HeapBytes / 1048576.0,12:N0} MiB");
Console.WriteLine($"  machine             {resident / 1048576.0,12:N0} MiB resident");
Console.WriteLine($"  process             {Environment.WorkingSet / 1048576.0,12:N0} MiB at the end");
if (machine != null)
    Console.WriteLine($"  outstanding         {machine.Outstanding,12:N0}, {machine.Validate().Count} broken rules");
return result.Wrong == 0 && (machine?.Outstanding ?? 0) == 0 ? 0 : 1;
