using System.Globalization;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>
/// One setting of <c>kmem compare</c>, such as <c>ram=64M,slab_debug=FZ</c>: what to replay on, in the kernel's names.
/// </summary>
/// <param name="Text">As the user wrote it; empty for the recording's own machine.</param>
/// <param name="Options">What it means.</param>
internal sealed record ReplaySettings(string Text, ReplayOptions Options)
{
    /// <summary>Names, the rule for their values, and what they change; null where a value breaks the rule.</summary>
    private static readonly (string Name, string Rule, Func<ReplayOptions, string, ReplayOptions?> Apply)[] s_all =
    [
        ("profile", $"one of {string.Join(", ", KernelProfile.All)}", (it, text) =>
            KernelProfile.Find(text) is { } profile ? it with { Profile = profile } : null),
        ("ram", "a size from 2M to 4T", (it, text) =>
            ByteSize.TryParse(text, out ulong bytes) && bytes is >= 2UL << 20 and <= 4UL << 40
                ? it with { RamBytes = bytes } : null),
        ("cpus", "a number from 1 to 1024", (it, text) =>
            Number(text, 1, 1024) is { } cpus ? it with { Cpus = cpus } : null),
        ("nodes", "a number from 1 to 64", (it, text) =>
            Number(text, 1, 64) is { } nodes ? With(it, options => options with { Nodes = nodes }) : null),
        ("movablecore", "a size", (it, text) =>
            ByteSize.TryParse(text, out ulong bytes) ? With(it, options => options with { MovableBytes = bytes }) : null),
        ("min_free_kbytes", "a number from 0 to 1073741824", (it, text) =>
            Number(text, 0, 1 << 30) is { } kib ? With(it, options => options with { MinFreeKbytes = kib }) : null),
        ("watermark_scale_factor", "a number from 1 to 3000", (it, text) =>
            Number(text, 1, 3000) is { } factor
                ? With(it, options => options with { WatermarkScaleFactor = factor }) : null),
        ("watermark_boost_factor", "a number from 0 to 1000000", (it, text) =>
            Number(text, 0, 1_000_000) is { } factor
                ? With(it, options => options with { WatermarkBoostFactor = factor }) : null),
        ("percpu_pagelist_high_fraction", "0, or a number from 8 to 1000000", (it, text) =>
            Number(text, 0, 1_000_000) is { } part and (0 or >= 8)
                ? With(it, options => options with { PercpuPagelistHighFraction = part }) : null),
        ("slab_merge", "on or off", (it, text) =>
            OnOff(text) is { } on ? WithProfile(it, profile => profile with { SlabMerge = on }) : null),
        ("thp", "on or off", (it, text) =>
            OnOff(text) is { } on ? WithProfile(it, profile => profile with { TransparentHugePages = on }) : null),
        ("slab_debug", "letters of F Z P U, or -", (it, text) =>
            text.Length > 0 && text.All("FZPU-".Contains) ? With(it, options => options with { SlubDebug = text }) : null),
        ("seed", "a number", (it, text) =>
            ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ulong seed)
                ? it with { Seed = seed } : null),
    ];

    /// <summary>The names, for help texts.</summary>
    internal static string Names => string.Join(", ", s_all.Select(it => it.Name));

    /// <summary>The machine of the recording, as <c>kmem replay</c> takes it.</summary>
    internal static ReplaySettings Recorded { get; } = new(string.Empty, new ReplayOptions());

    /// <summary>Reads a setting.</summary>
    /// <param name="text">Words <c>name=value</c> with commas between them.</param>
    /// <param name="wrong">What is wrong with it, if something is.</param>
    internal static ReplaySettings? Parse(string text, out string? wrong)
    {
        ReplayOptions options = Recorded.Options;
        foreach (string word in text.Split(','))
        {
            int equals = word.IndexOf('=', StringComparison.Ordinal);
            string name = equals < 0 ? word : word[..equals];
            var setting = s_all.FirstOrDefault(it => it.Name == name);
            if (setting.Name is null)
            {
                wrong = $"no setting is named '{name}'; there are {Names}";
                return null;
            }

            string value = equals < 0 ? string.Empty : word[(equals + 1)..];
            if (setting.Apply(options, value) is not { } applied)
            {
                wrong = $"{name} is '{value}', expected {setting.Rule}";
                return null;
            }

            options = applied;
        }

        wrong = null;
        return new ReplaySettings(text, options);
    }

    // A profile may be named after what is changed in it, so the change waits until the machine is booted.
    private static ReplayOptions WithProfile(ReplayOptions options, Func<KernelProfile, KernelProfile> change) =>
        With(options, machine => machine with { Profile = change(machine.Profile) });

    private static ReplayOptions With(ReplayOptions options, Func<MachineOptions, MachineOptions> change)
    {
        Func<MachineOptions, MachineOptions>? before = options.Configure;
        return options with { Configure = machine => change(before is null ? machine : before(machine)) };
    }

    private static int? Number(string text, int min, int max) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n >= min && n <= max ? n : null;

    private static bool? OnOff(string text) => text switch { "on" => true, "off" => false, _ => null };
}
