using System.Globalization;
using Kmem.Tool.Commands;

namespace Kmem.Tool.Drawing;

/// <summary>
/// What a machine does before its picture is drawn, as one line of text:
/// <code>
///   kmalloc 100 x 20; free 3-19/2; cpu 1; free 1; vmalloc 64K; free 21; purge; pages 0 x 300; movable 9
/// </code>
/// Allocations are numbered from 1, in order; <c>free</c> takes one number, or a range with a step; <c>keep</c> frees
/// all the others of the range.
/// </summary>
internal sealed class Script : IDisposable
{
    private const int MostRepeats = 1_000_000;

    private readonly List<Step> _steps = [];
    private readonly List<Allocation> _allocations = [];
    private IDisposable? _cpu;

    private Script()
    {
    }

    /// <summary>Carried out before each step, and after the last, with the number of single operations so
    /// far.</summary>
    internal Action<long>? Observe { get; set; }

    /// <summary>
    /// The address of the newest allocation of a kind that is not freed, or of any if there is none of that kind; null
    /// if there is none at all.
    /// </summary>
    internal VirtAddr? Newest(string verb) =>
        (_allocations.LastOrDefault(it => !it.Freed && it.By.Verb == verb)
            ?? _allocations.LastOrDefault(it => !it.Freed))?.Kernel;

    /// <summary>The address of an allocation, by its number.</summary>
    internal VirtAddr? At(int number) =>
        number >= 1 && number <= _allocations.Count ? _allocations[number - 1].Kernel : null;

    /// <exception cref="ToolException">A step is none.</exception>
    internal static Script Parse(string text)
    {
        var script = new Script();
        foreach (string part in text.Split(';', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries))
            script._steps.Add(ParseStep(part));
        return script;
    }

    /// <exception cref="ToolException">A step cannot be done, such as freeing what is not there.</exception>
    internal void Run(Machine machine)
    {
        long operations = 0;
        _cpu = machine.RunOn(0);
        Observe?.Invoke(0);
        foreach (Step step in _steps)
        {
            for (int i = 0; i < step.Count; i++)
            {
                Do(machine, step, i);
                operations++;
                if (step.Count <= 64 || operations % 16 == 0)
                    Observe?.Invoke(operations);
            }
        }

        Observe?.Invoke(operations);
    }

    public void Dispose() => _cpu?.Dispose();

    private unsafe void Do(Machine machine, Step step, int index)
    {
        switch (step.Verb)
        {
            case "cpu":
                _cpu!.Dispose();
                _cpu = machine.RunOn((int)step.Value);
                break;
            case "purge":
                machine.VmUnmapAliases();
                break;
            case "free":
                Free(machine, step, (int)step.Value + (index * step.Stride));
                break;
            case "keep":
                if (index % step.Stride != 0)
                    Free(machine, step, (int)step.Value + index);
                break;
            case "kmalloc":
                Keep(machine, step, (nint)machine.Kmalloc((nuint)step.Value, Gfp.Kernel));
                break;
            case "vmalloc":
                Keep(machine, step, (nint)machine.Vmalloc((nuint)step.Value));
                break;
            default:
                Gfp gfp = step.Verb == "movable" ? Gfp.HighUserMovable : Gfp.Kernel;
                Pfn pfn = machine.AllocPages(gfp & ~Gfp.HighMem, (int)step.Value);
                Keep(machine, step, pfn.IsValid ? (nint)machine.AddressOf(pfn) : 0);
                break;
        }
    }

    private unsafe void Keep(Machine machine, Step step, nint address)
    {
        // What found no memory has a number, too, so that the numbers of a script do not depend on the machine.
        VirtAddr kernel = address == 0 ? default : machine.KernelAddressOf((void*)address);
        _allocations.Add(new Allocation(step, address, kernel) { Freed = address == 0 });
    }

    private unsafe void Free(Machine machine, Step step, int number)
    {
        if (number < 1 || number > _allocations.Count)
            throw new ToolException($"--do '{step.Text}': there is no allocation {number}, only {_allocations.Count}");
        Allocation allocation = _allocations[number - 1];
        if (allocation.Address == 0)
            return;
        if (allocation.Freed)
            throw new ToolException($"--do '{step.Text}': allocation {number} is free already");

        allocation.Freed = true;
        if (allocation.By.Verb == "kmalloc")
            machine.Kfree((void*)allocation.Address);
        else if (allocation.By.Verb == "vmalloc")
            machine.Vfree((void*)allocation.Address);
        else
            machine.FreePages(machine.PfnOf((void*)allocation.Address), (int)allocation.By.Value);
    }

    private static Step ParseStep(string text)
    {
        string[] words = text.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        int count = 1;
        if (words.Length == 4 && words[2] == "x")
        {
            if (!int.TryParse(words[3], NumberStyles.None, CultureInfo.InvariantCulture, out count)
                || count is < 1 or > MostRepeats)
            {
                throw Wrong(text);
            }

            words = words[..2];
        }

        if (words is ["purge"])
            return new Step(text, "purge", 0, 1, 0);
        if (words.Length != 2)
            throw Wrong(text);
        if (words[0] is "free" or "keep" && count == 1)
            return ParseRange(text, words[0], words[1]);

        ulong most = words[0] switch { "cpu" => 8191, "pages" or "movable" => PageOrder.Max, _ => 1UL << 40 };
        bool known = words[0] is "cpu" or "kmalloc" or "vmalloc" or "pages" or "movable";
        return known && ByteSize.TryParse(words[1], out ulong value) && value <= most
            && !(words[0] == "cpu" && count > 1)
            ? new Step(text, words[0], (long)value, count, 0)
            : throw Wrong(text);
    }

    private static Step ParseRange(string text, string verb, string range)
    {
        string[] parts = range.Split('/');
        string[] ends = parts[0].Split('-');
        int stride = 1;
        if (parts.Length <= 2 && ends.Length <= 2
            && int.TryParse(ends[0], NumberStyles.None, CultureInfo.InvariantCulture, out int first)
            && int.TryParse(ends[^1], NumberStyles.None, CultureInfo.InvariantCulture, out int last)
            && (parts.Length == 1
                || (int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out stride) && stride > 0))
            && first >= 1 && last >= first)
        {
            return verb == "free"
                ? new Step(text, verb, first, ((last - first) / stride) + 1, stride)
                : new Step(text, verb, first, last - first + 1, stride);
        }

        throw Wrong(text);
    }

    private static ToolException Wrong(string text) => new(
        $"--do has the step '{text}', expected 'kmalloc SIZE', 'vmalloc SIZE', 'pages ORDER' or 'movable ORDER', each"
        + " with 'x N' behind it if you like, 'free N', 'free FROM-TO/STEP', 'keep FROM-TO/STEP', 'cpu N', or 'purge'");

    private sealed record Step(string Text, string Verb, long Value, int Count, int Stride);

    private sealed record Allocation(Step By, nint Address, VirtAddr Kernel)
    {
        public bool Freed { get; set; }
    }
}
