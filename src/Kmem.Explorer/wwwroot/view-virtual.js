// Virtual: the kernel's vmalloc space, and the way from an address to its frame.
//
//    0xffffc90000000000 ├─area─┤guard├──── hole ────┤area┤      the space, squeezed so that small areas can be seen
//    address = │ sign │ pgd │ p4d │ pud │ pmd │ pte │ offset │  each group of bits chooses an entry of a table

import { h, s, show } from './dom.js';
import { bytes, count, parseAddress } from './format.js';
import { language, t } from './i18n.js';
import { css, freeColour, kindColour } from './palette.js';
import { addressLink, asTable, empty, facts, frameLink, label, loading, measured, problem, swatch, table } from './parts.js';
import { keep } from './route.js';
import { Follower } from './store.js';
import { valueWords } from './words.js';

const AREA_ROWS = 400;
const TREE_DEPTH = 6;
const LEVELS = { 5: ["pgd", "p4d", "pud", "pmd", "pte"], 4: ["pgd", "pud", "pmd", "pte"] };

export function virtualView(store, main, parameters) {
    const scope = store.scope();
    let answer = null;
    let chosen = parameters.address ?? null;
    const space = h("section", { class: "panel", "aria-label": t("virtual.space") }, loading());
    const walk = h("section", { class: "panel walk", "aria-label": t("virtual.walk") });
    const tree = h("section", { class: "panel tree", "aria-label": t("virtual.tree") });
    const areas = h("section", { class: "panel", "aria-label": t("virtual.areas") });
    const column = h("div", { class: "stack" }, space, walk, tree, areas);
    main.append(column);
    let width = 800;

    const draw = () => {
        if (!answer) return;
        if (answer.tree === null && answer.areas.length === 0 && answer.holes.length === 0) {
            show(space, h("h2", {}, t("virtual.space")), empty(t("virtual.none"), t("virtual.noneAbout")));
            tree.classList.add("hidden");
            areas.classList.add("hidden");
            return;
        }
        tree.classList.remove("hidden");
        areas.classList.remove("hidden");
        show(space, spaceContent(answer, width, chosen, pick));
        show(tree, treeContent(answer, width));
        show(areas, areaTable(answer, chosen, pick));
    };
    const pick = address => {
        chosen = address;
        keep({ address });
        draw();
        steps.refresh();
    };
    const follower = new Follower(store, () => store.get("/api/virtual"), now => {
        answer = now;
        if (chosen === null && now.areas.length > 0) {
            chosen = (now.areas.find(area => !area.lazy && area.kind !== "unpurged") ?? now.areas[0]).start;
            steps.refresh();
        }
        draw();
    }, error => show(space, h("h2", {}, t("virtual.space")), problem(error)), 500);
    const steps = new Follower(store, () => chosen === null ? Promise.resolve(null) : store.get("/api/walk", { address: chosen }),
        now => show(walk, walkContent(store, now, chosen, width, pick)),
        error => show(walk, walkHeader(chosen, pick), problem(error)), 400);
    const box = measured(column, now => { width = now - 32; draw(); steps.refresh(); });
    scope.add(box.end);
    scope.on("theme", () => { draw(); steps.refresh(); });
    follower.refresh();
    steps.refresh();
    return {
        enter: now => { if (now.address && now.address !== chosen) pick(now.address); },
        end: () => { follower.end(); steps.end(); scope.end(); },
    };
}

// ---- the space

