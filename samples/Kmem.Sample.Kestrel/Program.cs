using System.Globalization;
using Kmem;
using Kmem.Samples;

// ASP.NET Core's server on Kmem: the same load on the built-in pool and on a machine of 256 MiB.
//   dotnet run -c Release --project samples/Kmem.Sample.Kestrel -- [clients] [requests of each] [largest body in bytes]
int Argument(int index, int otherwise) =>
    args.Length > index ? int.Parse(args[index], CultureInfo.InvariantCulture) : otherwise;
int clients = Argument(0, 16), requests = Argument(1, 2000), largestBody = Argument(2, 20_000);

Console.WriteLine($"{clients} clients, {requests} requests each, bodies up to {largestBody} bytes, on loopback");
await LoadTest.RunAsync(null, clients, requests / 10, largestBody, CancellationToken.None);    // warms up both sides
Show("built-in pool", await LoadTest.RunAsync(null, clients, requests, largestBody, CancellationToken.None));

using Machine machine = Machine.Boot(new MachineOptions { Name = "kestrel", RamBytes = 256 << 20 });
var factory = new KmemMemoryPoolFactory(machine);
LoadResult result = await LoadTest.RunAsync(factory, clients, requests, largestBody, CancellationToken.None);
Show("Kmem", result);
Console.WriteLine(
    $"Kmem: {factory.Pools.Count} pools, at most {result.PeakBlocks} blocks held, {machine.Outstanding} outstanding now, "
    + $"{machine.ResidentBytes >> 20} MiB resident, {machine.Validate().Count} broken rules");
return result.Wrong == 0 && machine.Outstanding == 0 ? 0 : 1;

static void Show(string name, LoadResult result) => Console.WriteLine(
    $"{name,-14} {result.Rate,9:N0} requests/s   {result.Wrong} wrong   GC paused {result.GcPause.TotalMilliseconds,6:N0} ms   "
    + $"{result.AllocatedBytes / result.Requests,7:N0} heap bytes a request");
