using System.Buffers;
using System.Diagnostics;
using System.Net.WebSockets;
using System.Text.Json;
using Kmem.Tracing;

namespace Kmem;

/// <summary>
/// One client: its moment, its window, what it wants to hear. Messages change what is wanted; the sending side looks at
/// it fifty times a second and sends the state as it is then, so a slow client misses moments and never has a queue.
/// </summary>
internal sealed class ExplorerConnection(WebSocket socket, ExplorerSource source, Answers answers)
{
    private const int MostTicks = 50;
    private const int MostErrors = 16;
    private const double FastestPlay = 1e9;
    private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(20);

    private readonly Lock _lock = new();
    private readonly Queue<byte[]> _replies = new();
    private readonly ArrayBufferWriter<byte> _text = new(1 << 12);

    // What the client wants; under the lock.
    private FrameView? _view;
    private FrameFilter _filter = FrameFilter.Everything;
    private int? _seek;
    private double _speed;
    private bool _wantsMachine;
    private bool _wantsTicker;
    private bool _frozen;
    private int _rate = 10;
    private bool _changed = true;

    // What it has; the sender's.
    private FrameSource _frames = null!;
    private double _position;
    private int _shown = -1;
    private long _sent;

    /// <summary>Serves the client until it goes, or the token says so.</summary>
    public async Task RunAsync(CancellationToken stop)
    {
        using var both = CancellationTokenSource.CreateLinkedTokenSource(stop);
        _frames = source.OpenFrames();
        source.Expect();
        if (source.Timeline == null)
            _frames.MoveTo(0);
        Task sending = SendAsync(both.Token);
        try
        {
            await ReceiveAsync(both.Token);
        }
        catch (Exception e) when (e is OperationCanceledException or WebSocketException)
        {
            // The client has gone, or the server is about to.
        }

        await both.CancelAsync();
        try
        {
            await sending;
        }
        catch (Exception e) when (e is OperationCanceledException or WebSocketException or QueryException)
        {
            // The same.
        }

        await CloseAsync();
    }

    private async Task CloseAsync()
    {
        if (socket.State is not (WebSocketState.Open or WebSocketState.CloseReceived))
            return;

        using var patience = new CancellationTokenSource(TimeSpan.FromSeconds(1));
        try
        {
            await socket.CloseOutputAsync(WebSocketCloseStatus.NormalClosure, null, patience.Token);
        }
        catch (Exception e) when (e is OperationCanceledException or WebSocketException or ObjectDisposedException)
        {
            // It did not wait for a goodbye.
        }
    }

    private async Task ReceiveAsync(CancellationToken stop)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(ExplorerLimits.MaxMessageBytes);
        try
        {
            int length = 0;
            while (true)
            {
                ValueWebSocketReceiveResult part = await socket.ReceiveAsync(
                    buffer.AsMemory(length, ExplorerLimits.MaxMessageBytes - length), stop);
                if (part.MessageType == WebSocketMessageType.Close)
                    return;

                length += part.Count;
                if (!part.EndOfMessage && length == ExplorerLimits.MaxMessageBytes)
                {
                    await socket.CloseOutputAsync(WebSocketCloseStatus.MessageTooBig, "a message is too long", stop);
                    return;
                }

                if (!part.EndOfMessage)
                    continue;
                Handle(buffer.AsMemory(0, length), part.MessageType);
                length = 0;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private void Handle(ReadOnlyMemory<byte> text, WebSocketMessageType kind)
    {
        string? type = null;
        try
        {
            if (kind != WebSocketMessageType.Text)
                throw new QueryException("expected text", null);
            (JsonElement message, type) = ClientMessage.Parse(text);
            lock (_lock)
            {
                Apply(message, type);
                _changed = true;
            }
        }
        catch (QueryException e)
        {
            Reply(json =>
            {
                json.WriteString("type"u8, "error"u8);
                json.WriteString("error"u8, e.Message);
                json.WriteString("in"u8, type);
            });
        }
    }

    private void Apply(JsonElement message, string type)
    {
        switch (type)
        {
            case "view":
                _view = ClientMessage.View(message, source.Shape.Frames);
                if (_view != null)
                    _view.Filter = _filter;
                break;
            case "filter":
                _filter = ClientMessage.Filter(message);
                if (_view != null)
                    _view.Filter = _filter;
                break;
            case "seek":
                Recording();
                _seek = (int)ClientMessage.Number(message, "t", 0, source.Now);
                _speed = 0;
                break;
            case "step":
                Recording();
                long by = ClientMessage.Number(message, "by", -int.MaxValue, int.MaxValue);
                _seek = (int)Math.Clamp((_seek ?? Volatile.Read(ref _shown)) + by, 0, source.Now);
                _speed = 0;
                break;
            case "play":
                Play(ClientMessage.Decimal(message, "speed", -FastestPlay, FastestPlay));
                break;
            case "subscribe":
                Subscribe(message);
                break;
            case "ping":
                long n = ClientMessage.Number(message, "n", long.MinValue, long.MaxValue, 0);
                Reply(json =>
                {
                    json.WriteString("type"u8, "pong"u8);
                    json.WriteNumber("n"u8, n);
                });
                break;
            default:
                throw new QueryException($"there is no message of type '{type[..Math.Min(type.Length, 40)]}'", "type");
        }
    }

    private void Play(double speed)
    {
        if (source.Timeline != null)
        {
            _speed = speed;
            return;
        }

        if (speed is not (0 or 1))
            throw new QueryException("a machine has no other moments: speed 0 freezes the page, 1 goes on", "speed");
        _frozen = speed == 0;
    }

    private void Recording()
    {
        if (source.Timeline == null)
            throw new QueryException("this is no recording: there are no other moments", null, 409);
    }

    private void Subscribe(JsonElement message)
    {
        IReadOnlyList<string> topics = ClientMessage.Texts(message, "topics");
        if (topics.FirstOrDefault(topic => topic is not ("machine" or "ticker")) is { } unknown)
            throw new QueryException($"there is no topic '{unknown[..Math.Min(unknown.Length, 40)]}'", "topics");
        _rate = (int)ClientMessage.Number(message, "rate", 1, ExplorerLimits.MaxRate, 10);
        _wantsMachine = topics.Contains("machine", StringComparer.Ordinal);
        _wantsTicker = topics.Contains("ticker", StringComparer.Ordinal);
    }

    private void Reply(Action<Utf8JsonWriter> write)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            write(json);
            json.WriteEndObject();
        }

        lock (_lock)
        {
            // Somebody who sends nonsense faster than he reads answers does not get all of them.
            if (_replies.Count < MostErrors)
                _replies.Enqueue(buffer.WrittenSpan.ToArray());
        }
    }

