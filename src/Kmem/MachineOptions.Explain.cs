namespace Kmem;

/// <content>What the machine remembers about its past.</content>
public sealed partial record MachineOptions
{
    /// <summary>
    /// How many events the machine remembers, so that <see cref="Machine.Explain(VirtAddr)"/> can tell life stories and
    /// reasons: allocations and frees of objects and pages, the newest. 0, the default, costs nothing; else each costs
    /// about 64 bytes, and every request takes the slow way.
    /// </summary>
    public long RememberEvents { get; init; }
}
