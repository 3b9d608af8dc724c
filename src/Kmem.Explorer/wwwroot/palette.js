// Colours. The hues are those of Okabe and Ito, which stay apart for colour-blind readers; ordered things (order, age,
// share) are ramps of one direction in lightness. No colour stands alone: legends have letters, large cells too.

const OKABE = {
    black: [0, 0, 0], orange: [230, 159, 0], sky: [86, 180, 233], green: [0, 158, 115],
    yellow: [240, 228, 66], blue: [0, 114, 178], vermilion: [213, 94, 0], purple: [204, 121, 167],
};

/** Twelve colours for things without an order (caches, call sites), told apart by hue first, by lightness second. */
const CYCLE = [
    OKABE.blue, OKABE.orange, OKABE.green, OKABE.purple, OKABE.sky, OKABE.vermilion, OKABE.yellow,
    [120, 94, 160], [139, 109, 56], [0, 90, 80], [246, 180, 160], [150, 190, 120],
];

/** Cividis: one ramp from dark blue to yellow, the same to all eyes. */
const CIVIDIS = [
    [0, 42, 102], [39, 70, 107], [76, 95, 108], [106, 117, 110], [137, 139, 112], [170, 162, 109], [208, 189, 97],
    [253, 231, 55],
];

export const mix = (a, b, share) => a.map((value, i) => Math.round(value + (b[i] - value) * share));

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now: chosen by its switch, else by the system. */
export function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : dark.matches;
}

/** Calls when the system changes from light to dark or back. */
export const onSystemTheme = action => dark.addEventListener("change", action);

/** Colours of the page's own parts, for canvases. */
export const page = () => isDark()
    ? { back: [16, 20, 26], cell: [24, 30, 38], text: [222, 228, 236], soft: [139, 150, 163], line: [52, 61, 73],
        accent: [86, 180, 233], select: [255, 255, 255] }
    : { back: [255, 255, 255], cell: [238, 241, 245], text: [27, 33, 41], soft: [94, 106, 120], line: [205, 212, 220],
        accent: [0, 114, 178], select: [0, 0, 0] };

/** A free block of an order: the larger, the nearer to the background, so that splinters are what one sees. */
export function freeColour(order) {
    const share = Math.min(order, 10) / 10;
    return isDark()
        ? mix([86, 180, 233], [25, 43, 66], Math.sqrt(share))
        : mix([0, 114, 178], [219, 233, 246], Math.sqrt(share));
}

const kindColours = {
    reserved: () => isDark() ? [64, 70, 79] : [181, 187, 195],
    pcp: () => OKABE.yellow,
    slab: () => OKABE.green,
    large: () => isDark() ? [128, 222, 190] : [0, 90, 66],
    pageTable: () => isDark() ? [245, 245, 245] : [20, 20, 20],
    vmalloc: () => OKABE.purple,
    movable: () => OKABE.orange,
    unmovable: () => OKABE.vermilion,
    reclaimable: () => [139, 109, 56],
    other: () => [110, 100, 130],
};

/** The letter of a kind, for legends and large cells. Free blocks show their order instead. */
export const kindLetters = {
    hole: "", reserved: "·", free: "", pcp: "P", slab: "S", large: "L", pageTable: "T", vmalloc: "V", movable: "M",
    unmovable: "U", reclaimable: "R", other: "?",
};

/** The colour of a kind of frame; free blocks by order. */
export function kindColour(name, order = 0) {
    if (name === "hole") return page().back;
    if (name === "free") return freeColour(order);
    return (kindColours[name] ?? kindColours.other)();
}

/** The colour of the n-th of several things without an order. */
export const cycleColour = n => CYCLE[n % CYCLE.length];

/** How many there are before they repeat. */
export const CYCLE_LENGTH = CYCLE.length;

/** A share from 0 to 1 as a colour: dark is little, yellow is much (or the other way round on paper). */
export function rampColour(share) {
    const at = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1);
    const low = Math.floor(at);
    return mix(CIVIDIS[low], CIVIDIS[Math.min(low + 1, CIVIDIS.length - 1)], at - low);
}

/** Colours of migrate types, in the kernel's order of ids. */
export const migrateColour = id =>
    [OKABE.vermilion, OKABE.orange, [139, 109, 56], OKABE.purple, OKABE.sky, OKABE.yellow][id] ?? [128, 128, 128];

/** Black or white, whichever can be read on a colour. */
export function inkOn(colour) {
    const [r, g, b] = colour.map(value => (value / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.19 ? "#10141a" : "#ffffff";
}

/** What marks of bytes look like. */
export const markColour = what => ({
    object: OKABE.green, freePointer: OKABE.blue, redZone: OKABE.vermilion, poison: OKABE.purple, padding: [128, 128, 128],
    track: OKABE.sky, unused: OKABE.yellow,
})[what] ?? [128, 128, 128];
