// Map: all frames as cells, from the whole node down to bytes.
//
//    node ─ zone ─ … ─ pageblock (a cell is a frame) ─▶ page ─▶ slab ─▶ object ─▶ bytes
//    └──────────── one canvas, Z-order tiles ───────┘   └──── drawings and tables ───┘
//
// Two canvases lie on each other: cells below (repainted with each message), outlines, labels and selection above.

import { fit, h, later, onFrame, show } from './dom.js';
import { bytes, count, percent, pfn as pfnText } from './format.js';
import { t } from './i18n.js';
import { MapLayout, TILE_CELLS, TILE_HEIGHT, TILE_WIDTH } from './map-layout.js';
import { mapLegend } from './map-legend.js';
import { KIND_FREE, KIND_PCP, KIND_SLAB, MapPainter, MODES } from './map-painter.js';
import { pagePanel } from './map-page.js';
import { css, inkOn, kindLetters, page } from './palette.js';
import { addressLink, facts, kindName, problem } from './parts.js';
import { choosePatterns, patternsOn } from './patterns.js';
import { go, keep, readRoute, routeTo } from './route.js';
import { Follower } from './store.js';
import { typeWords } from './words.js';

const GUTTER = 84;                    // for the addresses of rows
const SIZES = [3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40];
const LABELS_FROM = 13;               // cell size from which blocks have labels
const LINES_FROM = 6;                 // and outlines

export function mapView(store, main, parameters) {
    return new MapView(store, main, parameters);
}

class MapView {
    constructor(store, main, parameters) {
        this.store = store;
        this.scope = store.scope();
        this.painter = new MapPainter(store.info);
        this.tiled = 0;
        this.first = Number(parameters.first ?? 0);
        this.level = parameters.level === undefined ? null : Number(parameters.level);
        this.size = Number(parameters.size ?? 0);
        this.selected = parameters.sel === undefined ? null : Number(parameters.sel);
        this.hovered = -1;
        this.build(main);
        this.painter.recolour(MODES.includes(parameters.color) ? parameters.color : "kind");
        this.listen();
        this.enter(parameters);
    }

    // ---- the parts of the view

    build(main) {
        main.className = "full";
        this.base = h("canvas", { role: "img", "aria-label": t("map.picture"), "data-map": "cells" });
        this.over = h("canvas", {
            class: "over", tabindex: "0", role: "application", "aria-label": t("map.keys"), "aria-describedby": "map-summary",
        });
        this.tip = h("div", { class: "tip hidden" });
        this.strip = h("canvas", { class: "zones", "aria-hidden": "true" });
        this.plane = h("div", { class: "plane" }, this.base, this.over, this.tip);
        this.crumbs = h("ol", { class: "crumbs" });
        this.summary = h("p", { class: "small soft", id: "map-summary" });
        this.mode = h("select", { "aria-label": t("map.mode"), onchange: () => this.setMode(this.mode.value) },
            MODES.map(mode => h("option", { value: mode }, t(`map.by.${mode}`))));
        this.legend = mapLegend(this.store, this.painter, () => this.draw());
        this.details = h("section", { class: "panel", "aria-label": t("map.details"), "aria-live": "polite" },
            h("p", { class: "soft" }, t("map.nothing")));
        this.hatching = h("input", {
            type: "checkbox", checked: patternsOn(), onchange: () => this.setPatterns(this.hatching.checked),
        });
        this.side = h("div", { class: "side" },
            h("section", { class: "panel", "aria-label": t("map.legend") },
                h("div", { class: "row" }, h("h2", {}, t("map.colours")), this.mode),
                h("label", { class: "row small", title: `${t("map.patternsAbout")} (h)` },
                    this.hatching, t("map.patterns")),
                this.legend.root),
            this.details);
        this.body = h("div", { class: "map" }, this.plane, this.side);
        this.deep = h("div", { class: "deep hidden" });
        const button = (text, name, action) => h("button", { class: "icon", title: name, "aria-label": name, onclick: action }, text);
        main.append(
            h("div", { class: "row" }, h("nav", { class: "grow", "aria-label": t("map.where") }, this.crumbs), this.summary,
                button("−", `${t("map.out")} (−)`, () => this.zoom(-1)), button("+", `${t("map.in")} (+)`, () => this.zoom(1)),
                h("button", { onclick: () => this.fitAll(), title: `${t("map.all")} (0)` }, t("map.all"))),
            this.strip, this.body, this.deep);
    }

