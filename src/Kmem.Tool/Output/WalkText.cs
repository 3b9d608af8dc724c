using Kmem.Tool.Commands;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>The text of <c>kmem walk</c>: the areas, each entry on the way, and what is at its end.</summary>
internal static class WalkText
{
    private const int MaxAreas = 8;

    internal static void Write(IAnsiConsole console, WalkReport report)
    {
        PageWalk walk = report.Walk;
        foreach (WalkArea area in Neighbours(report))
        {
            string mark = area == report.Area ? "*" : " ";
            console.Paragraph($"{mark} area 0x{area.Start:x16}-0x{area.End:x16}  {area.Text}");
        }

        console.Heading($"0x{walk.Address:x16} ({walk.Region})");
        Table table = Screen.Table("level", ">table at", ">entry", ">value", "flags", "leads to");
        foreach (PageWalkStep step in walk.Steps)
        {
            table.Row(
                step.Name,
                step.TablePfn == Pfn.None.Value ? "?" : $"0x{step.TablePfn << Pfn.PageShift:x}",
                $"{step.Index}",
                $"0x{step.Entry:x16}",
                step.FlagNames(),
                Target(step, walk));
        }

        console.Write(table);
        if (report.Stop is { } stop)
        {
            console.Paragraph(stop);
            return;
        }

        console.Paragraph($"physical     {walk.PhysicalAddress}: frame {walk.Pfn}, byte {walk.Offset}");
        console.Paragraph($"may          {walk.Prot}, {walk.CacheMode}");
        console.Paragraph(
            "page         " + (report.Frame is { } frame ? FrameText(frame) : "no memory of this machine"));
        if (report.DirectMapAddress is { } direct)
            console.Paragraph($"direct map   0x{direct}: the same byte");
        console.Paragraph($"in an oops   {walk}");
    }

    private static string FrameText(PageFrameInfo frame)
    {
        string references = frame.References == 1 ? "1 reference" : $"{frame.References} references";
        string flags = frame.Flags.Count == 0 ? "none" : string.Join('|', frame.Flags);
        return $"{frame.Use}, order {frame.Order}, {references}, zone {frame.Zone} of node {frame.Node}, flags {flags}";
    }

    /// <summary>The area of the address and those around it, if there are many.</summary>
    private static IEnumerable<WalkArea> Neighbours(WalkReport report)
    {
        int at = report.Areas.ToList().FindIndex(area => area.End > report.Walk.Address);
        int first = Math.Clamp((at < 0 ? 0 : at) - (MaxAreas / 2), 0, Math.Max(0, report.Areas.Count - MaxAreas));
        return report.Areas.Skip(first).Take(MaxAreas);
    }

    private static string Target(PageWalkStep step, PageWalk walk) =>
        step.Leaf ? $"frame {step.Target}, {ByteSize.Format(walk.LeafBytes)}"
        : step.Bad ? "nowhere: bad entry"
        : step.Present ? $"table 0x{step.Target.Address.Value:x}"
        : "nothing";
}
