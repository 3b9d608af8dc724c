namespace Kmem.Tests;

/// <summary>
/// What a machine has, counted after everything that is only cached was given back: two counts that differ are a leak,
/// or a free too many.
/// </summary>
/// <param name="Frames">
/// Free frames, those of page tables, which stay once they are there, those of percpu chunks, of which some stay, and
/// those of slabs: how many the objects take depends on how they lie.
/// </param>
/// <param name="Objects">Live objects of all caches without those of areas: each CPU may have a spare one.</param>
internal readonly record struct Inventory(long Frames, long Objects)
{
    public static Inventory Take(Machine machine)
    {
        Settle(machine);
        return new Inventory(
            machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact)
            + (machine.VmallocIfUsed?.Tables.TablePages ?? 0)
            + (machine.PercpuIfUsed?.Pages ?? 0)
            + machine.Caches.Sum(cache => cache.SlabCount << cache.Geometry.Order),
            machine.Caches.Where(cache => !IsOfAreas(cache)).Sum(cache => cache.LiveCount));
    }

    private static void Settle(Machine machine)
    {
        machine.RcuBarrier();
        machine.ExecmemIfUsed?.DropUnused();
        if (machine.VmallocIfUsed is { } vmalloc)
        {
            vmalloc.FreeDeferred();
            vmalloc.DropKept();
            vmalloc.Vmap.ReclaimAndPurge();
            vmalloc.Vmap.ShrinkPools();
        }

        machine.ShrinkCaches();
        machine.DrainAllPages();
    }

    private static bool IsOfAreas(KmemCache cache) => cache.Name == "vmap_area";
}
