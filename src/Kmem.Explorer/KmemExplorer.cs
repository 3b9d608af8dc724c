using System.Buffers;
using System.Diagnostics.CodeAnalysis;
using System.Net;
using System.Reflection;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;

namespace Kmem;

/// <summary>Where an explorer listens, and to whom.</summary>
public sealed record ExplorerOptions
{
    /// <summary>TCP port; 0 for any that is free.</summary>
    public int Port { get; init; }

    /// <summary>
    /// Address to listen on. Anything but loopback needs a <see cref="Token"/>: the page shows the content of memory.
    /// </summary>
    public IPAddress Host { get; init; } = IPAddress.Loopback;

    /// <summary>What a visitor must know; null: nothing, which is allowed on loopback only. At least 16
    /// characters.</summary>
    public string? Token { get; init; }

    /// <summary>What the page calls the machine; null for the machine's own name.</summary>
    public string? Name { get; init; }

    /// <summary>Pages that may be open at once.</summary>
    public int MaxClients { get; init; } = 16;
}

/// <summary>A web server that shows a machine, or a recording, in the browser. Dispose it before the machine.</summary>
/// <remarks>Made by <see cref="MachineExplorer.ServeExplorer(Machine, ExplorerOptions?)"/>. Thread-safe.</remarks>
public sealed class KmemExplorer : IDisposable, IAsyncDisposable
{
    private const int ShortestToken = 16;
    private const string Cookie = "kmem-token";
    private const string Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

    private static readonly Dictionary<string, string> s_types = new(StringComparer.Ordinal)
    {
        [".html"] = "text/html; charset=utf-8",
        [".js"] = "text/javascript; charset=utf-8",
        [".css"] = "text/css; charset=utf-8",
        [".svg"] = "image/svg+xml",
        [".json"] = "application/json",
        [".png"] = "image/png",
    };

    private readonly WebApplication _app;
    private readonly ExplorerSource _source;
    private readonly ExplorerApi _api;
    private readonly ExplorerOptions _options;
    private readonly byte[]? _token;
    private readonly CancellationTokenSource _stop = new();
    private int _clients;
    private int _disposed;

    private KmemExplorer(ExplorerSource source, ExplorerOptions options)
    {
        Check(options);
        _source = source;
        _options = options;
        _token = options.Token == null ? null : Encoding.UTF8.GetBytes(options.Token);
        _api = new ExplorerApi(source);
        _app = Build();
    }

    /// <summary>Where the explorer is, with the token if it has one: to be opened in a browser.</summary>
    public Uri Url { get; private set; } = null!;

    /// <summary>Starts a server for a source, which it disposes when it ends.</summary>
    /// <exception cref="IOException">The port is in use.</exception>
    /// <exception cref="ArgumentException">The options are not allowed together.</exception>
    internal static KmemExplorer Start(ExplorerSource source, ExplorerOptions options)
    {
        var explorer = new KmemExplorer(source, options);
        try
        {
            explorer._app.StartAsync().GetAwaiter().GetResult();
        }
        catch
        {
            ((IDisposable)explorer._app).Dispose();
            throw;
        }

        string address = explorer._app.Services.GetRequiredService<IServer>().Features
            .Get<IServerAddressesFeature>()!.Addresses.First();
        string query = options.Token == null ? "" : "?token=" + Uri.EscapeDataString(options.Token);
        explorer.Url = new Uri(new Uri(address), "/" + query);
        return explorer;
    }

    /// <summary>Closes all connections and stops listening.</summary>
    public void Dispose() => DisposeAsync().AsTask().GetAwaiter().GetResult();

