namespace Kmem.Tracing;

/// <summary>
/// The input is not a trace that can be read at all: empty, binary, another format, or compressed data that breaks
/// off before the first event. The message names the input and says what was expected.
/// </summary>
/// <remarks>
/// Single damaged lines never raise it: they are counted, see <see cref="FtraceReader.DamagedCount"/>.
/// </remarks>
public sealed class TraceFormatException : Exception
{
    /// <summary>Creates the exception with a general message.</summary>
    public TraceFormatException()
        : base("The input is not an ftrace text.")
    {
    }

    /// <summary>Creates the exception.</summary>
    /// <param name="message">Names the input, and says what was found and what was expected.</param>
    public TraceFormatException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception.</summary>
    /// <param name="message">Names the input, and says what was found and what was expected.</param>
    /// <param name="innerException">What the decompressor said, for instance.</param>
    public TraceFormatException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }
}
