namespace Kmem;

/// <summary>
/// RAM from private memory, for systems without memfd (and forced by tests): everything but windows, because private
/// pages cannot be seen at a second address. Machines on it have no mapped vmalloc areas.
/// </summary>
internal sealed class PortableRam : Ram
{
    private readonly SparseMemory _frames;

    private unsafe PortableRam(SparseMemory frames)
        : base(frames.Base, frames.Bytes)
    {
        _frames = frames;
        Description = Describe(frames);
    }

    public override bool CanRelease => _frames.CanDiscard;

    /// <summary>
    /// Pages in memory now; swapped pages do not count. All of it on Windows and on the C heap. O(frames).
    /// </summary>
    public override ulong ResidentBytes => _frames.ResidentBytes;

    public override string Description { get; }

    /// <inheritdoc cref="Ram.CreatePortable"/>
    public static PortableRam Create(ulong bytes, PrivateBacking backing)
    {
        CheckSize(bytes);
        ulong alignment = Reservation.NaturalAlignment(bytes);
        return new PortableRam(SparseMemory.Create(bytes, "simulated RAM", alignment, backing));
    }

    private protected override void ReleaseRun(ulong offset, ulong bytes) => _frames.Discard(offset, bytes);

    private protected override void Free() => _frames.Dispose();

    private static string Describe(SparseMemory frames)
    {
        string size = PlatformException.Size(frames.Bytes);
        string kind = (frames.CanDiscard, OperatingSystem.IsWindows()) switch
        {
            (true, false) => $"anonymous pages: {size}, sparse; frames can be released to the host",
            (true, true) => $"committed pages: {size}, charged in full; frames can be released to the host",
            _ => $"C heap: {size}, allocated in full; released frames are cleared but stay allocated",
        };
        return kind + "; no second mapping of a frame, so no vmalloc windows";
    }
}
