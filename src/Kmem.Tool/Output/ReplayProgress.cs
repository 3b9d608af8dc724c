using System.Globalization;
using Kmem.Tracing;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>
/// Shows on a terminal how far a replay is, by the position in its input; gone when it is done. Nothing is shown
/// where no person looks.
/// </summary>
internal static class ReplayProgress
{
    private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(40);

    /// <summary>Runs a replay.</summary>
    /// <param name="error">Where to show progress.</param>
    /// <param name="name">What the input is called.</param>
    /// <param name="reader">The input.</param>
    /// <param name="size">Bytes of the input; <c>null</c> if that is not known.</param>
    /// <param name="cancel">Ends the replay with an <see cref="OperationCanceledException"/>.</param>
    /// <param name="replay">The work; calls its argument now and then with the number of events so far.</param>
    internal static T Show<T>(
        TextWriter error, string name, FtraceReader reader, long? size, CancellationToken cancel,
        Func<Action<long>, T> replay)
    {
        if (!Screen.IsTerminal(error)) return replay(_ => cancel.ThrowIfCancellationRequested());

        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(error) });
        // The replay may be waiting for input when Ctrl-C comes, and then never clears up behind itself.
        using CancellationTokenRegistration restore = cancel.Register(() => console.Cursor.Show());
        return new Progress(console)
            .AutoClear(true)
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn(), new SpinnerColumn())
            .Start(context =>
            {
                string what = Markup.Escape($"Replaying {Path.GetFileName(name)}");
                ProgressTask task = context.AddTask(what, maxValue: size ?? 1);
                task.IsIndeterminate = size is null;
                // Looked at from outside: the replay calls back too seldom for a short recording. The numbers may be
                // a moment old, which is good enough here.
                using var look = new Timer(
                    _ =>
                    {
                        if (size is not null) task.Value = reader.InputPosition;
                        task.Description = string.Create(
                            CultureInfo.InvariantCulture, $"{what}, {reader.Events:N0} events");
                    },
                    null, s_period, s_period);
                return replay(_ => cancel.ThrowIfCancellationRequested());
            });
    }
}
