using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

public sealed class StringTableTests
{
    [Fact]
    public void AnswersLikeADictionary()
    {
        var table = new StringTable();
        var model = new Dictionary<string, int>(StringComparer.Ordinal) { [string.Empty] = 0 };
        var random = new Random(5);
        for (int i = 0; i < 50_000; i++)
        {
            string text = new((char)('a' + random.Next(3)), random.Next(40));
            text += random.Next(3000);
            text = text[random.Next(text.Length + 1)..];
            int id = table.Intern(Encoding.UTF8.GetBytes(text));
            if (!model.TryGetValue(text, out int expected))
                model.Add(text, expected = model.Count);
            Assert.Equal(expected, id);
        }

        Assert.Equal(model.Count, table.Count);
        foreach ((string text, int id) in model)
            Assert.Equal(text, table[id]);
        Assert.Same(table[7], table[7]);
    }

    [Fact]
    public void TakesNoControlCharacters()
    {
        var table = new StringTable();
        Assert.Equal(StringTable.Unprintable, table.Intern("a\0b"u8));
        Assert.Equal(StringTable.Unprintable, table.Intern("a\u007f"u8));
        Assert.Equal(1, table.Intern("a b"u8));
        Assert.Equal(2, table.Count);
    }

    [Fact]
    public void StopsAtItsBudget()
    {
        var table = new StringTable();
        byte[] text = new byte[60_000];
        int kept = 0;
        for (int i = 0; i < 400; i++)
        {
            text.AsSpan().Fill((byte)'x');
            Encoding.ASCII.GetBytes($"{i} ", text);
            kept += table.Intern(text) > 0 ? 1 : 0;
        }

        Assert.Equal(16 * 1024 * 1024 / 60_000, kept);
        Assert.Equal((kept + 1, 400 - kept), (table.Count, (int)table.Dropped));
    }

    [Fact]
    public void RefusesNumbersThatItDidNotGive()
    {
        var table = new StringTable();
        Assert.Equal(string.Empty, table[0]);
        Assert.Throws<ArgumentOutOfRangeException>(() => table[1]);
        Assert.Throws<ArgumentOutOfRangeException>(() => table[-1]);
    }
}
