using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>How a guest's instruction ended.</summary>
internal enum GuestEnd
{
    /// <summary>It was executed.</summary>
    Done,

    /// <summary>A page fault: there is no handler, so the processor shut down with the address in CR2.</summary>
    Fault,
}

/// <summary>What came of one instruction.</summary>
/// <param name="End">How it ended.</param>
/// <param name="Address">After a fault: CR2.</param>
/// <param name="Value">After a load: what was loaded.</param>
internal readonly record struct GuestProbe(GuestEnd End, ulong Address, byte Value);

/// <summary>
/// A virtual processor (KVM) whose physical memory is the RAM of a machine, and whose CR3 is the root of its page
/// tables:
/// <code>
///   guest physical   0 ─────────────── RAM ───────────────┐ ... ┌ hole: leaving user mode
///                    same bytes as the machine's direct map
///   CR3 = root of the tables   CR0 = PG WP PE   CR4 = PAE (LA57)   EFER = LME LMA NXE   no IDT: faults shut down
/// </code>
/// </summary>
internal sealed class KvmGuest : IDisposable
{
    private const nuint CreateVm = 0xAE01, VcpuMmapSize = 0xAE04, CreateVcpu = 0xAE41, Run = 0xAE80;
    private const nuint SetMemory = 0x4020AE46, SetRegs = 0x4090AE82, GetRegs = 0x8090AE81;
    private const nuint GetSregs = 0x8138AE83, SetSregs = 0x4138AE84, TranslateAddress = 0xC018AE85;
    private const nuint SupportedCpuid = 0xC008AE05, SetCpuid = 0x4008AE90;
    private const int ExitHlt = 5, ExitMmio = 6, ExitShutdown = 8;
    private const int Eintr = 4;
    private const int OpenReadWrite = 2, OpenCloseOnExec = 0x80000;

    private readonly int _system = -1;
    private readonly int _vm = -1;
    private readonly int _cpu = -1;
    private readonly nint _run;
    private readonly int _runBytes;
    private readonly int _levels;

