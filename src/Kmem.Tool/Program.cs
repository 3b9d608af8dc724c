using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Parsing;
using Kmem.Tool.Commands;

namespace Kmem.Tool;

/// <summary>The command line <c>kmem</c>: the root command, and how every command ends.</summary>
/// <remarks>
/// <code>
/// exit   0  fine          stdout: the answer, and nothing else
///        1  found something, such as a difference
///        2  wrong use     stderr: one line that names the input and the rule
///      130  Ctrl-C
/// </code>
/// </remarks>
internal static class Program
{
    private static Task<int> Main(string[] args) => RunAsync(args, Console.Out, Console.Error);

    /// <summary>Runs one command line.</summary>
    /// <param name="args">The words after <c>kmem</c>.</param>
    /// <param name="output">Receives the answer.</param>
    /// <param name="error">Receives the error line, and the progress bar if it is a terminal.</param>
    /// <returns>The exit code, one of <see cref="ExitCode"/>.</returns>
    internal static async Task<int> RunAsync(string[] args, TextWriter output, TextWriter error)
    {
        ParseResult parsed = Parse(args);
        if (IsWrong(parsed))
        {
            await error.WriteLineAsync(ParseErrors.Describe(parsed));
            return ExitCode.WrongUse;
        }

        try
        {
            return await parsed.InvokeAsync(new InvocationConfiguration
            {
                Output = output,
                Error = error,
                EnableDefaultExceptionHandler = false,
                ProcessTerminationTimeout = TimeSpan.FromMilliseconds(500),
            });
        }
        catch (ToolException e)
        {
            await error.WriteLineAsync($"kmem: {e.Message}");
            return ExitCode.WrongUse;
        }
        catch (IOException e)
        {
            // What concerns an input was said above, with its name.
            await error.WriteLineAsync($"kmem: the output cannot be written: {e.Message}");
            return ExitCode.WrongUse;
        }
        catch (OperationCanceledException)
        {
            return ExitCode.Interrupted;
        }
    }

    /// <summary>What a command line means, before anything of it is done.</summary>
    internal static ParseResult Parse(string[] args) =>
        CreateRoot().Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });

    private static RootCommand CreateRoot()
    {
        var root = new RootCommand("The memory allocators of the Linux kernel, at work: replays traces, computes slabs.")
        {
            new ReplayCommand(),
            new CompareCommand(),
            new GeometryCommand(),
            new PredictCommand(),
            new WalkCommand(),
            new ExplainCommand(),
            new DrawCommand(),
            new ServeCommand(),
            new ExportCommand(),
            new SoakCommand(),
            new BenchCommand(),
            new BenchChildCommand(),
        };
        root.HelpName = "kmem";
        foreach (Option option in root.Options)
        {
            if (option is HelpOption help) help.Action = new HelpWithExamples((HelpAction)help.Action!);
            if (option is VersionOption version) version.Action = new PrintVersion();
        }
        return root;
    }

    // --help and --version answer whatever else is wrong.
    private static bool IsWrong(ParseResult parsed) =>
        parsed.Errors.Count > 0 && parsed.Action is not (HelpWithExamples or PrintVersion);
}
