using System.Diagnostics;

namespace Kmem.Tests;

/// <summary>The machine of the process, and where its size comes from.</summary>
public sealed class SharedMachineTests
{
    [Fact]
    public void The_shared_machine_is_one_named_and_sized_by_the_fraction()
    {
        Assert.Equal(0.25, Machine.SharedFraction);
        Assert.Throws<ArgumentOutOfRangeException>(() => Machine.SharedFraction = 0);
        Assert.Throws<ArgumentOutOfRangeException>(() => Machine.SharedFraction = 1.5);
        Assert.Throws<ArgumentOutOfRangeException>(() => Machine.SharedFraction = double.NaN);
        Assert.Throws<ArgumentNullException>(() => Machine.ConfigureShared(null!));
        Machine.SharedFraction = 0.125;
        Machine[] seen = new Machine[8];
        Parallel.For(0, seen.Length, i => seen[i] = Machine.Shared);
        Assert.All(seen, machine => Assert.Same(seen[0], machine));
        Assert.Equal("shared", seen[0].Name);
        Assert.Equal(Machine.SharedBytes(Machine.ProcessMemoryLimit(), 0.125), seen[0].Options.RamBytes);
        Assert.Throws<InvalidOperationException>(() => Machine.SharedFraction = 0.5);
        Assert.Throws<InvalidOperationException>(() => Machine.ConfigureShared(new MachineOptions()));
        Assert.Throws<InvalidOperationException>(seen[0].Dispose);
        using KmemOwner<byte> owner = Machine.Shared.Rent<byte>(100);
        owner.Span.Fill(1);
    }

    [Theory]
    [InlineData(1UL << 30, 0.25, 256UL << 20)]
    [InlineData(1000UL << 20, 0.001, 64UL << 20)]
    [InlineData((3UL << 30) + 12345, 1.0, 3UL << 30)]
    public void The_size_is_a_part_of_the_limit_in_whole_mebibytes(ulong limit, double fraction, ulong bytes) =>
        Assert.Equal(bytes, Machine.SharedBytes(limit, fraction));

    [Theory]
    [InlineData("0.5", 0.5)]
    [InlineData("1", 1.0)]
    [InlineData("0", null)]
    [InlineData("1.1", null)]
    [InlineData("half", null)]
    [InlineData(null, null)]
    public void The_fraction_is_read_from_settings(string? text, double? value) =>
        Assert.Equal(value, Machine.ParseFraction(text));

    [Fact]
    public void The_limit_is_the_containers_or_else_what_the_collector_sees()
    {
        ulong limit = Machine.ProcessMemoryLimit();
        Assert.InRange(limit, 64UL << 20, 1UL << 50);
        if (HostInfo.MemoryLimit is { } container)
            Assert.Equal(container, limit);
    }
}
