using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Kmem;

/// <summary>A number as a text in hexadecimal, with or without 0x.</summary>
internal sealed class HexConverter : JsonConverter<ulong>
{
    public override ulong Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        reader.TokenType == JsonTokenType.Number ? reader.GetUInt64() : Parse(reader.GetString());

    public override void Write(Utf8JsonWriter writer, ulong value, JsonSerializerOptions options) =>
        WriteHex(writer, value);

    internal static ulong Parse(string? text)
    {
        ReadOnlySpan<char> digits = text;
        if (digits.StartsWith("0x", StringComparison.Ordinal))
            digits = digits[2..];
        return ulong.TryParse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong value)
            ? value
            : throw new JsonException($"'{text}' is not a hexadecimal number");
    }

    internal static void WriteHex(Utf8JsonWriter writer, ulong value)
    {
        Span<char> text = stackalloc char[18];
        "0x".CopyTo(text);
        value.TryFormat(text[2..], out int digits, "x", CultureInfo.InvariantCulture);
        writer.WriteStringValue(text[..(2 + digits)]);
    }
}

/// <summary>0 for no, any other number, address or name for yes.</summary>
internal sealed class FlagConverter : JsonConverter<bool>
{
    public override bool Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        reader.TokenType switch
        {
            JsonTokenType.Number => reader.GetUInt64() != 0,
            JsonTokenType.String => reader.GetString() is not ("" or "0" or "0x0"),
            JsonTokenType.True => true,
            JsonTokenType.False or JsonTokenType.Null => false,
            _ => throw new JsonException($"expected 0 or an address, found {reader.TokenType}"),
        };

    public override void Write(Utf8JsonWriter writer, bool value, JsonSerializerOptions options) =>
        writer.WriteNumberValue(value ? 1 : 0);
}

/// <summary>Numbers as texts in hexadecimal.</summary>
internal sealed class HexListConverter : JsonConverter<ulong[]>
{
    public override ulong[] Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var values = new List<ulong>();
        StateJson.Expect(ref reader, JsonTokenType.StartArray, "a list of addresses");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            StateJson.Expect(ref reader, JsonTokenType.String, "an address");
            values.Add(HexConverter.Parse(reader.GetString()));
        }

        return [.. values];
    }

    public override void Write(Utf8JsonWriter writer, ulong[] value, JsonSerializerOptions options)
    {
        writer.WriteStartArray();
        foreach (ulong address in value)
            HexConverter.WriteHex(writer, address);
        writer.WriteEndArray();
    }
}

/// <summary>Lists of frames, each a text of decimal numbers and blanks.</summary>
internal sealed class FrameListsConverter : JsonConverter<IReadOnlyList<ulong[]>>
{
    private const int MostDigits = 20;

    public override IReadOnlyList<ulong[]> Read(
        ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var lists = new List<ulong[]>();
        StateJson.Expect(ref reader, JsonTokenType.StartArray, "lists of frames");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            StateJson.Expect(ref reader, JsonTokenType.String, "a list of frames");
            lists.Add(Parse(reader.GetString()!));
        }

        return lists;
    }

    public override void Write(Utf8JsonWriter writer, IReadOnlyList<ulong[]> value, JsonSerializerOptions options)
    {
        writer.WriteStartArray();
        foreach (ulong[] frames in value)
        {
            var text = new char[frames.Length * (MostDigits + 1)];
            int length = 0;
            foreach (ulong pfn in frames)
            {
                if (length > 0)
                    text[length++] = ' ';
                pfn.TryFormat(text.AsSpan(length), out int digits, default, CultureInfo.InvariantCulture);
                length += digits;
            }

            writer.WriteStringValue(text.AsSpan(0, length));
        }

        writer.WriteEndArray();
    }

    private static ulong[] Parse(string text)
    {
        var frames = new List<ulong>();
        foreach (Range range in text.AsSpan().Split(' '))
        {
            ReadOnlySpan<char> word = text.AsSpan(range);
            if (word.IsEmpty)
                continue;
            if (!ulong.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out ulong pfn))
                throw new JsonException($"'{word}' is not a frame number");
            frames.Add(pfn);
        }

        return [.. frames];
    }
}

