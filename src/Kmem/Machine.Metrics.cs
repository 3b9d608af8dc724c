namespace Kmem;

/// <content>What the meter and the event source "Kmem" see of a machine.</content>
public sealed partial class Machine : IMachineStats
{
    private MachineRegistry.Entry? _measured;
    private MachineEvents? _events;

    PageAllocator IMachineStats.Pages => _pages;

    SlabAllocator IMachineStats.Slabs => _slabs;

    VmallocAllocator? IMachineStats.Vmalloc => VmallocIfUsed;

    BufferAccount IMachineStats.Floor => _account;

    ulong IMachineStats.RamBytes => _ram.Bytes;

    private void StartMetrics()
    {
        KmemMeter.Start();
        _measured = KmemMeter.Machines.Add(this);
        _events = new MachineEvents(Name);
        _pages.Rare = _events;
        _account.Events = _events;
        _events.Booted(_ram.Bytes, Cpus, Options.Profile.Name);
    }

    private void StopMetrics()
    {
        _measured?.Close();
        _events?.Disposed(Outstanding);
    }
}
