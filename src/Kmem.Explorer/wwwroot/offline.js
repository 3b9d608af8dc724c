// The source of an exported file: answers what the server would, from the data in the page.
// docs/explorer.md has the contract; the layout of the data is written by ExplorerExport.cs.

const CHUNK = 1024;                 // frames: the largest block
const BLOCK = 512;                  // a pageblock
const ORDERS = 11;
const TYPES = 5;
const HOLE = 0, RESERVED = 1, FREE = 2, PCP = 3, SLAB = 4, MOVABLE = 8, RECLAIMABLE = 10;
const NO_ZONE = 31;
const EVENT_WORDS = 12, CHANGE_WORDS = 11, OBJECT_WORDS = 4, TICK_WORDS = 6, AREA_WORDS = 5;
const PAGE = 4096, LEVELS = ['pgd', 'pud', 'pmd', 'pte'];
const HEADER_WORDS = 10, MAGIC = 0x50414d4b;
const MAX_CELLS = 65536;
const RESULTS = ['ok', 'failed', 'unknown', 'skipped', 'internal', 'refused'];
const TICKS = ['split', 'merge', 'fallback', 'claim', 'refill', 'drain', 'newSlab', 'freeSlab', 'slowPath', 'failure',
    'objectAlloc', 'objectFree', 'pageAlloc', 'pageFree'];
const COUNTERS = ['splits', 'merges', 'fallbacks', 'claims', 'refills', 'drains', 'newSlabs', 'freeSlabs', 'slowPaths', 'failures',
    'objectAllocs', 'objectFrees', 'pageAllocs', 'pageFrees'];
const EVENT_NAMES = ['', 'kmalloc', 'kmem_cache_alloc', 'kfree', 'kmem_cache_free', 'mm_page_alloc', 'mm_page_free',
    'mm_page_free_batched', 'mm_page_alloc_zone_locked', 'mm_page_pcpu_drain', 'mm_page_alloc_extfrag', 'alloc_vmap_area',
    'purge_vmap_area_lazy', 'free_vmap_area_noflush', 'tracing_mark_write', 'other'];