    private async Task SendAsync(CancellationToken stop)
    {
        using var timer = new PeriodicTimer(s_period);
        using var json = new Utf8JsonWriter(_text);
        WriteHello(json);
        await socket.SendAsync(_text.WrittenMemory, WebSocketMessageType.Text, endOfMessage: true, stop);
        long last = Stopwatch.GetTimestamp();
        while (await timer.WaitForNextTickAsync(stop))
        {
            while (TakeReply() is { } reply)
                await socket.SendAsync(reply, WebSocketMessageType.Text, endOfMessage: true, stop);

            long now = Stopwatch.GetTimestamp();
            double seconds = Stopwatch.GetElapsedTime(last, now).TotalSeconds;
            last = now;
            if (!Advance(seconds, now, out Wanted wanted))
                continue;

            _sent = now;
            int before = _shown;
            Volatile.Write(ref _shown, _frames.Moment);
            if (before != _shown || wanted.Changed)
            {
                WriteTime(json, wanted);
                await socket.SendAsync(_text.WrittenMemory, WebSocketMessageType.Text, endOfMessage: true, stop);
            }

            if (wanted.View is { } view)
            {
                ReadOnlyMemory<byte> cells = Update(view);
                await socket.SendAsync(cells, WebSocketMessageType.Binary, endOfMessage: true, stop);
            }

            if (wanted.Machine)
            {
                WriteMachine(json);
                await socket.SendAsync(_text.WrittenMemory, WebSocketMessageType.Text, endOfMessage: true, stop);
            }

            if (wanted.Ticker && before >= 0 && before != _shown
                && source.TicksBetween(before, _shown) is { Length: > 0 } ticks)
            {
                WriteTicker(json, ticks);
                await socket.SendAsync(_text.WrittenMemory, WebSocketMessageType.Text, endOfMessage: true, stop);
            }
        }
    }

    private byte[]? TakeReply()
    {
        lock (_lock)
            return _replies.TryDequeue(out byte[]? reply) ? reply : null;
    }