    listen() {
        const { scope, store } = this;
        const draw = onFrame(() => this.draw());
        const legend = later(300, () => this.legend.update());
        let legendDue = 0;
        scope.on("cells", buffer => {
            const known = this.painter.id;
            if (!this.painter.take(buffer, this.viewId)) return;
            draw();
            if (known !== this.viewId) this.shown();
            if (performance.now() > legendDue) {
                legendDue = performance.now() + 500;
                this.legend.update();
                this.showSummary();
            }
            else legend();
        });
        scope.on("theme", () => this.restyle());
        scope.on("sites", () => this.legend.update());
        const observer = new ResizeObserver(later(60, () => this.resized()));
        observer.observe(this.plane);
        scope.add(() => observer.disconnect());
        scope.add(() => store.endView());
        scope.add(() => store.filter({}));
        const over = this.over;
        over.addEventListener("pointermove", e => this.pointed(e));
        over.addEventListener("pointerleave", () => { this.hovered = -1; this.tip.classList.add("hidden"); this.drawOver(); });
        over.addEventListener("pointerdown", e => this.grab(e));
        over.addEventListener("dblclick", e => { const cell = this.cellOf(e); if (cell >= 0) this.zoomTo(cell, 2); });
        over.addEventListener("wheel", e => this.wheel(e), { passive: false });
        over.addEventListener("keydown", e => { if (this.key(e)) { e.preventDefault(); e.stopPropagation(); } });
        this.strip.addEventListener("pointerdown", e => this.jump(e));
        this.strip.addEventListener("pointermove", e => { if (e.buttons & 1) this.jump(e); });
    }

    end() {
        this.follower?.end();
        this.page?.end();
        this.scope.end();
    }

    /** The URL has changed while the view is shown. */
    enter(parameters) {
        const selected = parameters.sel === undefined ? null : Number(parameters.sel);
        if (parameters.color && parameters.color !== this.painter.mode) this.setMode(parameters.color);
        this.mode.value = this.painter.mode;
        if (selected !== null && (selected !== this.selected || parameters.deep || !this.follower)) this.select(selected);
        this.page?.end();
        this.page = null;
        if (parameters.deep && selected !== null) {
            this.page = pagePanel(this.store, selected, parameters.object ?? null);
            show(this.deep, this.page.root);
        }
        this.deep.classList.toggle("hidden", !this.page);
        this.body.classList.toggle("hidden", Boolean(this.page));
        this.strip.classList.toggle("hidden", Boolean(this.page));
        this.showCrumbs();
    }

    // ---- window and zoom

    resized() {
        const width = this.plane.clientWidth;
        const height = this.plane.clientHeight;
        if (width === 0 || height === 0) return;
        this.width = width - GUTTER;
        this.height = height;
        if (this.level === null || this.size === 0) {
            this.fresh = this.selected === null;
            this.fitFrames(0, this.store.info.frames);
        }
        else this.ask();
    }

    tilesAt(size) {
        const wide = Math.max(1, Math.floor(this.width / (TILE_WIDTH * size)));
        const most = Math.floor((this.store.info.limits?.maxCells ?? 65536) / TILE_CELLS / wide);
        return { wide, high: Math.max(1, Math.min(most, Math.floor(this.height / (TILE_HEIGHT * size)))) };
    }

    /** Chooses the level and size that show these frames as large as they fit. */
    fitFrames(first, frames) {
        for (let level = 0; level <= 22; level++) {
            const tile = TILE_CELLS * 2 ** level;
            const from = Math.floor(first / tile) * tile;
            const tiles = Math.ceil((first + frames - from) / tile);
            const size = SIZES.findLast(one => {
                const { wide, high } = this.tilesAt(one);
                return one >= 4 && TILE_WIDTH * one <= this.width && wide * high >= tiles;
            });
            if (size === undefined) continue;
            Object.assign(this, { first: from, level, size });
            break;
        }
        this.ask();
    }

    /** The first cells of a window are there. */
    shown() {
        this.drawOver();
        if (!this.fresh) return;
        this.fresh = false;
        this.fitUsed();
    }

