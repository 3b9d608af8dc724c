namespace Kmem.Tool.Commands;

/// <summary>Files that a command writes besides its output.</summary>
internal static class OutputFile
{
    /// <exception cref="ToolException">The file cannot be written.</exception>
    internal static void Write(string path, Action<string> write)
    {
        try
        {
            write(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException
            or InvalidOperationException)
        {
            throw new ToolException($"{path}: cannot be written: {e.Message}", e);
        }
    }
}
