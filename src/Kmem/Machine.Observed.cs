namespace Kmem;

/// <content>Being looked at from another thread.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Reads the machine while it is certain that its memory stays; disposing it waits for the reader. False: it was
    /// disposed.
    /// </summary>
    internal bool TryObserve(Action<Machine> read)
    {
        if (_measured is null)
        {
            // Made from a state: whoever made it looks at it.
            if (_disposed)
                return false;
            read(this);
            return true;
        }

        bool done = false;
        _measured.Read(_ =>
        {
            read(this);
            done = true;
        });
        return done;
    }
}
