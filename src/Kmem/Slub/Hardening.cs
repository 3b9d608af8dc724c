namespace Kmem;

/// <summary>What a profile has done for each object besides giving it out and taking it back.</summary>
/// <param name="InitOnAlloc">It is cleared when it is allocated.</param>
/// <param name="InitOnFree">It is cleared when it is freed, and must still be clear when it is allocated again.</param>
/// <param name="QuarantineBytes">Bytes of freed objects that are kept back on all CPUs together.</param>
internal sealed record Hardening(bool InitOnAlloc, bool InitOnFree, long QuarantineBytes);
