namespace Kmem;

/// <summary>An invariant that does not hold; see <see cref="Machine.Validate"/>.</summary>
/// <param name="Id">The rule's number, as in <c>rules/</c>: for example <c>BUDDY-02</c>.</param>
/// <param name="Detail">Where it is broken, and how.</param>
public sealed record BrokenRule(string Id, string Detail)
{
    /// <summary>Number and detail.</summary>
    /// <returns>For example <c>BUDDY-02: …</c>.</returns>
    public override string ToString() => $"{Id}: {Detail}";
}