    /// <inheritdoc cref="Dispose"/>
    public async ValueTask DisposeAsync()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0)
            return;

        await _stop.CancelAsync();
        using (var patience = new CancellationTokenSource(TimeSpan.FromSeconds(2)))
            await _app.StopAsync(patience.Token);
        await _app.DisposeAsync();
        _source.Dispose();
        _stop.Dispose();
    }

    /// <summary>The text of a file of the front end; null if there is none of that name.</summary>
    internal static byte[]? FileOf(string name)
    {
        using Stream? stream = typeof(KmemExplorer).Assembly.GetManifestResourceStream("wwwroot/" + name);
        if (stream == null)
            return null;
        var bytes = new byte[stream.Length];
        stream.ReadExactly(bytes);
        return bytes;
    }

    private static void Check(ExplorerOptions options)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(options.Port, nameof(options));
        ArgumentOutOfRangeException.ThrowIfGreaterThan(options.Port, IPEndPoint.MaxPort, nameof(options));
        ArgumentOutOfRangeException.ThrowIfLessThan(options.MaxClients, 1, nameof(options));
        if (options.Token == null && !IPAddress.IsLoopback(options.Host))
            throw new ArgumentException($"{options.Host} can be reached from other machines: that needs a token",
                nameof(options));
        if (options.Token is { Length: < ShortestToken })
            throw new ArgumentException($"the token is shorter than {ShortestToken} characters", nameof(options));
    }

    private WebApplication Build()
    {
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(server =>
        {
            server.AddServerHeader = false;
            server.Listen(_options.Host, _options.Port);
            server.Limits.MaxRequestBodySize = 0;
            server.Limits.MaxConcurrentConnections = 256;
            server.Limits.MaxConcurrentUpgradedConnections = _options.MaxClients + 8;
            server.Limits.MaxRequestLineSize = 4096;
            server.Limits.MaxRequestHeadersTotalSize = 16 << 10;
            server.Limits.RequestHeadersTimeout = TimeSpan.FromSeconds(10);
            server.Limits.KeepAliveTimeout = TimeSpan.FromSeconds(60);
        });
        builder.Logging.ClearProviders();
        WebApplication app = builder.Build();
        app.UseWebSockets(new WebSocketOptions { KeepAliveInterval = TimeSpan.FromSeconds(20) });
        app.Run(HandleAsync);
        return app;
    }

    private async Task HandleAsync(HttpContext context)
    {
        AddHeaders(context.Response.Headers);
        if (!IsOurHost(context.Request.Host.Host))
        {
            await RefuseAsync(context, StatusCodes.Status421MisdirectedRequest,
                "this is not the host that was asked for");
            return;
        }

        if (!IsAllowed(context, out bool byQuery))
        {
            await RefuseAsync(context, StatusCodes.Status401Unauthorized,
                "the token is missing or wrong: open the printed address");
            return;
        }

        string path = context.Request.Path.Value ?? "/";
        if (byQuery && path == "/")
        {
            context.Response.Cookies.Append(
                Cookie, _options.Token!,
                    new CookieOptions { HttpOnly = true, SameSite = SameSiteMode.Strict, Path = "/" });
            context.Response.Redirect("/");
            return;
        }

        if (path == "/ws")
            await ServeSocketAsync(context);
        else if (!HttpMethods.IsGet(context.Request.Method) && !HttpMethods.IsHead(context.Request.Method))
            await RefuseAsync(context, StatusCodes.Status405MethodNotAllowed, "only GET");
        else if (path.StartsWith("/api/", StringComparison.Ordinal))
            await AnswerAsync(context, path);
        else
            await SendFileAsync(context, path == "/" ? "index.html" : path[1..]);
    }

    private static void AddHeaders(IHeaderDictionary headers)
    {
        headers.ContentSecurityPolicy = Policy;
        headers.XContentTypeOptions = "nosniff";
        headers.XFrameOptions = "DENY";
        headers["Referrer-Policy"] = "no-referrer";
        headers["Cross-Origin-Resource-Policy"] = "same-origin";
        headers["Cross-Origin-Opener-Policy"] = "same-origin";
        headers.CacheControl = "no-store";
    }

    /// <summary>A page of somebody else whose name was made to point here is not let in.</summary>
    private bool IsOurHost(string host)
    {
        if (!IPAddress.IsLoopback(_options.Host))
            return true;        // the token decides
        return host.Equals("localhost", StringComparison.OrdinalIgnoreCase)
            || (IPAddress.TryParse(host.Trim('[', ']'), out IPAddress? address) && IPAddress.IsLoopback(address));
    }

    private bool IsAllowed(HttpContext context, out bool byQuery)
    {
        byQuery = false;
        if (_token == null)
            return true;
        if (IsToken(context.Request.Query["token"].ToString()))
            return byQuery = true;
        string header = context.Request.Headers.Authorization.ToString();
        const string Bearer = "Bearer ";
        return (header.StartsWith(Bearer, StringComparison.OrdinalIgnoreCase) && IsToken(header[Bearer.Length..]))
            || IsToken(context.Request.Cookies[Cookie]);
    }

    private bool IsToken(string? text) =>
        text != null && CryptographicOperations.FixedTimeEquals(Encoding.UTF8.GetBytes(text), _token);

    private async Task ServeSocketAsync(HttpContext context)
    {
        if (!context.WebSockets.IsWebSocketRequest)
        {
            await RefuseAsync(context, StatusCodes.Status426UpgradeRequired, "this address is for WebSockets");
            return;
        }

        // Browsers say whose page opens the connection, and do not keep pages from opening those to other hosts.
        string origin = context.Request.Headers.Origin.ToString();
        if (origin.Length > 0 && !(Uri.TryCreate(origin, UriKind.Absolute, out Uri? from)
            && from.Authority.Equals(context.Request.Host.Value, StringComparison.OrdinalIgnoreCase)))
        {
            await RefuseAsync(context, StatusCodes.Status403Forbidden, "opened by a page from elsewhere");
            return;
        }

        if (Interlocked.Increment(ref _clients) > _options.MaxClients)
        {
            Interlocked.Decrement(ref _clients);
            await RefuseAsync(
                context, StatusCodes.Status503ServiceUnavailable, $"{_options.MaxClients} pages are open already");
            return;
        }

        try
        {
            using var socket = await context.WebSockets.AcceptWebSocketAsync();
            using var stop = CancellationTokenSource.CreateLinkedTokenSource(_stop.Token, context.RequestAborted);
            await new ExplorerConnection(socket, _source, _api.Answers).RunAsync(stop.Token);
        }
        finally
        {
            Interlocked.Decrement(ref _clients);
        }
    }

    [SuppressMessage("Design", "CA1031", Justification = "A question about a machine at work may fail in any way.")]
    private async Task AnswerAsync(HttpContext context, string path)
    {
        context.Response.ContentType = "application/json; charset=utf-8";
        var answer = new ArrayBufferWriter<byte>(1 << 12);
        int status = StatusCodes.Status200OK;
        ErrorAnswer? error = null;
        try
        {
            _api.Answer(path, context.Request.Query, answer);
        }
        catch (QueryException e)
        {
            (status, error) = (e.Status, new ErrorAnswer(e.Message, e.Parameter));
        }
        catch (Exception e) when (e is KernelBugException or InvalidOperationException or IndexOutOfRangeException)
        {
            // The machine changed while it was looked at.
            (status, error) = (StatusCodes.Status503ServiceUnavailable,
                new ErrorAnswer($"try again: {e.Message}", null));
        }

        context.Response.StatusCode = status;
        if (error != null)
            await context.Response.Body.WriteAsync(
                JsonSerializer.SerializeToUtf8Bytes(error, ExplorerJson.Default.ErrorAnswer));
        else
            await context.Response.Body.WriteAsync(answer.WrittenMemory);
    }

    private static async Task SendFileAsync(HttpContext context, string name)
    {
        byte[]? file = s_types.TryGetValue(Path.GetExtension(name), out string? type) ? FileOf(name) : null;
        if (file == null)
        {
            await RefuseAsync(context, StatusCodes.Status404NotFound, "there is no such page");
            return;
        }

        context.Response.ContentType = type;
        context.Response.ContentLength = file.Length;
        if (!HttpMethods.IsHead(context.Request.Method))
            await context.Response.Body.WriteAsync(file);
    }

    private static async Task RefuseAsync(HttpContext context, int status, string why)
    {
        context.Response.StatusCode = status;
        context.Response.ContentType = "application/json; charset=utf-8";
        await context.Response.Body.WriteAsync(
            JsonSerializer.SerializeToUtf8Bytes(new ErrorAnswer(why, null), ExplorerJson.Default.ErrorAnswer));
    }
}

/// <summary>The explorer for a machine of this process.</summary>
public static class MachineExplorer
{
    /// <summary>
    /// Shows a live machine in the browser, for development: <c>using var explorer = machine.ServeExplorer();</c>
    /// </summary>
    /// <param name="machine">The machine; it goes on working, and pays only while somebody looks.</param>
    /// <param name="options">Where to listen; null: any free port, loopback only.</param>
    /// <returns>The server; <see cref="KmemExplorer.Url"/> says where. Dispose it before the machine.</returns>
    /// <exception cref="IOException">The port is in use.</exception>
    /// <exception cref="ArgumentException">Not on loopback and without a token, or another impossible
    /// option.</exception>
    public static KmemExplorer ServeExplorer(this Machine machine, ExplorerOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(machine);
        options ??= new ExplorerOptions();
        return KmemExplorer.Start(
            new MachineSource(machine, isAtWork: true) { Name = options.Name ?? machine.Name }, options);
    }
}
