using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>The sentences at the end of explanations, made from their values.</summary>
internal static class ExplanationText
{
    public static string Of(Explanation it)
    {
        string what = it.Kind switch
        {
            AddressKind.Nothing => Nothing(it),
            AddressKind.Reserved => $"is in frame {it.Page!.Frame}, which was never given to the page allocator",
            AddressKind.FreeBlock => FreeBlock(it),
            AddressKind.PcpList => Pcp(it.Pcp!),
            AddressKind.PageTable => Table(it),
            AddressKind.SlabObject => Text(
                $"is byte {it.Object!.Offset} of object {it.Object.Number} of {it.Slab!.Cache}, allocated"),
            AddressKind.FreeObject => Text(
                $"is in object {it.Object!.Number} of {it.Slab!.Objects} in a slab of {it.Slab.Cache}, free: on the ")
                + it.Object.FreeOn,
            AddressKind.SlabPadding => Text($"is in a slab of {it.Slab!.Cache} ({it.Slab.Live} of {it.Slab.Objects} ")
                + "objects allocated), between objects",
            AddressKind.LargeKmalloc => Text($"is byte {it.Object!.Offset} of a kmalloc block of {it.Object.Size} bytes, ")
                + Text($"whole pages of order {it.Page!.Order}"),
            AddressKind.VmallocPage => Text(
                $"is in page {it.Area!.Page} of the area 0x{it.Area.Start}{By(it.Area)}, frame {it.Page!.Frame}"),
            AddressKind.GuardPage =>
                $"is in the guard page behind the area 0x{it.Area!.Start}: nothing is mapped there",
            _ => Text($"is in an allocated block of order {it.Page!.Order}, frame {it.Page.BlockFirst}")
                + (it.Page.References > 0 ? Text($", {Count(it.Page.References, "reference")}") : ""),
        };
        var text = new StringBuilder($"0x{it.Address} {what}");
        if (it.Life.LastOrDefault(IsBirth) is { } birth
            && it.Kind is AddressKind.SlabObject or AddressKind.LargeKmalloc)
            text.Append(Birth(birth));
        text.Append('.');
        if (it.Kind == AddressKind.SlabObject)
        {
            text.Append(Text($" Its slab, {it.Slab!.Place}, has {it.Slab.Live} of {it.Slab.Objects} objects "))
                .Append("allocated.");
        }

        if (it.Decision?.Source is { } source)
            text.Append(' ').Append(Source(it, it.Decision, source));
        return text.ToString();
    }

    public static string Of(RequestExplanation it)
    {
        string request = Text($"A request for order {it.Order} ({Kib(1L << it.Order)}) with {it.Gfp.ToKernelString()}");
        if (it.WouldSucceed)
        {
            ZoneLack zone = it.Zones.First(zone => zone.AboveLow || zone.AboveMin);
            return Text($"{request} would be served by zone {zone.Zone} of node {zone.Node}, which has ")
                + Text($"{Kib(zone.Free)} free and is above {(zone.AboveLow ? "LOW" : "MIN")}.");
        }

        if (it.Zones.Count == 0)
            return $"{request} fails: no zone may serve it.";

        string lacks = string.Join("; ", it.Zones.Select(Lack));
        return $"{request} fails: {lacks}. " + Way(it);
    }

    private static string Lack(ZoneLack zone) => zone.MissingFrames > 0
        ? Text($"zone {zone.Zone} has {Kib(zone.Free)} free, {Kib(zone.MissingFrames)} too few to stay above MIN")
        : Text($"zone {zone.Zone} has {Kib(zone.Free)} free, but nothing larger than order {zone.LargestUsable}");

    private static string Way(RequestExplanation it)
    {
        if (it.Pinned.Count == 0)
            return "No block of that order can become free.";

        PinnedBlock best = it.Pinned[0];
        return best.Objects == 0
            ? Text($"The block at {best.First} is free but for what CPUs keep on their lists.")
            : Text($"Freeing {Count(best.Objects, "object")} gives back {Kib(best.FramesInUse)} and completes the ")
                + Text($"block of order {best.Order} at {best.First} in zone {best.Zone}: {Names(best)}.");
    }

