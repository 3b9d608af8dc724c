using System.CommandLine;

namespace Kmem.Tool.Commands;

/// <summary><c>kmem replay</c>.</summary>
internal sealed class ReplayCommand : Command
{
    public ReplayCommand()
        : base("replay", "Replays a trace.")
    {
    }
}
