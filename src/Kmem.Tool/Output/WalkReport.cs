namespace Kmem.Tool.Output;

/// <summary>An area of the vmalloc space.</summary>
/// <param name="Start">First byte.</param>
/// <param name="End">One past the last byte, guard page included.</param>
/// <param name="Text">What is known about it.</param>
internal sealed record WalkArea(ulong Start, ulong End, string Text);

/// <summary>The way of an address, what it ended at, and which area it is in.</summary>
/// <param name="Machine">Whose memory it is.</param>
/// <param name="Walk">The way.</param>
/// <param name="Areas">All areas, in order of address.</param>
internal sealed record WalkReport(Machine Machine, PageWalk Walk, IReadOnlyList<WalkArea> Areas)
{
    internal WalkArea? Area { get; } =
        Areas.LastOrDefault(area => Walk.Address >= area.Start && Walk.Address < area.End);

    internal PageFrameInfo? Frame { get; } = Walk.IsMapped ? Machine.DescribeFrame(Walk.Pfn) : null;

    /// <summary>Where the same byte is in the direct map; null if it is not memory of the machine.</summary>
    internal unsafe VirtAddr? DirectMapAddress => Frame is null
        ? null
        : Machine.KernelAddressOf((byte*)Machine.AddressOf(Walk.Pfn) + Walk.Offset);

    /// <summary>Why the way ended without a frame.</summary>
    internal string? Stop
    {
        get
        {
            if (Walk.IsMapped) return null;
            PageWalkStep last = Walk.Steps[^1];
            string why = last.Bad ? "neither empty nor a table nor a leaf" : "empty";
            string guard = Area is { } area && Walk.Address >= area.End - Pfn.PageSize
                ? "; it is in the area's guard page"
                : "";
            return $"Nothing is mapped at 0x{Walk.Address:x16}: the walk stops at the {last.Name}, "
                + $"entry {last.Index} is {why}{guard}.";
        }
    }
}

/// <summary>JSON of <c>kmem walk</c>; addresses and entries are texts in hexadecimal.</summary>
internal sealed record WalkJson(
    string Address, string Region, bool Mapped, IReadOnlyList<WalkStepJson> Steps, string? Stop, string? Physical,
    ulong LeafBytes, string Prot, string CacheMode, string? DirectMap, WalkFrameJson? Frame, WalkAreaJson? Area,
    string Oops)
{
    internal static WalkJson Of(WalkReport report)
    {
        PageWalk walk = report.Walk;
        return new WalkJson(
            Hex(walk.Address),
            walk.Region,
            walk.IsMapped,
            [.. walk.Steps.Select(step => new WalkStepJson(
                step.Name,
                step.TablePfn == Pfn.None.Value ? null : Hex(step.TablePfn << Pfn.PageShift),
                step.Index,
                Hex(step.Entry),
                step.FlagNames()))],
            report.Stop,
            walk.IsMapped ? Hex(walk.PhysicalAddress.Value) : null,
            walk.LeafBytes,
            walk.Prot.ToString(),
            walk.CacheMode.ToString(),
            report.DirectMapAddress is { } direct ? Hex(direct.Value) : null,
            report.Frame is { } frame
                ? new WalkFrameJson(
                    frame.Frame.ToString(), frame.Node, frame.Zone, frame.Use, frame.Order, frame.References, frame.Flags)
                : null,
            report.Area is { } area ? new WalkAreaJson(Hex(area.Start), Hex(area.End), area.Text) : null,
            walk.ToString());
    }

    private static string Hex(ulong value) => $"0x{value:x}";
}

/// <summary>One entry on the way.</summary>
internal sealed record WalkStepJson(string Level, string? Table, int Index, string Entry, string Flags);

/// <summary>The frame at its end.</summary>
internal sealed record WalkFrameJson(
    string Pfn, int Node, string Zone, string Use, int Order, int References, IReadOnlyList<string> Flags);

/// <summary>The area that the address is in.</summary>
internal sealed record WalkAreaJson(string Start, string End, string Text);
