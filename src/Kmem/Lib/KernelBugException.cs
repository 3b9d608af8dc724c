namespace Kmem;

/// <summary>
/// A broken promise was caught: a double free, a pointer that the allocator did not give out, an allocation that may
/// sleep where sleeping is forbidden, and the like. The report has been written to <see cref="Machine.Dmesg"/> in the
/// kernel's form; the operation was refused and the allocator's state is whole.
/// </summary>
/// <remarks>The counterpart of <c>BUG()</c> and <c>WARN()</c> reports of the Linux kernel.</remarks>
public sealed class KernelBugException : InvalidOperationException
{
    /// <summary>Creates the exception with a report.</summary>
    /// <param name="report">What was caught; the first line is the summary.</param>
    public KernelBugException(string report)
        : base(report)
    {
    }

    /// <summary>Creates the exception without a report.</summary>
    public KernelBugException()
    {
    }

    /// <summary>Creates the exception with a report and the exception behind it.</summary>
    /// <param name="report">What was caught; the first line is the summary.</param>
    /// <param name="innerException">What led to it.</param>
    public KernelBugException(string report, Exception innerException)
        : base(report, innerException)
    {
    }
}