/** Areas and holes in order; widths grow with the logarithm of sizes, or small areas beside 32 TiB could not be seen. */
function spaceContent(answer, width, chosen, pick) {
    const parts = [...answer.areas.map(area => ({ ...area, hole: false })), ...answer.holes.map(hole => ({ ...hole, hole: true }))]
        .sort((a, b) => (BigInt(a.start) < BigInt(b.start) ? -1 : 1));
    const perRow = Math.max(8, Math.floor(width / 34));
    const shown = parts.slice(0, perRow * 8);
    const rows = [];
    for (let i = 0; i < shown.length; i += perRow) rows.push(shown.slice(i, i + perRow));
    const tall = 34;
    const svg = s("svg", { width, height: rows.length * (tall + 22) + 4, role: "group", "aria-label": t("virtual.space") });
    rows.forEach((row, r) => {
        const weights = row.map(part => Math.log2(part.bytes / 4096 + 1) + 2);
        const sum = weights.reduce((a, b) => a + b, 0);
        const scale = row.length < perRow && rows.length > 1 ? width / (perRow * (sum / row.length)) : width / sum;
        let x = 0;
        const y = r * (tall + 22) + 16;
        svg.append(label(0, y - 4, row[0].start, { class: "soft mono", "font-size": 10.5 }));
        row.forEach((part, i) => {
            const wide = weights[i] * scale;
            drawPart(svg, part, x, y, wide, tall, chosen, pick);
            x += wide;
        });
    });
    return [
        h("header", {}, h("h2", {}, t("virtual.space")), h("span", { class: "soft" }, t("virtual.about", {
            areas: count(answer.areas.length), holes: count(answer.holes.length), lazy: count(answer.lazyPages) }))),
        h("div", { class: "row small", style: { "margin-bottom": "6px" } },
            KINDS.filter(kind => parts.some(part => !part.hole && areaKind(part.kind) === kind)).map(kind => h("span", { class: "nowrap" }, swatch(areaColour(kind), areaLetter(kind)), " ", t(`area.${kind}`))),
            h("span", { class: "nowrap" }, swatch([128, 128, 128], "g"), " ", t("virtual.guard")),
            h("span", { class: "nowrap" }, swatch(freeColour(9), ""), " ", t("virtual.hole"))),
        svg,
        parts.length > shown.length ? h("p", { class: "soft small" }, t("virtual.moreParts", { n: count(parts.length - shown.length) })) : null,
    ];
}

function drawPart(svg, part, x, y, wide, tall, chosen, pick) {
    const title = `${part.start} – ${part.end}\n${bytes(part.bytes)}${part.caller ? `\n${part.caller}` : ""}`;
    if (part.hole) {
        svg.append(s("g", {}, s("title", {}, `${t("virtual.hole")}\n${title}`),
            s("rect", { x: x + 0.5, y: y + 0.5, width: Math.max(1, wide - 1), height: tall - 1, fill: css(freeColour(9)), stroke: "var(--line)", "stroke-dasharray": "3 3" })));
        if (wide > 60) svg.append(label(x + wide / 2, y + tall / 2 + 4, bytes(part.bytes), { "text-anchor": "middle", class: "soft", "font-size": 11, "pointer-events": "none" }));
        return;
    }
    const on = chosen !== null && BigInt(chosen) >= BigInt(part.start) && BigInt(chosen) < BigInt(part.end);
    const guard = part.guard ? Math.min(7, wide / 3) : 0;
    const open = () => pick(part.start);
    svg.append(s("g", {
        class: "object", tabindex: "0", role: "button", "aria-label": `${part.start}, ${bytes(part.bytes)}`, "data-area": part.start,
        onclick: open, onkeydown: e => { if (e.key === "Enter") open(); },
    }, s("title", { translate: "no" }, title),
    s("rect", { x: x + 0.5, y: y + 0.5, width: Math.max(1, wide - guard - 1), height: tall - 1, rx: 2, fill: css(areaColour(part.kind)),
        opacity: part.lazy || part.state === "pool" ? 0.6 : 1, stroke: on ? "var(--text)" : "var(--panel)", "stroke-width": on ? 2.5 : 1 }),
    guard ? s("rect", { x: x + wide - guard, y: y + 0.5, width: guard - 0.5, height: tall - 1, fill: "rgb(128 128 128)" }) : null));
    const letter = areaLetter(part.kind);
    if (wide > 20) {
        const text = label(x + (wide - guard) / 2, y + tall / 2 + 4, wide > 62 ? bytes(part.bytes) : letter, { "text-anchor": "middle", "font-size": 11, "pointer-events": "none" });
        text.style.fill = "#10141a";
        svg.append(text);
    }
}

