namespace Kmem;

/// <content>Buffers of more than the largest block.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Of <see cref="ResidentBytes"/>, what is private memory of the process: buffers of 4 to 32 MiB from
    /// <see cref="Kvmalloc"/> in the native profile, and what is kept of them. Their frames are contiguous and lie in
    /// the direct map; they cannot be shown a second time (<see cref="Vmap"/> returns null).
    /// </summary>
    /// <remarks>Any thread. No kernel has this.</remarks>
    public ulong PrivateResidentBytes => _ram.PrivateResidentBytes;

    private void StartRuns()
    {
        if (!Options.Profile.KeepFreedAreas)
            return;

        var runs = new LargeRuns(_slabs, _ram);
        _slabs.Runs = runs;
        _pages.FreeSpare = () => runs.Drop();
    }
}
