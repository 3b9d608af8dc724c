// Cells → pixels. One ImageData for a layout, one pixel a cell; the canvas makes them large. A delta touches only the
// pixels of its records; a new colour mode repaints all. Nothing is allocated while a recording plays.
//
//    words of a cell ──▶ class (0 … 255) ──▶ look-up table of colours: class × share (4) × match (2) ──▶ pixel
//
// With patterns a cell has as many pixels as on the screen, and each is the class's colour or its ink.

import { cycleColour, CYCLE_LENGTH, isDark, kindColour, migrateColour, mix, page, rampColour } from './palette.js';
import { cyclePattern, inkFor, kindPattern, TILES } from './patterns.js';

const MAGIC = 0x50414d4b;
const HEADER_WORDS = 10;
export const CELL_WORDS = 4;

export const KIND_FREE = 2;
export const KIND_PCP = 3;
export const KIND_SLAB = 4;

/** Colour modes, in the order of the menu. */
export const MODES = ["kind", "cache", "zone", "type", "age", "site", "pin"];

/** Steps of the ramp of ages: class n is for ages below AGE_STEPS[n] (in events). */
export const AGE_STEPS = [10, 100, 1000, 10_000, 100_000, 1_000_000, Infinity];

const HOLE = 255;                 // class of what has no memory
const QUIET = 254;                // class of what the mode says nothing about
const REST = 253;                 // class of owners and sites that got no colour of their own

/** Kinds that are neither free nor without memory. */
const isUsed = kind => kind > KIND_PCP;

export class MapPainter {
    constructor(info) {
        this.info = info;
        this.mode = "kind";
        this.t = 0;
        this.colours = new Uint32Array(256 * 8);
        this.inks = new Uint32Array(256 * 8);
        this.patterns = new Uint8Array(256);
        this.scale = 1;
        this.owners = new Uint8Array(65536).fill(REST);
        this.sites = new Uint8Array(65536).fill(REST);
        this.counts = new Uint32Array(256);
        this.words = new Uint32Array(0);
        this.first = 0;
        this.level = 0;
        this.count = 0;
        this.id = -1;
        this.matching = 0;
        this.canvas = document.createElement("canvas");
        this.context = this.canvas.getContext("2d");
    }

    /** Takes a layout, and how many pixels a cell is wide; cells come with the next full frame. */
    resize(layout, scale) {
        const fresh = layout !== this.layout;
        if (!fresh && scale === this.scale) return;
        this.layout = layout;
        this.scale = scale;
        this.canvas.width = layout.width * scale;
        this.canvas.height = layout.height * scale;
        this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
        this.pixels = new Uint32Array(this.image.data.buffer);
        if (!fresh) return this._paintAll();
        this.words = new Uint32Array(layout.cells * CELL_WORDS);
        this.count = 0;
        this.id = -1;
    }

    /** Puts what was painted where it can be drawn from. */
    _show() {
        this.context.putImageData(this.image, 0, 0);
    }

    /** Takes a binary frame; false if it is for another view than `id`, or cannot be understood. */
    take(buffer, id) {
        const data = new Uint32Array(buffer);
        if (data[0] !== MAGIC || data[2] !== id) return false;
        const full = (data[1] & 0x100) !== 0;
        const moved = data[4] !== this.t;
        this.t = data[4];
        this.matching = data[8];
        if (full) this._takeAll(data, id);
        else if (this.id !== id) return false;
        else this._takeRecords(data);
        if (!full && moved && this.mode === "age") this._paintAll();
        this._show();
        return true;
    }

    _takeAll(data, id) {
        this.id = id;
        this.level = (data[1] >>> 16) & 0xff;
        this.first = data[5];
        this.count = Math.min(data[6], this.layout.cells);
        this.words.set(data.subarray(HEADER_WORDS, HEADER_WORDS + this.count * CELL_WORDS));
        this._paintAll();
    }

    _takeRecords(data) {
        const records = data[7];
        const words = this.words;
        let at = HEADER_WORDS;
        for (let i = 0; i < records; i++, at += 5) {
            const cell = data[at];
            if (cell >= this.count) continue;
            const to = cell * CELL_WORDS;
            words[to] = data[at + 1];
            words[to + 1] = data[at + 2];
            words[to + 2] = data[at + 3];
            words[to + 3] = data[at + 4];
            this._paint(cell);
        }
    }