/// <summary>Slabs as rows.</summary>
internal sealed class SlabRowsConverter : JsonConverter<IReadOnlyList<SlabRow>>
{
    public override IReadOnlyList<SlabRow> Read(
        ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var rows = new List<SlabRow>();
        var names = new Dictionary<string, string>(StringComparer.Ordinal);
        StateJson.Expect(ref reader, JsonTokenType.StartArray, "slabs");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            StateJson.Expect(ref reader, JsonTokenType.StartArray, "a slab");
            ulong pfn = StateJson.NextNumber(ref reader, "a frame");
            int order = (int)StateJson.NextNumber(ref reader, "an order");
            reader.Read();
            StateJson.Expect(ref reader, JsonTokenType.String, "a cache's name");
            string name = reader.GetString()!;
            if (!names.TryAdd(name, name))
                name = names[name];
            var row = new SlabRow(
                pfn,
                order,
                name,
                (int)StateJson.NextNumber(ref reader, "objects in use"),
                (int)StateJson.NextNumber(ref reader, "objects"),
                StateJson.NextNumber(ref reader, "0 or 1") != 0,
                StateJson.NextNumber(ref reader, "0 or 1") != 0,
                NextIndices(ref reader));
            reader.Read();
            StateJson.Expect(ref reader, JsonTokenType.EndArray, "the end of a slab");
            rows.Add(row);
        }

        return rows;
    }

    public override void Write(Utf8JsonWriter writer, IReadOnlyList<SlabRow> value, JsonSerializerOptions options)
    {
        writer.WriteStartArray();
        foreach (SlabRow row in value)
        {
            writer.WriteStartArray();
            writer.WriteNumberValue(row.Pfn);
            writer.WriteNumberValue(row.Order);
            writer.WriteStringValue(row.Cache);
            writer.WriteNumberValue(row.InUse);
            writer.WriteNumberValue(row.Objects);
            writer.WriteNumberValue(row.Frozen ? 1 : 0);
            writer.WriteNumberValue(row.OnPartialList ? 1 : 0);
            writer.WriteStartArray();
            foreach (int index in row.Free)
                writer.WriteNumberValue(index);
            writer.WriteEndArray();
            writer.WriteEndArray();
        }

        writer.WriteEndArray();
    }

    private static int[] NextIndices(ref Utf8JsonReader reader)
    {
        reader.Read();
        StateJson.Expect(ref reader, JsonTokenType.StartArray, "free objects");
        var indices = new List<int>();
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
            indices.Add((int)StateJson.Number(ref reader, "the index of an object"));
        return [.. indices];
    }
}