    /** Where nearly all memory has never been used, begins with the part that was. */
    fitUsed() {
        const { painter } = this;
        let first = -1;
        let last = -1;
        for (let cell = 0; cell < painter.count; cell++) {
            const word = painter.words[cell * 4];
            const used = (word & 0xff) > KIND_PCP || ((word >>> 15) & 1) === 1 && (word & 0xff) === KIND_FREE;
            if (!used || (word & 0xff) === 1 || painter.first + cell === 0) continue;      // frame 0 is always apart
            if (first < 0) first = cell;
            last = cell;
        }
        if (first < 0 || (last - first + 1) * 4 > painter.count) return;
        this.fitFrames(painter.first + first * 2 ** painter.level, (last - first + 1) * 2 ** painter.level);
    }

    fitAll() {
        this.fitFrames(0, this.store.info.frames);
        if (this.page) this.close();
    }

    /** Asks for the window, and lays it out. */
    ask() {
        const { wide, high } = this.tilesAt(this.size);
        const tile = TILE_CELLS * 2 ** this.level;
        const { frames } = this.store.info;
        const last = Math.max(0, Math.ceil(frames / tile) - wide * high);
        this.first = Math.max(0, Math.min(Math.floor(this.first / tile), last)) * tile;
        if (!this.layout || this.layout.tilesWide !== wide || this.layout.tilesHigh !== high) {
            this.layout = new MapLayout(wide, high);
        }
        this.painter.resize(this.layout, this.pixelsOfCell());
        const cells = Math.min(this.layout.cells, Math.ceil((frames - this.first) / 2 ** this.level));
        this.viewId = this.store.view(this.first, Math.min(frames - this.first, cells * 2 ** this.level), this.level);
        keep({ first: this.first, level: this.level, size: this.size });
        this.showCrumbs();
        this.drawStrip();
        this.drawOver();
    }

    pixelsOfCell() {
        return patternsOn() ? this.size : 1;
    }

    /** The theme, or the wish for patterns, is another one now. */
    restyle() {
        this.hatching.checked = patternsOn();
        if (this.layout) this.painter.resize(this.layout, this.pixelsOfCell());
        this.painter.recolour();
        this.legend.update();
        this.draw();
        this.drawOver();
        this.drawStrip();
    }

    zoom(by) {
        if (!this.layout) return;
        if (this.page) {
            if (by < 0) this.close();
            return;
        }
        const middle = this.selected ?? this.first + this.layout.cells * 2 ** this.level / 2;
        const cell = this.cellOfFrame(middle);
        this.zoomTo(cell >= 0 && cell < this.layout.cells ? cell : this.layout.cells / 2, by, middle);
    }

    /** Zooms by steps of two; the cell stays where it is, as far as tiles allow, and shows that frame of it. */
    zoomTo(cell, by, frame = this.first + cell * 2 ** this.level) {
        const across = cell / this.layout.cells;
        for (let i = 0; i < Math.abs(by); i++) {
            if (by > 0 && this.level > 0) this.level--;
            else if (by > 0) {
                const next = SIZES.find(size => size > this.size && TILE_WIDTH * size <= this.width);
                if (next === undefined) return this.open(frame);
                this.size = next;
            }
            else if (this.level === 0 && this.size > 5) this.size = SIZES.findLast(size => size < this.size);
            else if (this.windowFrames() < this.store.info.frames) this.level++;
        }
        this.first = frame - across * this.windowFrames();
        this.ask();
    }

    windowFrames() {
        const { wide, high } = this.tilesAt(this.size);
        return wide * high * TILE_CELLS * 2 ** this.level;
    }

    wheel(e) {
        e.preventDefault();
        if (e.shiftKey) return this.pan(0, Math.sign(e.deltaY || e.deltaX));
        this.wheeled = (this.wheeled ?? 0) - e.deltaY;
        if (Math.abs(this.wheeled) < 60) return;
        const by = Math.sign(this.wheeled);
        this.wheeled = 0;
        const cell = this.cellOf(e);
        if (cell >= 0) this.zoomTo(cell, by);
    }

    pan(tiles, rows) {
        if (!this.layout) return;
        this.first += (tiles + rows * this.layout.tilesWide) * TILE_CELLS * 2 ** this.level;
        this.ask();
    }

