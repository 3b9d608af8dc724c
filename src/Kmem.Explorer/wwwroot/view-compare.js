// Compare: what is different between two moments, as bars around zero and as tables.

import { h, s, show } from './dom.js';
import { bytes, count, pfn } from './format.js';
import { named, t } from './i18n.js';
import { kindColour } from './palette.js';
import {
    asTable, empty, frameLink, kindName, label, loading, measured, problem, sorted, svgFill, table,
} from './parts.js';
import { kindPattern } from './patterns.js';
import { keep } from './route.js';

export function compareView(store, main, parameters) {
    if (!store.canSeek) {
        main.append(empty(t("compare.none"), t("compare.noneAbout")));
        return { end() { } };
    }
    const scope = store.scope();
    const { events } = store.info;
    let from = Number(parameters.from ?? store.marks.a ?? 0);
    let to = Number(parameters.to ?? store.marks.b ?? store.time.t);
    let answer = null;
    let width = 800;
    const body = h("div", { class: "stack" }, loading());
    const number = (value, name) => h("input", { type: "number", min: 0, max: events, value: String(value), "aria-label": name, "data-moment": name });
    const fromField = number(from, t("compare.from"));
    const toField = number(to, t("compare.to"));
    const root = h("div", { class: "stack" }, h("section", { class: "panel" }, h("form", {
        class: "row",
        onsubmit: e => { e.preventDefault(); enter({ from: fromField.value, to: toField.value }); },
    }, h("h2", {}, t("view.compare")), h("label", { class: "row" }, t("compare.from"), fromField), h("label", { class: "row" }, t("compare.to"), toField),
    h("button", { class: "main" }, t("compare.do")),
    h("button", { type: "button", onclick: () => enter({ from: toField.value, to: fromField.value }) }, "⇄ ", t("compare.swap")))), body);
    main.append(root);

    const enter = async now => {
        if (now.from !== undefined) from = Math.max(0, Math.min(events, Number(now.from)));
        if (now.to !== undefined) to = Math.max(0, Math.min(events, Number(now.to)));
        fromField.value = String(from);
        toField.value = String(to);
        keep({ from, to });
        const asked = `${from}-${to}`;
        if (enter.last === asked) return;
        enter.last = asked;
        show(body, loading());
        try {
            const got = await store.ask("/api/diff", { from, to });
            if (enter.last !== asked) return;
            answer = got;
            draw();
        }
        catch (error) {
            if (enter.last === asked) show(body, problem(error));
        }
    };
    const draw = () => {
        if (answer) show(body, content(store, answer, width));
    };
    const box = measured(root, now => { width = now - 32; draw(); });
    scope.add(box.end);
    scope.on("theme", draw);
    enter(parameters);
    return { enter, end: scope.end };
}

const signed = n => n > 0 ? `+${count(n)}` : count(n).replace("-", "−");
const delta = n => h("span", { class: n > 0 ? "delta-up" : n < 0 ? "delta-down" : "soft" }, n === undefined || n === null ? "–" : signed(n));