/** Opens the data of an exported file. */
export async function openOffline(exported) {
    const packed = Uint8Array.from(atob(exported.data), letter => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    const recording = new Recording(await new Response(stream).arrayBuffer());
    return {
        offline: true,
        get: async path => recording.answer(path),
        connect: handlers => new Connection(recording, handlers),
    };
}

const problem = (text, status = 400) => Object.assign(new Error(text), { status });
const inUse = kind => kind >= SLAB;
const pins = kind => inUse(kind) && kind !== MOVABLE && kind !== RECLAIMABLE;
const orderOf = word => (word >>> 8) & 15;
const headOf = (word, pfn) => pfn - pfn % 2 ** orderOf(word);
const orNull = (value, none) => value === none ? null : value;

/** Everything that the file holds: a first moment, what changed at each event, and answers at some moments. */
class Recording {
    constructor(buffer) {
        const jsonBytes = new DataView(buffer).getUint32(0, true);
        const json = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, jsonBytes)));
        Object.assign(this, json);
        let at = 4 + jsonBytes;
        this.words = {};
        for (const [name, length] of Object.entries(json.sections)) {
            this.words[name] = new Uint32Array(buffer, at, length);
            at += 4 * length;
        }
        this.directMap = BigInt(this.info.directMap);
        this.events = this.to - this.from;
        this.changesOf = starts(this.words.changes, CHANGE_WORDS, this.from, this.events);
        this.objectsOf = starts(this.words.objects, OBJECT_WORDS, this.from, this.events);
        this.ticksOf = starts(this.words.ticks, TICK_WORDS, this.from, this.events);
        this.info.events = this.to;
        this.info.firstMoment = this.from;
        this.questions = new Cursor(this);
    }

    open() {
        return new Cursor(this);
    }

    site(id) {
        const name = id > 0 ? this.sites[id] : undefined;
        return name === undefined ? null : { id, name };
    }

    address(offset) {
        return '0x' + (this.directMap + BigInt(offset)).toString(16).padStart(16, '0');
    }

    answer(path) {
        const url = new URL(path, 'http://kmem');
        const query = url.searchParams;
        const number = (name, otherwise) => query.has(name) ? Number(query.get(name)) : otherwise;
        const name = url.pathname.slice('/api/'.length);
        const t = this.moment(number('t', this.to));
        switch (name) {
            case 'info': return this.info;
            case 'caches': return { caches: this.info.caches };
            case 'sites': return this.findSites(query);
            case 'machine': return this.machine(t);
            case 'machine/pcp': return this.pcp(number('cpu', 0), t);
            case 'slabs': return this.slabs(t);
            case 'virtual': return this.virtual(t);
            case 'events': return this.findEvents(query, number);
            case 'histogram': return this.histogram(number('buckets', 600));
            case 'diff': return this.diff(this.moment(number('from', this.from)), this.moment(number('to', this.to)));
            case 'explain': return this.explain(query, t);
            case 'object': return this.object(query.get('address'), t);
            case 'walk': return this.walk(query.get('address'), t);
        }
        if (name.startsWith('frame/')) return this.frame(Number(name.slice(6)), t);
        if (name.startsWith('slabs/')) return this.slabsOf(Number(name.slice(6)), t, query, number);
        throw problem(`there is no question ${url.pathname}`, 404);
    }

    moment(t) {
        if (!Number.isInteger(t) || t < this.from || t > this.to)
            throw problem(`t is ${t}; this file holds the moments ${this.from} to ${this.to}`);
        return t;
    }

    /** An answer that was written into the file, of the last such moment at or before t. */
    nearest(path, t, parameters) {
        const moments = this.info.deepMoments.filter(moment => moment <= t);
        const answer = this.answers[`${path}?${parameters}t=${moments[moments.length - 1]}`];
        if (!answer) throw problem('that is not part of this exported file', 404);
        return answer;
    }

    at(t) {
        this.questions.moveTo(t);
        return this.questions;
    }

    machine(t, cursor = this.at(t)) {
        const answer = { type: 'machine', t };
        const marks = this.nearest('/api/machine', t, '');
        const kinds = {};
        for (const kind of this.info.kinds.slice(1)) kinds[kind.name] = cursor.kinds[kind.id];
        answer.frames = { total: this.info.frames, ...kinds };
        answer.zones = marks.zones.map(zone => {
            const freeBlocks = zone.freeBlocks.map(({ order }) => {
                const byType = Array.from({ length: TYPES }, (_, type) => cursor.freeBlocks[(zone.id * ORDERS + order) * TYPES + type]);
                return { order, total: byType.reduce((sum, n) => sum + n), byType };
            });
            const pageblocks = new Array(TYPES).fill(0);
            cursor.zoneOfBlock.forEach((its, block) => { if (its === zone.id) pageblocks[cursor.typeOfBlock[block]]++; });
            let listed = 0;
            for (let cpu = 0; cpu < this.info.cpus; cpu++) listed += cursor.pcp[zone.id * this.info.cpus + cpu];
            return { ...zone, free: freeBlocks.reduce((sum, it) => sum + it.total * 2 ** it.order, 0), pcpFrames: listed, freeBlocks, pageblocks };
        });
        answer.cpus = marks.cpus.map(cpu => ({
            ...cpu, zones: cpu.zones.map(zone => ({ ...zone, frames: cursor.pcp[zone.zone * this.info.cpus + cpu.cpu] })),
        }));
        answer.counters = {};
        COUNTERS.forEach((name, i) => { answer.counters[name] = cursor.counters[i]; });
        return answer;
    }

    frame(pfn, t) {
        if (!(pfn >= 0 && pfn < this.info.frames)) throw problem(`there is no frame ${pfn}`, 404);
        const cursor = this.at(t);
        const cell = cursor.cell(pfn), word = cell[0], kind = word & 0xff;
        const block = Math.floor(pfn / BLOCK), first = block * BLOCK;
        let pinned = 0;
        for (let frame = first; frame < first + BLOCK && frame < this.info.frames; frame++)
            if (pins(cursor.cell(frame)[0] & 0xff) && cursor.usedOfBlock[block] <= BLOCK / 8) pinned++;
        const head = headOf(word, pfn), headCell = cursor.cell(head), owned = kind === SLAB || kind === PCP;
        return {
            t, pfn, address: this.address(pfn * 4096), kind: this.info.kinds[kind].name, order: orderOf(word), head,
            zone: orNull(cursor.zoneOfBlock[block], NO_ZONE), migrateType: this.info.migrateTypes[cursor.typeOfBlock[block]].name,
            owner: owned ? word >>> 16 : null, ownerName: kind === SLAB ? this.caches[word >>> 16] ?? null : null,
            born: cell[2], site: this.site(cell[3]),
            pageblock: { first, frames: BLOCK, inUse: cursor.usedOfBlock[block], pins: pinned },
            inUse: kind === SLAB ? headCell[1] & 0xffff : null, objects: kind === SLAB ? headCell[1] >>> 16 : null,
        };
    }

    // ---- what the server asks its allocators for; here it follows from frames and events, as far as it does

    /** The rows of caches; those that come later are known by the moment that the file has them at. */
    slabs(t) {
        const written = this.answers[`/api/slabs?t=${t}`];
        if (written) return written;
        const cursor = this.at(t), rows = new Map();
        let from = this.from;
        for (const moment of this.info.deepMoments) {
            if (moment <= t) from = moment;
            for (const row of this.answers[`/api/slabs?t=${moment}`].caches) {
                if (moment <= t || !rows.has(row.id)) rows.set(row.id, { ...row, later: moment > t });
            }
        }
        const given = this.givenBetween(from, t);
        const caches = [...rows.values()].filter(row => !row.later || cursor.slabs[row.id] > 0).map(({ later, ...row }) => {
            const slabs = cursor.slabs[row.id] ?? 0, objects = slabs * row.objectsPerSlab;
            const active = (later ? 0 : row.active) + (given.get(row.id) ?? 0);
            return { ...row, slabs, objects, active, use: objects === 0 ? 0 : Math.floor(active * 100 / objects), bytes: slabs * PAGE * 2 ** row.order };
        });
        return { t, caches: caches.sort((a, b) => b.id - a.id) };       // the newest first, as the kernel lists them
    }

    /** By cache: objects given out, less those that came back. */
    givenBetween(from, to) {
        const w = this.words.objects, sums = new Map();
        for (let i = this.objectsOf[from - this.from]; i < this.objectsOf[to - this.from]; i++) {
            const packed = w[i * OBJECT_WORDS + 3], cache = packed & 0xffff;
            sums.set(cache, (sums.get(cache) ?? 0) + (packed >>> 16 ? 1 : -1));
        }
        return sums;
    }

    /** The slabs of a cache. Lists (of CPUs, of nodes, of free objects) are there at the moments that were written. */
    slabsOf(id, t, query, number) {
        const row = this.slabs(t).caches.find(cache => cache.id === id);
        if (!row) throw problem(`there is no cache ${id} at this moment`, 404);
        const offset = number('offset', 0), limit = number('limit', 64);
        const written = this.answers[`/api/slabs/${id}?t=${t}`];
        let answer = written && written.slabs.length === written.total ? written : this.slabsByFrames(row, t);
        const one = query.has('slab') ? number('slab') : query.has('address') ? this.pfnOf(query.get('address')) : null;
        if (one !== null) {
            const slabs = answer.slabs.filter(slab => one >= slab.pfn && one < slab.pfn + 2 ** slab.order);
            if (slabs.length === 0) throw problem(`frame ${one} is no slab of ${row.name} at this moment`, 404);
            return { ...answer, cpus: [], nodes: [], slabs, offset: answer.slabs.indexOf(slabs[0]) };
        }
        return { ...answer, offset, slabs: answer.slabs.slice(offset, offset + limit) };
    }

    slabsByFrames(row, t) {
        const cursor = this.at(t), w = this.words.objects, slabs = [], byHead = new Map();
        const moments = this.info.deepMoments.filter(moment => moment <= t);
        const listsAt = moments[moments.length - 1];
        const base = this.answers[`/api/slabs/${row.id}?t=${listsAt}`];
        const known = new Map((base?.slabs ?? []).map(slab => [slab.pfn, slab]));
        for (let pfn = 0; pfn < this.info.frames;) {
            const cell = cursor.cell(pfn), size = 2 ** orderOf(cell[0]), kind = cell[0] & 0xff;
            if (kind !== SLAB || cell[0] >>> 16 !== row.id || pfn % size !== 0) {
                pfn += kind === FREE ? size - pfn % size : 1;
                continue;
            }
            const objects = cell[1] >>> 16, inUse = cell[1] & 0xffff, old = known.get(pfn);
            const live = new Uint8Array(Math.ceil(objects / 8));
            if (old) live.set(Uint8Array.from(atob(old.live), letter => letter.charCodeAt(0)).subarray(0, live.length));
            const slab = {
                pfn, address: this.address(pfn * PAGE), order: orderOf(cell[0]), state: inUse === objects ? 'full' : 'some', cpu: null,
                objects, inUse, live, free: [], from: old ? listsAt : this.from,
            };
            slabs.push(slab);
            for (let frame = pfn; frame < pfn + size; frame++) byHead.set(frame, slab);
            pfn += size;
        }
        for (let i = 0; i < this.objectsOf[t - this.from]; i++) {
            const at = i * OBJECT_WORDS, packed = w[at + 3];
            if ((packed & 0xffff) !== row.id) continue;
            const slab = byHead.get(Math.floor(w[at + 1] / 512));
            if (!slab || w[at] < slab.from) continue;
            const index = Math.floor((w[at + 1] * 8 - slab.pfn * PAGE) / row.size), bit = 1 << index % 8;
            if (packed >>> 16) slab.live[index >> 3] |= bit;
            else slab.live[index >> 3] &= ~bit;
        }
        return {
            t, cache: row, freeOffset: base?.freeOffset ?? 0, cpus: [], nodes: [], total: slabs.length, offset: 0, listsAt,
            slabs: slabs.map(({ from, ...slab }) => ({ ...slab, live: btoa(String.fromCharCode(...slab.live)) })),
        };
    }

    /** The frames on a CPU's lists; in order at the moments that were written, else in order of address. */
    pcp(cpu, t) {
        const written = this.answers[`/api/machine/pcp?cpu=${cpu}&t=${t}`];
        if (written) return written;
        const cursor = this.at(t), lists = new Map();
        for (let pfn = 0; pfn < this.info.frames;) {
            const [word] = cursor.cell(pfn), size = 2 ** orderOf(word), kind = word & 0xff;
            if (kind === PCP && word >>> 16 === cpu && pfn % size === 0) {
                const block = Math.floor(pfn / BLOCK), key = `${cursor.zoneOfBlock[block]},${orderOf(word)},${cursor.typeOfBlock[block]}`;
                if (!lists.has(key)) lists.set(key, []);
                lists.get(key).push(pfn);
            }
            pfn += kind === FREE || kind === PCP ? size - pfn % size : 1;
        }
        const zones = this.info.zones.map(zone => ({ zone: zone.id, lists: [] }));
        for (const [key, frames] of lists) {
            const [zone, order, migrateType] = key.split(',').map(Number);
            zones[zone]?.lists.push({ order, migrateType, frames });
        }
        return { t, cpu, zones, ordered: false };
    }

    /** The vmalloc space: the last moment that was written, and what has become of areas since. */
    virtual(t) {
        const written = this.nearest('/api/virtual', t, '');
        if (written.t === t || t > this.areasUntil) return written;
        const { start, end } = this.nearest('/api/virtual', this.to, '');
        const byStart = new Map(written.areas.map(area => [area.start, area]));
        const hex = number => '0x' + number.toString(16).padStart(16, '0');
        const w = this.words.areas;
        for (let at = 0; at < w.length && w[at] < t; at += AREA_WORDS) {
            if (w[at] < written.t) continue;
            const first = (BigInt(w[at + 3]) << 32n) | BigInt(w[at + 2]), bytes = w[at + 4] * PAGE, key = hex(first);
            const state = ['busy', 'lazy', 'pool'][w[at + 1] - 1];
            if (!state) byStart.delete(key);
            else byStart.set(key, {
                start: key, end: hex(first + BigInt(bytes)), bytes, kind: { busy: 'vmalloc', lazy: 'unpurged', pool: 'pooled' }[state],
                flags: [], caller: null, pages: null, guard: state === 'busy' ? true : null, lazy: state === 'lazy', node: null, state,
                born: state === 'busy' ? w[at] + 1 : null,
            });
        }
        const areas = [...byStart.values()].sort((a, b) => (a.start < b.start ? -1 : 1)), holes = [];
        let from = start;
        for (const area of areas) {
            const to = area.start < end ? area.start : end;
            if (to > from) holes.push({ start: from, end: to, bytes: Number(BigInt(to) - BigInt(from)) });
            if (area.end > from) from = area.end;
        }
        if (areas.length > 0 && from < end) holes.push({ start: from, end, bytes: Number(BigInt(end) - BigInt(from)) });
        const lazyPages = areas.filter(area => area.lazy).reduce((sum, area) => sum + area.bytes / PAGE, 0);
        return { t, start, end, areas, holes, lazyPages, tree: null, treeTruncated: false };
    }

    /** An address as its bits, and the area that it is in; entries of page tables are not in the file. */
    walk(text, t) {
        const value = BigInt.asUintN(64, BigInt(text.startsWith('0x') ? text : '0x' + text));
        const address = '0x' + value.toString(16).padStart(16, '0');
        const area = this.virtual(t).areas.find(it => it.start <= address && address < it.end);
        return {
            t, address, region: area ? 'vmalloc space' : '–', mapped: false, leafBytes: 0, prot: 'None', cacheMode: 'WriteBack',
            steps: LEVELS.map((level, i) => ({
                level, table: null, index: Number((value >> BigInt(39 - 9 * i)) & 511n), entry: '', flags: '',
            })),
            stop: 'The entries of page tables are not in this file: open the recording with kmem serve.',
            physical: null, directMap: null, frame: null, area: area ? { start: area.start, end: area.end, text: area.kind } : null,
        };
    }

    /** An object by what is known of it; the bytes of memory are not in the file. */
    object(text, t) {
        const pfn = this.pfnOf(text), frame = this.frame(pfn, t);
        const blank = { t, kind: frame.kind, bytes: '', marks: [], cache: null, cacheName: null, slab: null, index: null, requested: null };
        const start = this.address(frame.head * PAGE), size = PAGE * 2 ** frame.order;
        const row = frame.kind === 'slab' ? this.slabs(t).caches.find(cache => cache.id === frame.owner) : null;
        if (!row) {
            return { ...blank, address: start, start, size, objectSize: size, allocated: !['free', 'pcp', 'reserved', 'hole'].includes(frame.kind),
                site: frame.site, born: frame.born };
        }
        const slab = this.slabsByFrames(row, t).slabs.find(it => it.pfn === frame.head);
        const index = Math.floor(Number(BigInt(text.startsWith('0x') ? text : '0x' + text) - BigInt(slab.address)) / row.size);
        const allocated = ((atob(slab.live).charCodeAt(index >> 3) >> index % 8) & 1) === 1;
        const at = this.address(slab.pfn * PAGE + index * row.size), w = this.words.objects;
        let birth = null;
        for (let i = this.objectsOf[t - this.from]; allocated && i-- > 0 && birth === null;) {
            const its = i * OBJECT_WORDS, inSlab = w[its + 1] * 8 - slab.pfn * PAGE;
            if (w[its + 3] >>> 16 && inSlab >= 0 && Math.floor(inSlab / row.size) === index && (w[its + 3] & 0xffff) === row.id) birth = its;
        }
        return {
            ...blank, cache: row.id, cacheName: row.name, slab: slab.pfn, index, address: at, start: at, size: row.size, objectSize: row.objectSize,
            allocated, site: birth === null ? null : this.event(w[birth]).site, born: birth === null ? 0 : w[birth] + 1,
            requested: birth === null ? null : w[birth + 2],
        };
    }

    pfnOf(text) {
        const address = BigInt(text.startsWith('0x') ? text : '0x' + text);
        const pfn = Number((address - this.directMap) >> 12n);
        if (!(pfn >= 0 && pfn < this.info.frames)) throw problem(`${text} is not in the direct map`, 404);
        return pfn;
    }

    explain(query, t) {
        if (query.has('event')) {
            const n = Number(query.get('event'));
            if (!(n >= this.from && n < this.to)) throw problem(`there is no event ${n} in this file`, 404);
            const event = this.event(n);
            const steps = this.ticks(n, n + 1).map(tick => ({
                name: tick.what, text: describe(tick, this), values: { pfn: tick.pfn ?? 0, order: tick.order, count: tick.count },
            }));
            if (event.address) steps.push({ name: 'place', text: `${event.text}: ${event.address}`, values: {} });
            const summary = `Event ${n}, ${event.kind}: ${steps.map(step => step.text).join('; ') || 'nothing changed'}.`;
            return { t: n, address: event.address, kind: event.kind, summary, steps, explanation: null };
        }
        const pfn = query.has('pfn') ? Number(query.get('pfn')) : this.pfnOf(query.get('address') ?? '');
        const frame = this.frame(pfn, t);
        const what = frame.ownerName ? `a slab of ${frame.ownerName}` : this.info.kinds.find(kind => kind.name === frame.kind).label;
        const since = frame.born > 0 ? `, since event ${frame.born - 1}` : '';
        const by = frame.site ? ` by ${frame.site.name}` : '';
        return {
            t, address: frame.address, kind: frame.kind, summary: `Frame ${pfn} is ${what}, order ${frame.order}${since}${by}.`,
            steps: [{
                name: 'pageblock', text: `its pageblock is ${frame.migrateType}: ${frame.pageblock.inUse} of ${BLOCK} frames are in use`,
                values: { first: frame.pageblock.first, inUse: frame.pageblock.inUse, pins: frame.pageblock.pins },
            }],
            explanation: null,      // needs the allocators, for any address at any moment
        };
    }

    findSites(query) {
        if (query.has('ids'))
            return { sites: query.get('ids').split(',').filter(Boolean).map(id => this.site(Number(id))).filter(Boolean) };
        const text = (query.get('find') ?? '').toLowerCase(), limit = Number(query.get('limit') ?? 50);
        return {
            sites: Object.entries(this.sites).filter(([, name]) => name.toLowerCase().includes(text)).slice(0, limit)
                .map(([id, name]) => ({ id: Number(id), name })),
        };
    }

    event(n) {
        const w = this.words.events.subarray((n - this.from) * EVENT_WORDS, (n - this.from + 1) * EVENT_WORDS);
        const kind = w[10] & 0xff, order = (w[10] >>> 8) & 0xff;
        const pages = kind >= 5 && kind <= 10;
        const place = (BigInt(w[3]) << 32n) | BigInt(w[2]);
        let offset = null;
        const o = this.words.objects, last = this.objectsOf[n - this.from + 1];
        if (last > this.objectsOf[n - this.from]) offset = o[(last - 1) * OBJECT_WORDS + 1] * 8;
        else if (pages && w[10] >>> 24 === 0) offset = this.placeOfPages(n, kind);
        return {
            n, line: w[6], ns: w[1] * 2 ** 32 + w[0], kind: EVENT_NAMES[kind], cpu: w[11], pid: w[9], site: this.site(w[7]),
            cache: this.names[w[8] & 0xffff] ?? null, gfp: w[8] >>> 16 ? this.gfp[w[8] >>> 16] : null,
            bytesRequested: w[4] || null, bytesAllocated: w[5] || null,
            order: pages ? order : null, migrateType: pages ? (w[10] >>> 16) & 0xff : null,
            recorded: pages ? null : '0x' + place.toString(16).padStart(16, '0'), recordedPfn: pages ? Number(place) : null,
            address: offset === null ? null : this.address(offset), pfn: offset === null ? null : Math.floor(offset / 4096),
            result: RESULTS[w[10] >>> 24], text: textOf(kind, w[4], w[5], order),
        };
    }

    placeOfPages(n, kind) {
        const words = this.words.changes;
        let offset = null;
        for (let i = this.changesOf[n - this.from]; i < this.changesOf[n - this.from + 1]; i++) {
            const at = i * CHANGE_WORDS, is = words[kind === 5 ? at + 7 : at + 3] & 0xff;
            if (words[at + 2] > 0 && inUse(is) && is !== SLAB) offset = words[at + 1] * 4096;
        }
        return offset;
    }

    findEvents(query, number) {
        const direction = number('direction', 1), limit = number('limit', 100);
        const kinds = query.get('kind')?.split(','), text = query.get('site')?.toLowerCase(), cache = query.get('cache');
        const address = query.get('address') === null ? null : '0x' + query.get('address').replace(/^0x/i, '').toLowerCase().padStart(16, '0');
        const matches = event => (!kinds || kinds.includes(event.kind))
            && (!query.has('cpu') || event.cpu === number('cpu')) && (!query.has('pid') || event.pid === number('pid'))
            && (!text || (event.site?.name.toLowerCase().includes(text) ?? false)) && (!cache || event.cache === cache)
            && (!address || event.address === address || event.recorded === address);
        let n = Math.min(Math.max(number('from', direction > 0 ? this.from : this.to - 1), this.from), this.to - 1);
        const events = [];
        for (; n >= this.from && n < this.to && events.length < limit; n += direction) {
            const event = this.event(n);
            if (matches(event)) events.push(event);
        }
        while (n >= this.from && n < this.to && !matches(this.event(n))) n += direction;
        const more = n >= this.from && n < this.to;
        return { events, next: more ? n : null, more };
    }

    histogram(buckets) {
        buckets = Math.max(1, Math.min(buckets, Math.max(this.to, 1)));
        const objects = new Array(buckets).fill(0), pages = objects.slice(), slow = objects.slice(), freeFrames = objects.slice();
        const endOf = bucket => Math.floor(this.to * (bucket + 1) / buckets);
        const bucketOf = n => {
            const guess = Math.floor(n * buckets / this.to);
            return n >= endOf(guess) ? guess + 1 : guess;
        };
        for (let n = this.from; n < this.to; n++) {
            const kind = this.words.events[(n - this.from) * EVENT_WORDS + 10] & 0xff;
            (kind >= 5 && kind <= 10 ? pages : objects)[bucketOf(n)]++;
        }
        const ticks = this.words.ticks;
        for (let i = 0; i < ticks.length; i += TICK_WORDS)
            if ([2, 3, 8, 9].includes(ticks[i + 3] & 0xff)) slow[bucketOf(ticks[i])]++;
        const cursor = this.open();
        for (let bucket = 0; bucket < buckets; bucket++) {
            cursor.moveTo(Math.max(this.from, endOf(bucket)));
            freeFrames[bucket] = cursor.kinds[FREE];
        }
        return {
            buckets, perBucket: this.to / buckets, freeFrames,
            series: [{ name: 'objects', counts: objects }, { name: 'pages', counts: pages }, { name: 'slow', counts: slow }],
        };
    }

    ticks(from, to) {
        const w = this.words.ticks, ticks = [];
        const [first, last] = [this.ticksOf[from - this.from], this.ticksOf[to - this.from]];
        for (let i = Math.max(first, last - 50); i < last; i++) {
            const at = i * TICK_WORDS, packed = w[at + 3], more = w[at + 4];
            ticks.push({
                t: w[at], what: TICKS[packed & 0xff], zone: orNull((packed >>> 8) & 0xff, NO_ZONE), pfn: orNull(w[at + 1], 0),
                order: (packed >>> 16) & 0xff, fromOrder: orNull(packed >>> 24, 255), count: w[at + 2],
                migrateType: orNull(more & 0xff, 255), fromType: orNull((more >>> 8) & 0xff, 255), cpu: more >>> 16, cache: orNull(w[at + 5], 0),
            });
        }
        return ticks;
    }

    diff(from, to) {
        const old = this.open(), now = this.open();
        old.moveTo(from);
        now.moveTo(to);
        const difference = (a, b) => Object.fromEntries(Object.entries(b).map(([k, v]) => [k, v - a[k]]).filter(([, v]) => v !== 0));
        const before = this.machine(from, old), after = this.machine(to, now);
        const ranges = [], sums = new Map();
        const add = (id, frames, objects, bytes) => {
            const sum = sums.get(id) ?? { frames: 0, objects: 0, bytes: 0 };
            sums.set(id, { frames: sum.frames + frames, objects: sum.objects + objects, bytes: sum.bytes + bytes });
        };
        let changedFrames = 0, truncated = false;
        for (let pfn = 0; pfn < this.info.frames;) {
            if (old.isSame(now, pfn)) {
                pfn = (Math.floor(pfn / CHUNK) + 1) * CHUNK;
                continue;
            }
            const a = old.cell(pfn), b = now.cell(pfn), was = a[0] & 0xff, is = b[0] & 0xff;
            if (a[3] > 0) add(a[3], -1, 0, 0);
            if (b[3] > 0) add(b[3], 1, 0, 0);
            if (was !== is || a[0] >>> 16 !== b[0] >>> 16 || a[2] !== b[2]) {
                changedFrames++;
                const last = ranges[ranges.length - 1];
                const names = [this.info.kinds[was].name, this.info.kinds[is].name];
                if (last && last.first + last.count === pfn && last.from === names[0] && last.to === names[1]) last.count++;
                else if (ranges.length < 1000) ranges.push({ first: pfn, count: 1, from: names[0], to: names[1] });
                else truncated = true;
            }
            pfn++;
        }
        this.addObjects(from, to, add);
        const caches = this.info.caches.map(({ id, name }) => ({
            id, name, slabs: (now.slabs[id] ?? 0) - (old.slabs[id] ?? 0), objects: null, active: (now.active[id] ?? 0) - (old.active[id] ?? 0),
        })).filter(cache => cache.slabs !== 0 || cache.active !== 0);
        return {
            from, to, events: Math.abs(to - from), frames: difference(before.frames, after.frames), changedFrames, caches,
            sites: [...sums].filter(([id, s]) => this.site(id) && (s.frames || s.objects || s.bytes))
                .map(([id, sum]) => ({ site: this.site(id), ...sum }))
                .sort((x, y) => Math.abs(y.bytes) + Math.abs(y.frames) * 4096 - Math.abs(x.bytes) - Math.abs(x.frames) * 4096 || x.site.id - y.site.id).slice(0, 100),
            counters: difference(before.counters, after.counters),
            zones: after.zones.map((zone, i) => ({
                id: zone.id, free: zone.free - before.zones[i].free,
                freeBlocks: zone.freeBlocks.map((it, order) => it.total - before.zones[i].freeBlocks[order].total),
            })).filter(zone => zone.free !== 0 || zone.freeBlocks.some(n => n !== 0)),
            ranges, rangesTruncated: truncated,
        };
    }

    addObjects(from, to, add) {
        const w = this.words.objects, owners = new Map();
        const low = Math.min(from, to), high = Math.max(from, to), sign = to >= from ? 1 : -1;
        for (let i = 0; i < this.objectsOf[high - this.from]; i++) {
            const at = i * OBJECT_WORDS, given = w[at + 3] >>> 16 === 1, place = w[at + 1];
            if (given) owners.set(place, [this.words.events[(w[at] - this.from) * EVENT_WORDS + 7], w[at + 2]]);
            const owner = owners.get(place);
            if (!given) owners.delete(place);
            if (owner && w[at] >= low) add(owner[0], 0, given ? sign : -sign, (given ? sign : -sign) * owner[1]);
        }
    }
}

