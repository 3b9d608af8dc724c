using System.Globalization;

namespace Kmem;

/// <content>The machine of the process.</content>
public sealed partial class Machine
{
    /// <summary>
    /// AppContext setting (runtimeconfig.json) and environment variable that set <see cref="SharedFraction"/>.
    /// </summary>
    private const string FractionSetting = "Kmem.SharedFraction";
    private const string FractionVariable = "KMEM_SHARED_FRACTION";
    private const double DefaultFraction = 0.25;
    private const ulong SmallestShared = 64UL << 20;

    private static readonly Lock s_sharedGate = new();
    private static Machine? s_shared;
    private static double? s_sharedFraction;
    private static MachineOptions? s_sharedOptions;

    private bool _isShared;

    /// <summary>
    /// The machine of this process, booted at first use: for programs that only want memory. Its size is
    /// <see cref="SharedFraction"/> of what the process may use: the container's limit (cgroup v1 or v2), else the
    /// host's memory. That is a budget, not a cost: host memory is taken as pages are touched. It lives as long as the
    /// process, and <see cref="Dispose"/> on it throws.
    /// </summary>
    /// <exception cref="PlatformException">First use: the host refused the address space or the memory.</exception>
    public static Machine Shared => Volatile.Read(ref s_shared) ?? BootShared();

    /// <summary>
    /// The part of the process's memory limit that <see cref="Shared"/> is booted with: 0.25 unless it is set here, by
    /// the AppContext setting <c>Kmem.SharedFraction</c>, or by the environment variable <c>KMEM_SHARED_FRACTION</c>.
    /// The GC heap takes up to 0.75 of a container's limit by default, so a larger part needs a smaller
    /// <c>GCHeapHardLimitPercent</c>.
    /// </summary>
    /// <exception cref="ArgumentOutOfRangeException">Not above 0 and at most 1.</exception>
    /// <exception cref="InvalidOperationException">The shared machine has been booted already.</exception>
    public static double SharedFraction
    {
        get
        {
            lock (s_sharedGate)
                return s_sharedFraction ?? ConfiguredFraction() ?? DefaultFraction;
        }

        set
        {
            if (!IsFraction(value))
                throw new ArgumentOutOfRangeException(nameof(value), value, "a fraction is above 0 and at most 1");
            lock (s_sharedGate)
            {
                ThrowIfSharedBooted();
                s_sharedFraction = value;
            }
        }
    }

    /// <summary>
    /// Says what <see cref="Shared"/> will be made of, before its first use: a program's own budget, profile or leak
    /// tracking.
    /// </summary>
    /// <param name="options">All of it, the size included.</param>
    /// <exception cref="InvalidOperationException">The shared machine has been booted already.</exception>
    public static void ConfigureShared(MachineOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        lock (s_sharedGate)
        {
            ThrowIfSharedBooted();
            s_sharedOptions = options;
        }
    }

    /// <summary>
    /// Bytes for the shared machine: a part of the limit in whole MiB, but not less than is of any use.
    /// </summary>
    internal static ulong SharedBytes(ulong limit, double fraction) =>
        Math.Max((ulong)(limit * fraction) >> 20 << 20, SmallestShared);

    /// <summary>What this process may use: the container's limit, or what the garbage collector found.</summary>
    internal static ulong ProcessMemoryLimit()
    {
        var collector = (ulong)Math.Max(GC.GetGCMemoryInfo().TotalAvailableMemoryBytes, 0);
        ulong limit = HostInfo.MemoryLimit ?? ulong.MaxValue;

        // With a heap hard limit the collector names that limit: the container's is still ours to divide.
        return HostInfo.MemoryLimit != null ? limit : collector != 0 ? collector : 1UL << 30;
    }

    internal static double? ParseFraction(object? setting) => setting switch
    {
        double value when IsFraction(value) => value,
        string text when double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double value)
            && IsFraction(value) => value,
        _ => null,
    };

    private static double? ConfiguredFraction() =>
        ParseFraction(AppContext.GetData(FractionSetting))
        ?? ParseFraction(Environment.GetEnvironmentVariable(FractionVariable));

    private static bool IsFraction(double value) => value is > 0 and <= 1;

    private static Machine BootShared()
    {
        lock (s_sharedGate)
        {
            if (s_shared is { } other)
                return other;

            double fraction = s_sharedFraction ?? ConfiguredFraction() ?? DefaultFraction;
            MachineOptions options = s_sharedOptions ?? new MachineOptions
            {
                Name = "shared",
                RamBytes = SharedBytes(ProcessMemoryLimit(), fraction),
                Profile = KernelProfile.Find("native") ?? KernelProfile.Linux618,
            };
            Machine machine = Boot(options);
            machine._isShared = true;
            if (options.TrackCallSites)
                AppDomain.CurrentDomain.ProcessExit += (_, _) => machine._account.Announce(machine._account.Report("at process exit"));
            Volatile.Write(ref s_shared, machine);
            return machine;
        }
    }

    private static void ThrowIfSharedBooted()
    {
        if (s_shared != null)
            throw new InvalidOperationException(
                "the shared machine has been booted already: set this before its first use");
    }

    private void ThrowIfShared()
    {
        if (_isShared)
            throw new InvalidOperationException(
                "the shared machine lives as long as the process: it cannot be disposed");
    }
}
