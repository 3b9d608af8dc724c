// Hatching: eight rows of eight pixels for each pattern, laid over a colour, so that what hue tells is also told
// without it. A pattern runs on from one cell of the map to the next: the bit of a pixel is chosen by its place on the
// screen, so that a region of one kind is one hatched area.
//
//    rising  . . . # . . . #     falling  # . . . # . . .     dots  . . . . . . . .
//            . . # . . . # .              . # . . . # . .           . # . . . # . .

import { recall, remember } from './i18n.js';
import { css, mix } from './palette.js';

const rows = (...bits) => bits.map(text => parseInt([...text].reverse().join(""), 2));

/** The patterns by name; a row's lowest bit is its leftmost pixel. */
export const PATTERNS = {
    plain: rows("00000000", "00000000", "00000000", "00000000", "00000000", "00000000", "00000000", "00000000"),
    rising: rows("00010001", "00100010", "01000100", "10001000", "00010001", "00100010", "01000100", "10001000"),
    falling: rows("10001000", "01000100", "00100010", "00010001", "10001000", "01000100", "00100010", "00010001"),
    lines: rows("00000000", "11111111", "00000000", "00000000", "00000000", "11111111", "00000000", "00000000"),
    posts: rows("01000100", "01000100", "01000100", "01000100", "01000100", "01000100", "01000100", "01000100"),
    crosses: rows("10000001", "01000010", "00100100", "00011000", "00011000", "00100100", "01000010", "10000001"),
    dots: rows("00000000", "01000100", "00000000", "00000000", "00000000", "00010001", "00000000", "00000000"),
    grid: rows("11111111", "10001000", "10001000", "10001000", "11111111", "10001000", "10001000", "10001000"),
    checks: rows("11001100", "11001100", "00110011", "00110011", "11001100", "11001100", "00110011", "00110011"),
    bricks: rows("11111111", "10000000", "10000000", "10000000", "11111111", "00001000", "00001000", "00001000"),
    waves: rows("00100000", "01010000", "10001000", "00000101", "00000010", "00000000", "00000000", "00000000"),
    dashes: rows("11100000", "00000000", "00000000", "00001110", "00000000", "00000000", "00000000", "00000000"),
};

const NAMES = Object.keys(PATTERNS);

/** All rows in one table: pattern n has rows 8n to 8n + 7. */
export const TILES = Uint8Array.from(NAMES.flatMap(name => PATTERNS[name]));

const KINDS = {
    hole: "plain", reserved: "dots", free: "plain", pcp: "lines", slab: "rising", large: "bricks", pageTable: "grid",
    vmalloc: "falling", movable: "posts", unmovable: "crosses", reclaimable: "checks", other: "dashes",
};

/** The number of a kind's pattern. */
export const kindPattern = name => NAMES.indexOf(KINDS[name] ?? KINDS.other);

/** The number of the pattern of the n-th of several things without an order. */
export const cyclePattern = n => n % NAMES.length;

/** The pattern's ink on a colour: far enough from it to be seen, near enough to leave the colour its name. */
export function inkFor(colour) {
    const [r, g, b] = colour.map(value => (value / 255) ** 2.2);
    return mix(colour, 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.12 ? [0, 0, 0] : [255, 255, 255], 0.5);
}

const wished = [matchMedia("(prefers-contrast: more)"), matchMedia("(forced-colors: active)")];

/** Whether patterns are shown: chosen by their switch, else where the system asks for more contrast. */
export function patternsOn() {
    const chosen = recall("patterns");
    return chosen === null ? wished.some(one => one.matches) : chosen === "on";
}

export const choosePatterns = on => remember("patterns", on ? "on" : "off");

/** Calls when the system's wish changes. */
export const onSystemContrast = action => wished.forEach(one => one.addEventListener("change", action));

const pictures = new Map();

/** A colour with its pattern as a picture for a style sheet's `background`. */
export function patternUrl(colour, pattern) {
    const key = `${colour}/${pattern}`;
    const known = pictures.get(key);
    if (known) return known;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    const context = canvas.getContext("2d");
    context.fillStyle = css(colour);
    context.fillRect(0, 0, 8, 8);
    context.fillStyle = css(inkFor(colour));
    for (let at = 0; at < 64; at++) {
        if ((TILES[pattern * 8 + (at >> 3)] >> (at & 7)) & 1) context.fillRect(at & 7, at >> 3, 1, 1);
    }
    const url = `url(${canvas.toDataURL()})`;
    pictures.set(key, url);
    return url;
}
