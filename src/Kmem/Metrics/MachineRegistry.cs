namespace Kmem;

/// <summary>
/// The machines that are alive, for the instruments. Reading one and disposing it exclude each other.
/// </summary>
internal sealed class MachineRegistry
{
    private readonly List<Entry> _entries = [];
    private readonly Lock _gate = new();

    /// <summary>Adds a machine. It is held weakly: metrics keep nobody alive.</summary>
    /// <returns>To be closed before the machine's memory goes.</returns>
    public Entry Add(IMachineStats machine)
    {
        var entry = new Entry(machine);
        lock (_gate)
        {
            _entries.RemoveAll(static old => !old.IsAlive);
            _entries.Add(entry);
        }

        return entry;
    }

    /// <summary>Reads all machines, oldest first.</summary>
    public void ForEach(Action<IMachineStats> read)
    {
        Entry[] entries;
        lock (_gate)
            entries = _entries.ToArray();
        foreach (Entry entry in entries)
            entry.Read(read);
    }

    public sealed class Entry(IMachineStats machine)
    {
        private readonly WeakReference<IMachineStats> _machine = new(machine);
        private readonly Lock _reading = new();
        private bool _closed;

        public bool IsAlive => !Volatile.Read(ref _closed) && _machine.TryGetTarget(out _);

        /// <summary>Waits for whoever is reading; afterwards nobody does.</summary>
        public void Close()
        {
            lock (_reading)
                _closed = true;
        }

        public void Read(Action<IMachineStats> read)
        {
            lock (_reading)
            {
                if (!_closed && _machine.TryGetTarget(out IMachineStats? machine))
                    read(machine);
            }
        }
    }
}
