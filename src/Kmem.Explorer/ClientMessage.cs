using System.Text.Json;
using Kmem.Tracing;

namespace Kmem;

/// <summary>Reads the messages of clients; whatever is wrong with one is a <see cref="QueryException"/>.</summary>
internal static class ClientMessage
{
    private const int MostIds = 4096;

    /// <summary>The message as an object, and its type.</summary>
    public static (JsonElement Message, string Type) Parse(ReadOnlyMemory<byte> text)
    {
        JsonElement message;
        try
        {
            using JsonDocument document = JsonDocument.Parse(text, new JsonDocumentOptions { MaxDepth = 8 });
            message = document.RootElement.Clone();
            CheckTexts(text.Span);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new QueryException($"not JSON: {e.Message}", null);
        }

        if (message.ValueKind != JsonValueKind.Object
            || !message.TryGetProperty("type", out JsonElement type) || type.ValueKind != JsonValueKind.String)
        {
            throw new QueryException("expected an object with a type", "type");
        }

        return (message, type.GetString()!);
    }

    /// <summary>A text that is no Unicode, such as half a surrogate pair, is found out only when it is read.</summary>
    private static void CheckTexts(ReadOnlySpan<byte> text)
    {
        var reader = new Utf8JsonReader(text);
        while (reader.Read())
        {
            if (reader.TokenType is JsonTokenType.String or JsonTokenType.PropertyName)
                reader.GetString();
        }
    }

    public static long Number(JsonElement message, string name, long min, long max, long? otherwise = null)
    {
        if (!message.TryGetProperty(name, out JsonElement value) || value.ValueKind == JsonValueKind.Null)
            return otherwise ?? throw new QueryException($"{name} is missing", name);
        return value.ValueKind == JsonValueKind.Number && value.TryGetInt64(out long number) && number >= min
            && number <= max
            ? number
            : throw new QueryException($"{name} is not a whole number from {min} to {max}", name);
    }

    public static double Decimal(JsonElement message, string name, double min, double max)
    {
        if (!message.TryGetProperty(name, out JsonElement value))
            throw new QueryException($"{name} is missing", name);
        return value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out double number) && number >= min
            && number <= max
            ? number
            : throw new QueryException($"{name} is not a number from {min} to {max}", name);
    }

    /// <summary>The window that a view message asks for; null: none.</summary>
    public static FrameView? View(JsonElement message, ulong frames)
    {
        var id = (uint)Number(message, "id", 0, uint.MaxValue);
        long count = Number(message, "count", 0, uint.MaxValue);
        if (count == 0)
            return null;

        long first = Number(message, "first", 0, (long)frames - 1, 0);
        count = Math.Min(count, (long)frames - first);
        long cells = Number(message, "cells", 1, ExplorerLimits.MaxCells, ExplorerLimits.DefaultCells);
        int lowest = 0;
        while (lowest < FrameView.MaxLevel && CellsOf(first, count, lowest) > cells)
            lowest++;
        int level = (int)Number(message, "level", 0, FrameView.MaxLevel, lowest);
        if (CellsOf(first, count, level) > ExplorerLimits.MaxCells)
        {
            throw new QueryException(
                $"{count} frames at level {level} are {CellsOf(first, count, level)} cells, "
                + $"at most {ExplorerLimits.MaxCells} at a time", "level");
        }

        return new FrameView(id, (ulong)first, (ulong)count, level);
    }

    public static FrameFilter Filter(JsonElement message)
    {
        (int minOrder, int maxOrder) = Range(message, "orders", PageOrder.Max);
        (int minAge, int maxAge) = Range(message, "age", int.MaxValue);
        var filter = new FrameFilter
        {
            Kinds = Bits(message, "kinds", FrameKinds.Count - 1),
            Owners = Set(message, "owners"),
            Zones = Bits(message, "zones", FrameMap.NoZone),
            MigrateTypes = Bits(message, "migrateTypes", Migratetypes.Count - 1),
            Sites = Set(message, "sites"),
            MinOrder = minOrder,
            MaxOrder = maxOrder,
            MinAge = (uint)minAge,
            MaxAge = maxAge == int.MaxValue ? uint.MaxValue : (uint)maxAge,
        };
        return filter == FrameFilter.Everything ? FrameFilter.Everything : filter;
    }

    public static IReadOnlyList<string> Texts(JsonElement message, string name)
    {
        if (!message.TryGetProperty(name, out JsonElement value) || value.ValueKind != JsonValueKind.Array)
            throw new QueryException($"{name} is not a list", name);
        return [.. value.EnumerateArray().Select(it => it.ValueKind == JsonValueKind.String
            ? it.GetString()!
            : throw new QueryException($"{name} is not a list of texts", name))];
    }

    private static long CellsOf(long first, long count, int level) =>
        ((first + count + (1L << level) - 1) >> level) - (first >> level);

    private static IReadOnlySet<int>? Set(JsonElement message, string name)
    {
        if (!message.TryGetProperty(name, out JsonElement value) || value.ValueKind == JsonValueKind.Null)
            return null;
        if (value.ValueKind != JsonValueKind.Array || value.GetArrayLength() > MostIds)
            throw new QueryException($"{name} is not a list of at most {MostIds} numbers", name);
        return value.EnumerateArray().Select(it => it.ValueKind == JsonValueKind.Number && it.TryGetInt32(out int id)
            ? id
            : throw new QueryException($"{name} has something that is no number", name)).ToHashSet();
    }

    private static uint? Bits(JsonElement message, string name, int most)
    {
        if (Set(message, name) is not { } ids)
            return null;

        uint bits = 0;
        foreach (int id in ids)
        {
            if (id < 0 || id > most)
                throw new QueryException($"{name} has {id}, expected 0 to {most}", name);
            bits |= 1u << id;
        }

        return bits;
    }

    private static (int Min, int Max) Range(JsonElement message, string name, int most)
    {
        if (!message.TryGetProperty(name, out JsonElement value) || value.ValueKind == JsonValueKind.Null)
            return (0, most);
        if (value.ValueKind == JsonValueKind.Array && value.GetArrayLength() == 2
            && value[0].ValueKind == JsonValueKind.Number && value[0].TryGetInt32(out int min)
            && value[1].ValueKind == JsonValueKind.Number && value[1].TryGetInt32(out int max) && min >= 0
                && min <= max)
        {
            return (min, Math.Min(max, most));
        }

        throw new QueryException($"{name} is not a range of two numbers", name);
    }
}
