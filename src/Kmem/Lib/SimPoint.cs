using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// The places where a simulation of CPUs may let another one go on: before each lock and each compare-and-swap, inside
/// each per-CPU section, in the middle of each change of a list, and wherever somebody waits. Only
/// in debug builds; in release builds no trace of it is left.
/// </summary>
/// <remarks>
/// In a simulation exactly one thread runs at a time. A monitor may only be held over such a place if its taker asked
/// <see cref="Gate"/> first: who runs must never be blocked by somebody who does not.
/// </remarks>
internal static class SimPoint
{
    [ThreadStatic]
    private static Simulation? t_simulation;

    /// <summary>The simulation that this thread is a CPU of, or null.</summary>
    public static Simulation? Of
    {
        get => t_simulation;
        set => t_simulation = value;
    }

    /// <summary>Another CPU may run from here on.</summary>
    [Conditional("DEBUG")]
    public static void Here([CallerMemberName] string place = "") => t_simulation?.Here(place);

    /// <summary>This CPU can only go on after another one has done something.</summary>
    [Conditional("DEBUG")]
    public static void Wait() => t_simulation?.Wait();

    /// <summary>
    /// What would be finalized, at a moment that nobody can foresee, lives as long as the simulation.
    /// </summary>
    [Conditional("DEBUG")]
    public static void Keep(object finalizable) => t_simulation?.Keep(finalizable);

    /// <summary>To be called right before a monitor is entered that is held over such places.</summary>
    [Conditional("DEBUG")]
    public static void Gate(Lock gate, [CallerMemberName] string place = "")
    {
        if (t_simulation is not { } simulation)
            return;

        simulation.Here(place);
        while (!gate.TryEnter())
            simulation.Wait();
        gate.Exit();
    }
}

/// <summary>Who decides which of the simulated CPUs runs.</summary>
internal abstract class Simulation
{
    /// <summary>May let another CPU run, and returns when it is this one's turn again.</summary>
    /// <param name="place">The method it happens in.</param>
    public abstract void Here(string place);

    /// <summary>Lets another CPU run.</summary>
    public abstract void Wait();

    /// <summary>Keeps something from the garbage collector.</summary>
    public abstract void Keep(object finalizable);

    /// <summary>Whether locks of a rank keep others out; a simulation that plants an error says no.</summary>
    public virtual bool Excludes(LockRank rank) => true;
}
