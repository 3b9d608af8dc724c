using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;

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
internal sealed partial class JsonTypes : JsonSerializerContext
{
    /// <summary>The context in use. Its encoder leaves the + of a call site readable: no browser gets this text.</summary>
    internal static JsonTypes Readable { get; } = new(new JsonSerializerOptions
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });
}
