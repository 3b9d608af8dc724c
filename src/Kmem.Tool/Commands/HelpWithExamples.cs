using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.Reflection;

namespace Kmem.Tool.Commands;

/// <summary>A command that shows its use by examples.</summary>
internal interface IHasExamples
{
    /// <summary>Command lines without <c>kmem</c>, and what each does.</summary>
    IReadOnlyList<(string CommandLine, string Does)> Examples { get; }
}

/// <summary>The parser's help, followed by examples: of one command, or of all for <c>kmem --help</c>.</summary>
internal sealed class HelpWithExamples(HelpAction help) : SynchronousCommandLineAction
{
    public override bool ClearsParseErrors => true;

    public override int Invoke(ParseResult parseResult)
    {
        help.Invoke(parseResult);
        TextWriter output = parseResult.InvocationConfiguration.Output;
        Command command = parseResult.CommandResult.Command;
        output.WriteLine("Examples:");
        foreach ((string line, string does) in command.Subcommands.Append(command).OfType<IHasExamples>()
            .SelectMany(it => it.Examples))
        {
            output.WriteLine($"  kmem {line}");
            output.WriteLine($"      {does}");
        }
        output.WriteLine();
        output.WriteLine("Exit code: 0 fine, 1 found something, 2 wrong use, 130 Ctrl-C.");
        return ExitCode.Fine;
    }
}

/// <summary><c>kmem --version</c>.</summary>
internal sealed class PrintVersion : SynchronousCommandLineAction
{
    public override bool ClearsParseErrors => true;

    public override int Invoke(ParseResult parseResult)
    {
        Assembly assembly = typeof(PrintVersion).Assembly;
        string version = assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;
        parseResult.InvocationConfiguration.Output.WriteLine($"kmem {version.Split('+')[0]}");
        return ExitCode.Fine;
    }
}