    jump(e) {
        if (!this.layout) return;
        const box = this.strip.getBoundingClientRect();
        const frame = (e.clientX - box.left) / box.width * this.store.info.frames;
        this.first = frame - this.windowFrames() / 2;
        if (this.page) this.close();
        this.ask();
    }

    // ---- pointer and keys

    cellOf(e) {
        if (!this.layout) return -1;
        const box = this.over.getBoundingClientRect();
        const x = Math.floor((e.clientX - box.left - GUTTER) / this.size);
        const y = Math.floor((e.clientY - box.top) / this.size);
        const cell = this.layout.cellAt(x, y);
        return cell < this.painter.count ? cell : -1;
    }

    cellOfFrame(frame) {
        return Math.floor((frame - this.first) / 2 ** this.level);
    }

    pointed(e) {
        if (this.drag) {
            const box = this.size * TILE_WIDTH;
            const tiles = Math.trunc((this.drag.x - e.clientX) / box);
            const rows = Math.trunc((this.drag.y - e.clientY) / (this.size * TILE_HEIGHT));
            if (tiles !== 0 || rows !== 0) {
                this.drag.moved = true;
                this.drag.x -= tiles * box;
                this.drag.y -= rows * this.size * TILE_HEIGHT;
                this.pan(tiles, rows);
            }
            return;
        }
        const cell = this.cellOf(e);
        if (cell !== this.hovered) {
            this.hovered = cell;
            this.drawOver();
        }
        this.showTip(e, cell);
    }

    grab(e) {
        this.over.setPointerCapture(e.pointerId);
        this.drag = { x: e.clientX, y: e.clientY, moved: false };
        const finish = up => {
            this.over.removeEventListener("pointerup", finish);
            this.over.removeEventListener("pointercancel", finish);
            const moved = this.drag?.moved;
            this.drag = null;
            const cell = this.cellOf(up);
            if (moved || up.type !== "pointerup" || cell < 0) return;
            keep({ sel: this.painter.read(cell).pfn });
            this.select(this.painter.read(cell).pfn);
        };
        this.over.addEventListener("pointerup", finish);
        this.over.addEventListener("pointercancel", finish);
    }

    /** Keys of the map; true if the key was one. */
    key(e) {
        if (this.page) {
            if (e.key === "Escape" || e.key === "-") {
                this.close();
                return true;
            }
            return false;
        }
        switch (e.key) {
            case "+": case "=": this.zoom(1); return true;
            case "-": this.zoom(-1); return true;
            case "0": this.fitAll(); return true;
            case "c": this.setMode(MODES[(MODES.indexOf(this.painter.mode) + 1) % MODES.length]); return true;
            case "h": this.setPatterns(!patternsOn()); return true;
            case "PageDown": this.pan(0, 1); return true;
            case "PageUp": this.pan(0, -1); return true;
            case "Enter": if (this.selected !== null) this.open(this.selected); return true;
            case "Escape": this.select(null); return true;
            case "ArrowLeft": this.move(-1, 0); return true;
            case "ArrowRight": this.move(1, 0); return true;
            case "ArrowUp": this.move(0, -1); return true;
            case "ArrowDown": this.move(0, 1); return true;
            default: return false;
        }
    }

    /** Moves the selection by cells on the screen; pans where it would leave. */
    move(dx, dy) {
        if (!this.layout) return;
        const cell = this.selected === null ? -1 : this.cellOfFrame(this.selected);
        if (cell < 0 || cell >= this.painter.count) return this.choose(0);
        const x = this.layout.x(cell) + dx;
        const y = this.layout.y(cell) + dy;
        const next = this.layout.cellAt(x, y);
        if (next < 0 || next >= this.painter.count) {
            if (dy !== 0) this.pan(0, dy);
            return;
        }
        this.choose(next);
    }

    choose(cell) {
        const frame = this.first + cell * 2 ** this.level;
        keep({ sel: frame });
        this.select(frame);
    }

    setPatterns(on) {
        choosePatterns(on);
        this.store.emit("theme");
    }

    setMode(mode) {
        this.mode.value = mode;
        this.store.filter({});
        this.legend.reset();
        this.painter.recolour(mode);
        this.legend.update();
        keep({ color: mode });
        this.draw();
    }

