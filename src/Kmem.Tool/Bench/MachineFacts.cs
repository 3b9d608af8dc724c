using System.Runtime.InteropServices;

namespace Kmem.Tool.Bench;

/// <summary>What the numbers were measured on.</summary>
/// <param name="Cpu">The processor's name.</param>
/// <param name="Cores">Processors that the process may use.</param>
/// <param name="Os">The system and its version.</param>
/// <param name="Runtime">.NET and its version; of the tool itself, too.</param>
internal sealed record MachineFacts(string Cpu, int Cores, string Os, string Runtime)
{
    internal static MachineFacts Read() => new(
        CpuName(), Environment.ProcessorCount, $"{RuntimeInformation.OSDescription}, {Environment.OSVersion}",
        $"{RuntimeInformation.FrameworkDescription} ({RuntimeInformation.RuntimeIdentifier})");

    private static string CpuName()
    {
        try
        {
            string? line = File.ReadLines("/proc/cpuinfo")
                .FirstOrDefault(it => it.StartsWith("model name", StringComparison.Ordinal));
            if (line is not null) return line[(line.IndexOf(':') + 1)..].Trim();
        }
        catch (IOException)
        {
            // Not Linux.
        }
        return Environment.GetEnvironmentVariable("PROCESSOR_IDENTIFIER") ?? $"{RuntimeInformation.OSArchitecture}";
    }
}
