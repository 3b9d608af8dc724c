// Slabs: the caches as slabtop lists them; one of them opens into its CPUs' slabs and lists, its nodes' lists, and its
// slabs as strips of objects; an object opens into bytes.

import { h, show } from './dom.js';
import { bytes, count, percent, pfn } from './format.js';
import { t } from './i18n.js';
import { objectPanel } from './object-panel.js';
import { addressLink, empty, facts, frameLink, loading, problem, sorted, table } from './parts.js';
import { keep, readRoute, routeTo } from './route.js';
import { drawSlab, slabLegend } from './slab-drawing.js';
import { Follower } from './store.js';

const PAGE = 16;

const COLUMNS = () => [
    { key: "name", title: t("slabs.name"), sort: row => row.name, of: row => h("a", {
        href: routeTo("slabs", { ...readRoute().parameters, cache: row.id }), translate: "no",
    }, row.name) },
    { key: "objects", title: t("slabs.objects"), number: true, sort: row => row.objects },
    { key: "active", title: t("slabs.active"), number: true, sort: row => row.active },
    { key: "use", title: t("slabs.use"), number: true, sort: row => row.use, of: row => useBar(row) },
    { key: "objectSize", title: t("slabs.objectSize"), number: true, sort: row => row.objectSize, of: row => `${count(row.objectSize)}` },
    { key: "size", title: t("slabs.slot"), number: true, sort: row => row.size },
    { key: "objectsPerSlab", title: t("slabs.perSlab"), number: true, sort: row => row.objectsPerSlab },
    { key: "slabs", title: t("slabs.slabs"), number: true, sort: row => row.slabs },
    { key: "order", title: t("field.order"), number: true, sort: row => row.order },
    { key: "bytes", title: t("slabs.bytes"), number: true, sort: row => row.bytes, of: row => bytes(row.bytes) },
];

function useBar(row) {
    const bar = h("i");
    bar.style.width = `${row.use}%`;
    return h("span", { class: "use" }, h("span", { class: "gauge", "aria-hidden": "true" }, bar),
        h("b", {}, row.objects === 0 ? "–" : `${row.use}\u202f%`));
}

export function slabsView(store, main, parameters) {
    let rows = null;
    let one = null;
    const filter = h("input", {
        type: "search", placeholder: t("slabs.filter"), "aria-label": t("slabs.filter"), value: parameters.find ?? "",
        oninput: () => { keep({ find: filter.value }); draw(); },
    });
    const used = h("input", { type: "checkbox", checked: parameters.all !== "1", onchange: () => { keep({ all: used.checked ? null : "1" }); draw(); } });
    const total = h("span", { class: "soft small" });
    const body = h("div", { class: "scroll" }, loading());
    const list = h("section", { class: "panel", "aria-label": t("slabs.caches") },
        h("header", {}, h("h2", {}, t("slabs.caches")), h("span", { class: "grow" }, total), filter,
            h("label", { class: "row small" }, used, t("slabs.onlyUsed"))), body);
    const detail = h("div", { class: "stack" });
    const sort = { key: parameters.sort ?? "bytes", down: parameters.up !== "1" };
    main.append(h("div", { class: "stack" }, detail, list));

    const onSort = key => {
        sort.down = sort.key === key ? !sort.down : key !== "name";
        sort.key = key;
        keep({ sort: key, up: sort.down ? null : "1" });
        draw();
    };
    const draw = () => {
        if (!rows) return;
        const columns = COLUMNS();
        const find = filter.value.toLowerCase();
        const shown = sorted(rows.filter(row => (!used.checked || row.slabs > 0)
            && (row.name.toLowerCase().includes(find) || (row.aliases ?? []).some(name => name.toLowerCase().includes(find)))),
        columns.find(column => column.key === sort.key), sort.down);
        total.textContent = t("slabs.total", {
            n: count(shown.length), bytes: bytes(shown.reduce((sum, row) => sum + row.bytes, 0)),
            active: count(shown.reduce((sum, row) => sum + row.active, 0)),
        });
        const focused = body.contains(document.activeElement) ? document.activeElement.textContent : null;
        show(body, shown.length === 0 ? empty(t("slabs.none"), t("slabs.noneAbout")) : table(columns, shown, {
            sort, onSort, label: t("slabs.caches"),
            row: (row, cells) => h("tr", { class: one?.id === row.id ? "on" : null, title: row.aliases?.length ? `${t("slabs.aliases")}: ${row.aliases.join(", ")}` : null }, cells),
        }));
        if (focused) [...body.querySelectorAll("a, th button")].find(link => link.textContent === focused)?.focus();
    };
    const follower = new Follower(store, () => store.get("/api/slabs"), answer => {
        rows = answer.caches;
        store.takeCaches(rows);
        draw();
    }, error => show(body, problem(error)));
    follower.refresh();

    const enter = now => {
        const id = now.cache === undefined ? null : Number(now.cache);
        if (id === (one?.id ?? null)) return;
        one?.end();
        one = id === null ? null : cachePanel(store, id, now);
        show(detail, one?.root);
        draw();
        if (one) main.scrollTop = 0;
    };
    enter(parameters);
    const key = e => {
        if (e.key === "Escape" && one) location.hash = routeTo("slabs", { ...readRoute().parameters, cache: null, object: null, page: null });
    };
    return { enter, key, end: () => { follower.end(); one?.end(); } };
}

