using System.CommandLine;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>Replays a recording that a user names; every failure is a line that names the input and the rule.</summary>
internal static class ReplayInput
{
    /// <exception cref="ToolException">It cannot be read, is no recording, or the machine cannot be built.</exception>
    internal static ReplayResult Run(ParseResult parsed, string path, ReplayOptions options, CancellationToken cancel)
    {
        string name = InputFile.NameOf(path);
        Stream stream = InputFile.Open(path);
        long? size = stream.CanSeek ? stream.Length : null;
        using FtraceReader reader = FtraceReader.Open(stream, name);
        try
        {
            return ReplayProgress.Show(parsed.InvocationConfiguration.Error, name, reader, size, cancel,
                progress => Replay.Run(reader, options, progress));
        }
        catch (TraceFormatException e)
        {
            throw new ToolException(e.Message, e);
        }
        catch (PlatformException e)
        {
            throw new ToolException($"a machine of {ByteSize.Format(options.RamBytes)} cannot be built here: "
                + e.Message, e);
        }
        catch (ArgumentException e)
        {
            string rule = e.Message.Split(" (Parameter", 2)[0];
            throw new ToolException($"a machine of {ByteSize.Format(options.RamBytes)} cannot be built so: {rule}", e);
        }
        catch (IOException e)
        {
            throw new ToolException($"{name}: cannot be read any further: {e.Message}", e);
        }
    }
}