    /** The class of a cell in the present mode; classes with bit 7 are free counterparts or special. */
    classOf(cell) {
        const at = cell * CELL_WORDS;
        const word = this.words[at];
        const kind = word & 0xff;
        if (kind === 0) return HOLE;
        switch (this.mode) {
            case "kind":
                if (kind === KIND_FREE) return 128 + ((word >>> 8) & 15);
                return kind === KIND_SLAB ? 144 + ((this.words[at + 1] >>> 20) & 15) : kind;
            case "cache":
                return kind === KIND_SLAB ? this.owners[this.words[at + 1] & 0xffff] : QUIET;
            case "zone":
                return ((word >>> 16) & 31) | (isUsed(kind) ? 0 : 128);
            case "type":
                return ((word >>> 12) & 7) | (isUsed(kind) ? 0 : 128);
            case "age":
                return isUsed(kind) && kind !== 1 ? this._ageClass(this.words[at + 2]) : QUIET;
            case "site":
                return isUsed(kind) && this.words[at + 3] ? this.sites[this.words[at + 3] & 0xffff] : QUIET;
            default:
                if ((word >>> 23) & 1) return 16;
                return isUsed(kind) ? this.words[at + 1] >>> 28 : QUIET;
        }
    }

    _ageClass(born) {
        if (born === 0) return AGE_STEPS.length;
        const age = this.t - born;
        let step = 0;
        while (age >= AGE_STEPS[step]) step++;
        return step;
    }

    _paint(cell) {
        const word = this.words[cell * CELL_WORDS];
        const id = this.classOf(cell);
        const index = (id << 3) | ((word >>> 29) & 6) | ((word >>> 21) & 1);
        if (this.scale === 1) this.pixels[this.layout.pixelOf[cell]] = this.colours[index];
        else this._hatch(cell, this.patterns[id] << 3, this.colours[index], this.inks[index]);
    }

    _hatch(cell, tile, colour, ink) {
        const { scale, pixels } = this;
        const { width, pixelOf } = this.layout;
        const at = pixelOf[cell];
        const left = (at % width) * scale;
        const top = Math.floor(at / width) * scale;
        for (let y = top; y < top + scale; y++) {
            const row = TILES[tile + (y & 7)];
            const from = y * width * scale;
            for (let x = left; x < left + scale; x++) pixels[from + x] = (row >> (x & 7)) & 1 ? ink : colour;
        }
    }

    _paintAll() {
        for (let cell = 0; cell < this.count; cell++) this._paint(cell);
        if (this.count === this.layout.cells) return;
        if (this.scale === 1) {
            for (let cell = this.count; cell < this.layout.cells; cell++) this.pixels[this.layout.pixelOf[cell]] = 0;
        }
        else {
            for (let cell = this.count; cell < this.layout.cells; cell++) this._hatch(cell, 0, 0, 0);
        }
    }

    /** Chooses colours anew (mode, theme, or which owners and sites have one) and paints all. */
    recolour(mode = this.mode) {
        this.mode = mode;
        const { back, cell: quiet } = page();
        for (let id = 0; id < 256; id++) {
            const colour = this.classColour(id) ?? quiet;
            this.patterns[id] = this.classPattern(id);
            for (let share = 0; share < 4; share++) {
                const seen = id === HOLE ? colour : mix(colour, quiet, (3 - share) * 0.13);
                const at = (id << 3) | (share << 1);
                this.colours[at | 1] = pixel(seen, id === HOLE ? 0 : 255);
                const faded = mix(seen, back, isDark() ? 0.86 : 0.88);
                this.colours[at] = pixel(faded, id === HOLE ? 0 : 255);
                this.inks[at | 1] = pixel(inkFor(seen), 255);
                this.inks[at] = pixel(mix(faded, inkFor(faded), 0.3), 255);
            }
        }
        if (this.count > 0) {
            this._paintAll();
            this._show();
        }
    }

