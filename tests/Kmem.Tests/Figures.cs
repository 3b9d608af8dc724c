namespace Kmem.Tests;

/// <summary>
/// What a run of the tests has done, for the summary of <c>eng/nightly</c>: lines <c>topic TAB what TAB number</c>,
/// appended to the file that <c>KMEM_FIGURES</c> names. Without that nothing is written.
/// </summary>
internal static class Figures
{
    private static readonly Lock s_gate = new();

    public static void Add(string topic, string what, long number)
    {
        if (Environment.GetEnvironmentVariable("KMEM_FIGURES") is not { Length: > 0 } file)
            return;

        lock (s_gate)
            File.AppendAllText(file, FormattableString.Invariant($"{topic}\t{what}\t{number}\n"));
    }
}