/** Where the entries of each event begin in a section. */
function starts(words, size, from, events) {
    const index = new Uint32Array(events + 1);
    for (let i = 0, n = 0; n <= events; n++) {
        while (i < words.length / size && words[i * size] < from + n) i++;
        index[n] = i;
    }
    return index;
}

function textOf(kind, requested, allocated, order) {
    switch (kind) {
        case 1: return `kmalloc of ${requested} bytes, ${allocated} given`;
        case 2: return `an object of ${requested} bytes is given out`;
        case 3: case 4: return 'an object comes back';
        case 5: return `pages are given out: ${2 ** order}`;
        case 6: return `pages come back: ${2 ** order}`;
        default: return EVENT_NAMES[kind];
    }
}

function describe(tick, recording) {
    const type = id => recording.info.migrateTypes[id]?.name ?? '?';
    const cache = recording.caches[tick.cache];
    switch (tick.what) {
        case 'split': return `a free block of order ${tick.fromOrder} is split for order ${tick.order}`;
        case 'merge': return `what came back merges to a free block of order ${tick.fromOrder}`;
        case 'fallback': return `no block of the wanted type: ${type(tick.migrateType)} steals order ${tick.fromOrder} from ${type(tick.fromType)}`;
        case 'claim': return `no block of the wanted type: ${type(tick.migrateType)} claims a pageblock of ${type(tick.fromType)}`;
        case 'refill': return `CPU ${tick.cpu} refills its list with ${tick.count} blocks of order ${tick.order}`;
        case 'drain': return `CPU ${tick.cpu} gives back ${tick.count} blocks of order ${tick.order}`;
        case 'newSlab': return `${cache} gets a new slab of order ${tick.order} at frame ${tick.pfn}`;
        case 'freeSlab': return `${cache} gives up the slab at frame ${tick.pfn}`;
        case 'slowPath': return `no zone is above its low watermark for order ${tick.order}: the slow path`;
        default: return `no memory for order ${tick.order}`;
    }
}

