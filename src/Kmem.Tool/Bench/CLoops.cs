using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;

namespace Kmem.Tool.Bench;

/// <summary>
/// The same loops in C, compiled where there is a C compiler: an allocator as a C program sees it. Nothing of it is
/// left behind.
/// </summary>
internal sealed class CLoops : IDisposable
{
    private readonly string _directory;

    private CLoops(string directory) => _directory = directory;

    /// <summary>The compiler's first line about itself.</summary>
    internal string Compiler { get; private init; } = "";

    private string Program => Path.Combine(_directory, "loops");

    /// <summary>Compiles; null if there is no C compiler, or this is not Linux.</summary>
    internal static async Task<CLoops?> TryCompileAsync(CancellationToken cancel)
    {
        if (!OperatingSystem.IsLinux()) return null;

        string directory = Directory.CreateTempSubdirectory("kmem-bench-").FullName;
        string source = Path.Combine(directory, "loops.c");
        try
        {
            await using (Stream text = typeof(CLoops).Assembly.GetManifestResourceStream("loops.c")!)
            await using (FileStream file = File.Create(source))
                await text.CopyToAsync(file, cancel);

            // A compiler that knows malloc and free would take the loops away.
            var compile = new ProcessStartInfo("cc")
            {
                ArgumentList =
                {
                    "-O2", "-fno-builtin-malloc", "-fno-builtin-free", "-o", Path.Combine(directory, "loops"), source,
                },
            };
            (int exit, _, _) = await ChildProcess.RunAsync(compile, cancel);
            if (exit == 0)
            {
                (_, string about, _) = await ChildProcess.RunAsync(
                    new ProcessStartInfo("cc") { ArgumentList = { "--version" } }, cancel);
                return new CLoops(directory) { Compiler = about.Split('\n')[0].Trim() };
            }
        }
        catch (Win32Exception)
        {
            // No such program.
        }
        catch
        {
            Directory.Delete(directory, recursive: true);
            throw;
        }
        Directory.Delete(directory, recursive: true);
        return null;
    }

    /// <summary>Measures one allocator; null if its library is not here.</summary>
    internal async Task<CaseResult?> MeasureAsync(
        Workload workload, string peer, double seconds, CancellationToken cancel)
    {
        IReadOnlyList<string> files = peer == "glibc" ? ["-"] : NativeLibraryPeer.FilesOf(peer);
        foreach (string file in files)
        {
            var start = new ProcessStartInfo(Program)
            {
                ArgumentList = { file.Split(".so")[0], workload.Name, seconds.ToString(CultureInfo.InvariantCulture) },
            };
            start.Environment["LD_PRELOAD"] = file == "-" ? "" : file;
            (int exit, string output, string error) = await ChildProcess.RunAsync(start, cancel);
            if (exit == 3) continue;
            if (exit != 0) throw new ToolException($"the C program ended with {exit}: {ChildProcess.Reason(error)}");

            double[] rounds = [.. output.Split('\n', StringSplitOptions.RemoveEmptyEntries)
                .Select(line => double.Parse(line, CultureInfo.InvariantCulture))];
            return rounds.Length == 0 ? null : new CaseResult($"c-{peer}", rounds, null, null, null);
        }
        return null;
    }

    public void Dispose() => Directory.Delete(_directory, recursive: true);
}