/// <summary>
/// The vmalloc space. Rows: a free block [object, start, end, parent's start or null, 1 black or 0 red, largest of the
/// subtree]; an area [object, start, end, flags] and, with a vm_struct, [.., address, size, flags, pages], followed in
/// a machine's own state by what else its vm_struct says.
/// </summary>
internal sealed class VmapStateConverter : JsonConverter<VmapState>
{
    public override VmapState? Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        using JsonDocument document = JsonDocument.ParseValue(ref reader);
        try
        {
            return VmapStateReader.Read(document.RootElement);
        }
        catch (Exception e) when (e is FormatException or KeyNotFoundException or InvalidOperationException
            or IndexOutOfRangeException or ArgumentException or OverflowException)
        {
            throw new JsonException($"vmap: {e.Message}", e);
        }
    }

    public override void Write(Utf8JsonWriter writer, VmapState value, JsonSerializerOptions options)
    {
        writer.WriteStartObject();
        writer.WriteNumber("nr_nodes", value.Nodes.Length);
        writer.WriteNumber("zone_size", value.Nodes.Length == 1 ? 1 : VmapAllocator.ZoneBytes);
        writer.WriteNumber("lazy_nr", value.LazyPages);
        writer.WriteStartArray("free");
        foreach (VmapBlockState block in value.Free)
            WriteBlock(writer, block);
        writer.WriteEndArray();
        writer.WriteStartArray("nodes");
        foreach (VmapNodeState node in value.Nodes)
        {
            writer.WriteStartObject();
            WriteAreas(writer, "busy", node.Busy);
            WriteAreas(writer, "lazy", node.Lazy);
            writer.WriteStartObject("pool");
            foreach ((int pages, List<VmapAreaState> pool) in node.Pools)
                WriteAreas(writer, pages.ToString(CultureInfo.InvariantCulture), pool);
            writer.WriteEndObject();
            writer.WriteEndObject();
        }

        writer.WriteEndArray();
        writer.WriteStartArray("ne_fit_preload_node");
        foreach (ulong spare in value.Spare)
            HexConverter.WriteHex(writer, spare);
        writer.WriteEndArray();
        writer.WriteEndObject();
    }

    private static void WriteBlock(Utf8JsonWriter writer, in VmapBlockState block)
    {
        writer.WriteStartArray();
        HexConverter.WriteHex(writer, block.Object);
        HexConverter.WriteHex(writer, block.Start);
        HexConverter.WriteHex(writer, block.End);
        if (block.Parent is { } parent)
            HexConverter.WriteHex(writer, parent);
        else
            writer.WriteNullValue();
        writer.WriteNumberValue(block.IsBlack ? 1 : 0);
        HexConverter.WriteHex(writer, block.Largest);
        writer.WriteEndArray();
    }

    private static void WriteAreas(Utf8JsonWriter writer, string name, List<VmapAreaState> areas)
    {
        writer.WriteStartArray(name);
        foreach (VmapAreaState area in areas)
        {
            writer.WriteStartArray();
            HexConverter.WriteHex(writer, area.Object);
            HexConverter.WriteHex(writer, area.Start);
            HexConverter.WriteHex(writer, area.End);
            HexConverter.WriteHex(writer, area.Flags);
            if (area.Struct is { } vm)
                WriteStruct(writer, vm);
            writer.WriteEndArray();
        }

        writer.WriteEndArray();
    }

    private static void WriteStruct(Utf8JsonWriter writer, VmStructState vm)
    {
        HexConverter.WriteHex(writer, vm.Address);
        HexConverter.WriteHex(writer, vm.Size);
        HexConverter.WriteHex(writer, vm.Flags);
        writer.WriteNumberValue(vm.PageCount);
        if (vm.Object == 0)
            return;

        HexConverter.WriteHex(writer, vm.Object);
        HexConverter.WriteHex(writer, vm.PageArray);
        writer.WriteNumberValue(vm.PageOrder);
        HexConverter.WriteHex(writer, vm.PhysicalAddress);
        writer.WriteNumberValue(vm.Caller);
        writer.WriteNumberValue(vm.RequestedSize);
        writer.WriteStartArray();
        foreach (ulong pfn in vm.Pages)
            writer.WriteNumberValue(pfn);
        writer.WriteEndArray();
    }
}

/// <summary>Small helpers of the converters.</summary>
internal static class StateJson
{
    public static void Expect(ref Utf8JsonReader reader, JsonTokenType type, string what)
    {
        if (reader.TokenType != type)
            throw new JsonException($"expected {what}, found {reader.TokenType}");
    }

    public static ulong NextNumber(ref Utf8JsonReader reader, string what)
    {
        reader.Read();
        return Number(ref reader, what);
    }

    public static ulong Number(ref Utf8JsonReader reader, string what) =>
        reader.TokenType == JsonTokenType.Number && reader.TryGetUInt64(out ulong value)
            ? value
            : throw new JsonException($"expected {what}, found {reader.TokenType}");
}
