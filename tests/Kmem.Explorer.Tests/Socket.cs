using System.Net.WebSockets;
using System.Text;
using System.Text.Json;

namespace Kmem.Explorer.Tests;

/// <summary>A client of the explorer's WebSocket that keeps a picture of the map, as the page does.</summary>
internal sealed class Socket : IAsyncDisposable
{
    private readonly ClientWebSocket _socket = new();
    private readonly byte[] _buffer = new byte[4 << 20];

    /// <summary>All cells of the window, four words each.</summary>
    public uint[] Cells { get; private set; } = [];

    public uint ViewId { get; private set; }

    public uint Moment { get; private set; }

    public uint Sequence { get; private set; }

    public int FullFrames { get; private set; }

    public int DeltaFrames { get; private set; }

    public long Bytes { get; private set; }

    public static async Task<Socket> OpenAsync(Uri url, string? origin = null, string? token = null)
    {
        var socket = new Socket();
        if (origin != null)
            socket._socket.Options.SetRequestHeader("Origin", origin);
        string query = token == null ? "" : "?token=" + token;
        await socket._socket.ConnectAsync(
            new Uri($"ws://{url.Authority}/ws{query}"), TestContext.Current.CancellationToken);
        return socket;
    }

    public Task SendAsync(string text) => _socket.SendAsync(
        Encoding.UTF8.GetBytes(text), WebSocketMessageType.Text, true, TestContext.Current.CancellationToken);

    public WebSocketCloseStatus? CloseStatus => _socket.CloseStatus;

    /// <summary>The next text message; binary ones that come first are taken in. Null: closed.</summary>
    public async Task<JsonElement?> NextAsync(string? type = null)
    {
        using var patience = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        patience.CancelAfter(TimeSpan.FromSeconds(90));
        while (true)
        {
            (int length, WebSocketMessageType kind) = await ReceiveAsync(patience.Token);
            if (kind == WebSocketMessageType.Close)
                return null;
            if (kind == WebSocketMessageType.Binary)
            {
                TakeCells(_buffer.AsSpan(0, length));
                continue;
            }

            JsonElement message = JsonDocument.Parse(_buffer.AsMemory(0, length)).RootElement.Clone();
            if (type == null || message.GetProperty("type").GetString() == type)
                return message;
        }
    }

    /// <summary>Waits for a frame of cells.</summary>
    public async Task CellsAsync(Func<Socket, bool> until)
    {
        using var patience = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        patience.CancelAfter(TimeSpan.FromSeconds(90));
        while (!until(this))
        {
            (int length, WebSocketMessageType kind) = await ReceiveAsync(patience.Token);
            Assert.NotEqual(WebSocketMessageType.Close, kind);
            if (kind == WebSocketMessageType.Binary)
                TakeCells(_buffer.AsSpan(0, length));
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (_socket.State == WebSocketState.Open)
            await _socket.CloseOutputAsync(WebSocketCloseStatus.NormalClosure, null, CancellationToken.None);
        _socket.Dispose();
    }

    private async Task<(int Length, WebSocketMessageType Kind)> ReceiveAsync(CancellationToken cancel)
    {
        int length = 0;
        while (true)
        {
            ValueWebSocketReceiveResult part = await _socket.ReceiveAsync(_buffer.AsMemory(length), cancel);
            length += part.Count;
            if (part.EndOfMessage || part.MessageType == WebSocketMessageType.Close)
                return (length, part.MessageType);
        }
    }

    private void TakeCells(ReadOnlySpan<byte> message)
    {
        ReadOnlySpan<uint> words = System.Runtime.InteropServices.MemoryMarshal.Cast<byte, uint>(message);
        Assert.Equal(0x50414d4bu, words[0]);
        Assert.Equal(1u, words[1] & 0xff);
        Assert.Equal(4u, words[1] >> 24);
        bool full = (words[1] & 0x100) != 0;
        ViewId = words[2];
        Sequence = words[3];
        Moment = words[4];
        int cells = (int)words[6];
        int records = (int)words[7];
        Bytes += message.Length;
        ReadOnlySpan<uint> body = words[10..];
        if (full)
        {
            Assert.Equal(cells, records);
            Cells = body.ToArray();
            FullFrames++;
        }
        else
        {
            Assert.Equal(records * 5, body.Length);
            for (int i = 0; i < records; i++)
                body.Slice((i * 5) + 1, 4).CopyTo(Cells.AsSpan((int)body[i * 5] * 4));
            DeltaFrames++;
        }

        Assert.Equal(cells * 4, Cells.Length);
    }
}
