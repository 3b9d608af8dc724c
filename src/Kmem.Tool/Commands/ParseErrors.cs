using System.CommandLine;
using System.CommandLine.Parsing;

namespace Kmem.Tool.Commands;

/// <summary>Makes one line of what the parser found wrong with a command line.</summary>
internal static class ParseErrors
{
    /// <summary>The most telling error, and where to read on.</summary>
    internal static string Describe(ParseResult parsed)
    {
        Command command = parsed.CommandResult.Command;
        string path = command is RootCommand ? "kmem" : $"kmem {command.Name}";
        return $"kmem: {What(parsed, command)} (see '{path} --help')";
    }

    // A word that nothing knows is most likely the cause of the other errors.
    private static string What(ParseResult parsed, Command command)
    {
        if (parsed.UnmatchedTokens is [string word, ..]) return Unknown(word, command);
        if (command is RootCommand) return $"no command given; there are {Join(Names(command.Subcommands))}";
        string message = parsed.Errors[0].Message.TrimEnd('.');
        bool name = message.Length > 1 && char.IsUpper(message[1]);     // ADDRESS, TRACE: stay as they are
        return name ? message : char.ToLowerInvariant(message[0]) + message[1..];
    }

    private static string Unknown(string word, Command command)
    {
        bool isOption = word.StartsWith('-') && word.Length > 1;
        bool isCommand = !isOption && command.Subcommands.Count > 0;
        string[] known = isOption ? [.. Names(command.Options), "--help"] : isCommand ? Names(command.Subcommands) : [];
        string what = isOption ? "unknown option" : isCommand ? "unknown command" : "unexpected argument";

        string? near = known.MinBy(name => Distance(word, name));
        string hint = near is null ? ""
            : Distance(word, near) <= Math.Max(2, near.Length / 3) ? $"; did you mean '{near}'?"
            : isCommand ? $"; there are {Join(known)}"
            : "";
        return $"{what} '{word}'{hint}";
    }

    private static string[] Names(IEnumerable<Symbol> symbols) =>
        [.. symbols.Where(symbol => !symbol.Hidden).Select(symbol => symbol.Name)];

    private static string Join(string[] names) => string.Join(" and ", names.Select(name => $"'{name}'"));

    /// <summary>How many letters must be changed, added or dropped (Levenshtein).</summary>
    internal static int Distance(string a, string b)
    {
        int[] row = [.. Enumerable.Range(0, b.Length + 1)];
        for (int i = 1; i <= a.Length; i++)
        {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= b.Length; j++)
            {
                int changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(changed, Math.Min(row[j], row[j - 1]) + 1);
            }
        }
        return row[b.Length];
    }
}
