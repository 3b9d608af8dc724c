using System.Text.Json;
using System.Text.Json.Serialization;

namespace Kmem;

/// <summary>The types that are sent as JSON; compiled, so that nothing is inspected at run time.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, MaxDepth = 2048)]
[JsonSerializable(typeof(InfoAnswer))]
[JsonSerializable(typeof(CachesAnswer))]
[JsonSerializable(typeof(SitesAnswer))]
[JsonSerializable(typeof(MachineAnswer))]
[JsonSerializable(typeof(PcpAnswer))]
[JsonSerializable(typeof(FrameAnswer))]
[JsonSerializable(typeof(SlabsAnswer))]
[JsonSerializable(typeof(SlabAnswer))]
[JsonSerializable(typeof(ObjectAnswer))]
[JsonSerializable(typeof(VirtualAnswer))]
[JsonSerializable(typeof(WalkAnswer))]
[JsonSerializable(typeof(HistogramAnswer))]
[JsonSerializable(typeof(DiffAnswer))]
[JsonSerializable(typeof(ExplainAnswer))]
[JsonSerializable(typeof(ErrorAnswer))]
internal sealed partial class ExplorerJson : JsonSerializerContext;

/// <summary>Why there is no answer.</summary>
internal sealed record ErrorAnswer(string Error, string? Parameter);
