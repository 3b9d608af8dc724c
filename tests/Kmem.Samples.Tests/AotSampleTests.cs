using System.Diagnostics;

namespace Kmem.Tests;

/// <summary>The sample that eng/check-packages publishes natively, here on the JIT: the same checks, at once.</summary>
public sealed class AotSampleTests
{
    [Fact]
    public async Task The_sample_for_native_aot_passes_its_own_checks()
    {
        string sample = Path.Combine(AppContext.BaseDirectory, "Kmem.Sample.Aot.dll");
        Assert.True(File.Exists(sample), sample);
        using Process run = Process.Start(new ProcessStartInfo("dotnet", [sample])
        {
            RedirectStandardOutput = true,
            UseShellExecute = false,
            Environment = { ["KMEM_SHARED_FRACTION"] = "0.125" },
        })!;
        string output = await run.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
        await run.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.True(run.ExitCode == 0, output);
        Assert.Contains("shared fraction 0.125", output, StringComparison.Ordinal);
        Assert.Contains("all fine, JIT", output, StringComparison.Ordinal);
    }
}
