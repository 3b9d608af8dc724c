// Small parts that several views use.

import { h, s } from './dom.js';
import { count } from './format.js';
import { language, named, t } from './i18n.js';
import { css, inkOn, kindColour, kindLetters } from './palette.js';
import { inkFor, kindPattern, patternsOn, patternUrl, TILES } from './patterns.js';
import { routeTo } from './route.js';
import { chineseError } from './sentence-zh.js';

/** A message where something went wrong. */
export function problem(error) {
    const text = error.message ?? String(error);
    const words = language() === "zh-CN" ? chineseError(text) : text;
    return h("p", { class: "problem", role: "alert" }, words ?? h("span", { lang: "en", translate: "no" }, text));
}

export const loading = () => h("p", { class: "loading", role: "status" }, t("app.loading"));

/** What a place says that has nothing to show, and why. */
export const empty = (title, text) => h("div", { class: "empty" }, h("strong", {}, title), text);

/** A square of a colour, with a letter and, if they are on, a pattern for those who do not see the colour. */
export function swatch(colour, letter = "", pattern = 0) {
    const hatched = pattern > 0 && patternsOn();
    const element = h("span", { class: hatched ? "swatch hatched" : "swatch", "aria-hidden": "true" },
        letter ? h("b", {}, letter) : "");
    element.style.backgroundColor = css(colour);
    if (hatched) element.style.backgroundImage = patternUrl(colour, pattern);
    element.style.setProperty("--of", css(colour));
    element.style.color = inkOn(colour);
    return element;
}

/** The square and the name of a kind of frame. */
export const kindName = (info, name) => [
    swatch(kindColour(name), kindLetters[name], kindPattern(name)), " ",
    named(`kind.${name}`, info.kinds.find(kind => kind.name === name)?.label ?? name),
];

/** What fills a shape of an SVG: the colour, or the colour with its pattern, which is added to the picture. */
export function svgFill(svg, colour, pattern) {
    if (!pattern || !patternsOn()) return css(colour);
    const id = `hatch-${pattern}-${colour.join("-")}`;
    if (!svg.querySelector(`#${id}`)) {
        const ink = css(inkFor(colour));
        svg.append(s("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
            s("rect", { width: 8, height: 8, fill: css(colour) }),
            Array.from({ length: 64 }, (_, at) => (TILES[pattern * 8 + (at >> 3)] >> (at & 7)) & 1
                ? s("rect", { x: at & 7, y: at >> 3, width: 1, height: 1, fill: ink }) : null)));
    }
    return `url(#${id})`;
}

const ICONS = {
    play: "M4 2 L13 8 L4 14 z", pause: "M3 2 h4 v12 h-4 z M9 2 h4 v12 h-4 z", back: "M12 2 L5 8 L12 14 z M3 2 h2 v12 h-2 z",
    forth: "M4 2 L11 8 L4 14 z M11 2 h2 v12 h-2 z", first: "M8 3 L2.5 8 L8 13 z M14 3 L8.5 8 L14 13 z M0.5 3 h1.6 v10 h-1.6 z",
    last: "M8 3 L13.5 8 L8 13 z M2 3 L7.5 8 L2 13 z M13.9 3 h1.6 v10 h-1.6 z",
    split: "M2 2 h12 v5 h-12 z M2 9 h5 v5 h-5 z M9 9 h5 v5 h-5 z", merge: "M2 2 h5 v5 h-5 z M9 2 h5 v5 h-5 z M2 9 h12 v5 h-12 z",
    fallback: "M2 5 h7 v-3 l5 5 l-5 5 v-3 h-7 z", claim: "M3 1 h2 v14 h-2 z M5 2 h9 l-2.5 3 l2.5 3 h-9 z",
    refill: "M6 1 h4 v7 h4 l-6 7 l-6 -7 h4 z", drain: "M6 15 h4 v-7 h4 l-6 -7 l-6 7 h4 z", newSlab: "M6.5 2 h3 v4.5 h4.5 v3 h-4.5 v4.5 h-3 v-4.5 h-4.5 v-3 h4.5 z",
    freeSlab: "M2 6.5 h12 v3 h-12 z", slowPath: "M6.5 1 h3 v9 h-3 z M6.5 12 h3 v3 h-3 z",
    failure: "M2 4 L4 2 L8 6 L12 2 L14 4 L10 8 L14 12 L12 14 L8 10 L4 14 L2 12 L6 8 z",
};

/** A small sign; drawn, because fonts do not have all of them. */
export const icon = name => s("svg", { class: "sign", width: 13, height: 13, viewBox: "0 0 16 16", "aria-hidden": "true" },
    s("path", { d: ICONS[name] ?? ICONS.slowPath, fill: "currentColor" }));

/** An address as a link to everything about it. */
export const addressLink = (address, text = address) =>
    address ? h("a", { class: "mono", href: routeTo("explain", { address }) }, text) : "–";

/** A frame as a link to its place in the map. */
export const frameLink = (pfn, text) =>
    h("a", { class: "mono", href: routeTo("map", { sel: pfn, deep: "page" }) }, text ?? `0x${Number(pfn).toString(16)}`);

/** Terms and their values; pairs whose value is null are left out. */
export const facts = pairs => h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));

/** A table. Columns: { key, title, number, of(row) → text or element, sort(row) → value }. */
export function table(columns, rows, options = {}) {
    const head = columns.map(column => {
        const sorted = options.sort?.key === column.key;
        const direction = sorted ? (options.sort.down ? "descending" : "ascending") : null;
        const title = options.onSort && column.sort
            ? h("button", { onclick: () => options.onSort(column.key) }, column.title, sorted ? (options.sort.down ? " ▾" : " ▴") : "")
            : column.title;
        return h("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": direction, title: column.about }, title);
    });
    const body = rows.map(row => options.row ? options.row(row, cells(columns, row)) : h("tr", {}, cells(columns, row)));
    return h("table", { "aria-label": options.label }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
}

const cells = (columns, row) => columns.map(column =>
    h("td", { class: column.number ? "number" : null }, column.of ? column.of(row) : column.number ? count(row[column.key]) : row[column.key]));

/** Sorts rows by a column's `sort`. */
export function sorted(rows, column, down) {
    if (!column?.sort) return rows;
    const sign = down ? -1 : 1;
    return [...rows].sort((a, b) => {
        const [x, y] = [column.sort(a), column.sort(b)];
        return sign * (typeof x === "string" ? x.localeCompare(y) : (x ?? 0) - (y ?? 0));
    });
}

/** A title and its table behind a fold: what a picture shows, for those who do not see it. */
export const asTable = content => h("details", {}, h("summary", {}, t("app.asTable")), content);

/** Calls with an element's width, now and whenever it changes; returns what ends it and what draws again. */
export function measured(element, draw) {
    let width = 0;
    const observer = new ResizeObserver(([entry]) => {
        const now = Math.floor(entry.contentRect.width);
        if (now === width || now === 0) return;
        width = now;
        draw(width);
    });
    observer.observe(element);
    return { end: () => observer.disconnect(), again: () => { if (width > 0) draw(width); } };
}

/** SVG text. */
export const label = (x, y, text, properties = {}) => s("text", { x, y, "font-size": 12, ...properties }, text);