    public unsafe KvmGuest(Machine machine, int levels)
    {
        _levels = levels;
        _system = Open();
        try
        {
            _vm = Call(_system, CreateVm, 0);
            var memory = new MemoryRegion { Bytes = machine.Ram.Bytes, HostAddress = (ulong)machine.Ram.Base };
            Call(_vm, SetMemory, (nint)(&memory));
            _cpu = Call(_vm, CreateVcpu, 0);
            _runBytes = Call(_system, VcpuMmapSize, 0);
            _run = Mmap(0, (nuint)_runBytes, 3, 1, _cpu, 0);
            Assert.NotEqual(-1, _run);
            CopyCpuid();
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Why there is no virtual processor here; null if there is one.</summary>
    public static string? WhyUnsupported
    {
        get
        {
            if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
                return "KVM on x86-64 is needed";
            int file = open("/dev/kvm", OpenReadWrite | OpenCloseOnExec);
            if (file < 0)
                return $"/dev/kvm cannot be opened (errno {Marshal.GetLastPInvokeError()})";
            _ = close(file);
            return null;
        }
    }

    /// <summary>Whether the virtual processor knows page tables of five levels (CPUID 7, ECX bit 16).</summary>
    public static unsafe bool HasFiveLevels
    {
        get
        {
            int system = Open();
            try
            {
                byte* cpuid = ReadCpuid(system);
                uint* entries = (uint*)(cpuid + 8);
                bool found = false;
                for (uint i = 0; i < *(uint*)cpuid; i++, entries += 10)
                    found |= entries[0] == 7 && entries[1] == 0 && (entries[5] & (1 << 16)) != 0;
                NativeMemory.Free(cpuid);
                return found;
            }
            finally
            {
                _ = close(system);
            }
        }
    }

    /// <summary>Puts the processor into an address space, in kernel or in user mode.</summary>
    public unsafe void Enter(ulong rootPfn, bool user)
    {
        byte* sregs = stackalloc byte[312];
        Call(_cpu, GetSregs, (nint)sregs);
        int ring = user ? 3 : 0;
        var segments = (Segment*)sregs;
        var data = new Segment
        {
            Limit = uint.MaxValue,
            Type = 3,
            Present = 1,
            Ring = (byte)ring,
            CodeOrData = 1,
            Big = 1,
            Granularity = 1,
            Selector = (ushort)(0x10 | ring),
        };
        segments[0] = data with { Type = 11, Big = 0, Long = 1, Selector = (ushort)(8 | ring) };
        for (int i = 1; i <= 5; i++)
            segments[i] = data;
        segments[6] = new Segment { Limit = 0x67, Type = 11, Present = 1, Selector = 0x18 };
        segments[7] = new Segment { Unusable = 1 };
        new Span<byte>(sregs + 192, 32).Clear();                    // no GDT, no IDT
        var control = (ulong*)(sregs + 224);
        control[0] = 0x8001_0033;                                   // PG WP NE ET MP PE
        control[1] = 0;
        control[2] = rootPfn << 12;
        control[3] = 0x220UL | (_levels == 5 ? 1UL << 12 : 0);      // OSFXSR PAE, LA57
        control[5] = 0xD01;                                         // NXE LMA LME SCE
        Call(_cpu, SetSregs, (nint)sregs);
    }

    /// <summary>Where the processor would go from an address; null if nowhere (KVM_TRANSLATE).</summary>
    public unsafe ulong? Translate(ulong address)
    {
        ulong* translation = stackalloc ulong[3];
        translation[0] = address;
        Call(_cpu, TranslateAddress, (nint)translation);
        return (byte)translation[2] != 0 ? translation[1] : null;
    }

    /// <summary>Runs from an address with RDI and AL set until it halts, leaves the RAM, or faults.</summary>
    /// <param name="code">Address of the first instruction.</param>
    /// <param name="rdi">What the code works on.</param>
    /// <param name="rsi">User code writes there at its end; it leads to an address without RAM.</param>
    /// <param name="al">What it stores.</param>
    public unsafe GuestProbe Execute(ulong code, ulong rdi, ulong rsi = 0, byte al = 0)
    {
        ulong* regs = stackalloc ulong[18];
        new Span<ulong>(regs, 18).Clear();
        (regs[0], regs[4], regs[5], regs[16], regs[17]) = (al, rsi, rdi, code, 2);
        Call(_cpu, SetRegs, (nint)regs);
        *((byte*)_run + 1) = 0;
        while (ioctl(_cpu, Run, 0) < 0)
            Assert.Equal(Eintr, Marshal.GetLastPInvokeError());     // a signal of the runtime: go on

        int reason = *(int*)(_run + 8);
        Call(_cpu, GetRegs, (nint)regs);
        if (reason == ExitMmio)
        {
            // The instruction has to be completed before registers can be set again.
            *((byte*)_run + 1) = 1;
            _ = ioctl(_cpu, Run, 0);
        }

        if (reason is ExitHlt or ExitMmio)
            return new GuestProbe(GuestEnd.Done, 0, (byte)regs[0]);
        Assert.Equal(ExitShutdown, reason);
        byte* sregs = stackalloc byte[312];
        Call(_cpu, GetSregs, (nint)sregs);
        return new GuestProbe(GuestEnd.Fault, ((ulong*)(sregs + 224))[1], 0);
    }

    public void Dispose()
    {
        if (_run is not (0 or -1))
            _ = munmap(_run, (nuint)_runBytes);
        foreach (int file in new[] { _cpu, _vm, _system })
        {
            if (file >= 0)
                _ = close(file);
        }
    }

    private static int Open()
    {
        int file = open("/dev/kvm", OpenReadWrite | OpenCloseOnExec);
        Assert.True(file >= 0, "open /dev/kvm");
        return file;
    }

    private static int Call(int file, nuint request, nint argument)
    {
        int result = ioctl(file, request, argument);
        Assert.True(result >= 0, $"ioctl 0x{request:x}: errno {Marshal.GetLastPInvokeError()}");
        return result;
    }

    private static unsafe byte* ReadCpuid(int system)
    {
        const int MaxEntries = 256;
        var cpuid = (byte*)NativeMemory.AllocZeroed(8 + (MaxEntries * 40));
        *(uint*)cpuid = MaxEntries;
        Call(system, SupportedCpuid, (nint)cpuid);
        return cpuid;
    }

    /// <summary>Everything that the host's processor can do: large pages, no-execute.</summary>
    private unsafe void CopyCpuid()
    {
        byte* cpuid = ReadCpuid(_system);
        Call(_cpu, SetCpuid, (nint)cpuid);
        NativeMemory.Free(cpuid);
    }

    private static nint Mmap(nint at, nuint bytes, int protection, int flags, int file, nint offset) =>
        mmap(at, bytes, protection, flags, file, offset);

    [DllImport("libc", SetLastError = true)]
    private static extern int open([MarshalAs(UnmanagedType.LPUTF8Str)] string path, int flags);

    [DllImport("libc")]
    private static extern int close(int file);

    [DllImport("libc", SetLastError = true)]
    private static extern int ioctl(int file, nuint request, nint argument);

    [DllImport("libc", SetLastError = true)]
    private static extern nint mmap(nint at, nuint bytes, int protection, int flags, int file, nint offset);

    [DllImport("libc")]
    private static extern int munmap(nint at, nuint bytes);

    [StructLayout(LayoutKind.Sequential)]
    private struct MemoryRegion
    {
        public uint Slot;
        public uint Flags;
        public ulong GuestAddress;
        public ulong Bytes;
        public ulong HostAddress;
    }

    [StructLayout(LayoutKind.Sequential)]
    private record struct Segment
    {
        public ulong Base;
        public uint Limit;
        public ushort Selector;
        public byte Type;
        public byte Present;
        public byte Ring;
        public byte Big;
        public byte CodeOrData;
        public byte Long;
        public byte Granularity;
        public byte Available;
        public byte Unusable;
        public byte Padding;
    }
}