/** The frames at one moment; moves by what changed in between. As TimelineCursor and FrameMap on the server. */
class Cursor {
    constructor(recording) {
        const { info, words } = recording;
        this.recording = recording;
        this.moment = recording.from;
        this.cpus = info.cpus;
        this.frames = info.frames;
        this.chunks = [];
        this.owned = [];
        this.versions = [];
        const blocks = Math.ceil(info.frames / CHUNK) * 2;
        this.typeOfBlock = new Uint8Array(blocks);
        this.zoneOfBlock = new Uint8Array(blocks).fill(NO_ZONE);
        words.blocks.forEach((word, block) => {
            this.typeOfBlock[block] = word & 0xff;
            this.zoneOfBlock[block] = word >>> 8;
        });
        this.usedOfBlock = new Uint16Array(blocks);
        this.kinds = new Array(info.kinds.length).fill(0);
        const zones = info.zones.length + 1;
        this.freeBlocks = new Array(zones * ORDERS * TYPES).fill(0);
        this.pcp = new Array(zones * info.cpus).fill(0);
        this.slabs = [];
        this.active = Array.from(words.active);
        this.counters = Array.from(words.counters, count => count | 0);
        if (recording.first) this.share(recording.first);
        else {
            this.fill(words.frames);
            recording.first = this.copy();
        }
    }

