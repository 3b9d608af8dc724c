using System.Runtime.InteropServices;

namespace Kmem.Tool.Bench;

/// <summary>An allocator in a C library of this host: where its functions are, which version it is.</summary>
internal sealed unsafe class NativeLibraryPeer
{
    /// <summary>MALLCTL_ARENAS_ALL of jemalloc: stands for the number of an arena.</summary>
    private const string JemallocPurge = "arena.4096.purge";

    private static readonly (string Name, string Malloc, string Free, string[] Files)[] s_known =
    [
        ("glibc", "malloc", "free", ["libc.so.6"]),
        ("mimalloc", "mi_malloc", "mi_free", ["libmimalloc.so.3", "libmimalloc.so.2", "libmimalloc.so"]),
        ("tcmalloc", "tc_malloc", "tc_free",
            ["libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so"]),
        ("jemalloc", "malloc", "free", ["libjemalloc.so.2", "libjemalloc.so"]),
    ];

    private readonly nint _library;

    private NativeLibraryPeer(string name, string file, nint library, nint malloc, nint free)
    {
        Name = name;
        File = file;
        _library = library;
        Malloc = malloc;
        Free = free;
    }

    /// <summary>All names there are.</summary>
    internal static IEnumerable<string> Names => s_known.Select(it => it.Name);

    internal string Name { get; }

    /// <summary>The file, as the dynamic linker knows it.</summary>
    internal string File { get; }

    internal nint Malloc { get; }

    internal nint Free { get; }

    /// <summary>
    /// Whether the library works only if it is there from the start of the process (LD_PRELOAD): jemalloc's
    /// thread-local storage has no room later.
    /// </summary>
    internal static bool NeedsPreload(string name) => name == "jemalloc";

    /// <summary>Loads an allocator, or says that it is not installed.</summary>
    internal static NativeLibraryPeer? TryLoad(string name)
    {
        (string _, string malloc, string free, string[] files) = s_known.First(it => it.Name == name);
        foreach (string file in files)
        {
            if (NativeLibrary.TryLoad(file, out nint library)
                && NativeLibrary.TryGetExport(library, malloc, out nint allocate)
                && NativeLibrary.TryGetExport(library, free, out nint release))
            {
                return new NativeLibraryPeer(name, file, library, allocate, release);
            }
        }
        return null;
    }

    /// <summary>Files that could be the allocator: to be preloaded, by trial.</summary>
    internal static IReadOnlyList<string> FilesOf(string name) => s_known.First(it => it.Name == name).Files;

    /// <summary>The version, as the library tells it; null if it does not.</summary>
    internal string? Version()
    {
        switch (Name)
        {
            case "glibc" when NativeLibrary.TryGetExport(_library, "gnu_get_libc_version", out nint version):
                return Marshal.PtrToStringUTF8(((delegate* unmanaged<nint>)version)());

            case "mimalloc" when NativeLibrary.TryGetExport(_library, "mi_version", out nint version):
                int number = ((delegate* unmanaged<int>)version)();
                return $"{number / 100}.{number / 10 % 10}.{number % 10}";

            case "tcmalloc" when NativeLibrary.TryGetExport(_library, "tc_version", out nint version):
                int major, minor;
                nint patch;
                ((delegate* unmanaged<int*, int*, nint*, nint>)version)(&major, &minor, &patch);
                return $"{major}.{minor}";

            case "jemalloc" when NativeLibrary.TryGetExport(_library, "mallctl", out nint control):
                nint text = 0;
                nuint size = (nuint)sizeof(nint);
                fixed (byte* name = "version\0"u8)
                {
                    var read = (delegate* unmanaged<byte*, nint*, nuint*, void*, nuint, int>)control;
                    if (read(name, &text, &size, null, 0) != 0) return null;
                }
                return Marshal.PtrToStringUTF8(text)?.Split('-')[0];

            default:
                return null;
        }
    }

    /// <summary>Asks the allocator to give back what it does not need; nothing happens if it has no way.</summary>
    internal void Trim()
    {
        switch (Name)
        {
            case "glibc" when NativeLibrary.TryGetExport(_library, "malloc_trim", out nint trim):
                ((delegate* unmanaged<nuint, int>)trim)(0);
                break;

            case "mimalloc" when NativeLibrary.TryGetExport(_library, "mi_collect", out nint collect):
                ((delegate* unmanaged<byte, void>)collect)(1);
                break;

            case "tcmalloc" when NativeLibrary.TryGetExport(_library, "MallocExtension_ReleaseFreeMemory", out nint f):
                ((delegate* unmanaged<void>)f)();
                break;

            case "jemalloc" when NativeLibrary.TryGetExport(_library, "mallctl", out nint control):
                byte* name = stackalloc byte[JemallocPurge.Length + 1];
                for (int i = 0; i < JemallocPurge.Length; i++) name[i] = (byte)JemallocPurge[i];
                name[JemallocPurge.Length] = 0;
                ((delegate* unmanaged<byte*, void*, void*, void*, nuint, int>)control)(name, null, null, null, 0);
                break;
        }
    }
}
