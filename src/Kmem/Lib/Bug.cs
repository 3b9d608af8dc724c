using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// Checks of invariants, in two of their three strengths (the third is <see cref="Machine.Validate"/>).
/// </summary>
internal static class Bug
{
    /// <summary>
    /// BUG_ON: in every build, O(1). For conditions after which going on would write to memory that is not ours.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void On(
        [DoesNotReturnIf(true)] bool broken,
        [CallerArgumentExpression(nameof(broken))] string what = "")
    {
        if (broken)
            Throw(what);
    }

    /// <summary>VM_BUG_ON: in debug builds only. For conditions that a correct Kmem never meets.</summary>
    [Conditional("DEBUG")]
    public static void OnVm(bool broken, [CallerArgumentExpression(nameof(broken))] string what = "")
    {
        if (broken)
            Throw(what);
    }

    [DoesNotReturn]
    private static void Throw(string what) => throw new KernelBugException($"kernel BUG: {what}");
}