    // ---- one frame

    select(frame) {
        this.selected = frame;
        this.follower?.end();
        this.follower = null;
        this.drawOver();
        if (frame === null) {
            keep({ sel: null });
            show(this.details, h("p", { class: "soft" }, t("map.nothing")));
            return;
        }
        this.follower = new Follower(this.store, () => this.store.get(`/api/frame/${frame}`),
            answer => show(this.details, frameDetails(this.store, answer)),
            error => show(this.details, problem(error)));
        this.follower.refresh();
    }

    open(frame) {
        go("map", { ...readRoute().parameters, color: this.painter.mode, sel: Math.floor(frame), deep: "page" });
    }

    close() {
        keep({ deep: null, object: null });
        this.enter({ sel: this.selected === null ? undefined : String(this.selected) });
        requestAnimationFrame(() => this.resized());
    }

    showTip(e, cell) {
        const info = cell < 0 ? null : this.painter.read(cell);
        this.tip.classList.toggle("hidden", !info);
        if (!info) return;
        show(this.tip, tipContent(this.store, info));
        const box = this.plane.getBoundingClientRect();
        const x = e.clientX - box.left;
        const y = e.clientY - box.top;
        const { offsetWidth: wide, offsetHeight: tall } = this.tip;
        this.tip.style.left = `${x + 16 + wide > box.width ? Math.max(4, x - wide - 12) : x + 16}px`;
        this.tip.style.top = `${Math.max(4, Math.min(y + 12, box.height - tall - 6))}px`;
    }

    // ---- drawing

    draw() {
        if (!this.layout || this.page) return;
        const context = fit(this.base);
        context.imageSmoothingEnabled = false;
        context.clearRect(0, 0, this.base.clientWidth, this.base.clientHeight);
        context.drawImage(this.painter.canvas, GUTTER, 0, this.layout.width * this.size, this.layout.height * this.size);
        if (this.size >= LINES_FROM && this.level === 0) this.drawOver();
    }

    drawOver() {
        if (!this.layout || this.page) return;
        const context = fit(this.over);
        const colours = page();
        context.clearRect(0, 0, this.over.clientWidth, this.over.clientHeight);
        this.drawGrid(context, colours);
        if (this.level === 0 && this.size >= LINES_FROM) this.drawBlocks(context, colours);
        if (this.hovered >= 0) this.outline(context, this.hovered, css(colours.select), 1.5);
        if (this.selected !== null) {
            const cell = this.cellOfFrame(this.selected);
            if (cell >= 0 && cell < this.painter.count) {
                this.outline(context, cell, css(colours.back), 5);
                this.outline(context, cell, css(colours.select), 2.5);
            }
        }
    }

    drawGrid(context, colours) {
        const { layout, size } = this;
        const tileWide = TILE_WIDTH * size;
        const tileHigh = TILE_HEIGHT * size;
        context.strokeStyle = css(colours.back);
        context.lineWidth = 2;
        context.beginPath();
        const tiles = Math.ceil(this.painter.count / TILE_CELLS);
        for (let i = 0; i < tiles; i++) {
            const x = GUTTER + (i % layout.tilesWide) * tileWide;
            const y = Math.floor(i / layout.tilesWide) * tileHigh;
            context.moveTo(x + tileWide, y);
            context.lineTo(x + tileWide, y + tileHigh);
            context.lineTo(x, y + tileHigh);
        }
        context.stroke();
        context.font = "11px ui-monospace, 'DejaVu Sans Mono', monospace";
        context.textAlign = "right";
        context.textBaseline = "top";
        const every = Math.max(1, Math.ceil(18 / tileHigh));
        for (let j = 0; j < layout.tilesHigh; j += every) {
            const frame = this.first + j * layout.tilesWide * TILE_CELLS * 2 ** this.level;
            if (frame >= this.store.info.frames) break;
            context.fillStyle = css(colours.soft);
            context.fillText(pfnText(frame), GUTTER - 8, j * tileHigh + 2);
            if (tileHigh * every >= 34) context.fillText(`${count(Math.floor(frame * this.store.info.pageBytes / 2 ** 20))} MiB`, GUTTER - 8, j * tileHigh + 16);
        }
    }

