// Machine: zones with their watermarks, free blocks by order, CPUs with their page lists, and what just happened.
//
//    zone   ████████████████████████░░░░░  in use, on CPU lists, free
//           free  ▓▓▓▓│▓▓▓│▓▓▓│▓▓▓▓▓▓▓▓▓▶  against min, low, high
//           order 0 1 2 … 10               columns, one colour a migrate type

import { atMost, h, s, show } from './dom.js';
import { bytes, count, percent, pfn } from './format.js';
import { named, t } from './i18n.js';
import { css, freeColour, inkOn, kindColour, migrateColour } from './palette.js';
import {
    asTable, empty, frameLink, icon, kindName, label, loading, measured, problem, svgFill, swatch, table,
} from './parts.js';
import { cyclePattern, kindPattern } from './patterns.js';
import { Follower } from './store.js';
import { typeWords } from './words.js';

const COMPOSITION = ["free", "pcp", "slab", "large", "pageTable", "vmalloc", "movable", "reclaimable", "unmovable", "other"];
const TICKS_SHOWN = 60;
const REDRAW_MS = 250;                // numbers that change faster cannot be read

export function machineView(store, main) {
    const scope = store.scope();
    const zones = h("section", { class: "panel", "aria-label": t("machine.zones") }, loading());
    const use = h("section", { class: "panel", "aria-label": t("machine.frames") });
    const cpus = h("section", { class: "panel", "aria-label": t("machine.cpus") });
    const counters = h("section", { class: "panel", "aria-label": t("machine.counters") });
    const ticker = h("section", { class: "panel", "aria-label": t("machine.ticker") });
    const left = h("div", { class: "stack" }, use, zones, cpus);
    main.append(h("div", { class: "columns" }, left, h("div", { class: "stack" }, counters, ticker)));

    let width = 600;
    const lanes = new Map();
    const draw = atMost(REDRAW_MS, () => {
        const machine = store.machine;
        if (!machine) return;
        drawUse(use, store, machine, width);
        drawZones(zones, store, machine, width);
        drawCpus(cpus, store, machine, lanes);
        drawCounters(counters, machine);
    });
    const box = measured(left, now => { width = now - 30; draw(); });
    const tick = atMost(REDRAW_MS, () => drawTicker(ticker, store));
    scope.add(box.end);
    scope.add(store.subscribe("machine"));
    scope.add(store.subscribe("ticker"));
    scope.on("machine", draw);
    scope.on("ticker", tick);
    scope.on("theme", draw);
    for (let cpu = 0; cpu < store.info.cpus; cpu++) {
        const lane = { lists: h("div", { class: "lists" }) };
        lane.follower = new Follower(store, () => store.get("/api/machine/pcp", { cpu }),
            answer => drawLists(lane.lists, store, answer), error => show(lane.lists, problem(error)), 700);
        lane.follower.refresh();
        lanes.set(cpu, lane);
        scope.add(() => lane.follower.end());
    }
    store.get("/api/machine").then(answer => {
        if (!store.machine) store.machine = answer;
        draw();
    }, error => show(zones, problem(error)));
    tick();
    draw();
    return { end: scope.end };
}

// ---- what frames are used for