const KINDS = ["vmalloc", "vmap", "ioremap", "vmMapRam", "sparse", "dma", "unpurged", "pooled", "other"];
const areaKind = kind => KINDS.find(name => name.toLowerCase() === String(kind).toLowerCase()) ?? "other";
const areaLetter = kind => ({ vmalloc: "V", vmap: "m", ioremap: "i", vmMapRam: "r", sparse: "s", dma: "d", unpurged: "u", pooled: "p", other: "o" })[areaKind(kind)];
const areaColour = kind => ({
    vmalloc: kindColour("vmalloc"), vmap: [86, 180, 233], ioremap: [230, 159, 0], vmMapRam: [0, 158, 115], sparse: [240, 228, 66], dma: [213, 94, 0],
    unpurged: [150, 158, 168], pooled: [190, 175, 210], other: [150, 190, 120],
})[areaKind(kind)];

function areaTable(answer, chosen, pick) {
    const rows = answer.areas.slice(0, AREA_ROWS);
    return [
        h("header", {}, h("h2", {}, t("virtual.areas")), answer.areas.length > rows.length
            ? h("span", { class: "soft" }, t("virtual.first", { n: count(rows.length), of: count(answer.areas.length) })) : null),
        rows.length === 0 ? empty(t("virtual.noAreas"), "") : h("div", { class: "scroll" }, table([
            { key: "start", title: t("virtual.start"), of: area => h("button", { class: "link mono", onclick: () => pick(area.start) }, area.start) },
            { key: "bytes", title: t("virtual.size"), number: true, of: area => bytes(area.bytes) },
            { key: "pages", title: t("virtual.pages"), number: true },
            { key: "kind", title: t("map.kind"), of: area => [
                t(`area.${areaKind(area.kind)}`),
                area.lazy && areaKind(area.kind) !== "unpurged" ? ` · ${t("virtual.lazy")}` : "",
            ] },
            { key: "flags", title: t("virtual.flags"), of: area => h("code", {}, area.flags.join(" ")) },
            { key: "caller", title: t("virtual.caller"), of: area => h("span", { class: "mono" }, area.caller ?? "–") },
        ], rows, { label: t("virtual.areas"), row: (area, cells) => h("tr", { class: area.start === chosen ? "on" : null }, cells) })),
    ];
}

// ---- the tree of free ranges

function treeContent(answer, width) {
    const header = h("header", {}, h("h2", {}, t("virtual.tree")), h("span", { class: "soft" }, t("virtual.treeAbout")));
    if (!answer.tree) return [header, empty(t("virtual.noTree"), "")];
    const nodes = [];
    let cut = answer.treeTruncated;
    const depth = Math.max(2, Math.min(TREE_DEPTH, Math.floor(Math.log2(width / 74)) + 1));
    (function place(node, level, from, to, parent) {
        if (!node) return;
        if (level >= depth) {
            cut = true;
            parent.more = true;
            return;
        }
        const at = { node, x: (from + to) / 2, y: 26 + level * 64 };
        nodes.push({ ...at, parent });
        const self = nodes[nodes.length - 1];
        place(node.left, level + 1, from, (from + to) / 2, self);
        place(node.right, level + 1, (from + to) / 2, to, self);
    })(answer.tree, 0, 0, width, null);
    const deepest = Math.max(...nodes.map(node => node.y));
    const svg = s("svg", { width, height: deepest + 40, role: "img", "aria-label": t("virtual.treeLabel", { n: nodes.length, max: bytes(answer.tree.max) }) });
    for (const { x, y, parent } of nodes) {
        if (parent) svg.append(s("line", { class: "line", x1: parent.x, y1: parent.y + 18, x2: x, y2: y - 18, "stroke-width": 1.5 }));
    }
    for (const { node, x, y, more } of nodes) {
        const wide = 70;
        svg.append(s("g", {}, s("title", {}, `${node.start} – ${node.end}\n${bytes(node.bytes)} ≤ ${bytes(node.max)}`),
            s("rect", { x: x - wide / 2, y: y - 18, width: wide, height: 36, rx: 6, fill: "var(--raised)", stroke: node.red ? "var(--bad)" : "var(--text)", "stroke-width": node.red ? 2 : 1.5, "stroke-dasharray": node.red ? "5 2" : null }),
            label(x, y - 3, bytes(node.bytes), { "text-anchor": "middle", "font-size": 11, "font-weight": 600 }),
            label(x, y + 11, `≤ ${bytes(node.max)}`, { "text-anchor": "middle", "font-size": 10, class: "soft" })));
        if (more) svg.append(label(x, y + 32, "…", { "text-anchor": "middle", class: "soft" }));
    }
    return [header, h("div", { class: "scroll" }, svg), cut ? h("p", { class: "soft small" }, t("virtual.treeCut")) : null];
}