    /** The rectangle of 2^order cells that begins at a cell. */
    blockBox(cell, order) {
        const x = GUTTER + this.layout.x(cell) * this.size;
        const y = this.layout.y(cell) * this.size;
        const inTile = Math.min(order, 9);
        return [x, y, 2 ** Math.ceil(inTile / 2) * this.size, 2 ** Math.floor(inTile / 2) * this.size];
    }

    drawBlocks(context, colours) {
        const lines = new Path2D();
        const withLabels = this.size >= LABELS_FROM;
        const kinds = this.store.kinds;
        context.textAlign = "center";
        context.textBaseline = "middle";
        for (let cell = 0; cell < this.painter.count; cell++) {
            const word = this.painter.words[cell * 4];
            const kind = word & 0xff;
            if (!((word >>> 22) & 1) || kind === 0) continue;
            const order = (word >>> 8) & 15;
            const [x, y, wide, tall] = this.blockBox(cell, order);
            if (order > 0 || this.size >= 10) lines.rect(x + 0.5, y + 0.5, wide - 1, tall - 1);
            if (!withLabels || !((word >>> 21) & 1)) continue;
            const text = kind === KIND_FREE ? String(order) : kindLetters[kinds.get(kind)?.name] ?? "";
            if (text === "" || (kind === 1 && order === 0)) continue;
            const ink = this.painter.classColour(this.painter.classOf(cell)) ?? colours.cell;
            const high = Math.min(16, Math.max(9, Math.min(tall, wide) * 0.55));
            context.font = `${high}px ui-monospace, 'DejaVu Sans Mono', monospace`;
            if (this.painter.scale > 1) {
                context.fillStyle = css(ink);
                context.fillRect(x + wide / 2 - high * 0.45, y + (tall - high) / 2, high * 0.9, high);
            }
            context.fillStyle = inkOn(ink);
            context.fillText(text, x + wide / 2, y + tall / 2 + 0.5);
        }
        context.strokeStyle = css(colours.back);
        context.lineWidth = 1;
        context.stroke(lines);
    }

    outline(context, cell, colour, width) {
        const info = this.painter.read(cell);
        if (!info) return;
        let box = this.blockBox(cell, 0);
        if (this.level === 0 && info.order > 0) {
            const head = cell - (info.pfn % 2 ** Math.min(info.order, 9));
            if (head >= 0) box = this.blockBox(head, info.order);
        }
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(...box);
    }

    /** The strip above: zones, and where the window is. */
    drawStrip() {
        if (this.strip.clientWidth === 0 || !this.layout) return;
        const context = fit(this.strip);
        const { clientWidth: width, clientHeight: height } = this.strip;
        const { frames, zones } = this.store.info;
        const colours = page();
        context.clearRect(0, 0, width, height);
        context.fillStyle = css(colours.cell);
        context.fillRect(0, 0, width, height);
        context.font = "600 11px system-ui, sans-serif";
        context.textBaseline = "middle";
        for (const zone of zones) {
            const x = zone.start / frames * width;
            const wide = (zone.end - zone.start) / frames * width;
            context.fillStyle = css(colours.line);
            context.fillRect(x, 2, Math.max(1, wide - 1), height - 4);
            context.fillStyle = css(colours.text);
            const text = `${zone.name} · ${bytes((zone.end - zone.start) * this.store.info.pageBytes)}`;
            const room = context.measureText(text).width + 12;
            if (wide > room) context.fillText(text, x + 6, height / 2);
            else if (wide > 44) context.fillText(zone.name, x + 6, height / 2);
        }
        const x = this.first / frames * width;
        const wide = Math.max(4, Math.min(width - x, this.windowFrames() / frames * width));
        context.strokeStyle = css(colours.accent);
        context.lineWidth = 2.5;
        context.strokeRect(x + 1.25, 1.25, wide - 2.5, height - 2.5);
    }

    // ---- words