function drawUse(panel, store, { frames }, width) {
    const parts = COMPOSITION.filter(name => frames[name] > 0);
    const total = parts.reduce((sum, name) => sum + frames[name], 0) || 1;
    const bar = s("svg", { width, height: 30, role: "img", "aria-label": t("machine.frames") });
    let x = 0;
    for (const name of parts) {
        const wide = frames[name] / total * width;
        const colour = kindColour(name, 6);
        const fill = svgFill(bar, colour, kindPattern(name));
        bar.append(s("rect", { x, y: 0, width: Math.max(wide, 1), height: 30, fill },
            s("title", {}, `${named(`kind.${name}`, name)}: ${count(frames[name])}`)));
        if (wide > 54) {
            bar.append(label(x + 6, 19, `${percent(frames[name] / total)}`, { style: null, fill: inkOn(colour), class: "on" }));
            bar.lastChild.style.fill = inkOn(colour);
        }
        x += wide;
    }
    show(panel, h("header", {}, h("h2", {}, t("machine.frames")),
        h("span", { class: "soft" }, t("machine.total", { n: count(frames.total), bytes: bytes(frames.total * store.info.pageBytes) }))),
    bar,
    h("div", { class: "row small", style: { "margin-top": "6px", gap: "4px 16px" } }, parts.map(name =>
        h("span", { class: "nowrap" }, name === "free" ? [swatch(freeColour(6)), " ", named("kind.free", name)] : kindName(store.info, name),
            " ", h("b", {}, count(frames[name]))))));
}

// ---- zones

function drawZones(panel, store, machine, width) {
    const shown = machine.zones.filter(zone => zone.managed > 0);
    show(panel, h("header", {}, h("h2", {}, t("machine.zones")), h("span", { class: "soft row" },
        store.info.migrateTypes.map(type =>
            [swatch(migrateColour(type.id), "", cyclePattern(type.id)), typeWords(type.name)]))),
    shown.length === 0 ? empty(t("machine.noZones"), "") : shown.map(zone => h("div", { class: "zone" },
        h("div", { class: "body" },
            h("div", { class: "row" }, h("h3", {}, t("machine.zone", { node: zone.node, name: zone.name })),
                h("span", { class: "soft small" }, t("machine.managed", {
                    n: count(zone.managed), bytes: bytes(zone.managed * store.info.pageBytes), pcp: count(zone.pcpFrames),
                }))),
            watermarks(zone, width), orders(zone, store, width)))),
    asTable(zoneTable(shown, store)));
}

function watermarks(zone, width) {
    const narrow = width < 520;                  // the number of free frames then has a line of its own
    const top = narrow ? 38 : 22;
    const height = 16;
    const scale = zone.high > 0 ? Math.max(zone.high * 2, 1) : Math.max(zone.managed, 1);
    const x = frames => Math.min(frames / scale, 1) * (width - 14);
    const beyond = zone.free > scale;
    const state = zone.free <= zone.min ? "min" : zone.free <= zone.low ? "low" : zone.free <= zone.high ? "high" : "fine";
    const fill = { min: "var(--bad)", low: "var(--warn)", high: "var(--warn)", fine: "var(--good)" }[state];
    const svg = s("svg", { width, height: top + height + 18, role: "img", "aria-label": t("machine.marks", {
        zone: zone.name, free: count(zone.free), min: count(zone.min), low: count(zone.low), high: count(zone.high) }) },
    s("rect", { x: 0, y: top, width: width - 14, height, rx: 3, fill: "var(--raised)" }),
    s("rect", { x: 0, y: top, width: Math.max(1, x(zone.free)), height, rx: 3, fill, opacity: 0.75 }));
    if (beyond) {
        svg.append(s("path", { d: `M ${width - 14} ${top} l 12 ${height / 2} l -12 ${height / 2} z`, fill, opacity: 0.75 }));
    }
    const text = t("machine.free", { n: count(zone.free) }) + (beyond ? ` ${t("machine.times", { n: (zone.free / zone.high).toFixed(1) })}` : "");
    svg.append(label(width - 16, narrow ? 13 : top - 7, text, { "text-anchor": "end", "font-weight": 600 }));
    const marks = [["min", "end", -4], ["low", "middle", 0], ["high", "start", 4]];
    for (const [name, anchor, shift] of marks) {
        if (!zone[name]) continue;
        const at = x(zone[name]);
        svg.append(s("line", { x1: at, x2: at, y1: top - 4, y2: top + height + 4, stroke: "var(--text)", "stroke-width": 1.5 }));
        if (name === "low") svg.append(label(at, top - 8, `low ${count(zone.low)}`, { "text-anchor": anchor, class: "soft" }));
        else svg.append(label(at + shift, top + height + 13, `${name} ${count(zone[name])}`, { "text-anchor": anchor, class: "soft" }));
    }
    return svg;
}