    /** The first moment is unpacked once; cursors share its chunks until they write to them. */
    copy() {
        this.owned.fill(false);
        const { chunks, usedOfBlock, kinds, freeBlocks, pcp, slabs } = this;
        return { chunks: [...chunks], usedOfBlock: usedOfBlock.slice(), kinds: [...kinds], freeBlocks: [...freeBlocks], pcp: [...pcp], slabs: [...slabs] };
    }

    share(first) {
        this.chunks = [...first.chunks];
        this.owned = this.chunks.map(() => false);
        this.versions = this.chunks.map(() => 0);
        this.usedOfBlock = first.usedOfBlock.slice();
        for (const name of ['kinds', 'freeBlocks', 'pcp', 'slabs']) this[name] = [...first[name]];
    }

    fill(runs) {
        const uniform = new Map();
        let pfn = 0;
        for (let i = 0; i < runs.length; i += 5) {
            const cell = runs.subarray(i + 1, i + 5);
            for (let left = runs[i]; left > 0;) {
                const chunk = Math.floor(pfn / CHUNK), count = Math.min(left, CHUNK - pfn % CHUNK);
                if (count === CHUNK) {
                    const key = cell.join();
                    if (!uniform.has(key)) uniform.set(key, spread(new Uint32Array(CHUNK * 4), 0, CHUNK, cell));
                    this.chunks[chunk] = uniform.get(key);
                }
                else {
                    this.chunks[chunk] ??= new Uint32Array(CHUNK * 4);
                    spread(this.chunks[chunk], pfn % CHUNK, count, cell);
                }
                this.versions[chunk] = 0;
                this.account(cell[0], pfn, count, 1);
                pfn += count;
                left -= count;
            }
        }
    }

