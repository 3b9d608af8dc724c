using System.Globalization;
using System.IO.Compression;

namespace Kmem.Tests;

public sealed class OracleScratch
{
    private sealed class Check : ITrace
    {
        public Queue<string> Actual = new();
        public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) { }
        public void Kfree(ulong address) { }
        public void KmemCacheAlloc(ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) { }
        public void KmemCacheFree(ulong address, string cache) { }
        public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype) { }
        public void MmPageFree(Pfn pfn, int order) { }
        public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill) =>
            Actual.Enqueue($"PZ {pfn.Value} {order} {(int)migratetype} {(percpuRefill ? 1 : 0)}");
        public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype) =>
            Actual.Enqueue($"PD {pfn.Value} {order} {(int)migratetype}");
        public void MmPageAllocExtfrag(in ExtfragEvent e) =>
            Actual.Enqueue($"PX {e.Pfn.Value} {e.AllocOrder} {e.FallbackOrder} {(int)e.AllocMigratetype} {(int)e.FallbackMigratetype} {(e.ChangeOwnership ? 1 : 0)}");
    }

    [Theory]
    [InlineData("00-slab")]
    [InlineData("01-page")]
    [InlineData("02-vm")]
    [InlineData("06-mmap")]
    [InlineData("08-mixed")]
    public unsafe void Pages(string phase)
    {
        string dir = "/work/shared/oracle/boot-1cpu/" + phase;
        Assert.SkipUnless(Directory.Exists(dir), "no oracle");
        using Machine machine = Machine.FromState(MachineState.Read(dir + "/state-t0.json.gz"), new MachineOptions());
        var output = TestContext.Current.TestOutputHelper!;
        foreach (BrokenRule rule in machine.Validate().Take(5)) output.WriteLine(rule.ToString());
        var check = new Check();
        machine.Trace = check;
        var expected = new Queue<string>();
        int allocs = 0, exact = 0, zone = 0, zoneExact = 0, shown = 0;
        using var reader = new StreamReader(new GZipStream(File.OpenRead(dir + "/events.tsv.gz"), CompressionMode.Decompress));
        reader.ReadLine();
        string? line;
        Pfn[] bulk = []; int bulkAt = 0, bulkN = 0;
        while ((line = reader.ReadLine()) != null)
        {
            string[] f = line.Split('\t');
            switch (f[5])
            {
                case "PA":
                {
                    ulong pfn = ulong.Parse(f[6]);
                    int order = int.Parse(f[7]);
                    var gfp = (Gfp)uint.Parse(f[9], NumberStyles.HexNumber);
                    string via = f[10];
                    allocs++;
                    ulong got;
                    if (via.StartsWith("bulk", StringComparison.Ordinal))
                    {
                        int n = int.Parse(via[4..]);
                        if (bulkAt >= bulkN)
                        {
                            bulk = new Pfn[n]; Array.Fill(bulk, Pfn.None); bulkAt = 0;
                            bulkN = machine.Pages.AllocBulk(gfp & ~Gfp.Zero, -1, bulk);
                        }
                        got = bulkAt < bulkN ? bulk[bulkAt++].Value : 0;
                    }
                    else
                    {
                        bulkAt = bulkN = 0;
                        foreach (var z in machine.Pages.Zones) z.PcpOf(0)->Locked = via == "buddy" && PerCpuPages.IsPcpOrder(order) ? 1 : 0;
                        Page* page = machine.Pages.Alloc(gfp & ~Gfp.Zero, order, -1);
                        foreach (var z in machine.Pages.Zones) z.PcpOf(0)->Locked = 0;
                        got = page == null ? 0 : machine.Map.PfnOf(page);
                    }
                    if (got == pfn) exact++;
                    else if (shown++ < 5) output.WriteLine($"{line}: got {got}");
                    break;
                }
                case "PF":
                {
                    ulong pfn = ulong.Parse(f[6]);
                    int order = int.Parse(f[7]);
                    Page* page = machine.Map.PageOf(pfn);
                    page->Flags &= ~PageFlags.Lru;
                    foreach (var z in machine.Pages.Zones) z.PcpOf(0)->Locked = f[8] == "buddy" && PerCpuPages.IsPcpOrder(order) ? 1 : 0;
                    page->RefCount = 0; page->Type = PageType.None; page->Mapping = 0;
                    machine.Pages.FreeFrozen(page, order);
                    foreach (var z in machine.Pages.Zones) z.PcpOf(0)->Locked = 0;
                    break;
                }
                case "LI": machine.Map.PageOf(ulong.Parse(f[6]))->Flags |= PageFlags.Lru; break;
                case "PZ": case "PD": case "PX": expected.Enqueue(f[5] + " " + string.Join(' ', f[6..])); zone++; break;
            }
            while (expected.Count > 0 && check.Actual.Count > 0)
            {
                string a = expected.Dequeue(), b = check.Actual.Dequeue();
                if (a == b) zoneExact++; else if (shown++ < 10) output.WriteLine($"{line}: expected {a} got {b}");
            }
        }
        output.WriteLine($"{phase}: allocs {exact}/{allocs} zone {zoneExact}/{zone} left {expected.Count} {check.Actual.Count}");
    }
}