function orders(zone, store, width) {
    const tall = 96;
    const base = tall + 22;
    const blocks = zone.freeBlocks;
    const step = Math.min(84, width / Math.max(1, blocks.length));
    const most = Math.log2(2 + Math.max(1, ...blocks.map(block => block.total)));
    const svg = s("svg", { width, height: base + 32, role: "img", "aria-label": t("machine.byOrder", { zone: zone.name }) });
    svg.append(s("line", { class: "line", x1: 0, x2: step * blocks.length, y1: base + 0.5, y2: base + 0.5 }));
    blocks.forEach((block, i) => {
        const x = i * step;
        const height = block.total === 0 ? 0 : Math.max(4, Math.log2(1 + block.total) / most * tall);
        let y = base;
        block.byType.forEach((n, type) => {
            if (n === 0) return;
            const part = n / block.total * height;
            y -= part;
            const fill = svgFill(svg, migrateColour(type), cyclePattern(type));
            svg.append(s("rect", { x: x + step * 0.14, y, width: step * 0.72, height: Math.max(part, 1), fill },
                s("title", {}, `${t("map.order")} ${block.order}, `
                    + `${typeWords(store.info.migrateTypes[type]?.name)}: ${count(n)}`)));
        });
        svg.append(
            label(x + step / 2, base - height - 5, count(block.total), { "text-anchor": "middle", "font-size": 11.5, class: block.total ? "" : "soft" }),
            label(x + step / 2, base + 14, String(block.order), { "text-anchor": "middle", "font-weight": 600 }),
            step < 44 ? "" : label(x + step / 2, base + 27, bytes(store.info.pageBytes * 2 ** block.order), {
                "text-anchor": "middle", class: "soft", "font-size": 10 }));
    });
    return svg;
}

const zoneTable = (zones, store) => table([
    { key: "name", title: t("machine.zoneName") },
    ...["managed", "free", "min", "low", "high", "pcpFrames"].map(key => ({
        key, number: true, title: t(`field.${key === "pcpFrames" ? "onPcpLists" : key}`),
    })),
    ...Array.from({ length: store.info.maxOrder + 1 }, (_, order) =>
        ({ key: `o${order}`, title: `${t("map.order")} ${order}`, number: true, of: zone => count(zone.freeBlocks[order]?.total ?? 0) })),
], zones, { label: t("machine.zones") });

// ---- CPUs

function drawCpus(panel, store, machine, lanes) {
    show(panel, h("header", {}, h("h2", {}, t("machine.cpus")), h("span", { class: "soft" }, t("machine.cpusAbout"))),
        h("div", { class: "lanes" }, machine.cpus.map(cpu => h("div", { class: "lane" },
            h("div", { class: "row" }, h("h3", { class: "grow" }, t("machine.cpu", { n: cpu.cpu })),
                typeof cpu.events !== "number" ? null
                    : h("span", { class: "soft small" }, t("machine.cpuEvents", { n: count(cpu.events) }))),
            cpu.zones.map(zone => {
                const gauge = h("i");
                gauge.style.width = `${Math.min(100, zone.high ? zone.frames / zone.high * 100 : 0)}%`;
                return [h("div", { class: "small row" }, h("span", { class: "grow" }, store.zones.get(zone.zone)?.name ?? zone.zone),
                    h("span", { class: "soft" }, t("machine.pcp", { n: count(zone.frames), high: count(zone.high), batch: count(zone.batch) }))),
                h("div", { class: "gauge" }, gauge)];
            }),
            lanes.get(cpu.cpu)?.lists))));
}