    /** The colour of a class, or undefined if the class is quiet. */
    classColour(id) {
        if (id === HOLE) return page().back;
        if (id === QUIET) return page().cell;
        if (id === REST) return isDark() ? [104, 112, 122] : [150, 158, 168];
        const { back, cell: quiet } = page();
        switch (this.mode) {
            case "kind":
                if (id >= 144 && id < 160) {
                    return mix(kindColour("slab"), quiet, (159 - id) / 15 * 0.62);
                }
                if (id >= 128 && id < 144) return kindColour("free", id - 128);
                return kindColour(this.info.kinds.find(kind => kind.id === id)?.name);
            case "cache":
            case "site":
                return cycleColour(id);
            case "zone":
                return id & 128 ? mix(cycleColour(id & 31), back, 0.7) : cycleColour(id & 31);
            case "type":
                return id & 128 ? mix(migrateColour(id & 7), back, 0.7) : migrateColour(id & 7);
            case "age":
                if (id === AGE_STEPS.length) return isDark() ? [80, 84, 92] : [196, 200, 206];
                return rampColour(1 - id / (AGE_STEPS.length - 1));
            default:
                if (id === 16) return [213, 94, 0];
                return mix(quiet, isDark() ? [150, 160, 172] : [92, 104, 118], 0.25 + id / 20);
        }
    }

    /** The pattern of a class: none where the colours are a ramp or the class is quiet. */
    classPattern(id) {
        if (id >= REST) return 0;
        switch (this.mode) {
            case "kind":
                if (id >= 128) return kindPattern(id < 144 ? "free" : "slab");
                return kindPattern(this.info.kinds.find(kind => kind.id === id)?.name);
            case "cache":
            case "site":
            case "zone":
            case "type":
                return id & 128 ? 0 : cyclePattern(id);
            case "age":
                return 0;
            default:
                return id === 16 ? kindPattern("unmovable") : 0;
        }
    }

    /** Counts the cells of each class into `counts`. */
    census() {
        this.counts.fill(0);
        for (let cell = 0; cell < this.count; cell++) this.counts[this.classOf(cell)]++;
        return this.counts;
    }

    /**
     * Gives colours to the caches (or call sites) that have most cells in the window and have none yet. Returns
     * [{ id, slot, cells }], most cells first; those beyond the colours are left grey.
     */
    rank() {
        const table = this.mode === "cache" ? this.owners : this.sites;
        const found = new Map();
        for (let cell = 0; cell < this.count; cell++) {
            const at = cell * CELL_WORDS;
            const kind = this.words[at] & 0xff;
            const id = this.mode === "cache"
                ? (kind === KIND_SLAB ? this.words[at + 1] & 0xffff : 0)
                : (isUsed(kind) ? this.words[at + 3] : 0);
            if (id !== 0) found.set(id, (found.get(id) ?? 0) + 1);
        }
        const ranked = [...found].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, CYCLE_LENGTH);
        const chosen = new Set(ranked.map(([id]) => id & 0xffff));
        const slots = new Array(CYCLE_LENGTH).fill(false);
        for (let id = 0; id < table.length; id++) {
            if (table[id] === REST) continue;
            if (chosen.has(id)) slots[table[id]] = true;
            else table[id] = REST;
        }
        for (const [id] of ranked) {
            if (table[id & 0xffff] !== REST) continue;
            const slot = slots.indexOf(false);
            if (slot < 0) break;
            slots[slot] = true;
            table[id & 0xffff] = slot;
        }
        return ranked.map(([id, cells]) => ({ id, cells, slot: table[id & 0xffff] }));
    }

    /** What a cell says, taken apart; null outside the window. */
    read(cell) {
        if (cell < 0 || cell >= this.count) return null;
        const at = cell * CELL_WORDS;
        const [word, more, born, site] = this.words.subarray(at, at + CELL_WORDS);
        return {
            pfn: this.first + cell * 2 ** this.level,
            frames: 2 ** this.level,
            kind: word & 0xff,
            order: (word >>> 8) & 15,
            migrateType: (word >>> 12) & 7,
            mixed: (word >>> 15) & 1,
            zone: (word >>> 16) & 31,
            match: (word >>> 21) & 1,
            head: (word >>> 22) & 1,
            pin: (word >>> 23) & 1,
            share: (word >>> 24) / 255,
            owner: more & 0xffff,
            fill: ((more >>> 16) & 0xff) / 255,
            blockUse: (more >>> 24) / 255,
            born,
            site,
        };
    }
}

// A pixel of ImageData as one little-endian word.
const pixel = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