// ---- the walk

function walkHeader(address, pick) {
    const field = h("input", { type: "search", class: "mono", value: address ?? "", spellcheck: "false", "aria-label": t("virtual.address"), size: 22 });
    return h("header", {}, h("h2", {}, t("virtual.walk")), h("form", {
        class: "row",
        onsubmit: e => {
            e.preventDefault();
            const value = parseAddress(field.value);
            field.setCustomValidity(value ? "" : t("app.noAddress"));
            if (value) pick(value);
            else field.reportValidity();
        },
    }, field, h("button", { class: "main" }, t("virtual.go"))));
}

/** Where a walk ended that found nothing. */
function stopWords(walk) {
    const last = walk.steps.at(-1);
    if (language() === "en" || !last) return walk.stop ?? t("virtual.notMapped");
    return t("virtual.stop", { level: last.level, index: last.index });
}

function walkContent(store, walk, address, width, pick) {
    if (!walk) return [walkHeader(address, pick), h("p", { class: "soft" }, t("virtual.noAddress"))];
    const names = LEVELS[(walk.levels ?? (walk.steps[0]?.table && walk.steps.length === 5 ? 5 : 4)) === 5 ? 5 : 4];
    const used = walk.steps.map(step => step.level);
    const all = used.some(name => !names.includes(name)) ? LEVELS[5] : names;
    return [
        walkHeader(address, pick),
        bitsPicture(walk, all, width),
        walkPicture(walk, width),
        facts([
            [t("virtual.region"), walk.region ? h("code", {}, walk.region) : null],
            [t("virtual.result"), walk.mapped
                ? t("virtual.mapped", { physical: walk.physical, size: bytes(walk.leafBytes) }) : stopWords(walk)],
            [t("virtual.prot"), walk.mapped ? h("code", {}, `${walk.prot} · ${walk.cacheMode}`) : null],
            [t("virtual.direct"), walk.directMap ? addressLink(walk.directMap) : null],
            [t("virtual.frame"), walk.frame
                ? [frameLink(Number(walk.frame.pfn)), ` · ${walk.frame.zone} · ${valueWords(walk.frame.use)}`] : null],
            [t("virtual.area"), walk.area
                ? h("code", {}, `${walk.area.start} – ${walk.area.end} ${walk.area.text}`) : null],
        ]),
        asTable(table([
            { key: "level", title: t("virtual.level") }, { key: "table", title: t("virtual.table") }, { key: "index", title: t("virtual.index"), number: true },
            { key: "entry", title: t("virtual.entry"), of: step => h("code", {}, step.entry) },
            { key: "flags", title: t("virtual.flags"), of: step => h("code", {}, step.flags ?? "") },
        ], walk.steps, { label: t("virtual.walk") })),
    ];
}

const LEVEL_COLOURS = { pgd: [0, 114, 178], p4d: [86, 180, 233], pud: [0, 158, 115], pmd: [230, 159, 0], pte: [204, 121, 167], offset: [150, 158, 168], sign: [150, 158, 168] };

