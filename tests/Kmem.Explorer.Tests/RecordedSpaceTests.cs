using System.Globalization;
using System.IO.Compression;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Explorer.Tests;

/// <summary>The Virtual screen of recordings: areas at every moment, forwards and backwards.</summary>
public sealed partial class RecordedSpaceTests
{
    private static readonly string s_sample = Path.Combine(
        Path.GetDirectoryName(ExplorerFixture.SamplePath)!, "..", "vmap", "trace.txt.gz");

    [Fact]
    public async Task AreasOfEveryMomentAreTheRecordings()
    {
        using KmemExplorer explorer = KmemExplorer.Start(Open(), new ExplorerOptions());
        using var client = new HttpClient { BaseAddress = explorer.Url };
        string[] lines = Lines();
        JsonElement info = await GetAsync(client, "/api/info");
        Assert.Equal(lines.Length, info.GetProperty("events").GetInt32());
        foreach (int t in (int[])[0, 1, 700, 699, 1500, 1499, lines.Length, 700])
        {
            JsonElement space = await GetAsync(client, $"/api/virtual?t={t}");
            Assert.Equal(t, space.GetProperty("t").GetInt32());
            Dictionary<string, string> busy = space.GetProperty("areas").EnumerateArray()
                .Where(area => area.GetProperty("state").GetString() == "busy")
                .ToDictionary(area => area.GetProperty("start").GetString()!, area => area.GetProperty("end").GetString()!,
                    StringComparer.Ordinal);
            Assert.Equal(BusyAt(lines, t), busy);
            if (t == 0)
                continue;

            // Areas and holes cover the space without a gap.
            JsonElement[] parts = [.. space.GetProperty("areas").EnumerateArray(),
                .. space.GetProperty("holes").EnumerateArray()];
            ulong at = Hex(space.GetProperty("start"));
            foreach (JsonElement part in parts.OrderBy(it => Hex(it.GetProperty("start"))))
            {
                Assert.Equal(at, Hex(part.GetProperty("start")));
                at = Hex(part.GetProperty("end"));
            }

            Assert.Equal(Hex(space.GetProperty("end")), at);
            Assert.NotEqual(JsonValueKind.Null, space.GetProperty("tree").ValueKind);
        }
    }

    [Fact]
    public async Task AnAreaTellsItsMomentAndIsExplained()
    {
        using KmemExplorer explorer = KmemExplorer.Start(Open(), new ExplorerOptions());
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement e = (await GetAsync(client, "/api/events?kind=alloc_vmap_area&from=900&limit=1")).GetProperty("events")[0];
        int t = e.GetProperty("n").GetInt32() + 1;
        string start = e.GetProperty("address").GetString()!;
        Assert.Equal((start, "ok"), (e.GetProperty("recorded").GetString(), e.GetProperty("result").GetString()));
        JsonElement area = (await GetAsync(client, $"/api/virtual?t={t}")).GetProperty("areas").EnumerateArray()
            .Single(it => it.GetProperty("start").GetString() == start);
        Assert.Equal(t, area.GetProperty("born").GetInt32());
        Assert.True(area.GetProperty("guard").GetBoolean());
        JsonElement walk = await GetAsync(client, $"/api/walk?address={start}&t={t}");
        Assert.False(walk.GetProperty("mapped").GetBoolean());
        Assert.Contains("in bulk", walk.GetProperty("stop").GetString(), StringComparison.Ordinal);
        Assert.Equal(start, walk.GetProperty("area").GetProperty("start").GetString());
        Assert.Equal(4, walk.GetProperty("steps").GetArrayLength());
        JsonElement why = await GetAsync(client, $"/api/explain?address={start}&t={t}");
        Assert.Equal(start, why.GetProperty("explanation").GetProperty("area").GetProperty("start").GetString());
        JsonElement ofEvent = await GetAsync(client, $"/api/explain?event={t - 1}");
        Assert.Contains($"given out at {start}", ofEvent.GetProperty("summary").GetString(), StringComparison.Ordinal);
        JsonElement same = await GetAsync(client, $"/api/events?address={start}&from={t - 1}&limit=1");
        Assert.Equal(t - 1, same.GetProperty("events")[0].GetProperty("n").GetInt32());
    }

