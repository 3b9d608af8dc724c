using System.Text.Json;

namespace Kmem.Tests;

/// <summary>Recorded kernel texts and what the tests of their readers share.</summary>
internal static class ProcTexts
{
    /// <summary>Recordings: each holds several files, every one after a line <c>=== name</c>.</summary>
    public static readonly string[] Recordings =
    [
        "proc-git-before", "proc-git-after", "proc-gcc-before", "proc-gcc-after", "proc-boot-slab-t0",
        "proc-boot-mixed-t1",
    ];

    /// <summary>The files that there is a reader for: reads and writes again.</summary>
    public static readonly Dictionary<string, Func<string, string>> Rewrite = new(StringComparer.Ordinal)
    {
        ["/proc/slabinfo"] = text => SlabInfoText.Parse(text).Render(),
        ["/proc/buddyinfo"] = text => BuddyInfoText.Parse(text).Render(),
        ["/proc/pagetypeinfo"] = text => PageTypeInfoText.Parse(text).Render(),
        ["/proc/zoneinfo"] = text => ZoneInfoText.Parse(text).Render(),
        ["/proc/vmstat"] = text => VmStatText.Parse(text).Render(),
        ["/proc/meminfo"] = text => MemInfoText.Parse(text).Render(),
    };

    public static Dictionary<string, string> Read(string recording)
    {
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        string[] parts = ("\n" + TestData.ReadGzip(recording + ".txt.gz")).Split("\n=== ");
        foreach (string part in parts.Skip(1))
        {
            int end = part.IndexOf('\n');
            bool last = ReferenceEquals(part, parts[^1]);
            if (end < 0) files[part] = "";
            else files[part[..end]] = part[(end + 1)..] + (last ? "" : "\n");
        }
        return files;
    }

    public static string Read(string recording, string file) => Read(recording)[file];

    /// <summary>All fields of a model; records with lists do not compare by value.</summary>
    public static string Fields<T>(T model) => JsonSerializer.Serialize(model);
}