/** The 64 bits in their groups; under each group its number. */
function bitsPicture(walk, names, width) {
    const value = BigInt.asUintN(64, BigInt(walk.address));
    const groups = [{ name: "sign", bits: 64 - 12 - 9 * names.length }, ...names.map(name => ({ name, bits: 9 })), { name: "offset", bits: 12 }];
    const cell = Math.min(16, (width - groups.length * 6) / 64);
    const svg = s("svg", { width, height: 66, role: "img", "aria-label": t("virtual.bits", { address: walk.address }) });
    let x = 0;
    let left = 64;
    for (const { name, bits } of groups) {
        left -= bits;
        const number = (value >> BigInt(left)) & ((1n << BigInt(bits)) - 1n);
        const wide = bits * cell;
        const reached = name === "sign" || walk.steps.some(step => step.level === name) || (name === "offset" && walk.mapped);
        const colour = LEVEL_COLOURS[name];
        const text = number.toString(2).padStart(bits, "0");
        svg.append(s("rect", { x, y: 20, width: wide, height: 22, rx: 3, fill: css(colour), opacity: reached ? 0.35 : 0.12 }),
            label(x + wide / 2, 14, name === "sign" ? t("virtual.sign") : name === "offset" ? t("virtual.offset") : name, { "text-anchor": "middle", "font-weight": 600, "font-size": 11.5 }));
        if (cell >= 7) {
            for (let i = 0; i < bits; i++) {
                svg.append(label(x + (i + 0.5) * cell, 35, text[i], { "text-anchor": "middle", class: "mono", "font-size": Math.min(12, cell * 1.25) }));
            }
        }
        svg.append(label(x + wide / 2, 58, name === "sign" ? "" : name === "offset" ? `+ 0x${number.toString(16)}` : `[${number}]`, { "text-anchor": "middle", class: "soft mono", "font-size": 11 }));
        x += wide + 6;
    }
    return h("div", { class: "scroll" }, svg);
}

/** The tables as tall boxes, the chosen entry in each at its height, an arrow to the next. */
function walkPicture(walk, width) {
    const boxes = walk.steps.length + (walk.mapped ? 1 : 0);
    const wide = Math.min(170, (width - 20) / Math.max(boxes, 1) - 36);
    const step = Math.min(wide + 60, (width - wide - 4) / Math.max(1, boxes - 1));
    const tall = 150;
    const top = 34;
    const svg = s("svg", { width, height: top + tall + 34, role: "img", "aria-label": t("virtual.walkLabel", { n: walk.steps.length }) },
        s("defs", {}, s("marker", { id: "walk-arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
            s("path", { d: "M0 0 L8 4 L0 8 z", fill: "var(--accent)" }))));
    walk.steps.forEach((entry, i) => {
        const x = i * step + 1;
        const y = top + 4 + entry.index / 511 * (tall - 26);
        const last = i === walk.steps.length - 1;
        const stops = last && !walk.mapped;
        svg.append(s("rect", { class: "frame", x, y: top, width: wide, height: tall, rx: 5 }),
            label(x + 2, 13, entry.level, { "font-weight": 650 }),
            label(x + 2, 27, entry.table ?? "", { class: "soft mono", "font-size": 10 }),
            s("rect", { x: x + 3, y, width: wide - 6, height: 18, rx: 3, fill: stops ? "var(--bad-wash)" : css(LEVEL_COLOURS[entry.level] ?? [150, 158, 168]), opacity: stops ? 1 : 0.45, stroke: stops ? "var(--bad)" : "none" }),
            label(x + 8, y + 13, `[${entry.index}]`, { class: "mono", "font-size": 11 }));
        if (wide > 130) svg.append(label(x + wide - 8, y + 13, stops ? t("virtual.emptyEntry") : entry.entry.replace(/^0x0*/, "0x"), { class: "mono", "font-size": 9.5, "text-anchor": "end" }));
        svg.append(label(x + 2, top + tall + 14, entry.flags ?? "", {
            class: "soft", translate: "no", "font-size": 10,
        }));
        if (!last || walk.mapped) {
            svg.append(s("path", { d: `M${x + wide - 2} ${y + 9} C${x + wide + 26} ${y + 9} ${x + step - 34} ${top + 8} ${x + step - 3} ${top + 8}`, fill: "none", stroke: "var(--accent)", "stroke-width": 1.6, "marker-end": "url(#walk-arrow)" }));
        }
    });
    if (walk.mapped) {
        const x = walk.steps.length * step + 1;
        svg.append(s("rect", { x, y: top, width: wide, height: 56, rx: 5, fill: "var(--accent-wash)", stroke: "var(--accent)", "stroke-width": 1.5 }),
            label(x + 2, 13, t("virtual.frame"), { "font-weight": 650 }),
            label(x + 8, top + 22, walk.physical, { class: "mono", "font-size": 11 }),
            label(x + 8, top + 42, bytes(walk.leafBytes), { class: "soft", "font-size": 11 }));
    }
    return h("div", { class: "scroll" }, svg);
}
