using System.Globalization;
using System.Text;

namespace Kmem.Tracing;

/// <summary>
/// An SVG drawing, put together piece by piece: text with a title and a description for those who do not see it,
/// colours that colour-blind readers tell apart (Okabe and Ito), for light and dark pages. The same calls give the same
/// text.
/// </summary>
/// <remarks>Widths of texts are estimated: fonts are the reader's. A place for a text is 10 % wider than it
/// needs.</remarks>
internal sealed class Svg(int width)
{
    /// <summary>Width of a drawing: what fits into a page of a document.</summary>
    public const int PageWidth = 960;

    private const string Style =
        """
          <style>
            text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1f2328; }
            .title { font-size: 17px; font-weight: 600; } .b { font-weight: 600; }
            .s { font-size: 11.5px; fill: #59636e; }
            .m { font-family: ui-monospace, monospace; font-size: 12px; } .i { font-size: 11px; }
            .e { text-anchor: end; } .c { text-anchor: middle; }
            .page { fill: #ffffff; } .box { fill: #f6f8fa; stroke: #8c959f; } .line { stroke: #8c959f; fill: none; }
            .free { fill: #ffffff; stroke: #8c959f; } .none { fill: #eaeef2; stroke: #d0d7de; }
            .c1 { fill: #a6d2ec; stroke: #0072b2; } .c2 { fill: #fbd9a5; stroke: #b56500; }
            .c3 { fill: #a5dccb; stroke: #00785a; }
            .c4 { fill: #f3c1a5; stroke: #d55e00; } .c5 { fill: #ecc6da; stroke: #a8487f; }
            .c6 { fill: #f4ec9a; stroke: #837500; }
            .l1 { stroke: #0072b2; } .l2 { stroke: #b56500; } .l3 { stroke: #00785a; } .l4 { stroke: #d55e00; }
            .l1, .l2, .l3, .l4 { fill: none; stroke-width: 1.8; } .tip1 { fill: #0072b2; } .tip2 { fill: #b56500; }
            .tip3 { fill: #00785a; } .tip4 { fill: #d55e00; } .hit { fill: none; stroke: #d55e00; stroke-width: 3; }
            @media (prefers-color-scheme: dark) {
              text { fill: #e6edf3; } .s { fill: #9198a1; } .page { fill: #0d1117; }
              .box { fill: #161b22; stroke: #6e7681; } .line { stroke: #6e7681; }
              .free { fill: #0d1117; stroke: #6e7681; }
              .none { fill: #21262d; stroke: #30363d; }
              .c1 { fill: #12415c; stroke: #56b4e9; } .c2 { fill: #543c0a; stroke: #e69f00; }
              .c3 { fill: #0b4a3a; stroke: #2bc79a; }
              .c4 { fill: #5c2d0c; stroke: #ff8a3d; } .c5 { fill: #512a40; stroke: #e39ac3; }
              .c6 { fill: #45400c; stroke: #f0e442; }
              .l1 { stroke: #56b4e9; } .l2 { stroke: #e69f00; } .l3 { stroke: #2bc79a; } .l4 { stroke: #ff8a3d; }
              .tip1 { fill: #56b4e9; } .tip2 { fill: #e69f00; } .tip3 { fill: #2bc79a; } .tip4 { fill: #ff8a3d; }
              .hit { stroke: #ff8a3d; }
            }
          </style>
        """;

    private readonly StringBuilder _body = new();

    /// <summary>A rectangle; class names give its colours.</summary>
    public void Box(double x, double y, double w, double h, string type, double round = 0)
    {
        string corners = round == 0 ? "" : Text($" rx=\"{round:0.#}\"");
        Line($"<rect x=\"{x:0.#}\" y=\"{y:0.#}\" width=\"{w:0.#}\" height=\"{h:0.#}\"{corners} class=\"{type}\"/>");
    }