    cell(pfn) {
        const at = (pfn % CHUNK) * 4;
        return this.chunks[Math.floor(pfn / CHUNK)].subarray(at, at + 4);
    }

    isSame(other, pfn) {
        const chunk = Math.floor(pfn / CHUNK);
        return this.chunks[chunk] === other.chunks[chunk];
    }

    moveTo(t) {
        const { words, from, changesOf, objectsOf, ticksOf } = this.recording;
        while (this.moment < t) {
            const n = this.moment++ - from;
            for (let i = objectsOf[n]; i < objectsOf[n + 1]; i++) this.object(words.objects, i * OBJECT_WORDS, 1);
            for (let i = changesOf[n]; i < changesOf[n + 1]; i++) this.change(words.changes, i * CHANGE_WORDS, 3, 7);
            this.count(n, 1, words, ticksOf);
        }
        while (this.moment > t) {
            const n = --this.moment - from;
            this.count(n, -1, words, ticksOf);
            for (let i = changesOf[n + 1]; i-- > changesOf[n];) this.change(words.changes, i * CHANGE_WORDS, 7, 3);
            for (let i = objectsOf[n + 1]; i-- > objectsOf[n];) this.object(words.objects, i * OBJECT_WORDS, -1);
        }
    }

    count(n, sign, words, ticksOf) {
        for (let i = ticksOf[n]; i < ticksOf[n + 1]; i++)
            this.counters[words.ticks[i * TICK_WORDS + 3] & 0xff] += sign * words.ticks[i * TICK_WORDS + 2];
        const packed = words.events[n * EVENT_WORDS + 10];
        if (packed >>> 24 !== 0) return;
        if ((packed & 0xff) === 5) this.counters[12] += sign;
        else if ((packed & 0xff) === 6) this.counters[13] += sign;
    }