function drawLists(place, store, { zones }) {
    const lists = zones.flatMap(zone => zone.lists.filter(list => list.frames.length > 0).map(list => ({ ...list, zone: zone.zone })));
    show(place, lists.length === 0 ? h("span", { class: "soft" }, t("machine.noLists")) : lists.map(list => {
        const type = typeWords(store.info.migrateTypes[list.migrateType]?.name) ?? list.migrateType;
        return h("div", { class: "chain", title: t("machine.listOrder") },
            swatch(migrateColour(list.migrateType), String(list.order), cyclePattern(list.migrateType)),
            h("span", { class: "soft" }, `${type}: ${count(list.frames.length)} · `),
            list.frames.slice(0, 3).map((frame, i) => [i > 0 ? "→ " : "", frameLink(frame, pfn(frame)), " "]),
            list.frames.length > 3 ? "…" : "");
    }));
}

// ---- counters, ticker

const COUNTERS = ["objectAllocs", "objectFrees", "pageAllocs", "pageFrees", "splits", "merges", "fallbacks", "claims", "refills",
    "drains", "newSlabs", "freeSlabs", "slowPaths", "failures", "framesAllocated", "framesFreed", "reclaimed", "scanned",
    "compactions", "oomKills", "areasPurged"];

function drawCounters(panel, { counters }) {
    panel.classList.toggle("hidden", !counters || !COUNTERS.some(name => typeof counters[name] === "number"));
    show(panel, h("header", {}, h("h2", {}, t("machine.counters"))), h("div", { class: "tiles" },
        COUNTERS.filter(name => typeof counters?.[name] === "number").map(name =>
            h("div", { class: "tile" }, h("b", {}, count(counters[name])), h("span", {}, t(`counter.${name}`))))));
}

const TICK_NAMES = {
    split: "splits", merge: "merges", fallback: "fallbacks", claim: "claims", refill: "refills", drain: "drains",
    newSlab: "newSlabs", freeSlab: "freeSlabs", slowPath: "slowPaths", failure: "failures",
};

function drawTicker(panel, store) {
    const still = store.info.source === "state" ? "time.state" : "machine.quietLive";
    const quiet = store.canSeek ? "machine.quietAbout" : still;
    const items = store.ticks.slice(-TICKS_SHOWN).reverse();
    show(panel, h("header", {}, h("h2", {}, t("machine.ticker")), h("span", { class: "soft" }, t("machine.tickerAbout"))),
        items.length === 0 ? empty(t("machine.quiet"), t(quiet)) : h("ol", { class: "ticker" }, items.map(item => {
            const name = TICK_NAMES[item.what] ?? item.what;
            return h("li", {}, h("span", {}, count(item.t)), h("span", { class: "what" }, icon(item.what), t(`tick.${name}`)),
                h("span", {}, tickText(item, store)));
        })));
}

function tickText(item, store) {
    const at = item.pfn === null || item.pfn === undefined ? null : frameLink(item.pfn, pfn(item.pfn));
    const times = item.count > 1 ? `${count(item.count)} × ` : "";
    const type = id => typeWords(store.info.migrateTypes[id]?.name) ?? id;
    switch (item.what) {
        case "split": return [`${times}${item.fromOrder} → ${item.order} `, at];
        case "merge": return [`${times}${item.order} → ${item.fromOrder} `, at];
        case "fallback":
        case "claim": return item.fromType === null ? [times] : [`${type(item.fromType)} → ${type(item.migrateType)} `, at];
        case "refill":
        case "drain": return [`${item.count} × ${t("map.order")} ${item.order}`, item.cpu === null ? "" : ` · CPU ${item.cpu}`];
        case "newSlab":
        case "freeSlab": return [times, h("span", { translate: "no" }, `${store.cacheName(item.cache)} `), at];
        default: return [times, item.order === null ? "" : `${t("map.order")} ${item.order} `, at ?? ""];
    }
}