    private static string Names(PinnedBlock block)
    {
        string[] names = [.. block.Pins.GroupBy(pin => pin.What, StringComparer.Ordinal)
            .Select(group => Text($"{group.Count()} × {group.Key}"))];
        bool all = block.Pins.Count >= block.Objects;
        return string.Join(", ", names) + (all ? "" : ", …");
    }

    private static string Nothing(Explanation it) =>
        it.Region == "not canonical" ? "is not canonical: no processor accepts it"
        : it.Area is { } area ? $"is in the area 0x{area.Start} ({area.State}), but nothing is mapped there"
        : it.Mapping is { Mapped: false, Steps: [.., var last] }
            ? Text($"is not mapped: the walk ends at the {last.Level}, entry {last.Index}")
        : it.Mapping is { Mapped: true } ? "is mapped to memory that is not this machine's RAM"
        : it.Region == "direct map" ? "is in a hole: there is no memory"
        : "is not memory of this machine";

    private static string FreeBlock(Explanation it)
    {
        ExplainedFreeBlock free = it.FreeBlock!;
        string buddy = free.Order == PageOrder.Max ? "" : $"; its buddy {free.Buddy} is {free.BuddyUse}";
        return Text($"is free: in the block of order {free.Order} at {free.First}, ")
            + Text($"{Place(free.Position)} on the {free.List} list of zone {it.Zone!.Name}{buddy}");
    }

    private static string By(ExplainedArea area) => area.Caller == "unknown" ? "" : $" made by {area.Caller}";

    private static string Place(int position) => position switch
    {
        < 0 => "not",
        0 => "first",
        1 => "second",
        2 => "third",
        _ => Text($"number {position + 1}"),
    };

    private static string Pcp(ExplainedPcpEntry entry) =>
        Text($"is free, on CPU {entry.Cpu}'s {entry.List} list of order {entry.Order}, {entry.Position} of {entry.Length} ")
            + "before it";

    private static string Table(Explanation it) => it.Table is { } table
        ? Text($"is in a page table, a {table.Name} table with {table.Present} of 512 entries in use ")
            + $"for 0x{table.Maps} up"
        : "is in a page table";

    private static bool IsBirth(LifeEvent e) => e.Kind == LifeEventKind.ObjectAllocated;

    private static string Birth(LifeEvent birth)
    {
        string who = birth.CallSite is { } site ? $" by {site}" : "";
        return Text($". It was asked for at event {birth.Event}{who} on CPU {birth.Cpu}, {birth.Bytes} bytes");
    }

    private static string Source(Explanation it, PageDecision decision, BlockSource source)
    {
        string thing = it.Slab != null ? "The slab's pages" : "Its pages";
        string zone = decision.Zones.FirstOrDefault(zone => zone.Result == ZoneResult.Served) is { } served
            ? Text($" in zone {served.Zone}, then {Kib(Math.Max(0, served.Free - served.Low))} above LOW")
            : "";
        string place = source.Place switch
        {
            BlockPlace.CpuList => Text($"were on CPU {decision.Cpu}'s list"),
            BlockPlace.CpuListRefilled => Text($"came from a refill of CPU {decision.Cpu}'s list"),
            _ => "came from the free lists",
        };
        string cut = source.Splits == 0 ? ""
            : Text($", cut from a free block of order {source.FoundOrder} by {Count(source.Splits, "split")}");
        string stolen = !source.Stolen ? ""
            : source.BlockClaimed ? Text($", {source.FoundType} until then, with its pageblock")
            : Text($", taken from a pageblock of type {source.FoundType}");
        string slow = decision.SlowPath.Count == 0 ? ""
            : Text($", after the slow path: {string.Join(", ", decision.SlowPath)}");
        return Text($"{thing} (event {decision.Event}) {place}{zone}{cut}{stolen}{slow}.");
    }

    private static string Count(long count, string thing) => Text($"{count} {thing}{(count == 1 ? "" : "s")}");

    /// <summary>Frames as people say them.</summary>
    private static string Kib(long frames) => frames < 256 ? Text($"{frames * 4} KiB")
        : frames < 256 << 10 ? Text($"{frames / 256.0:0.#} MiB")
        : Text($"{frames / 262144.0:0.#} GiB");

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
