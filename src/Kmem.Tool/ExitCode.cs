namespace Kmem.Tool;

/// <summary>How a command tells a script what came out.</summary>
internal static class ExitCode
{
    /// <summary>Done, and nothing to worry about.</summary>
    internal const int Fine = 0;

    /// <summary>Done, and something was found: a difference, a broken rule, a failed allocation.</summary>
    internal const int Found = 1;

    /// <summary>Not done: the command line or the input is wrong.</summary>
    internal const int WrongUse = 2;

    /// <summary>Ended by Ctrl-C: 128 + SIGINT, as shells count.</summary>
    internal const int Interrupted = 130;
}

/// <summary>The command line or an input is wrong; the message names the input and the rule, in one line.</summary>
internal sealed class ToolException(string message, Exception? inner = null) : Exception(message, inner);
