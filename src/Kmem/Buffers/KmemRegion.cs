using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// A region of a machine's memory of any size, for state that lives long: a <see cref="SafeHandle"/> that frees it,
/// with the checked reads and writes of <see cref="SafeBuffer"/> at 64-bit offsets. It also goes into
/// <see cref="UnmanagedMemoryStream"/> and <see cref="UnmanagedMemoryAccessor"/>.
/// </summary>
/// <remarks>
/// As with every <see cref="SafeHandle"/>, Dispose may be called twice, a lost region is freed by its finalizer (which
/// reports it), and <see cref="SafeHandle.DangerousAddRef"/> keeps it. Access after Dispose, and after the end of the
/// machine, throws <see cref="ObjectDisposedException"/>. Created by <see cref="Machine.CreateRegion"/>.
/// </remarks>
[DebuggerDisplay("{DebuggerText,nq}")]
public sealed class KmemRegion : SafeBuffer
{
    private readonly BufferSource _source;
    private readonly nuint _bytes;
    private bool _lost;

    internal KmemRegion(BufferSource source, nint address, nuint bytes, string file, int line)
        : base(ownsHandle: true)
    {
        _source = source;
        _bytes = bytes;
        SetHandle(address);
        Initialize((ulong)bytes);
        source.Charge(address, (long)bytes, file, line);
        source.Account.Remember(this);
    }

    private string DebuggerText => $"KmemRegion: {_bytes} bytes at 0x{handle:x}{(IsClosed ? ", disposed" : "")}";

    /// <summary>A part of the region. Not to be used after Dispose: a span cannot notice.</summary>
    /// <param name="offset">First byte.</param>
    /// <param name="length">Bytes.</param>
    /// <returns>The bytes themselves.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The part is not inside the region.</exception>
    /// <exception cref="ObjectDisposedException">The region, or its machine, has been disposed.</exception>
    public unsafe Span<byte> AsSpan(ulong offset, int length)
    {
        ObjectDisposedException.ThrowIf(IsClosed || _source.Account.IsClosed, this);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        if (offset > (ulong)_bytes || (ulong)length > (ulong)_bytes - offset)
            throw new ArgumentOutOfRangeException(
                nameof(offset), offset, $"{length} bytes there are not within {_bytes}");
        return new Span<byte>((byte*)handle + offset, length);
    }

    /// <summary>The machine goes: whoever uses the region from here on gets an exception.</summary>
    internal void Abandon() => SetHandleAsInvalid();

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        _lost = !disposing;
        base.Dispose(disposing);
    }

    /// <inheritdoc/>
    protected override unsafe bool ReleaseHandle()
    {
        BufferAccount account = _source.Account;
        lock (account.FinalizerGate)
        {
            if (account.IsClosed)
                return true;

            if (_lost)
            {
                CallSite? site = account.Sites?.Find(handle);
                account.Announce(new LeakReport(
                    account.Machine,
                    "lost without Dispose, found by the garbage collector",
                    account.Sites != null,
                    [new LeakSite(_source.Name, site?.File ?? "", site?.Line ?? 0, 1, (long)_bytes)]));
                if (account.IsClosed)
                    return true;    // whoever heard of it disposed the machine
            }

            _source.Discharge(handle, (long)_bytes);
            account.Memory.Free((void*)handle);
            return true;
        }
    }
}