    /// <summary>A text from a point on its base line; <c>m</c> mono, <c>s</c> small, <c>e</c> to the left, <c>c</c>
    /// centred.</summary>
    public void Word(double x, double y, string text, string type = "")
    {
        string classes = type.Length == 0 ? "" : $" class=\"{type}\"";
        Line($"<text x=\"{x:0.#}\" y=\"{y:0.#}\"{classes}>{Escape(text)}</text>");
    }

    public void Stroke(double x1, double y1, double x2, double y2, string type = "line") =>
        Line($"<path d=\"M{x1:0.#} {y1:0.#}L{x2:0.#} {y2:0.#}\" class=\"{type}\"/>");

    /// <summary>An arrow along a path; colours 1 to 4.</summary>
    public void Arrow(FormattableString path, int colour, string extra = "") =>
        Line($"<path d=\"{Text(path)}\" class=\"l{colour}\"{extra} marker-end=\"url(#tip{colour})\"/>");

    /// <summary>A line through points.</summary>
    public void Curve(IEnumerable<(double X, double Y)> points, int colour, string dashes)
    {
        string path = string.Join('L', points.Select(point => Text($"{point.X:0.#} {point.Y:0.#}")));
        string dash = dashes.Length == 0 ? "" : $" stroke-dasharray=\"{dashes}\"";
        Line($"<path d=\"M{path}\" class=\"l{colour}\"{dash}/>");
    }

    /// <summary>The drawing as a file.</summary>
    public string Finish(double height, string title, string description)
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} ")
            .Append(CultureInfo.InvariantCulture, $"{height:0}\" width=\"{width}\" role=\"img\" ")
            .Append("aria-labelledby=\"title desc\">\n")
            .Append(CultureInfo.InvariantCulture, $"  <title id=\"title\">{Escape(title)}</title>\n")
            .Append(CultureInfo.InvariantCulture, $"  <desc id=\"desc\">{Escape(description)}</desc>\n")
            .Append(Style).Append("\n  <defs>\n");
        for (int colour = 1; colour <= 4; colour++)
        {
            text.Append(CultureInfo.InvariantCulture,
                $"    <marker id=\"tip{colour}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" ")
                .Append("markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\">")
                .Append(CultureInfo.InvariantCulture, $"<path d=\"M0 0 8 4 0 8z\" class=\"tip{colour}\"/></marker>\n");
        }

        text.Append("  </defs>\n")
            .Append(CultureInfo.InvariantCulture, $"  <rect width=\"{width}\" height=\"{height:0}\" class=\"page\"/>\n")
            .Append(CultureInfo.InvariantCulture, $"  <text x=\"20\" y=\"32\" class=\"title\">{Escape(title)}</text>\n")
            .Append(_body).Append("</svg>\n");
        return text.ToString();
    }

    /// <summary>A row of coloured samples with words; returns where the next row may start.</summary>
    public double Legend(double y, IEnumerable<(string Type, string Words)> entries)
    {
        double x = 20;
        foreach ((string type, string words) in entries)
        {
            double needs = 34 + (7.2 * words.Length);
            if (x + needs > width - 20)
            {
                x = 20;
                y += 22;
            }

            Box(x, y, 16, 12, type);
            Word(x + 22, y + 11, words, "i");
            x += needs;
        }

        return y + 26;
    }

    /// <summary>A text of invariant form.</summary>
    public static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);

    /// <summary>Bytes as people say them.</summary>
    public static string Bytes(double bytes)
    {
        string[] units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        int unit = 0;
        while (bytes >= 1024 && unit + 1 < units.Length)
        {
            bytes /= 1024;
            unit++;
        }

        return Text($"{bytes:0.#} {units[unit]}");
    }

    private void Line(FormattableString line) => _body.Append("  ").Append(Text(line)).Append('\n');

    private static string Escape(string text) =>
        text.Replace("&", "&amp;", StringComparison.Ordinal).Replace("<", "&lt;", StringComparison.Ordinal)
            .Replace(">", "&gt;", StringComparison.Ordinal);
}
