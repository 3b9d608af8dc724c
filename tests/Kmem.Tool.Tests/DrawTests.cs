using System.Text.RegularExpressions;
using System.Xml.Linq;

namespace Kmem.Tool.Tests;

/// <summary><c>kmem draw</c>: the pictures of the documents are drawn again, and every picture is whole.</summary>
public sealed partial class DrawTests
{
    private static readonly XNamespace s_svg = "http://www.w3.org/2000/svg";

    /// <summary>Each line of the walkthroughs that draws a picture, and the picture as it is in the
    /// repository.</summary>
    public static TheoryData<string, string> Pictures()
    {
        var pictures = new TheoryData<string, string>();
        foreach (string page in Directory.EnumerateFiles(Path.Combine(Tool.Repository, "docs/walkthroughs"), "*.md"))
        {
            foreach (Match match in DrawLine().Matches(File.ReadAllText(page)))
                pictures.Add(match.Groups["line"].Value, match.Groups["file"].Value);
        }

        return pictures;
    }

    [Theory]
    [MemberData(nameof(Pictures))]
    public async Task ThePicturesOfTheDocumentsAreWhatIsDrawn(string line, string file)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux() && Environment.SystemPageSize == 4096, "vmalloc needs Linux");
        string[] words = [.. Word().Matches(line).Select(match => match.Value.Trim('"', '\''))];
        words = [.. words.Select(word => word.StartsWith("samples/", StringComparison.Ordinal)
            ? Path.Combine(Tool.Repository, word) : word)];
        Outcome outcome = await Tool.Run([.. words, "-o", "-"]);
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Equal(
            File.ReadAllText(Path.Combine(Tool.Repository, file)).ReplaceLineEndings("\n"),
                outcome.Output.ReplaceLineEndings("\n"));
    }

    [Fact]
    public void EveryPictureHasALine() => Assert.Equal(
        Directory.EnumerateFiles(Path.Combine(Tool.Repository, "docs/walkthroughs/images")).Select(Path.GetFileName)
            .Order(StringComparer.Ordinal),
        Pictures().Select(row => Path.GetFileName(row.Data.Item2)).Order(StringComparer.Ordinal),
        StringComparer.Ordinal);

    /// <summary>Title and description for who does not see it, both schemes of colour, nothing outside of it.</summary>
    [Theory]
    [InlineData("slab")]
    [InlineData("buddy --blocks 3")]
    [InlineData("walk")]
    [InlineData("areas")]
    [InlineData("lanes")]
    [InlineData("lanes --profile native --cpus 12")]
    [InlineData("fragmentation")]
    [InlineData("walk --address ffffc90000010000")]
    [InlineData("buddy TRACE --at 20000")]
    [InlineData("slab TRACE --address ffff888100dee000 --at 1000")]
    [InlineData("lanes TRACE --cache filp")]
    [InlineData("fragmentation TRACE --ram 32M")]
    [InlineData("buddy --state STATE")]
    [InlineData("slab --state STATE --address ffff888002e0a080")]
    [InlineData("walk --state STATE --address ffffc90000000010")]
    [InlineData("areas --state STATE")]
    [InlineData("lanes --state STATE --cache kmalloc-128")]
    public async Task EveryPictureIsWhole(string line)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux() && Environment.SystemPageSize == 4096, "vmalloc needs Linux");
        Outcome outcome = await Tool.Run(["draw", .. Words(line), "-o", "-"]);
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        XElement svg = XDocument.Parse(outcome.Output).Root!;
        string[] box = ((string)svg.Attribute("viewBox")!).Split(' ');
        (double width, double height) = (Number(box[2]), Number(box[3]));
        Assert.True(svg.Element(s_svg + "title")!.Value.Length > 5);
        Assert.True(svg.Element(s_svg + "desc")!.Value.Length > 20);
        Assert.Contains("prefers-color-scheme: dark", outcome.Output, StringComparison.Ordinal);
        foreach (XElement rect in svg.Descendants(s_svg + "rect").Where(rect => rect.Attribute("x") != null))
        {
            double right = Number((string)rect.Attribute("x")!) + Number((string)rect.Attribute("width")!);
            double bottom = Number((string)rect.Attribute("y")!) + Number((string)rect.Attribute("height")!);
            Assert.True(right <= width && bottom <= height, rect.ToString());
        }

        foreach (XElement text in svg.Descendants(s_svg + "text"))
        {
            Assert.InRange(Number((string)text.Attribute("x")!), 0, width);
            Assert.InRange(Number((string)text.Attribute("y")!), 0, height);
        }
    }

    [Theory]
    [InlineData("nonsense -o -", "WHAT is 'nonsense'")]
    [InlineData("slab", "--output")]
    [InlineData("slab TRACE -o -", "which --address is meant?")]
    [InlineData("slab --address ffffc90000000000 -o -", "is in no slab")]
    [InlineData("slab --address #99 -o -", "no allocation of --do")]
    [InlineData("slab --address xyz -o -", "expected up to 16 hexadecimal digits")]
    [InlineData("lanes --cache nonsense -o -", "no cache named nonsense")]
    [InlineData("buddy --address ffff8880ffffffff -o -", "there is no memory")]
    [InlineData("buddy --blocks 9 -o -", "from 1 to 8")]
    [InlineData("fragmentation --state STATE -o -", "over time")]
    [InlineData("slab TRACE --do purge -o -", "exclude each other")]
    [InlineData("slab --at 5 -o -", "--at is for a recording")]
    [InlineData("slab --state STATE --ram 1G -o -", "--state is a machine already")]
    [InlineData("slab --do nonsense -o -", "--do has the step 'nonsense'")]
    [InlineData("slab --do free_1 -o -", "there is no allocation 1")]
    [InlineData("slab --do kmalloc_100;free_1;free_1 -o -", "allocation 1 is free already")]
    [InlineData("slab --do kmalloc_100_x_0 -o -", "--do has the step")]
    [InlineData("slab --do pages_11 -o -", "--do has the step")]
    [InlineData("slab --do cpu_5 -o -", "CPU")]
    [InlineData("slab -o /no/such/folder/x.svg", "cannot be written")]
    public async Task WrongUseIsOneLine(string line, string part)
    {
        Outcome outcome = await Tool.Run(["draw", .. Words(line).Select(word =>
            word.Contains(".gz", StringComparison.Ordinal) || word.Contains("boot-1cpu", StringComparison.Ordinal)
                ? word : word.Replace('_', ' '))]);
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.Contains(part, outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    private static string[] Words(string line) => [.. line.Split(' ').Select(word => word switch
    {
        "TRACE" => Tool.SampleTrace,
        "STATE" => Path.Combine(Tool.Repository, "tests/data/boot-1cpu/02-vm"),
        _ => word,
    })];

    private static double Number(string text) => double.Parse(text, System.Globalization.CultureInfo.InvariantCulture);

    [GeneratedRegex(
        "^kmem (?<line>draw .*) -o (?<file>\\S+)$",
        RegexOptions.Multiline | RegexOptions.ExplicitCapture,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex DrawLine();

    [GeneratedRegex("\"[^\"]*\"|'[^']*'|\\S+", RegexOptions.None, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Word();
}