    [Fact]
    public async Task ARecordedStateHasItsAreasAndItsPageTables()
    {
        string folder = Path.Combine(Path.GetDirectoryName(s_sample)!, "..", "..", "..", "tests", "data", "boot-1cpu", "02-vm");
        RecordedKernel kernel = RecordedKernel.Read(folder);
        var source = new MachineSource(kernel.Machine, isAtWork: false, kernel)
        {
            Name = "02-vm",
            RecordedTables = kernel.Walk,
        };
        using KmemExplorer explorer = KmemExplorer.Start(source, new ExplorerOptions());
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement[] areas = [.. (await GetAsync(client, "/api/virtual")).GetProperty("areas").EnumerateArray()];
        Assert.Equal(
            kernel.Areas.Select(area => $"0x{area.Start.Value:x16}"),
            areas.Where(it => it.GetProperty("state").GetString() == "busy").Select(it => it.GetProperty("start").GetString()!),
            StringComparer.Ordinal);
        Assert.Contains(areas, it => it.GetProperty("kind").GetString() == "ioremap");
        JsonElement vmalloc = areas.First(it => it.GetProperty("kind").GetString() == "vmalloc"
            && it.GetProperty("pages").ValueKind == JsonValueKind.Number && it.GetProperty("pages").GetInt32() > 0);
        JsonElement walk = await GetAsync(client, $"/api/walk?address={vmalloc.GetProperty("start").GetString()}");
        Assert.True(walk.GetProperty("mapped").GetBoolean());
        Assert.NotEqual(JsonValueKind.Null, walk.GetProperty("steps")[1].GetProperty("table").ValueKind);
        JsonElement why = await GetAsync(client, $"/api/explain?address={vmalloc.GetProperty("start").GetString()}");
        Assert.True(why.GetProperty("explanation").GetProperty("mapping").GetProperty("mapped").GetBoolean());
    }

    internal static TraceSource Open() => TraceSource.Read(
        FtraceReader.Open(File.OpenRead(s_sample), "vmap"), new ReplayOptions { RamBytes = 1UL << 30 }, 1 << 20, "vmap");

    private static string[] Lines()
    {
        using var text = new StreamReader(new GZipStream(File.OpenRead(s_sample), CompressionMode.Decompress));
        return [.. text.ReadToEnd().Split('\n', StringSplitOptions.RemoveEmptyEntries).Where(line => line[0] != '#')];
    }

    private static Dictionary<string, string> BusyAt(string[] lines, int t)
    {
        var busy = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string line in lines.Take(t))
        {
            Match match = AreaLine().Match(line);
            if (match.Groups["free"].Success)
            {
                busy.Remove(match.Groups["free"].Value);
            }
            else if (match.Success)
            {
                ulong start = ulong.Parse(match.Groups["start"].Value, CultureInfo.InvariantCulture);
                ulong size = ulong.Parse(match.Groups["size"].Value, CultureInfo.InvariantCulture);
                busy[$"0x{start:x16}"] = $"0x{start + size:x16}";
            }
        }

        return busy;
    }

    private static ulong Hex(JsonElement text) => Convert.ToUInt64(text.GetString(), 16);

    private static async Task<JsonElement> GetAsync(HttpClient client, string path)
    {
        string text = await client.GetStringAsync(path, TestContext.Current.CancellationToken);
        return JsonDocument.Parse(text).RootElement;
    }

    [GeneratedRegex(@"alloc_vmap_area: va_start: (?<start>\d+) size=(?<size>\d+).*failed=0"
        + @"|free_vmap_area_noflush: va_start=(?<free>0x\w+)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex AreaLine();
}