function content(store, diff, width) {
    const { pageBytes } = store.info;
    const caches = sorted(diff.caches, { sort: row => Math.abs(row.slabs) * 1e6 + Math.abs(row.active) }, true);
    const frames = Object.entries(diff.frames).filter(([, n]) => n !== 0);
    const nothing = frames.length === 0 && diff.caches.length === 0 && diff.changedFrames === 0;
    return [
        h("section", { class: "panel" }, h("header", {}, h("h2", {}, t("compare.frames")), h("span", { class: "soft" },
            t("compare.about", { events: count(diff.events), frames: count(diff.changedFrames), bytes: bytes(diff.changedFrames * pageBytes) }))),
        nothing ? empty(t("compare.same"), "") : bars(store, frames, width)),
        diff.zones.length > 0 ? h("section", { class: "panel" }, h("header", {}, h("h2", {}, t("compare.blocks"))), h("div", { class: "scroll" }, table([
            { key: "zone", title: t("map.zone"), of: zone => store.zones.get(zone.id)?.name ?? zone.id },
            { key: "free", title: t("kind.free"), number: true, of: zone => delta(zone.free) },
            ...Array.from({ length: store.info.maxOrder + 1 }, (_, order) => ({ key: `o${order}`, title: String(order), number: true, of: zone => delta(zone.freeBlocks[order] ?? 0) })),
        ], diff.zones, { label: t("compare.blocks") }))) : null,
        h("div", { class: "lanes wide" },
            listPanel(t("slabs.caches"), caches, [
                { key: "name", title: t("slabs.name"), of: row => h("span", { translate: "no" }, row.name) },
                { key: "slabs", title: t("slabs.slabs"), number: true, of: row => delta(row.slabs) },
                { key: "active", title: t("slabs.active"), number: true, of: row => delta(row.active) },
            ]),
            listPanel(t("compare.sites"), diff.sites, [
                { key: "site", title: t("object.site"), of: row => h("span", { class: "mono" }, row.site?.name ?? "–") },
                { key: "objects", title: t("slabs.objects"), number: true, of: row => delta(row.objects) },
                { key: "bytes", title: t("slabs.bytes"), number: true, of: row => delta(row.bytes) },
                { key: "frames", title: t("compare.frameCount"), number: true, of: row => delta(row.frames) },
            ]),
            listPanel(t("machine.counters"), Object.entries(diff.counters).map(([name, n]) => ({ name, n })), [
                { key: "name", title: t("compare.counter"), of: row => named(`counter.${row.name}`, row.name) },
                { key: "n", title: t("compare.change"), number: true, of: row => delta(row.n) },
            ]),
            listPanel(t("compare.ranges"), diff.ranges, [
                { key: "first", title: t("compare.frame"), of: row => frameLink(row.first, pfn(row.first)) },
                { key: "count", title: t("compare.frameCount"), number: true },
                { key: "from", title: t("compare.was"), of: row => kindName(store.info, row.from) },
                { key: "to", title: t("compare.is"), of: row => kindName(store.info, row.to) },
            ], diff.rangesTruncated ? t("compare.cut") : null)),
    ];
}

const listPanel = (title, rows, columns, note) => h("section", { class: "panel", "aria-label": title }, h("header", {}, h("h2", {}, title),
    h("span", { class: "soft" }, note ?? count(rows.length))),
rows.length === 0 ? h("p", { class: "soft" }, t("compare.noChange"))
    : h("div", { class: "scroll lists", tabindex: "0", role: "group", "aria-label": title },
        table(columns, rows, { label: title })));

/** One bar for each kind of frame, to the right of zero for more, to the left for fewer. */
function bars(store, frames, width) {
    const most = Math.max(...frames.map(([, n]) => Math.abs(n)), 1);
    const names = width < 520 ? 104 : 150;
    const numbers = width < 520 ? 56 : 90;
    const middle = names + (width - names) / 2;
    const half = (width - names) / 2 - numbers;
    const svg = s("svg", { width, height: frames.length * 26 + 6, role: "img", "aria-label": t("compare.frames") },
        s("line", { class: "line", x1: middle, x2: middle, y1: 0, y2: frames.length * 26 + 6 }));
    frames.forEach(([name, n], i) => {
        const y = i * 26 + 4;
        const long = Math.max(1, Math.abs(n) / most * half);
        svg.append(label(names - 10, y + 15, named(`kind.${name}`, name), { "text-anchor": "end" }),
            s("rect", { x: n > 0 ? middle : middle - long, y, width: long, height: 20, rx: 2,
                fill: svgFill(svg, kindColour(name, 5), kindPattern(name)) }),
            label(n > 0 ? middle + long + 7 : middle - long - 7, y + 15, signed(n), { "text-anchor": n > 0 ? "start" : "end", "font-weight": 600 }));
    });
    return [svg, asTable(table([
        { key: 0, title: t("map.kind"), of: ([name]) => kindName(store.info, name) }, { key: 1, title: t("compare.change"), number: true, of: ([, n]) => delta(n) },
    ], frames))];
}
