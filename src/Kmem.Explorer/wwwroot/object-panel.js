// The bytes around an address, coloured by what they are: object, free pointer, red zone, poison, padding.

import { h, show } from './dom.js';
import { bytes, count } from './format.js';
import { named, t } from './i18n.js';
import { css, inkOn, markColour, mix, page } from './palette.js';
import { addressLink, facts, frameLink, loading, problem, swatch } from './parts.js';
import { Follower } from './store.js';

const PER_LINE = 16;
const MARKS = ["object", "freePointer", "redZone", "poison", "padding", "track", "unused"];
const LETTERS = { object: "o", freePointer: "→", redZone: "r", poison: "p", padding: "–", track: "t", unused: "u" };

/** A panel that follows the moment; `end()` stops it. A quiet one hides where there are no bytes to show. */
export function objectPanel(store, address, quiet = false) {
    const root = h("section", { class: "panel", "aria-label": t("object.title") }, loading());
    const follower = new Follower(store, () => store.get("/api/object", { address }),
        answer => {
            root.classList.remove("hidden");
            show(root, draw(store, answer));
        }, error => {
            root.classList.toggle("hidden", quiet && (error.status === 404 || error.status === 409));
            show(root, problem(error));
        });
    follower.refresh();
    const off = store.on("theme", () => follower.refresh());
    return { root, end: () => { follower.end(); off(); } };
}

function draw(store, object) {
    const site = object.site?.name;
    return [
        h("header", {}, h("h2", {}, object.kind === "slab"
            ? t("object.of", { n: object.index, cache: object.cacheName ?? "" })
            : t("object.block", { kind: named(`kind.${object.kind}`, object.kind) })),
        h("span", { class: object.allocated ? "" : "soft" }, t(object.allocated ? "object.live" : "object.free"))),
        facts([
            [t("object.address"), addressLink(object.address)],
            [t("object.size"), object.size === null ? null : `${bytes(object.size)}${object.requested ? ` (${t("object.requested", { n: count(object.requested) })})` : ""}`],
            [t("object.slab"), object.slab === null || object.slab === undefined ? null : frameLink(object.slab)],
            [t("object.born"), object.born ? count(object.born) : null],
            [t("object.site"), site ? h("span", { class: "mono" }, site) : null],
        ]),
        hexDump(object),
    ];
}

/** The dump, a line of 16 bytes each, with the meaning of each byte. */
export function hexDump(object) {
    const data = object.bytes ?? "";
    const length = data.length / 2;
    if (length === 0) return h("p", { class: "soft" }, t("object.noBytes"));
    const what = new Array(length).fill(null);
    for (const mark of object.marks ?? []) {
        for (let i = mark.offset; i < Math.min(mark.offset + mark.length, length); i++) {
            if (what[i] === null || mark.what !== "object") what[i] = mark;
        }
    }
    const lines = [];
    let zeros = 0;
    for (let at = 0; at < length; at += PER_LINE) {
        const line = data.slice(at * 2, (at + PER_LINE) * 2);
        const repeats = at > 0 && at + PER_LINE < length && line === data.slice((at - PER_LINE) * 2, at * 2)
            && what[at] === what[at - PER_LINE] && what[at + PER_LINE - 1] === what[at];
        if (repeats) {
            if (zeros++ === 0) lines.push(h("span", { class: "offset" }, "*\n"));
            continue;
        }
        zeros = 0;
        lines.push(hexLine(at, line, what));
    }
    const used = MARKS.filter(name => (object.marks ?? []).some(mark => mark.what === name));
    const pointers = (object.marks ?? []).filter(mark => mark.what === "freePointer");
    return [
        h("div", { class: "row small" }, used.map(name =>
            h("span", { class: "nowrap" }, swatch(markColour(name), LETTERS[name]), " ", t(`mark.${name}`)))),
        pointers.map(mark => h("p", { class: "small" }, t("object.pointer", { n: mark.offset }), " ",
            mark.to ? addressLink(mark.to) : t("object.end"))),
        h("div", { class: "hex", tabindex: "0", role: "group", "aria-label": t("object.bytes") }, lines),
    ];
}

function hexLine(at, line, what) {
    const line16 = h("span", {}, h("span", { class: "offset" }, at.toString(16).padStart(4, "0") + "  "));
    let text = "";
    for (let i = 0; i < PER_LINE; i++) {
        const byte = line.slice(i * 2, i * 2 + 2);
        const mark = what[at + i];
        const code = parseInt(byte, 16);
        text += byte === "" ? "" : code >= 32 && code < 127 ? String.fromCharCode(code) : "·";
        const span = h("span", { class: `byte${byte === "00" && !mark ? " zero" : ""}`, title: mark ? t(`mark.${mark.what}`) : null },
            byte === "" ? "   " : byte + (i === 7 ? "  " : " "));
        if (mark && byte !== "") {
            const colour = mix(markColour(mark.what), page().back, 0.55);
            span.style.background = css(colour);
            span.style.color = inkOn(colour);
        }
        line16.append(span);
    }
    line16.append(h("span", { class: "offset" }, ` ${text}\n`));
    return line16;
}
