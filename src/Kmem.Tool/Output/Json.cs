using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;
using Kmem.Tool.Bench;
using Kmem.Tool.Soak;
using Kmem.Tracing;

namespace Kmem.Tool.Output;

/// <summary>Writes an answer as JSON: camelCase, indented, a newline at the end.</summary>
internal static class Json
{
    internal static void Write<T>(TextWriter output, T value, JsonTypeInfo<T> type) =>
        output.WriteLine(JsonSerializer.Serialize(value, type));
}

/// <summary>The types that are written as JSON; compiled, so that nothing is inspected at run time.</summary>
[JsonSerializable(typeof(GeometryTableJson))]
[JsonSerializable(typeof(CacheJson))]
[JsonSerializable(typeof(ReplayReport))]
[JsonSerializable(typeof(CompareJson))]
[JsonSerializable(typeof(StatePredictionJson))]
[JsonSerializable(typeof(VmapPredictionResult))]
[JsonSerializable(typeof(WalkJson))]
[JsonSerializable(typeof(SoakResult))]
[JsonSerializable(typeof(BenchJson))]
[JsonSerializable(typeof(ChildRequest))]
[JsonSerializable(typeof(CaseResult[]))]
internal sealed partial class JsonTypes : JsonSerializerContext
{
    /// <summary>
    /// The context in use. Its encoder leaves the + of a call site readable: no browser gets this text.
    /// </summary>
    internal static JsonTypes Readable { get; } = new(new JsonSerializerOptions
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        WriteIndented = true,
        Converters = { new SecondsConverter() },
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });
}

/// <summary>A time as a number of seconds.</summary>
internal sealed class SecondsConverter : JsonConverter<TimeSpan>
{
    public override TimeSpan Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) =>
        TimeSpan.FromSeconds(reader.GetDouble());

    public override void Write(Utf8JsonWriter writer, TimeSpan value, JsonSerializerOptions options) =>
        writer.WriteNumberValue(value.TotalSeconds);
}