/** One cache, unfolded. */
function cachePanel(store, id, parameters) {
    let offset = Number(parameters.page ?? 0) * PAGE;
    let object = null;
    let opened = parameters.object ?? null;
    const content = h("section", { class: "panel" }, loading());
    const objectPlace = h("div");
    const root = h("div", { class: "stack" }, content, objectPlace);
    const open = address => {
        object?.end();
        opened = address;
        object = address ? objectPanel(store, address) : null;
        show(objectPlace, object?.root);
        keep({ object: address });
    };
    const follower = new Follower(store, () => store.get(`/api/slabs/${id}`, { offset, limit: PAGE }), answer => {
        if (offset > 0 && answer.slabs.length === 0) {
            offset = 0;
            follower.refresh();
            return;
        }
        const scrolled = content.querySelector(".strips")?.scrollTop ?? 0;
        show(content, cacheContent(store, answer, content.clientWidth - 32, open, opened, to => {
            offset = to;
            keep({ page: to / PAGE || null });
            follower.refresh();
        }));
        const strips = content.querySelector(".strips");
        if (strips) strips.scrollTop = scrolled;
    }, error => show(content, problem(error)), 500);
    follower.refresh();
    if (opened) open(opened);
    const off = store.on("theme", () => follower.refresh());
    return { id, root, end: () => { follower.end(); object?.end(); off(); } };
}

function cacheContent(store, answer, width, open, opened, turn) {
    const { cache } = answer;
    const close = routeTo("slabs", { ...readRoute().parameters, cache: null, object: null, page: null });
    return [
        h("header", {}, h("h2", { class: "grow", translate: "no" }, cache.name),
            h("a", { href: close }, t("slabs.close"))),
        h("div", { class: "row small soft", style: { gap: "4px 18px" } },
            t("slabs.geometry", { size: count(cache.objectSize), slot: count(cache.size), per: count(cache.objectsPerSlab), bytes: bytes(store.info.pageBytes * 2 ** cache.order), align: count(cache.align) }),
            cache.flags ? h("code", {}, cache.flags) : null,
            cache.aliases?.length ? `${t("slabs.aliases")}: ${cache.aliases.join(", ")}` : null),
        h("div", { class: "lanes", style: { margin: "10px 0" } }, answer.cpus.map(cpu => cpuLane(cpu)), answer.nodes.map(node => nodeLane(node))),
        answer.listsAt === undefined ? null : h("p", { class: "soft small" }, t("slabs.listsAt", { n: store.info.deepMoments.map(n => count(n)).join(", ") })),
        answer.total === 0 ? empty(t("slabs.noSlabs"), "") : [
            h("div", { class: "row" }, h("h3", { class: "grow" }, t("slabs.range", {
                from: count(answer.offset + 1), to: count(answer.offset + answer.slabs.length), of: count(answer.total) })),
            slabLegend(),
            h("button", { class: "icon", disabled: answer.offset === 0, "aria-label": t("slabs.before"), onclick: () => turn(Math.max(0, answer.offset - PAGE)) }, "‹"),
            h("button", { class: "icon", disabled: answer.offset + PAGE >= answer.total, "aria-label": t("slabs.after"), onclick: () => turn(answer.offset + PAGE) }, "›")),
            h("div", { class: "strips" }, answer.slabs.map(slab => strip(slab, answer, width, open, opened))),
        ],
    ];
}

const cpuLane = cpu => h("div", { class: "lane" }, h("h3", {}, `CPU ${cpu.cpu}`), facts([
    [t("slabs.current"), cpu.slab === null ? t("slabs.nothing") : [frameLink(cpu.slab), " · ", t("slabs.listLength", { n: cpu.freelist?.length ?? 0 })]],
    [t("slabs.partial"), cpu.partial?.length ? chain(cpu.partial) : null],
    ...["main", "spare", "rcuFree"].map(name => [t(`sheaf.${name}`), cpu.sheaves?.[name] ? sheaf(cpu.sheaves[name]) : null]),
]));

const nodeLane = node => h("div", { class: "lane" }, h("h3", {}, t("map.node", { n: node.node })), facts([
    [t("slabs.partial"), node.partial.length ? chain(node.partial) : t("slabs.nothing")],
    [t("sheaf.full"), node.fullSheaves?.length ? node.fullSheaves.map(one => h("div", {}, sheaf(one))) : null],
    [t("sheaf.empty"), node.emptySheaves || null],
]));

const chain = frames => h("span", { class: "chain" }, frames.slice(0, 6).map((frame, i) => [i ? "→ " : "", frameLink(frame), " "]),
    frames.length > 6 ? t("slabs.more", { n: count(frames.length - 6) }) : "");

function sheaf(one) {
    const gauge = h("i");
    gauge.style.width = `${one.capacity ? one.size / one.capacity * 100 : 0}%`;
    const next = one.objects?.at(-1);
    return h("span", { class: "use" }, h("span", { class: "gauge", "aria-hidden": "true" }, gauge), `${one.size} / ${one.capacity}`,
        next ? [" → ", addressLink(next, `…${next.slice(-6)}`)] : "");
}

function strip(slab, answer, width, open, opened) {
    const size = BigInt(answer.cache.size);
    const start = BigInt(slab.address);
    const chosen = opened && BigInt(opened) >= start && BigInt(opened) < start + size * BigInt(slab.objects)
        ? Number((BigInt(opened) - start) / size) : -1;
    return h("div", { class: "strip" },
        h("div", { class: "small" }, h("div", {}, frameLink(slab.pfn, pfn(slab.pfn)), slab.order > 0 ? ` · ${t("map.order")} ${slab.order}` : ""),
            h("div", {}, slab.cpu === null || slab.cpu === undefined
                ? t(`slab.state.${slab.state}`) : t(`slab.${slab.state}`, { cpu: slab.cpu })),
            h("div", { class: "soft" }, `${slab.inUse} / ${slab.objects} · ${percent(slab.inUse / slab.objects)}`)),
        h("div", { class: "scroll" }, drawSlab(slab, answer, Math.max(260, width - 210),
            i => open(`0x${(start + BigInt(i) * size).toString(16)}`), chosen)));
}
