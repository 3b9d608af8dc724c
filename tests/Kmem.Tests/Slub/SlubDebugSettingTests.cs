namespace Kmem.Tests;

/// <summary>The boot parameter slab_debug, read as the kernel reads it.</summary>
public sealed class SlubDebugSettingTests
{
    [Theory]
    [InlineData(null, "kmalloc-64", "")]
    [InlineData("", "kmalloc-64", "FZPU")]
    [InlineData("FZ", "dentry", "FZ")]
    [InlineData("fzput", "dentry", "FZPUT")]
    [InlineData("F-P", "dentry", "P")]
    [InlineData("-", "dentry", "")]
    [InlineData(",dentry", "dentry", "FZPU")]
    [InlineData(",dentry", "inode_cache", "")]
    [InlineData("FZ,kmalloc-*", "kmalloc-64", "FZ")]
    [InlineData("FZ,kmalloc-*", "dma-kmalloc-64", "")]
    [InlineData("FZ,kmalloc-*,dentry", "dentry", "FZ")]
    [InlineData("P;Z,dentry", "dentry", "Z")]       // the first matching list replaces the global flags
    [InlineData("P;Z,dentry;;U,dentry", "dentry", "Z")]
    [InlineData("P;Z,dentry", "inode_cache", "P")]
    [InlineData("-,dentry;P", "dentry", "")]
    public void Flags_follow_the_name(string? text, string name, string letters) =>
        Assert.Equal(letters, Letters(SlubDebugSetting.Parse(text).FlagsFor(name, SlabFlags.None)));

    [Fact]
    public void Some_caches_have_a_say()
    {
        var setting = SlubDebugSetting.Parse("FZPU;U,tracked");
        Assert.Equal("", Letters(setting.FlagsFor("a", SlabFlags.NoUserFlags)));
        Assert.Equal("FZP", Letters(setting.FlagsFor("a", SlabFlags.NoLeakTrace)));
        Assert.Equal("U", Letters(setting.FlagsFor("tracked", SlabFlags.NoLeakTrace)));
    }

    [Fact]
    public void Unknown_letters_are_logged_and_skipped()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 1, SlubDebug = "FqZ" });
        Assert.Equal("slab_debug option 'q' unknown. skipped", machine.Dmesg.Lines[0]);
        Assert.Equal("FZ", Letters(machine.Caches[0].Flags));
    }

    [Fact]
    public void Letter_O_spares_caches_whose_slabs_would_grow()
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = 64 << 20,
            Cpus = 1,
            SlubDebug = "FZPUO",
        });
        Assert.Equal("F", Letters(machine.CreateCache("page", 4096).Flags));
        Assert.Equal("FZPU", Letters(machine.CreateCache("small", 100).Flags));
    }

    private static string Letters(SlabFlags flags)
    {
        string letters = "";
        foreach ((char letter, SlabFlags flag) in (ReadOnlySpan<(char, SlabFlags)>)
            [
                ('F', SlabFlags.ConsistencyChecks), ('Z', SlabFlags.RedZone), ('P', SlabFlags.Poison),
                ('U', SlabFlags.StoreUser), ('T', SlabFlags.Trace),
            ])
        {
            if ((flags & flag) != 0)
                letters += letter;
        }

        return letters;
    }
}