    /// <summary>Goes to where the client wants to be by now. False: it has all that there is.</summary>
    private bool Advance(double seconds, long now, out Wanted wanted)
    {
        int target;
        lock (_lock)
        {
            bool due = Stopwatch.GetElapsedTime(_sent, now).TotalSeconds >= (1.0 / _rate) - (s_period.TotalSeconds / 2);
            if (_seek is { } seek)
            {
                _position = seek;
                _seek = null;
            }
            else if (_speed != 0)
            {
                _position = Math.Clamp(_position + (_speed * seconds), 0, source.Now);
                if (_position >= source.Now && _speed > 0 || _position <= 0 && _speed < 0)
                {
                    _speed = 0;
                    _changed = true;
                }
            }
            else if (_shown < 0)
            {
                _position = source.Now;
            }

            target = (int)_position;
            bool moves = source.Timeline != null ? target != _shown : !_frozen;
            wanted = new Wanted(_view, _wantsMachine, _wantsTicker, _speed, _changed);
            if (!_changed && !(moves && due))
                return false;
            _changed = false;
        }

        _frames.MoveTo(target);
        return source.Timeline != null || wanted.Changed || _frames.Moment != _shown;
    }

    private ReadOnlyMemory<byte> Update(FrameView view)
    {
        // A new filter may come while a message is being made of the old one.
        lock (_lock)
            return _frames.Update(view);
    }

    private void WriteHello(Utf8JsonWriter json)
    {
        Begin(json);
        json.WriteString("type"u8, "hello"u8);
        json.WriteNumber("protocol"u8, Answers.Protocol);
        json.WriteNumber("t"u8, source.Now);
        End(json);
    }

    private void WriteTime(Utf8JsonWriter json, in Wanted wanted)
    {
        Begin(json);
        json.WriteString("type"u8, "time"u8);
        json.WriteNumber("t"u8, _shown);
        json.WriteBoolean("playing"u8, source.Timeline != null ? wanted.Speed != 0 : !_frozen);
        json.WriteNumber("speed"u8, wanted.Speed);
        if (source.Timeline is { } timeline && _shown > 0)
        {
            json.WriteNumber("ns"u8, timeline.EventAt(_shown - 1).TimestampNs);
            json.WritePropertyName("event"u8);
            EventText.Write(json, timeline, source.Shape, _shown - 1);
        }
        else
        {
            json.WriteNull("ns"u8);
            json.WriteNull("event"u8);
        }

        End(json);
    }

    private void WriteMachine(Utf8JsonWriter json)
    {
        // Of a recording the watermarks are asked while nothing moves: they need the machine itself.
        MachineAnswer answer = source.Timeline == null
            ? answers.Machine(_shown)
            : answers.Machine(_frames, _speed == 0 ? answers.WatermarksAt(_shown) : null);
        _text.ResetWrittenCount();
        json.Reset(_text);
        JsonSerializer.Serialize(json, answer, ExplorerJson.Default.MachineAnswer);
        json.Flush();
    }

    private void WriteTicker(Utf8JsonWriter json, ReadOnlyMemory<Tick> all)
    {
        ReadOnlySpan<Tick> ticks = all.Span[Math.Max(0, all.Length - MostTicks)..];
        Begin(json);
        json.WriteString("type"u8, "ticker"u8);
        json.WriteNumber("t"u8, _shown);
        json.WriteStartArray("items"u8);
        foreach (ref readonly Tick tick in ticks)
            WriteTick(json, tick);
        json.WriteEndArray();
        End(json);
    }

    private static void WriteTick(Utf8JsonWriter json, in Tick tick)
    {
        json.WriteStartObject();
        json.WriteNumber("t"u8, tick.Event);
        json.WriteString("what"u8, Answers.NameOf(tick.Kind));
        WriteOrNull(json, "zone"u8, tick.Zone, FrameMap.NoZone);
        WriteOrNull(json, "pfn"u8, tick.Pfn, 0);
        WriteOrNull(json, "order"u8, tick.Order, Tick.NoOrder);
        WriteOrNull(json, "fromOrder"u8, tick.FromOrder, byte.MaxValue);
        json.WriteNumber("count"u8, tick.Count);
        WriteOrNull(json, "migrateType"u8, tick.Migratetype, byte.MaxValue);
        WriteOrNull(json, "fromType"u8, tick.FromType, byte.MaxValue);
        WriteOrNull(json, "cpu"u8, tick.Cpu, Tick.NoCpu);
        WriteOrNull(json, "cache"u8, tick.Cache, 0);
        json.WriteEndObject();
    }

    private static void WriteOrNull(Utf8JsonWriter json, ReadOnlySpan<byte> name, uint value, uint none)
    {
        if (value == none)
            json.WriteNull(name);
        else
            json.WriteNumber(name, value);
    }

    private void Begin(Utf8JsonWriter json)
    {
        _text.ResetWrittenCount();
        json.Reset(_text);
        json.WriteStartObject();
    }

    private static void End(Utf8JsonWriter json)
    {
        json.WriteEndObject();
        json.Flush();
    }

    private readonly record struct Wanted(FrameView? View, bool Machine, bool Ticker, double Speed, bool Changed);
}
