using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Kmem;

/// <summary>Explanations as JSON; compiled, so that nothing is inspected at run time.</summary>
[JsonSerializable(typeof(Explanation))]
[JsonSerializable(typeof(RequestExplanation))]
internal sealed partial class ExplanationJson : JsonSerializerContext
{
    /// <summary>Its encoder leaves the + of a call site readable: whoever puts the text into a page has to escape
    /// it.</summary>
    private static readonly ExplanationJson s_readable = new(new JsonSerializerOptions
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        Converters =
        {
            new NumberText<VirtAddr>(value => value.Value, "x16"),
            new NumberText<PhysAddr>(value => value.Value, "x"),
            new NumberText<Pfn>(value => value.IsValid ? value.Value : null, "x"),
            new EnumName<AddressKind>(),
            new EnumName<Migratetype>(),
            new EnumName<ZoneResult>(),
            new EnumName<BlockPlace>(),
            new EnumName<SlowStep>(),
            new EnumName<ObjectSource>(),
            new EnumName<LifeEventKind>(),
            new EnumName<PinKind>(),
            new GfpText(),
        },
    });

    public static string Write(Explanation explanation) =>
        JsonSerializer.Serialize(explanation, s_readable.Explanation);

    public static string Write(RequestExplanation explanation) =>
        JsonSerializer.Serialize(explanation, s_readable.RequestExplanation);

    /// <summary>A number as a text in hexadecimal; null for none.</summary>
    private sealed class NumberText<T>(Func<T, ulong?> valueOf, string format) : JsonConverter<T>
        where T : struct
    {
        public override T Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
            throw new NotSupportedException("explanations are written, not read");

        public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options)
        {
            if (valueOf(value) is { } number)
                writer.WriteStringValue("0x" + number.ToString(format, CultureInfo.InvariantCulture));
            else
                writer.WriteNullValue();
        }
    }

    private sealed class EnumName<T> : JsonConverter<T>
        where T : struct, Enum
    {
        public override T Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
            throw new NotSupportedException("explanations are written, not read");

        public override void Write(Utf8JsonWriter writer, T value, JsonSerializerOptions options) =>
            writer.WriteStringValue(JsonNamingPolicy.CamelCase.ConvertName(value.ToString()));
    }

    private sealed class GfpText : JsonConverter<Gfp>
    {
        public override Gfp Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
            throw new NotSupportedException("explanations are written, not read");

        public override void Write(Utf8JsonWriter writer, Gfp value, JsonSerializerOptions options) =>
            writer.WriteStringValue(value.ToKernelString());
    }
}