    showCrumbs() {
        const { info } = this.store;
        const crumb = (text, action) => h("li", {}, action ? h("button", { class: "link", onclick: action }, text) : text);
        const node = info.zones[0]?.node ?? 0;
        const focus = this.selected ?? this.first;
        const zone = info.zones.find(one => focus >= one.start && focus < one.end);
        const items = [crumb(t("map.node", { n: node }), () => this.fitAll())];
        if (zone) items.push(crumb(zone.name, () => { this.closeQuietly(); this.fitFrames(zone.start, zone.end - zone.start); }));
        if (this.selected !== null) {
            const block = 2 ** info.pageblockOrder;
            const start = Math.floor(this.selected / block) * block;
            items.push(crumb(t("map.block", { pfn: pfnText(start) }), () => { this.closeQuietly(); this.fitFrames(start, block); }));
            items.push(crumb(t("map.page", { pfn: pfnText(this.selected) }), this.page ? null : () => this.open(this.selected)));
        }
        show(this.crumbs, items);
    }

    closeQuietly() {
        if (!this.page) return;
        keep({ deep: null, object: null });
        this.page.end();
        this.page = null;
        this.deep.classList.add("hidden");
        this.body.classList.remove("hidden");
        this.strip.classList.remove("hidden");
    }

    showSummary() {
        const frames = Math.min(this.windowFrames(), this.store.info.frames - this.first);
        this.summary.textContent = t("map.summary", {
            frames: count(frames), bytes: bytes(frames * this.store.info.pageBytes), per: count(2 ** this.level),
        });
    }
}

/** What the pointer is on, from the cell alone: no question to the server. */
function tipContent(store, cell) {
    const kind = store.kinds.get(cell.kind)?.name ?? "other";
    const { pageBytes } = store.info;
    const site = store.siteName(cell.site);
    return [
        h("div", {}, h("b", { class: "mono" }, pfnText(cell.pfn)), cell.frames > 1 ? ` + ${count(cell.frames)} · ${bytes(cell.frames * pageBytes)}` : ""),
        h("div", {}, kindName(store.info, kind), cell.mixed ? ` ${percent(cell.share)}` : "",
            cell.kind === KIND_FREE || cell.order > 0 ? ` · ${t("map.order")} ${cell.order}` : ""),
        cell.kind === KIND_SLAB ? h("div", {}, `${store.cacheName(cell.owner)} · ${t("map.fill", { n: percent(cell.fill) })}`) : null,
        cell.kind === KIND_PCP ? h("div", {}, `CPU ${cell.owner}`) : null,
        cell.kind === 0 ? null : h("div", { class: "soft" }, `${store.zones.get(cell.zone)?.name ?? ""} · `
            + `${typeWords(store.info.migrateTypes[cell.migrateType]?.name) ?? ""} · `
            + t("map.blockUse", { n: percent(cell.blockUse) })),
        cell.born > 0 ? h("div", { class: "soft" }, t("map.age", { n: count(store.time.t - cell.born) })) : null,
        site ? h("div", { class: "soft mono" }, site) : null,
        cell.pin ? h("div", { class: "delta-down" }, t("map.pins")) : null,
    ];
}

function frameDetails(store, frame) {
    const block = frame.pageblock;
    return [
        h("header", {}, h("h2", {}, t("map.page", { pfn: pfnText(frame.pfn) }))),
        facts([
            [t("map.kind"), h("span", {}, kindName(store.info, frame.kind))],
            [t("field.order"), frame.order],
            [t("map.head"), frame.head === null || frame.head === frame.pfn ? null : pfnText(frame.head)],
            [t("map.owner"), frame.ownerName ? h("span", { translate: "no" }, frame.ownerName) : null],
            [t("map.zone"), store.zones.get(frame.zone)?.name ?? null],
            [t("map.type"), typeWords(frame.migrateType)],
            [t("object.born"), frame.born ? count(frame.born) : null],
            [t("object.site"), frame.site ? h("span", { class: "mono" }, frame.site.name) : null],
            [t("map.pageblock"), block ? t("map.blockFacts", { pfn: pfnText(block.first), used: count(block.inUse), of: count(block.frames), pins: count(block.pins) }) : null],
            [t("object.address"), addressLink(frame.address)],
        ]),
        h("p", { class: "row" },
            h("button", { class: "main", onclick: () => go("map", { sel: frame.pfn, deep: "page" }) }, t("map.open")),
            h("a", { href: routeTo("explain", { pfn: frame.pfn }) }, t("map.explain"))),
    ];
}
