namespace Kmem.Tests;

/// <summary>What mapped pages and the linear map allow, and what that costs in mappings.</summary>
public sealed class WindowRightsTests
{
    private const ulong Page = 4096;

    private static void Require() =>
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "windows need Linux with 4 KiB pages");

    [Theory]
    [InlineData(WindowProtection.ReadOnly, "r-")]
    [InlineData(WindowProtection.ReadExecute, "r-")]
    [InlineData(WindowProtection.None, "--")]
    [InlineData(WindowProtection.ReadWrite, "rw")]
    internal unsafe void Pages_allow_what_they_are_told(WindowProtection rights, string seen)
    {
        Require();
        using Ram ram = Ram.Create(1 << 20);
        using var window = AddressWindow.Reserve(1 << 20, ram);
        using var probe = new MemoryProbe();
        Assert.Equal(WindowResult.Done, window.Map(0, 0, 16 * Page, WindowProtection.ReadWrite));
        Assert.Equal(WindowResult.Done, window.Protect(4 * Page, 3 * Page, rights));

        Assert.Equal("rw", probe.Access(window.Base + (4 * Page) - 1));
        Assert.Equal(seen, probe.Access(window.Base + (4 * Page)));
        Assert.Equal(seen, probe.Access(window.Base + (7 * Page) - 1));
        Assert.Equal("rw", probe.Access(window.Base + (7 * Page)));
        Assert.Equal(WindowResult.Done, window.Protect(4 * Page, 3 * Page, WindowProtection.ReadWrite));
        Assert.Equal("rw", probe.Access(window.Base + (5 * Page)));

        // Mapped anew, pages have the rights of the new mapping.
        Assert.Equal(WindowResult.Done, window.Protect(0, 16 * Page, rights));
        Assert.Equal(WindowResult.Done, window.Unmap(0, 16 * Page));
        Assert.Equal(1, window.MapCount);
        Assert.Equal(WindowResult.Done, window.Map(0, 0, 16 * Page, WindowProtection.ReadWrite));
        Assert.Equal("rw", probe.Access(window.Base));
    }

    [Fact]
    public void Pages_that_are_not_mapped_have_no_rights_to_change()
    {
        Require();
        using Ram ram = Ram.Create(1 << 20);
        using var window = AddressWindow.Reserve(1 << 20, ram);
        window.Map(0, 0, 4 * Page, WindowProtection.ReadWrite);
        Assert.Throws<InvalidOperationException>(() => window.Protect(Page, 4 * Page, WindowProtection.ReadOnly));
        Assert.Throws<ArgumentException>(() => window.Protect(1, Page, WindowProtection.ReadOnly));
        Assert.Throws<ArgumentOutOfRangeException>(() => window.Protect(1 << 20, Page, WindowProtection.ReadOnly));
    }

    [Fact]
    public unsafe void Changing_rights_costs_mappings_and_is_refused_when_there_are_none()
    {
        Require();
        using Ram ram = Ram.Create(1 << 20);
        using var probe = new MemoryProbe();
        var budget = new MapBudget(5);
        using var window = AddressWindow.Reserve(1 << 20, ram, budget: budget);
        window.Map(4 * Page, 0, 16 * Page, WindowProtection.ReadWrite);
        Assert.Equal(3, budget.Used);
        Assert.Equal(WindowResult.Done, window.Protect(8 * Page, Page, WindowProtection.ReadOnly));
        Assert.Equal(5, budget.Used);
        Assert.Equal(WindowResult.BudgetReached, window.Protect(12 * Page, Page, WindowProtection.ReadOnly));
        Assert.Equal("rw", probe.Access(window.Base + (12 * Page)));
        Assert.Equal(WindowResult.Done, window.Protect(8 * Page, Page, WindowProtection.ReadWrite));
        Assert.Equal(WindowResult.Done, window.Unmap(4 * Page, 16 * Page));
        Assert.Equal(1, budget.Used);

        window.Map(0, 0, Page, WindowProtection.ReadWrite);
        int used = budget.Used;
        window.FailHostCall(1);
        Assert.Equal(WindowResult.HostLimit, window.Protect(0, Page, WindowProtection.ReadOnly));
        Assert.Equal(used, budget.Used);
        Assert.Equal("rw", probe.Access(window.Base));
    }

    [Fact]
    public unsafe void A_window_shows_other_memory_than_the_machines()
    {
        Require();
        using Ram ram = Ram.Create(1 << 20);
        using Ram device = Ram.Create(2 * Page);
        using var window = AddressWindow.Reserve(1 << 20, ram);
        device.Base[Page] = 7;
        Assert.Equal(WindowResult.Done, window.Map(0, Page, Page, WindowProtection.ReadWrite, device));
        Assert.Equal(7, *window.Base);
        Assert.Throws<ArgumentOutOfRangeException>(
            () => window.Map(Page, Page, 2 * Page, WindowProtection.ReadWrite, device));
    }

    /// <summary>The budget counts one mapping for each place where the rights of two neighbours differ.</summary>
    [Fact]
    public unsafe void The_linear_map_follows_a_model()
    {
        Require();
        const int Frames = 64;
        using Ram ram = Ram.Create(Frames * Page);
        using var probe = new MemoryProbe();
        var budget = new MapBudget(14);
        var map = new DirectMap(ram, budget);
        var model = new WindowProtection[Frames];
        var random = new Random(99);
        int refused = 0;
        for (int step = 0; step < 2000; step++)
        {
            int first = random.Next(Frames - 1);
            int count = random.Next(1, Math.Min(9, Frames - first));
            WindowProtection rights = random.Next(3) switch
            {
                0 => WindowProtection.ReadOnly,
                1 => WindowProtection.None,
                _ => WindowProtection.ReadWrite,
            };
            WindowResult result = map.Set((ulong)first, (ulong)count, rights);
            refused += result == WindowResult.BudgetReached ? 1 : 0;
            if (result == WindowResult.Done)
                Array.Fill(model, rights, first, count);

            int boundaries = Enumerable.Range(1, Frames - 1).Count(i => model[i] != model[i - 1]);
            Assert.Equal(boundaries, budget.Used);
            Assert.Equal(model.Count(at => at != WindowProtection.ReadWrite), map.ChangedFrames);
            int look = random.Next(Frames);
            Assert.Equal(model[look], map.RightsOf((ulong)look));
            string seen = model[look] == WindowProtection.None ? "--" : model[look] == WindowProtection.ReadOnly ? "r-" : "rw";
            Assert.Equal(seen, probe.Access(ram.Base + ((ulong)look * Page)));
        }

        Assert.True(refused > 10, $"{refused} refusals");
        Assert.Equal(WindowResult.Done, map.Set(0, Frames, WindowProtection.ReadWrite));
        Assert.Equal(0, budget.Used);
        Assert.Empty(map.Changed());
    }
}