    object(words, at, sign) {
        const given = words[at + 3] >>> 16 === 1, cache = words[at + 3] & 0xffff, delta = given ? sign : -sign;
        this.active[cache] = (this.active[cache] ?? 0) + delta;
        this.counters[given ? 10 : 11] += sign;
        const pfn = Math.floor(words[at + 1] / 512);
        const word = this.cell(pfn)[0];
        if ((word & 0xff) !== SLAB) return;
        const chunk = this.own(Math.floor(pfn / CHUNK)), head = (headOf(word, pfn) % CHUNK) * 4 + 1;
        chunk[head] = (chunk[head] & 0xffff0000) | ((chunk[head] + delta) & 0xffff);
    }

    change(words, at, from, to) {
        const pfn = words[at + 1], count = words[at + 2];
        if (count === 0) {
            this.setType(pfn, (words[at + to] >>> 8) & 0xff);
            return;
        }
        const chunk = this.own(Math.floor(pfn / CHUNK));
        this.account(words[at + from], pfn, count, -1);
        spread(chunk, pfn % CHUNK, count, words.subarray(at + to, at + to + 4));
        this.account(words[at + to], pfn, count, 1);
    }

    own(chunk) {
        this.versions[chunk]++;
        if (!this.owned[chunk]) {
            this.owned[chunk] = true;
            this.chunks[chunk] = this.chunks[chunk].slice();
        }
        return this.chunks[chunk];
    }

    setType(pfn, type) {
        const block = Math.floor(pfn / BLOCK), old = this.typeOfBlock[block];
        if (old === type) return;
        for (let frame = block * BLOCK; frame < (block + 1) * BLOCK;) {
            const word = this.cell(frame)[0];
            if ((word & 0xff) !== FREE) {
                frame++;
                continue;
            }
            if (headOf(word, frame) === frame) {
                this.countFree(frame, orderOf(word), old, -1);
                this.countFree(frame, orderOf(word), type, 1);
            }
            frame += 2 ** Math.min(orderOf(word), 9);
        }
        this.typeOfBlock[block] = type;
        this.versions[Math.floor(pfn / CHUNK)]++;
    }

    countFree(head, order, type, sign) {
        const zone = Math.min(this.zoneOfBlock[Math.floor(head / BLOCK)], this.recording.info.zones.length);
        this.freeBlocks[(zone * ORDERS + order) * TYPES + type] += sign;
    }

    account(word, pfn, count, sign) {
        const kind = word & 0xff, end = pfn + count;
        this.kinds[kind] += sign * count;
        if (kind <= RESERVED) return;
        const size = 2 ** orderOf(word), first = Math.ceil(pfn / size) * size;
        if (inUse(kind)) {
            for (let from = pfn; from < end;) {
                const block = Math.floor(from / BLOCK), to = Math.min(end, (block + 1) * BLOCK);
                this.usedOfBlock[block] += sign * (to - from);
                from = to;
            }
            if (kind === SLAB && first < end)
                this.slabs[word >>> 16] = (this.slabs[word >>> 16] ?? 0) + sign * Math.ceil((end - first) / size);
        }
        else if (kind === FREE) {
            for (let head = first; head < end; head += size)
                this.countFree(head, orderOf(word), this.typeOfBlock[Math.floor(head / BLOCK)], sign);
        }
        else {
            const zone = Math.min(this.zoneOfBlock[Math.floor(pfn / BLOCK)], this.recording.info.zones.length);
            this.pcp[zone * this.cpus + (word >>> 16)] += sign * count;
        }
    }
}

function spread(chunk, at, count, cell) {
    const [a, b, c, d] = cell;
    for (let i = at * 4; i < (at + count) * 4; i += 4) {
        chunk[i] = a;
        chunk[i + 1] = b;
        chunk[i + 2] = c;
        chunk[i + 3] = d;
    }
    return chunk;
}

/** A window at a level of detail, and the messages about it. As FrameView on the server. */
class View {
    constructor(message, frames) {
        if (!Number.isInteger(message.id)) throw problem('id is missing');
        this.id = message.id;
        const first = message.first ?? 0, count = Math.min(message.count, frames - first);
        if (!(first >= 0 && first < frames && count > 0)) throw problem('first or count is outside of the memory');
        let level = message.level ?? 0;
        const cells = at => Math.ceil((first + count) / 2 ** at) - Math.floor(first / 2 ** at);
        while (message.level === undefined && level < 22 && cells(level) > (message.cells ?? 16384)) level++;
        if (!(level >= 0 && level <= 22)) throw problem('level is not from 0 to 22');
        if (cells(level) > MAX_CELLS) throw problem(`that are ${cells(level)} cells, at most ${MAX_CELLS} at a time`);
        this.level = level;
        this.size = 2 ** level;
        this.first = Math.floor(first / this.size) * this.size;
        this.cells = cells(level);
        this.words = new Uint32Array(this.cells * 4);
        this.matched = new Uint32Array(this.cells);
        this.seen = new Map();
        this.sequence = 0;
        this.fresh = true;
    }

    update(cursor, filter) {
        const full = this.fresh, changed = [];
        const fresh = new Set();
        const isChanged = chunk => {
            if (this.seen.get(chunk) !== cursor.versions[chunk]) fresh.add(chunk);
            return fresh.has(chunk);
        };
        for (let cell = 0; cell < this.cells; cell++) {
            const from = this.first + cell * this.size, to = Math.min(from + this.size, cursor.frames);
            let due = full || filter?.age != null;
            for (let chunk = Math.floor(from / CHUNK); chunk <= Math.floor((to - 1) / CHUNK) && !due; chunk++) due = isChanged(chunk);
            if (due && this.compute(cursor, cell, from, to, filter)) changed.push(cell);
        }
        for (let chunk = Math.floor(this.first / CHUNK); chunk * CHUNK < this.first + this.cells * this.size && chunk < cursor.chunks.length; chunk++)
            this.seen.set(chunk, cursor.versions[chunk]);
        this.fresh = false;
        return this.message(cursor, full || changed.length * 5 > this.cells * 4 ? null : changed);
    }

    message(cursor, changed) {
        const records = changed ? changed.length : this.cells;
        const out = new Uint32Array(HEADER_WORDS + records * (changed ? 5 : 4));
        out.set([MAGIC, 1 | (changed ? 0 : 256) | (this.level << 16) | (4 << 24), this.id, this.sequence++, cursor.moment,
            this.first, this.cells, records, this.matched.reduce((sum, n) => sum + n, 0), 0]);
        if (!changed) out.set(this.words, HEADER_WORDS);
        else changed.forEach((cell, i) => {
            out[HEADER_WORDS + i * 5] = cell;
            out.set(this.words.subarray(cell * 4, cell * 4 + 4), HEADER_WORDS + i * 5 + 1);
        });
        return out.buffer;
    }

