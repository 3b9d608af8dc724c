using System.Globalization;
using Kmem;
using Kmem.Samples;

// ASP.NET Core's server on Kmem: the same load on the built-in pool and on a machine of 256 MiB.
//   dotnet run -c Release --project samples/Kmem.Sample.Kestrel -- [clients] [requests of each] [largest body in bytes]
int Argument(int index, int otherwise) =>
    args.Length > index ? int.Parse(args[index], CultureInfo.InvariantCulture) : otherwise;
int clients = Argument(0, 16), requests = Argument(1, 2000), largestBody = Argument(2, 20_000);

Console.WriteLine($"{clients} clients, {requests} requests each, bodies up to {largestBody} bytes, on loopback");
using Machine machine = Machine.Boot(new MachineOptions { Name = "kestrel", RamBytes = 256 << 20 });
var factory = new KmemMemoryPoolFactory(machine);
Task<LoadResult> Run(KmemMemoryPoolFactory? pools, bool ownTransport, int rounds) =>
    LoadTest.RunAsync(pools, ownTransport, clients, rounds, largestBody, CancellationToken.None);

await Run(null, ownTransport: false, requests / 4);     // warms everything up
await Run(factory, ownTransport: true, requests / 4);
Show("built-in pool and transport", await Run(null, ownTransport: false, requests));
Show("built-in pool, this transport", await Run(null, ownTransport: true, requests));
LoadResult result = await Run(factory, ownTransport: true, requests);
Show("Kmem's pool, this transport", result);
Console.WriteLine(
    $"Kmem: {factory.Pools.Count} pools, at most {result.PeakBlocks} blocks held, {machine.Outstanding} outstanding now, "
    + $"{machine.ResidentBytes >> 20} MiB resident, {machine.Validate().Count} broken rules");
return result.Wrong == 0 && machine.Outstanding == 0 ? 0 : 1;

static void Show(string name, LoadResult result) => Console.WriteLine(
    $"{name,-30} {result.Rate,9:N0} requests/s   {result.Wrong} wrong   GC paused {result.GcPause.TotalMilliseconds,6:N0} ms   "
    + $"{result.AllocatedBytes / result.Requests,7:N0} heap bytes a request");
