namespace Kmem.Tracing;

/// <summary>A line of a trace that could not be understood and was skipped.</summary>
/// <param name="Line">Line number, from 1; comment lines count too.</param>
/// <param name="Reason">What was wrong.</param>
/// <param name="Excerpt">The beginning of the line; characters that do not print are shown as <c>?</c>.</param>
public readonly record struct TraceDamage(long Line, string Reason, string Excerpt);
