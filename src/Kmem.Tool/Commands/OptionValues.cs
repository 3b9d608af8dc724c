using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Kmem.Tool.Commands;

/// <summary>Options whose values have a rule; a value that breaks it is named together with the rule.</summary>
internal static class OptionValues
{
    /// <summary>A decimal number in a range; <c>null</c> if the option is not given.</summary>
    internal static Option<int?> Number(string name, int min, int max, string help) => new(name)
    {
        Description = help,
        HelpName = "N",
        CustomParser = result => Parse<int>(result, text =>
            int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n >= min && n <= max
                ? n
                : null,
            $"a number from {min} to {max}"),
    };

    /// <summary>A number with a decimal point in a range; <c>null</c> if the option is not given.</summary>
    internal static Option<double?> Decimal(string name, double min, double max, string help) => new(name)
    {
        Description = help,
        HelpName = "N",
        CustomParser = result => Parse<double>(result, text =>
            double.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double n)
            && n >= min && n <= max ? n : null,
            string.Create(CultureInfo.InvariantCulture, $"a number from {min} to {max}")),
    };

    /// <summary>A power of two in a range; <c>null</c> if the option is not given.</summary>
    internal static Option<int?> PowerOfTwo(string name, int min, int max, string help) => new(name)
    {
        Description = help,
        HelpName = "BYTES",
        CustomParser = result => Parse<int>(result, text =>
            int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n)
            && n >= min && n <= max && int.IsPow2(n) ? n : null,
            $"a power of two from {min} to {max}"),
    };

    /// <summary>A size in bytes, see <see cref="ByteSize"/>; <c>null</c> if the option is not given.</summary>
    internal static Option<ulong?> Size(string name, ulong min, ulong max, string help) => new(name)
    {
        Description = help,
        HelpName = "SIZE",
        CustomParser = result => Parse<ulong>(result, text =>
            ByteSize.TryParse(text, out ulong bytes) && bytes >= min && bytes <= max ? bytes : (ulong?)null,
            $"a size from {ByteSize.Format(min)} to {ByteSize.Format(max)}, such as 512M, 4G, 64GiB or plain bytes"),
    };

    /// <summary>One of a list of words; <c>null</c> if the option is not given.</summary>
    internal static Option<string?> OneOf(string name, string helpName, string help, IReadOnlyList<string> words)
    {
        var option = new Option<string?>(name)
        {
            Description = help,
            HelpName = helpName,
            CustomParser = result =>
            {
                string text = result.Tokens[^1].Value;
                if (words.Contains(text, StringComparer.Ordinal)) return text;
                result.AddError($"{name} is '{text}', expected {string.Join(", ", words)}");
                return null;
            },
        };
        option.CompletionSources.Add([.. words]);
        return option;
    }

    /// <summary>The name of a profile; <c>null</c> if the option is not given.</summary>
    internal static Option<KernelProfile?> Profile() => new("--profile")
    {
        Description = $"Whose rules the machine follows (default {KernelProfile.Linux618.Name})",
        HelpName = "NAME",
        CustomParser = result =>
        {
            string name = result.Tokens[^1].Value;
            KernelProfile? profile = KernelProfile.Find(name);
            if (profile is null)
            {
                string known = string.Join(", ", KernelProfile.All.Select(it => it.Name));
                result.AddError($"--profile is '{name}', expected {known}");
            }

            return profile;
        },
    };

    /// <summary>A switch.</summary>
    internal static Option<bool> Switch(string name, string help) => new(name) { Description = help };

    private static T? Parse<T>(ArgumentResult result, Func<string, T?> parse, string rule)
        where T : struct
    {
        string text = result.Tokens[^1].Value;
        if (parse(text) is { } value) return value;
        result.AddError($"{((OptionResult)result.Parent!).Option.Name} is '{text}', expected {rule}");
        return null;
    }
}
