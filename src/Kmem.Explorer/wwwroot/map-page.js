// One page of the map, opened: its block, the slab with its objects, the bytes of one of them.

import { h, show } from './dom.js';
import { bytes, count, percent, pfn as pfnText } from './format.js';
import { t } from './i18n.js';
import { objectPanel } from './object-panel.js';
import { addressLink, empty, facts, frameLink, kindName, loading, problem } from './parts.js';
import { go, keep, readRoute, routeTo } from './route.js';
import { drawSlab, findSlab, slabLegend } from './slab-drawing.js';
import { Follower } from './store.js';
import { typeWords } from './words.js';

/** The panel for a frame, with an object open if its address is given. */
export function pagePanel(store, frame, address) {
    const top = h("section", { class: "panel" }, loading());
    const slabPlace = h("section", { class: "panel hidden", "aria-label": t("slab.title") });
    const objectPlace = h("div");
    const root = h("div", { class: "stack" },
        h("p", {}, h("button", { onclick: () => go("map", { ...readRoute().parameters, deep: null, object: null }) }, `← ${t("map.back")}`)),
        top, slabPlace, objectPlace);
    let object = null;
    let opened = address;

    const open = where => {
        object?.end();
        opened = where;
        object = where ? objectPanel(store, where) : null;
        show(objectPlace, object?.root);
        keep({ object: where });
    };
    const draw = async () => {
        const found = await store.get(`/api/frame/${frame}`);
        const slab = found.kind === "slab" ? await findSlab(store, found.owner, found.head ?? found.pfn) : null;
        return { found, slab };
    };
    const follower = new Follower(store, draw, ({ found, slab }) => {
        show(top, frameFacts(store, found));
        slabPlace.classList.toggle("hidden", found.kind !== "slab");
        if (slab) show(slabPlace, slabContent(slab, slabPlace.clientWidth - 30, opened, open));
        else if (found.kind === "slab") show(slabPlace, empty(t("slab.gone"), ""));
        if (!object && opened === null && found.kind !== "slab" && found.kind !== "hole") open(found.address);
    }, error => show(top, problem(error)), 500);
    if (address) open(address);
    follower.refresh();
    const off = store.on("theme", () => follower.refresh());
    return { root, end: () => { follower.end(); object?.end(); off(); } };
}

const frameFacts = (store, frame) => [
    h("header", {}, h("h2", {}, t("map.page", { pfn: pfnText(frame.pfn) })), h("span", {}, kindName(store.info, frame.kind))),
    facts([
        [t("field.order"), `${frame.order} (${bytes(store.info.pageBytes * 2 ** frame.order)})`],
        [t("map.head"), frame.head === null || frame.head === frame.pfn ? null : frameLink(frame.head)],
        [t("map.owner"), frame.kind !== "slab" ? frame.ownerName
            : h("a", { href: routeTo("slabs", { cache: frame.owner }), translate: "no" }, frame.ownerName)],
        [t("map.type"), typeWords(frame.migrateType)],
        [t("object.born"), frame.born ? count(frame.born) : null],
        [t("object.site"), frame.site ? h("span", { class: "mono" }, frame.site.name) : null],
        [t("object.address"), addressLink(frame.address)],
    ]),
];

function slabContent({ answer, slab }, width, opened, open) {
    const size = BigInt(answer.cache.size);
    const addressOf = i => `0x${(BigInt(slab.address) + BigInt(i) * size).toString(16)}`;
    let chosen = -1;
    if (opened) {
        const at = BigInt(opened) - BigInt(slab.address);
        if (at >= 0n && at < size * BigInt(slab.objects)) chosen = Number(at / size);
    }
    return [
        h("header", {}, h("h2", { translate: "no" }, answer.cache.name), h("span", { class: "soft" }, t("slab.facts", {
            state: t(`slab.state.${slab.state}`), used: count(slab.inUse), of: count(slab.objects), share: percent(slab.inUse / slab.objects),
        }))),
        slabLegend(),
        h("div", { class: "scroll" }, drawSlab(slab, answer, Math.max(300, width), i => open(addressOf(i)), chosen)),
        h("p", { class: "soft small" }, t("slab.pick")),
    ];
}
