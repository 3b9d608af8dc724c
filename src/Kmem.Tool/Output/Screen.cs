using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>Where tables are drawn: a terminal with its width and colours, or a file with neither.</summary>
internal static class Screen
{
    /// <summary>Columns of a line in a file, and at most on a terminal: wider tables are hard to read.</summary>
    private const int Columns = 100;

    /// <summary>Draws on a writer. Anything but a terminal gets plain text, 100 columns wide at most.</summary>
    internal static void Draw(TextWriter output, Action<IAnsiConsole> draw)
    {
        if (IsTerminal(output))
        {
            IAnsiConsole terminal = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(output) });
            terminal.Profile.Width = Math.Clamp(terminal.Profile.Width, 40, Columns);
            draw(terminal);
            return;
        }

        var text = new StringWriter();
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Out = new AnsiConsoleOutput(text),
            Ansi = AnsiSupport.No,
            ColorSystem = ColorSystemSupport.NoColors,
            Interactive = InteractionSupport.No,
            Enrichment = new ProfileEnrichment { UseDefaultEnrichers = false },
        });
        console.Profile.Width = Columns;
        console.Profile.Capabilities.Unicode = true;
        draw(console);
        foreach (ReadOnlySpan<char> line in text.ToString().AsSpan().TrimEnd('\n').EnumerateLines())
            output.WriteLine(line.TrimEnd(' '));
    }

    /// <summary>Whether a person looks at what is written here.</summary>
    internal static bool IsTerminal(TextWriter writer)
    {
        if (Environment.GetEnvironmentVariable("TERM") == "dumb") return false;
        return (ReferenceEquals(writer, Console.Out) && !Console.IsOutputRedirected)
            || (ReferenceEquals(writer, Console.Error) && !Console.IsErrorRedirected);
    }

    /// <summary>A table without lines but one below its head; text to the left, numbers to the right.</summary>
    /// <param name="columns">The heads; one that begins with <c>&gt;</c> is over numbers.</param>
    internal static Table Table(params ReadOnlySpan<string> columns)
    {
        Table table = new Table().Border(TableBorder.Simple);
        foreach (string column in columns)
        {
            bool number = column.StartsWith('>');
            string head = Markup.Escape(number ? column[1..] : column);
            table.AddColumn(new TableColumn($"[bold]{head}[/]")
            {
                Alignment = number ? Justify.Right : Justify.Left,
                NoWrap = number,
            });
        }
        return table;
    }

    /// <summary>Adds a row of plain texts.</summary>
    internal static void Row(this Table table, params ReadOnlySpan<string> cells)
    {
        var texts = new Text[cells.Length];
        for (int i = 0; i < cells.Length; i++) texts[i] = new Text(cells[i]);
        table.AddRow(texts);
    }

    /// <summary>Writes a heading.</summary>
    internal static void Heading(this IAnsiConsole console, string text)
    {
        console.WriteLine();
        console.MarkupLine($"[bold]{Markup.Escape(text)}[/]");
    }

    /// <summary>Writes a paragraph, wrapped at the width of the screen.</summary>
    internal static void Paragraph(this IAnsiConsole console, string text) => console.Write(new Text(text + "\n"));
}
