namespace Kmem;

/// <summary>
/// Waiting for others for milliseconds, in the middle of an operation. <see cref="Thread.Interrupt"/> ends the wait but
/// not the operation: it is left pending for the caller's next wait.
/// </summary>
internal static class Pause
{
    /// <summary>Sleeps, or returns early if the thread is interrupted.</summary>
    public static void For(int milliseconds)
    {
        try
        {
            Thread.Sleep(milliseconds);
        }
        catch (ThreadInterruptedException)
        {
            Thread.CurrentThread.Interrupt();
        }
    }
}
