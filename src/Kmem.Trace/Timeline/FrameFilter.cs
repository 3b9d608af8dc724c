namespace Kmem.Tracing;

/// <summary>Which frames somebody wants to see; null means everything.</summary>
internal sealed record FrameFilter
{
    public static readonly FrameFilter Everything = new();

    /// <summary>A bit for each <see cref="FrameKind"/>.</summary>
    public uint? Kinds { get; init; }

    /// <summary>Caches of slabs and CPUs of frames on lists; other kinds are not asked.</summary>
    public IReadOnlySet<int>? Owners { get; init; }

    /// <summary>A bit for each zone.</summary>
    public uint? Zones { get; init; }

    /// <summary>A bit for each migrate type of the pageblock.</summary>
    public uint? MigrateTypes { get; init; }

    public IReadOnlySet<int>? Sites { get; init; }

    public int MinOrder { get; init; }

    public int MaxOrder { get; init; } = PageOrder.Max;

    /// <summary>Events since the frame came into use.</summary>
    public uint MinAge { get; init; }

    public uint MaxAge { get; init; } = uint.MaxValue;

    public bool IsEverything => this == Everything;

    /// <summary>The answer may change although the frame does not.</summary>
    public bool DependsOnMoment => MinAge > 0 || MaxAge < uint.MaxValue;

    public bool Matches(in FrameCell cell, byte zone, Migratetype type, uint moment)
    {
        if ((Kinds is { } kinds && (kinds >> (int)cell.Kind & 1) == 0)
            || (Zones is { } zones && (zones >> zone & 1) == 0)
            || (MigrateTypes is { } types && (types >> (int)type & 1) == 0)
            || cell.Order < MinOrder || cell.Order > MaxOrder)
        {
            return false;
        }

        if (Owners != null && cell.Kind is FrameKind.Slab or FrameKind.Pcp && !Owners!.Contains(cell.Owner))
            return false;
        if (Sites != null && !Sites.Contains(cell.Site))
            return false;
        if (!DependsOnMoment)
            return true;

        uint age = moment - Math.Min(cell.Born, moment);
        return FrameKinds.IsInUse(cell.Kind) && age >= MinAge && age <= MaxAge;
    }
}
