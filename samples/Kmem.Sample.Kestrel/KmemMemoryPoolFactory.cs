using System.Buffers;
using System.Collections.Concurrent;
using Microsoft.AspNetCore.Connections;

namespace Kmem.Samples;

/// <summary>
/// Gives ASP.NET Core's server pools over a machine. Register it as a singleton; that is all the server needs:
/// <c>services.AddSingleton&lt;IMemoryPoolFactory&lt;byte&gt;&gt;(new KmemMemoryPoolFactory(machine))</c>.
/// </summary>
/// <param name="machine">Where the blocks come from: the budget of all of the server's buffers.</param>
public sealed class KmemMemoryPoolFactory(Machine machine) : IMemoryPoolFactory<byte>
{
    private readonly ConcurrentQueue<KmemPool> _pools = new();

    /// <summary>
    /// The pools that were created, oldest first. A server asks for several: one for each of its I/O queues.
    /// </summary>
    public IReadOnlyCollection<KmemPool> Pools => _pools;

    /// <summary>Blocks that the server holds now.</summary>
    public long Outstanding => _pools.Sum(pool => pool.Outstanding);

    /// <inheritdoc/>
    public MemoryPool<byte> Create(MemoryPoolOptions? options = null)
    {
        KmemPool pool = machine.CreatePool($"{options?.Owner ?? "server"}-{_pools.Count + 1}");
        _pools.Enqueue(pool);
        return pool;
    }
}
