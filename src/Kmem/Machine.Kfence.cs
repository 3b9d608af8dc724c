namespace Kmem;

/// <content>Guarded sampling.</content>
public sealed partial class Machine
{
    /// <summary>
    /// The pool of guarded objects; null unless <see cref="MachineOptions.Kfence"/> asks for one.
    /// </summary>
    public Kfence? Kfence => _slabs.Kfence;

    private void StartKfence()
    {
        if (Options.Kfence is not { } options)
            return;

        _slabs.Kfence = Kfence.Create(_slabs, options, Options.Seed);
        _slabs.Reroute();
        _slabs.Kfence.StartTimer();
    }
}
