// A slab as a strip of objects, and its free lists as arrows.
//
//    ┌──┬──┬──┬──┬──┬──┬──┬──┐      live: filled      on this CPU's list, in a sheaf: light      free: hollow
//    │0 │1 │▒▒│3 │  │5 │  │7 │      arrow: from a free object to the next one of its list
//    └──┴──┴──┴──┴┬─┴──┴▲─┴──┘
//                 └─────┘

import { h, s } from './dom.js';
import { pfn } from './format.js';
import { t } from './i18n.js';
import { css, inkOn, isDark } from './palette.js';
import { label } from './parts.js';

const LIVE = [0, 158, 115];
const HELD = [240, 228, 66];
const SHEAF = [230, 159, 0];
const ARROWS_SHOWN = 96;

/** What an object of a slab is: "live", "cpuList", "slabList", "sheaf" or "held" (free, but where is not told). */
export function objectStates(slab, answer) {
    const live = Uint8Array.from(atob(slab.live), c => c.charCodeAt(0));
    const states = Array.from({ length: slab.objects }, (_, i) => (live[i >> 3] >> (i & 7)) & 1 ? "live" : "held");
    for (const i of slab.free ?? []) states[i] = "slabList";
    const cpu = answer.cpus.find(one => one.slab === slab.pfn);
    for (const i of cpu?.freelist ?? []) states[i] = "cpuList";
    const size = answer.cache.size;
    const start = BigInt(slab.address);
    const end = start + BigInt(size) * BigInt(slab.objects);
    for (const sheaf of allSheaves(answer)) {
        for (const address of sheaf.objects ?? []) {
            const at = BigInt(address);
            if (at >= start && at < end) states[Number((at - start) / BigInt(size))] = "sheaf";
        }
    }
    return { states, lists: [cpu?.freelist ?? [], slab.free ?? []].filter(list => list.length > 0) };
}

/** Every sheaf of an answer about a cache. */
export const allSheaves = answer => [
    ...answer.cpus.flatMap(cpu => Object.values(cpu.sheaves ?? {})),
    ...answer.nodes.flatMap(node => node.fullSheaves ?? []),
].filter(Boolean);

const colourOf = state => ({
    live: LIVE, cpuList: HELD, sheaf: SHEAF, slabList: isDark() ? [31, 39, 48] : [238, 241, 245],
    held: isDark() ? [70, 78, 88] : [200, 206, 214],
})[state];

/** What the colours of a strip mean. */
export const slabLegend = () => h("div", { class: "row small" }, ["live", "cpuList", "slabList", "sheaf", "held"].map(state => {
    const mark = h("span", { class: "swatch", "aria-hidden": "true" }, { live: "■", sheaf: "s", held: "·" }[state] ?? "→");
    mark.style.background = css(colourOf(state));
    mark.style.color = inkOn(colourOf(state));
    return h("span", { class: "nowrap" }, mark, " ", t(`slab.${state}`));
}));

/** The strip. `pick(index)` is called for an object that is opened; `chosen` is marked. */
export function drawSlab(slab, answer, width, pick, chosen = -1) {
    const { states, lists } = objectStates(slab, answer);
    const wide = Math.max(13, Math.min(46, Math.floor((width - 4) / Math.min(slab.objects, 32))));
    const perRow = Math.max(1, Math.min(slab.objects, Math.floor((width - 4) / wide)));
    const tall = Math.max(20, Math.min(30, wide));
    const far = lists.some(list => list.some((one, i) => i > 0 && Math.abs(one - list[i - 1]) > 3));
    const gap = lists.length === 0 ? 4 : far ? 24 : 14;
    const rows = Math.ceil(slab.objects / perRow);
    const height = rows * (tall + gap) + gap;
    const live = states.filter(state => state === "live").length;
    const svg = s("svg", {
        class: "slab-strip", width: perRow * wide + 4, height, role: "group",
        "aria-label": t("slab.strip", { pfn: pfn(slab.pfn), live, n: slab.objects }),
    }, s("defs", {}, s("marker", {
        id: `arrow-${slab.pfn}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto-start-reverse",
    }, s("path", { d: "M0 0 L8 4 L0 8 z", fill: "var(--accent)" }))));
    const place = i => ({ x: 2 + (i % perRow) * wide, y: gap + Math.floor(i / perRow) * (tall + gap) });
    states.forEach((state, i) => {
        const { x, y } = place(i);
        const open = () => pick?.(i);
        const cell = s("g", {
            class: "object", tabindex: pick ? "0" : null, role: pick ? "button" : null,
            "aria-label": `${i}: ${t(`slab.${state}`)}`, "data-object": i, onclick: open,
            onkeydown: e => { if (e.key === "Enter") open(); },
        }, s("title", {}, `${i}: ${t(`slab.${state}`)}`),
        s("rect", {
            x: x + 0.5, y: y + 0.5, width: wide - 1.5, height: tall - 1, rx: 2, fill: css(colourOf(state)),
            stroke: i === chosen ? "var(--text)" : "var(--strong-line)", "stroke-width": i === chosen ? 2.5 : 1,
            "stroke-dasharray": state === "slabList" ? "2 2" : null,
        }));
        if (wide >= 20) {
            const text = label(x + wide / 2, y + tall / 2 + 3.5, String(i), { "text-anchor": "middle", "font-size": 10 });
            text.style.fill = inkOn(colourOf(state));
            cell.append(text);
        }
        svg.append(cell);
    });
    for (const list of lists) drawList(svg, list, place, wide, tall, `url(#arrow-${slab.pfn})`);
    return svg;
}

function drawList(svg, list, place, wide, tall, marker) {
    const path = s("g", { "pointer-events": "none" });
    for (let i = 0; i + 1 < Math.min(list.length, ARROWS_SHOWN); i++) {
        const [a, b] = [place(list[i]), place(list[i + 1])];
        const [x1, x2] = [a.x + wide / 2, b.x + wide / 2];
        const same = a.y === b.y;
        const rise = Math.min(30, 9 + Math.abs(x2 - x1) * 0.07);          // or arcs would lie on arcs
        const d = same
            ? `M${x1} ${a.y + 1} C${x1} ${a.y - rise} ${x2} ${a.y - rise} ${x2} ${a.y}`
            : `M${x1} ${a.y + (b.y > a.y ? tall - 2 : 2)} L${x2} ${b.y + (b.y > a.y ? 0 : tall)}`;
        path.append(s("path", {
            d, fill: "none", stroke: "var(--accent)", "stroke-width": 1.3, "marker-end": marker, opacity: list.length > 24 ? 0.55 : 0.9,
        }));
    }
    const head = place(list[0]);
    path.append(s("circle", { cx: head.x + wide / 2, cy: head.y + 2, r: 3.2, fill: "var(--accent)" }));
    svg.append(path);
}

/**
 * The answer about a cache with the one slab that begins at a frame. Slabs are listed by address, so a few halving steps
 * find it; undefined if there is none at this moment.
 */
export async function findSlab(store, cache, head) {
    let low = 0;
    let high = Infinity;
    while (low < high) {
        const offset = high === Infinity ? low : Math.floor((low + high) / 2);
        const answer = await store.get(`/api/slabs/${cache}`, { offset, limit: 32 });
        const slab = answer.slabs.find(one => one.pfn === head);
        if (slab) return { answer, slab };
        if (answer.slabs.length === 0) return undefined;
        if (high === Infinity) high = answer.total;
        if (head < answer.slabs[0].pfn) high = offset;
        else low = offset + answer.slabs.length;
    }
    return undefined;
}