    compute(cursor, cell, from, to, filter) {
        const counts = new Array(12).fill(0), firsts = counts.slice(), matches = counts.slice(), firstMatches = counts.slice();
        let matched = 0, pinned = false;
        for (let pfn = from; pfn < to;) {
            const its = cursor.cell(pfn), kind = its[0] & 0xff, block = Math.floor(pfn / BLOCK);
            const run = Math.min(kind === FREE ? headOf(its[0], pfn) + 2 ** orderOf(its[0]) - pfn : 1, to - pfn);
            if (counts[kind] === 0) firsts[kind] = pfn;
            counts[kind] += run;
            if (!filter || passes(filter, its, kind, cursor, block)) {
                if (matches[kind] === 0) firstMatches[kind] = pfn;
                matches[kind] += run;
                matched += run;
                pinned ||= pins(kind) && cursor.usedOfBlock[block] <= BLOCK / 8;
            }
            pfn += run;
        }
        this.matched[cell] = matched;
        const of = matched > 0 ? matches : counts;
        const kind = of.indexOf(Math.max(...of)), pfn = (matched > 0 ? firstMatches : firsts)[kind];
        const its = cursor.cell(pfn), block = Math.floor(pfn / BLOCK), head = cursor.cell(headOf(its[0], pfn));
        const objects = head[1] >>> 16;
        const fill = kind === SLAB && objects > 0 ? Math.min(255, Math.floor((head[1] & 0xffff) * 255 / objects)) : 0;
        const share = Math.max(1, Math.floor(of[kind] * 255 / (to - from)));
        const words = [
            (kind | (orderOf(its[0]) << 8) | (cursor.typeOfBlock[block] << 12) | (counts.filter(n => n > 0).length > 1 ? 1 << 15 : 0)
                | (cursor.zoneOfBlock[block] << 16) | (matched > 0 ? 1 << 21 : 0)
                | (headOf(cursor.cell(from)[0], from) === from ? 1 << 22 : 0) | (pinned ? 1 << 23 : 0) | (share << 24)) >>> 0,
            ((its[0] >>> 16) | (fill << 16) | (Math.floor(cursor.usedOfBlock[block] * 255 / BLOCK) << 24)) >>> 0,
            its[2], its[3],
        ];
        const old = this.words.subarray(cell * 4, cell * 4 + 4);
        if (words.every((word, i) => word === old[i])) return false;
        old.set(words);
        return true;
    }
}

function passes(filter, cell, kind, cursor, block) {
    const has = (list, value) => list == null || list.includes(value);
    const within = (range, value) => range == null || (value >= range[0] && value <= range[1]);
    return has(filter.kinds, kind) && has(filter.zones, cursor.zoneOfBlock[block]) && has(filter.migrateTypes, cursor.typeOfBlock[block])
        && has(filter.sites, cell[3]) && within(filter.orders, orderOf(cell[0]))
        && (kind !== SLAB && kind !== PCP || has(filter.owners, cell[0] >>> 16))
        && (filter.age == null || (inUse(kind) && within(filter.age, cursor.moment - Math.min(cell[2], cursor.moment))));
}

/** What the WebSocket is online. */
class Connection {
    constructor(recording, handlers) {
        this.recording = recording;
        this.handlers = handlers;
        this.cursor = recording.open();
        this.cursor.moveTo(recording.to);
        this.position = recording.to;
        this.speed = 0;
        this.rate = 10;
        this.topics = [];
        this.filter = null;
        this.shown = -1;
        setTimeout(() => handlers.text({ type: 'hello', protocol: 1, t: recording.to }), 0);
        this.schedule();
    }

    send(message) {
        try {
            this.apply(message);
            this.schedule();
        }
        catch (error) {
            setTimeout(() => this.handlers.text({ type: 'error', error: error.message, in: message?.type ?? null }), 0);
        }
    }

    close() {
        clearInterval(this.timer);
        clearTimeout(this.due);
        this.closed = true;
    }

    apply(message) {
        const { from, to } = this.recording;
        switch (message.type) {
            case 'view': this.view = message.count === 0 ? null : new View(message, this.recording.info.frames); break;
            case 'filter': {
                const { type, ...filter } = message;
                this.filter = Object.values(filter).some(value => value != null) ? filter : null;
                if (this.view) this.view.fresh = true;
                break;
            }
            case 'seek': this.position = this.recording.moment(message.t); this.play(0); break;
            case 'step': this.position = Math.min(to, Math.max(from, Math.trunc(this.position) + message.by)); this.play(0); break;
            case 'play': this.play(Number(message.speed) || 0); break;
            case 'subscribe': this.topics = message.topics; this.rate = message.rate ?? 10; this.play(this.speed); break;
            case 'ping': setTimeout(() => this.handlers.text({ type: 'pong', n: message.n }), 0); break;
            default: throw problem(`there is no message of type '${message.type}'`);
        }
        this.changed = true;
    }

    play(speed) {
        this.speed = speed;
        clearInterval(this.timer);
        if (speed === 0) return;
        let last = performance.now();
        this.timer = setInterval(() => {
            const now = performance.now();
            const { from, to } = this.recording;
            this.position = Math.min(to, Math.max(from, this.position + this.speed * (now - last) / 1000));
            last = now;
            if ((this.position >= to && this.speed > 0) || (this.position <= from && this.speed < 0)) {
                this.speed = 0;
                clearInterval(this.timer);
                this.changed = true;
            }
            this.show();
        }, 1000 / this.rate);
    }

    schedule() {
        clearTimeout(this.due);
        this.due = setTimeout(() => this.show(), 0);
    }

    show() {
        const t = Math.trunc(this.position), before = this.shown;
        if (this.closed || (t === before && !this.changed)) return;
        this.changed = false;
        this.cursor.moveTo(t);
        this.shown = t;
        const event = t > this.recording.from ? this.recording.event(t - 1) : null;
        this.handlers.text({ type: 'time', t, playing: this.speed !== 0, speed: this.speed, ns: event?.ns ?? null, event });
        if (this.view) this.handlers.cells(this.view.update(this.cursor, this.filter));
        if (this.topics.includes('machine')) this.handlers.text(this.recording.machine(t, this.cursor));
        if (this.topics.includes('ticker') && before >= 0 && before !== t)
            this.handlers.text({ type: 'ticker', t, items: this.recording.ticks(Math.min(before, t), Math.max(before, t)) });
    }
}
