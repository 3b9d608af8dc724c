namespace Kmem.Tracing;

/// <summary>What a recording says of a frame, an object or an area next.</summary>
internal enum LaterMention
{
    /// <summary>Nothing any more.</summary>
    None,

    /// <summary>It is given out: until then it was free.</summary>
    Given,

    /// <summary>It is freed, or used otherwise: it was in use.</summary>
    Used,
}

/// <summary>Which of two answers to go on from, after one that differs.</summary>
internal enum BetterAnswer
{
    /// <summary>The recorded one.</summary>
    Recorded,

    /// <summary>Our own: the rest of the recording speaks against its own line.</summary>
    Own,

    /// <summary>Both are in use from here on: a line is missing.</summary>
    Both,
}

/// <summary>What a recorded place is in the machine where it is not the answer.</summary>
internal enum PlaceHere
{
    /// <summary>In use, so that a later free may be of this use; or nothing that could be given out.</summary>
    Taken,

    /// <summary>Free, but others come before it.</summary>
    Free,

    /// <summary>Free, and one that could have been given out at once.</summary>
    Near,
}

/// <summary>
/// After an answer that differs, the rest of the recording tells which of the two blocks was in use from there on: a
/// wrong line counts once then, and is not carried along. Nothing is asked before there is a difference. An object that
/// is given out tells of its frame, too: that is in use.
/// </summary>
internal sealed class LaterMentions(List<RecordedEvent> events)
{
    private Dictionary<ulong, List<(int At, LaterMention What)>>? _mentions;

    /// <summary>
    /// The next mention of a frame, an address of an object or one of an area: the three do not meet.
    /// </summary>
    public LaterMention Of(ulong place, int after)
    {
        _mentions ??= Collect();
        if (!_mentions.TryGetValue(place, out List<(int At, LaterMention What)>? all))
            return LaterMention.None;

        int low = 0;
        for (int high = all.Count; low < high;)
        {
            int middle = (low + high) / 2;
            if (all[middle].At > after)
                high = middle;
            else
                low = middle + 1;
        }

        return low < all.Count ? all[low].What : LaterMention.None;
    }

    /// <summary>Weighs an answer against a recorded one that is not the same.</summary>
    /// <param name="recorded">The recorded place; null if the request failed there.</param>
    /// <param name="own">What came; null if nothing did.</param>
    /// <param name="after">Index of the event.</param>
    /// <param name="here">What the recorded place is here.</param>
    public BetterAnswer Weigh(ulong? recorded, ulong? own, int after, PlaceHere here)
    {
        LaterMention its = recorded is { } there ? Of(there, after) : LaterMention.Given;
        LaterMention ours = own is { } came ? Of(came, after) : LaterMention.Given;
        return (ours, its) switch
        {
            (LaterMention.Used, LaterMention.Used) when here >= PlaceHere.Free => BetterAnswer.Both,
            (LaterMention.Used, LaterMention.None) when here == PlaceHere.Near => BetterAnswer.Both,
            (LaterMention.Used, _) => BetterAnswer.Own,
            (LaterMention.None, LaterMention.Given) => BetterAnswer.Own,
            _ when own == null && its == LaterMention.Given => BetterAnswer.Own,
            _ => BetterAnswer.Recorded,
        };
    }

    private Dictionary<ulong, List<(int At, LaterMention What)>> Collect()
    {
        var mentions = new Dictionary<ulong, List<(int, LaterMention)>>();
        for (int i = 0; i < events.Count; i++)
        {
            RecordedEvent e = events[i];
            switch (e.Name)
            {
                case "PA":
                    Add(e.NumberOrNone(0), i, LaterMention.Given);
                    break;
                case "PF" or "LI":
                    Add(e.NumberOrNone(0), i, LaterMention.Used);
                    break;
                case "KA":
                    AddObject(e.HexOrNone(1), i);
                    break;
                case "KM":
                    AddObject(e.HexOrNone(0), i);
                    break;
                case "VA":
                    Add(e.HexOrNone(0), i, LaterMention.Given);
                    break;
                case "KC" or "SK":
                    Add(e.HexOrNone(1), i, LaterMention.Used);
                    break;
                case "KF" or "VF":
                    Add(e.HexOrNone(0), i, LaterMention.Used);
                    break;
                case "KAB" or "KFB":
                    for (int at = e.Name == "KAB" ? 4 : 2; at < e.Args.Length; at++)
                        Add(e.HexOrNone(at), i, e.Name == "KAB" ? LaterMention.Given : LaterMention.Used);
                    break;
            }
        }

        return mentions;

        void AddObject(ulong? address, int at)
        {
            Add(address, at, LaterMention.Given);
            if (address >= AddressMap.PageOffset)
                Add((address - AddressMap.PageOffset) >> Pfn.PageShift, at, LaterMention.Used);
        }

        void Add(ulong? place, int at, LaterMention what)
        {
            if (place is not { } known)
                return;
            if (!mentions.TryGetValue(known, out List<(int, LaterMention)>? all))
                mentions[known] = all = [];
            all.Add((at, what));
        }
    }
}
