// The legend of the map, which is also its filter: what is pressed is shown, the rest fades.

import { h, show } from './dom.js';
import { count } from './format.js';
import { named, t } from './i18n.js';
import { AGE_STEPS, KIND_SLAB } from './map-painter.js';
import { cyclePattern, kindPattern } from './patterns.js';
import { freeColour, kindColour, kindLetters, migrateColour, cycleColour, rampColour } from './palette.js';
import { swatch } from './parts.js';
import { typeWords } from './words.js';

const PIN = 16;

/** The legend as { root, update(), reset() }; `redraw` is called when it gave other colours to caches or call sites. */
export function mapLegend(store, painter, redraw) {
    const list = h("div", { class: "legend", role: "group", "aria-label": t("map.legend") });
    const clear = h("button", { class: "hidden", onclick: () => { reset(); store.filter({}); update(); } }, t("map.clear"));
    const root = h("div", {}, h("p", { class: "soft small" }, t("map.legendAbout")), list, clear);
    const pressed = new Set();

    function reset() {
        pressed.clear();
    }

    function toggle(item) {
        if (pressed.has(item.key)) pressed.delete(item.key);
        else {
            if (item.alone) pressed.clear();
            pressed.add(item.key);
        }
        send();
        update();
    }

    function send() {
        const chosen = [...pressed];
        if (chosen.length === 0) return store.filter({});
        switch (painter.mode) {
            case "kind": return store.filter({ kinds: chosen });
            case "cache": return store.filter({ kinds: [KIND_SLAB], owners: chosen });
            case "zone": return store.filter({ zones: chosen });
            case "type": return store.filter({ migrateTypes: chosen });
            case "site": return store.filter({ sites: chosen });
            case "age": {
                const [step] = chosen;
                const youngest = step === 0 ? 0 : AGE_STEPS[step - 1];
                return store.filter({ age: [youngest, Math.min(AGE_STEPS[step] - 1, 2 ** 31)] });
            }
            default: return undefined;
        }
    }

    function update() {
        const items = itemsOf(store, painter, redraw);
        clear.classList.toggle("hidden", pressed.size === 0);
        if (items.length === 0) {
            show(list, h("p", { class: "soft small" }, t("map.noneOfMode")));
            return;
        }
        const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
        show(list, items.map(item => h("button", {
            "aria-pressed": String(pressed.has(item.key)), "data-key": item.key, disabled: item.still, title: item.text,
            onclick: () => toggle(item),
        }, swatch(item.colour, item.letter, item.pattern), h("span", { translate: item.name ? "no" : null }, item.text),
        h("span", { class: "soft" }, item.frames))));
        if (focused !== null) list.querySelector(`[data-key="${focused}"]`)?.focus();
    }

    return { root, update, reset };
}

/** The lines of the legend: { key, text, colour, letter, frames, alone, still }. */
function itemsOf(store, painter, redraw) {
    const per = 2 ** painter.level;
    const frames = cells => cells === 0 ? "" : `${per > 1 ? "≈" : ""}${count(cells * per)}`;
    switch (painter.mode) {
        case "kind": return kinds(store, painter, frames);
        case "cache":
        case "site": return ranked(store, painter, frames, redraw);
        case "zone": {
            const counts = painter.census();
            return store.info.zones.map(zone => ({
                key: zone.id, text: zone.name, colour: cycleColour(zone.id), letter: zone.name[0],
                pattern: cyclePattern(zone.id),
                frames: frames(counts[zone.id] + counts[zone.id | 128]),
            }));
        }
        case "type": {
            const counts = painter.census();
            return store.info.migrateTypes.map(type => ({
                key: type.id, text: typeWords(type.name), colour: migrateColour(type.id), letter: type.name[0],
                pattern: cyclePattern(type.id),
                frames: frames(counts[type.id] + counts[type.id | 128]),
            }));
        }
        case "age": {
            const counts = painter.census();
            return AGE_STEPS.map((step, i) => ({
                key: i, alone: true, colour: rampColour(1 - i / (AGE_STEPS.length - 1)), letter: String(i),
                text: step === Infinity ? t("map.older", { n: count(AGE_STEPS[i - 1]) }) : t("map.younger", { n: count(step) }),
                frames: frames(counts[i]),
            }));
        }
        default: {
            const counts = painter.census();
            return [
                { key: PIN, still: true, text: t("map.pins"), colour: [213, 94, 0], letter: "!",
                    pattern: kindPattern("unmovable"), frames: frames(counts[PIN]) },
                ...[2, 8, 15].map(level => ({
                    key: level, still: true, text: t("map.blockUse", { n: `${Math.round(level / 15 * 100)} %` }),
                    colour: painter.classColour(level), letter: "", frames: "",
                })),
            ];
        }
    }
}

function kinds(store, painter, frames) {
    const counts = painter.census();
    const sum = (from, to) => counts.subarray(from, to).reduce((a, b) => a + b, 0);
    return store.info.kinds.filter(kind => kind.name !== "hole").map(kind => ({
        key: kind.id, pattern: kindPattern(kind.name),
        colour: kind.name === "free" ? freeColour(5) : kindColour(kind.name),
        letter: kind.name === "free" ? "n" : kindLetters[kind.name], text: named(`kind.${kind.name}`, kind.label ?? kind.name),
        frames: frames(kind.name === "free" ? sum(128, 144) : kind.name === "slab" ? sum(144, 160) : counts[kind.id]),
    }));
}

function ranked(store, painter, frames, redraw) {
    const found = painter.rank();
    painter.recolour();
    redraw();
    return found.map(({ id, slot, cells }) => {
        const name = painter.mode === "cache" ? store.cacheName(id) : store.siteName(id) ?? `#${id}`;
        return {
            key: id, colour: painter.classColour(slot), pattern: painter.classPattern(slot), text: name, name: true,
            letter: String.fromCharCode(65 + slot % 26), frames: frames(cells),
        };
    });
}
