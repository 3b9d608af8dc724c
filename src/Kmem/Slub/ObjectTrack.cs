using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>Who allocated or freed an object last (struct track, mm/slub.c, Linux 6.18: 32 bytes). All zero:
/// nobody.</summary>
[StructLayout(LayoutKind.Sequential, Size = SizeInBytes)]
internal struct ObjectTrack
{
    public const int SizeInBytes = 32;

    /// <summary>Not 0 in a record that was written: the kernel's return address, here the stack's number
    /// again.</summary>
    public ulong Address;

    /// <summary>The stack's number in the <see cref="StackDepot"/>.</summary>
    public int Stack;

    public int Cpu;

    /// <summary>The managed thread's number.</summary>
    public int Thread;

    private readonly int _pad;

    /// <summary>In milliseconds since the host was started.</summary>
    public long When;
}
