using System.Globalization;
using Microsoft.AspNetCore.Http;

namespace Kmem;

/// <summary>The parameters of a question. Each is read once by name; what nobody read, nobody knows.</summary>
internal sealed class Query(IQueryCollection parameters)
{
    private const int LongestText = 200;
    private readonly HashSet<string> _read = new(StringComparer.Ordinal) { "token" };

    public string? Text(string name)
    {
        _read.Add(name);
        if (!parameters.TryGetValue(name, out var values) || values.Count == 0)
            return null;
        if (values.Count > 1)
            throw new QueryException($"{name} is given {values.Count} times", name);
        string text = values[0] ?? "";
        return text.Length is > 0 and <= LongestText
            ? text
            : throw new QueryException($"{name} is {(text.Length == 0 ? "empty" : "too long")}", name);
    }

    public int? Number(string name, int min, int max)
    {
        if (Text(name) is not { } text)
            return null;
        if (int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int number)
            && number >= min && number <= max)
            return number;
        throw new QueryException($"{name} is '{text}', expected a number from {min} to {max}", name);
    }

    public ulong? Address(string name)
    {
        if (Text(name) is not { } text)
            return null;
        string digits = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? text[2..] : text;
        if (ulong.TryParse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong address))
            return address;
        throw new QueryException($"{name} is '{text}', expected up to 16 hexadecimal digits", name);
    }

    public IReadOnlyList<int>? Numbers(string name)
    {
        // A list may be longer than other texts.
        _read.Add(name);
        if (!parameters.TryGetValue(name, out var values) || values.Count == 0)
            return null;
        var numbers = new List<int>();
        foreach (string part in values.ToString().Split(',', StringSplitOptions.RemoveEmptyEntries))
        {
            if (!int.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out int number))
                throw new QueryException($"{name} has '{part}', expected numbers with commas between them", name);
            numbers.Add(number);
        }

        return numbers;
    }

    /// <summary>The moment that a question is about; the last one if it does not say.</summary>
    public int Moment(ExplorerSource source, string name = "t")
    {
        if (source.Timeline == null)
        {
            Text(name);
            return source.Now;
        }

        return Number(name, 0, source.Now) ?? source.Now;
    }

    /// <summary>All parameters have been read by now; others are mistakes.</summary>
    public void NoMore()
    {
        foreach (string name in parameters.Keys)
        {
            if (!_read.Contains(name))
                throw new QueryException($"there is no parameter '{name}' here", name);
        }
    }
}
