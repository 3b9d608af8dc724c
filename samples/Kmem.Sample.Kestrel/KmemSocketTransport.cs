using System.Buffers;
using System.IO.Pipelines;
using System.Net;
using System.Net.Sockets;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Http.Features;

namespace Kmem.Samples;

/// <summary>
/// TCP for ASP.NET Core's server with buffers that are not arrays. The server's own transport is nearly right: it takes
/// its blocks from the pool factory, receives into any memory, and sends any memory; but an answer of several blocks it
/// sends in one call that only knows arrays (<c>Buffer backed by array was expected</c>). This one sends block by
/// block.
/// </summary>
/// <param name="pools">Where the blocks come from.</param>
public sealed class KmemSocketTransport(IMemoryPoolFactory<byte> pools) : IConnectionListenerFactory
{
    /// <inheritdoc/>
    public ValueTask<IConnectionListener> BindAsync(EndPoint endpoint, CancellationToken cancellationToken = default)
    {
        if (endpoint is not IPEndPoint)
            throw new NotSupportedException($"{endpoint} is not an IP endpoint");

        var socket = new Socket(endpoint.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            socket.Bind(endpoint);
            socket.Listen(512);
        }
        catch (SocketException error) when (error.SocketErrorCode == SocketError.AddressAlreadyInUse)
        {
            socket.Dispose();
            throw new AddressInUseException(error.Message, error);
        }
        catch
        {
            socket.Dispose();
            throw;
        }

        MemoryPool<byte> pool = pools.Create(new MemoryPoolOptions { Owner = "sockets" });
        return new ValueTask<IConnectionListener>(new Listener(socket, pool));
    }

    private sealed class Listener(Socket socket, MemoryPool<byte> pool) : IConnectionListener
    {
        public EndPoint EndPoint { get; } = socket.LocalEndPoint!;

        public async ValueTask<ConnectionContext?> AcceptAsync(CancellationToken cancellationToken = default)
        {
            while (true)
            {
                try
                {
                    Socket accepted = await socket.AcceptAsync(cancellationToken);
                    accepted.NoDelay = true;
                    return new Connection(accepted, pool);
                }
                catch (SocketException error) when (error.SocketErrorCode == SocketError.ConnectionReset)
                {
                    // The client went away before it was accepted: the next one.
                }
                catch (Exception error) when (error is ObjectDisposedException or SocketException or OperationCanceledException)
                {
                    return null;        // unbound
                }
            }
        }

        public ValueTask UnbindAsync(CancellationToken cancellationToken = default)
        {
            socket.Dispose();
            return ValueTask.CompletedTask;
        }

        public ValueTask DisposeAsync()
        {
            socket.Dispose();
            pool.Dispose();
            return ValueTask.CompletedTask;
        }
    }

    /// <summary>
    /// A socket with a pipe each way. The server uses the inner ends:
    /// <code>
    ///   socket ──ReceiveAsync──▶ pipe ──▶ server ──▶ pipe ──SendAsync──▶ socket
    /// </code>
    /// </summary>
    private sealed class Connection : ConnectionContext, IDuplexPipe, IMemoryPoolFeature
    {
        /// <summary>
        /// Large blocks, because each is a call of the system. A machine gives any size equally well.
        /// </summary>
        private const int BlockSize = 16 << 10;
        private const int ReceiveLimit = 1 << 20, SendLimit = 1 << 16;

        private readonly Socket _socket;
        private readonly Pipe _received;
        private readonly Pipe _toSend;
        private readonly CancellationTokenSource _closed = new();
        private readonly Task _work;

        public Connection(Socket socket, MemoryPool<byte> pool)
        {
            _socket = socket;
            MemoryPool = pool;
            LocalEndPoint = socket.LocalEndPoint;
            RemoteEndPoint = socket.RemoteEndPoint;
            ConnectionId = Guid.NewGuid().ToString("N");
            ConnectionClosed = _closed.Token;

            // The server's code runs on the thread pool; what moves bytes runs on with whoever brought them.
            _received = new Pipe(Options(pool, ReceiveLimit, reader: PipeScheduler.ThreadPool, writer: PipeScheduler.Inline));
            _toSend = new Pipe(Options(pool, SendLimit, reader: PipeScheduler.Inline, writer: PipeScheduler.ThreadPool));
            Transport = this;
            Features.Set<IMemoryPoolFeature>(this);
            _work = WorkAsync();
        }

        public override string ConnectionId { get; set; }

        public override IFeatureCollection Features { get; } = new FeatureCollection();

        public override IDictionary<object, object?> Items { get; set; } = new ConnectionItems();

        public override IDuplexPipe Transport { get; set; }

        public MemoryPool<byte> MemoryPool { get; }

        PipeReader IDuplexPipe.Input => _received.Reader;

        PipeWriter IDuplexPipe.Output => _toSend.Writer;

        public override void Abort(ConnectionAbortedException abortReason) => _socket.Dispose();

        public override async ValueTask DisposeAsync()
        {
            await _received.Reader.CompleteAsync();
            await _toSend.Writer.CompleteAsync();
            await _work;
            _closed.Dispose();
        }

        private static PipeOptions Options(
            MemoryPool<byte> pool, int limit, PipeScheduler reader, PipeScheduler writer) =>
            new(pool, reader, writer, limit, limit / 2, BlockSize, useSynchronizationContext: false);

        private async Task WorkAsync()
        {
            Task receiving = ReceiveAsync();
            await SendAsync();
            _socket.Dispose();          // ends the receiving, too
            await receiving;
            await _closed.CancelAsync();
        }

        private async Task ReceiveAsync()
        {
            Exception? reason = null;
            try
            {
                while (true)
                {
                    Memory<byte> room = _received.Writer.GetMemory();
                    int count = await _socket.ReceiveAsync(room);
                    if (count == 0)
                        break;

                    _received.Writer.Advance(count);
                    FlushResult flushed = await _received.Writer.FlushAsync();
                    if (flushed.IsCompleted || flushed.IsCanceled)
                        break;
                }
            }
            catch (Exception error) when (error is SocketException or ObjectDisposedException)
            {
                reason = new ConnectionResetException("the connection ended", error);
            }
            catch (OutOfMemoryException error)
            {
                reason = new ConnectionAbortedException("no memory to receive into", error);
                _socket.Dispose();
            }

            await _received.Writer.CompleteAsync(reason);
        }

        private async Task SendAsync()
        {
            Exception? reason = null;
            try
            {
                while (true)
                {
                    ReadResult ready = await _toSend.Reader.ReadAsync();
                    foreach (ReadOnlyMemory<byte> block in ready.Buffer)
                    {
                        for (ReadOnlyMemory<byte> rest = block; !rest.IsEmpty;)
                            rest = rest[await _socket.SendAsync(rest)..];
                    }

                    _toSend.Reader.AdvanceTo(ready.Buffer.End);
                    if (ready.IsCompleted || ready.IsCanceled)
                        break;
                }

                _socket.Shutdown(SocketShutdown.Both);
            }
            catch (Exception error) when (error is SocketException or ObjectDisposedException)
            {
                reason = error;
            }

            await _toSend.Reader.CompleteAsync(reason);
        }
    }
}
