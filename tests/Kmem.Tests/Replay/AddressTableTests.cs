using System.Runtime.CompilerServices;
using CsCheck;
using Kmem.Tracing;

namespace Kmem.Tests;

public sealed class AddressTableTests
{
    /// <summary>
    /// Against a dictionary: keys of few values, so that runs of the probe sequence form and break up.
    /// </summary>
    [Fact]
    public void DoesWhatADictionaryDoes() =>
        Gen.Select(Gen.Int[0, 2], Gen.ULong[1, 60]).List[0, 400].Sample(steps =>
        {
            var table = new AddressTable<long>(4);
            var model = new Dictionary<ulong, long>();
            foreach ((int step, ulong low) in steps)
            {
                ulong key = low << 58 | low;        // the high bits alone would all be lost in a weak hash
                switch (step)
                {
                    case 0:
                        ref long added = ref table.Add(key, out bool existed);
                        Assert.Equal(model.ContainsKey(key), existed);
                        Assert.Equal(model.GetValueOrDefault(key), added);
                        model[key] = ++added;
                        break;
                    case 1:
                        Assert.Equal(model.Remove(key, out long expected), table.Remove(key, out long removed));
                        Assert.Equal(expected, removed);
                        break;
                    default:
                        ref long found = ref table.Find(key);
                        Assert.Equal(!model.ContainsKey(key), Unsafe.IsNullRef(ref found));
                        if (model.TryGetValue(key, out long value))
                            Assert.Equal(value, found);
                        break;
                }

                Assert.Equal(model.Count, table.Count);
            }

            Assert.All(model, pair => Assert.Equal(pair.Value, table.Find(pair.Key)));
        });

    [Fact]
    public void ManyKeysComeAndGo()
    {
        var table = new AddressTable<long>(8);
        const long Live = 1000, All = 300_000;
        for (long i = 0; i < All; i++)
        {
            table.Add(0xffff_8880_0000_0000 + ((ulong)i * 64), out bool existed) = i;
            Assert.False(existed);
            if (i < Live)
                continue;

            Assert.True(table.Remove(0xffff_8880_0000_0000 + ((ulong)(i - Live) * 64), out long old));
            Assert.Equal(i - Live, old);
        }

        Assert.Equal(Live, table.Count);
    }
}
