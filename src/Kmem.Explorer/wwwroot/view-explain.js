// Explain: one address (or frame, or event), everything that is known about it, the reasons as values, and one sentence.

import { h, show } from './dom.js';
import { count, parseAddress } from './format.js';
import { language, named, t } from './i18n.js';
import { objectPanel } from './object-panel.js';
import { addressLink, empty, facts, frameLink, loading, problem, table } from './parts.js';
import { go, routeTo } from './route.js';
import { chineseSentence } from './sentence-zh.js';
import { Follower } from './store.js';
import { valueWords } from './words.js';

const LONG = 24;

export function explainView(store, main, parameters) {
    const field = h("input", { type: "search", class: "mono", size: 24, spellcheck: "false", "aria-label": t("app.address"), placeholder: "0xffff8880…" });
    const form = h("form", {
        class: "row",
        onsubmit: e => {
            e.preventDefault();
            const value = parseAddress(field.value);
            field.setCustomValidity(value ? "" : t("app.noAddress"));
            if (value) go("explain", { address: value });
            else field.reportValidity();
        },
    }, h("label", { class: "row" }, h("h2", {}, t("view.explain")), field), h("button", { class: "main" }, t("explain.ask")));
    const body = h("div", { class: "stack" });
    const bytesPlace = h("div");
    main.append(h("div", { class: "stack" }, h("section", { class: "panel" }, form), body, bytesPlace));
    field.addEventListener("input", () => field.setCustomValidity(""));

    let question = null;
    let object = null;
    const follower = new Follower(store, () => question ? store.get("/api/explain", question) : Promise.resolve(null), answer => {
        show(body, answer ? content(store, answer) : start(store));
    }, error => show(body, h("section", { class: "panel" }, problem(error))), 500);

    const enter = now => {
        const { address, pfn, event } = now;
        question = address ? { address } : pfn ? { pfn } : event ? { event } : null;
        field.value = address ?? "";
        object?.end();
        object = address ? objectPanel(store, address, true) : null;
        show(bytesPlace, object?.root);
        if (question) show(body, loading());
        follower.refresh();
    };
    enter(parameters);
    return { enter, end: () => { follower.end(); object?.end(); } };
}

function start(store) {
    const event = store.time.event;
    return h("section", { class: "panel" }, empty(t("explain.start"), h("p", {}, t("explain.startAbout"))),
        event?.address ? h("p", { class: "right" }, t("explain.try"), " ", addressLink(event.address)) : null);
}

// The parts of an explanation, in the order of reading: from the outside to the inside.
const PARTS = ["zone", "pageblock", "page", "freeBlock", "pcp", "slab", "object", "table", "area"];

function content(store, answer) {
    const it = answer.explanation;
    const steps = answer.steps ?? [];
    const stepPanel = steps.length > 0
        ? h("section", { class: "panel" }, h("header", {}, h("h2", {}, t("explain.steps"))), stepList(store, steps)) : null;
    const sentence = h("section", { class: "panel", "aria-label": t("explain.sentence") },
        h("p", { class: "sentence", role: "status" }, sentenceOf(store, answer)),
        facts([[t("object.address"), answer.address ? addressLink(answer.address) : null],
            ...["kind", "region", "recorded"].map(name => [title(name), it?.[name] ? valueWords(it[name]) : null])]),
        store.source.offline && !it ? h("p", { class: "soft" }, t("explain.offline")) : null);
    if (!it) return [sentence, stepPanel];

    return [
        sentence,
        h("div", { class: "lanes" }, PARTS.filter(name => it[name]).map(name => section(store, name, it[name]))),
        it.decision ? section(store, "decision", it.decision) : null,
        it.mapping?.steps.length ? h("section", { class: "panel", "data-part": "mapping" }, h("header", {}, h("h2", {}, t("explain.mapping")),
            h("a", { href: routeTo("virtual", { address: answer.address }) }, t("explain.walk"))),
        anyTable(store, it.mapping.steps)) : null,
        it.life.length ? h("section", { class: "panel", "data-part": "life" }, h("header", {}, h("h2", {}, t("explain.life")),
            it.lifeOmitted ? h("span", { class: "soft" }, t("explain.omitted", { n: count(it.lifeOmitted) })) : null),
        anyTable(store, it.life)) : null,
        stepPanel,
    ];
}

/** The sentence: the server's in English, made of the values in other languages. */
function sentenceOf(store, answer) {
    if (language() === "en") return answer.summary;
    const sentence = chineseSentence(answer.explanation, store.info.pageBytes);
    if (sentence) return sentence;
    const what = answer.steps?.length ? answer.steps.map(step => title(step.name)).join("、") : t("event.unchanged");
    return t("event.summary", { n: count(answer.t), kind: valueWords(answer.kind), what });
}

const stepList = (store, steps) => h("ol", { class: "steps" }, steps.map(step => h("li", {},
    h("b", {}, title(step.name)), " ", language() === "en" ? step.text ?? "" : "",
    step.values && Object.keys(step.values).length > 0
        ? h("div", { class: "values" }, Object.entries(step.values).map(([name, value]) =>
            h("span", {}, h("span", { class: "soft" }, `${title(name)} `), h("b", {}, valueOf(store, name, value)))))
        : null)));

const section = (store, name, value) => h("section", { class: "panel", "aria-label": title(name), "data-part": name }, h("header", {}, h("h2", {}, title(name))),
    Array.isArray(value) ? (value.length > 0 && typeof value[0] === "object" ? anyTable(store, value) : valueOf(store, name, value)) : nested(store, value));

function nested(store, value) {
    const entries = Object.entries(value).filter(([, one]) => one !== null && !(Array.isArray(one) && one.length === 0));
    const tables = entries.filter(([, one]) => Array.isArray(one) && typeof one[0] === "object");
    const objects = entries.filter(([, one]) => !Array.isArray(one) && typeof one === "object");
    const plain = entries.filter(entry => !tables.includes(entry) && !objects.includes(entry));
    return [
        facts(plain.map(([name, one]) => [title(name), valueOf(store, name, one)])),
        objects.map(([name, one]) => [h("h3", {}, title(name)), nested(store, one)]),
        tables.map(([name, one]) => [h("h3", {}, title(name)), anyTable(store, one)]),
    ];
}

/** A table of whatever the rows have; columns that are empty in all rows are left out. */
function anyTable(store, rows) {
    const names = [...new Set(rows.flatMap(row => Object.keys(row)))].filter(name => rows.some(row => row[name] !== null && row[name] !== undefined && row[name] !== ""));
    return h("div", { class: "scroll" }, table(names.map(name => ({
        key: name, title: title(name), number: rows.every(row => typeof row[name] === "number"), of: row => valueOf(store, name, row[name]),
    })), rows));
}

/** camelCase as words, or the dictionary's term. */
const title = name => named(`field.${name}`, String(name).replace(/([a-z])([A-Z])/g, "$1 $2").replace(/^./, c => c.toUpperCase()));

const FRAMES = ["pfn", "first", "frame", "blockFirst", "head", "buddy"];

// Names of the kernel's, the same in every language.
const NAMES = [
    "callSite", "site", "cache", "name", "zone", "gfp", "flags", "caller", "allocatedBy", "freedBy", "rights",
    "cacheMode", "level",
];

function valueOf(store, name, value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return t(value ? "app.yes" : "app.no");
    // Counted from 1, as the sentence counts: the moment right after event value - 1.
    if (name === "event" && value > 0 && store.canSeek) return h("a", { href: routeTo("explain", { event: value - 1 }) }, count(value));
    if (name === "cache" && typeof value === "number") return h("span", { class: "mono" }, store.cacheName(value));
    if (typeof value === "number" && FRAMES.includes(name)) return frameLink(value);
    if (typeof value === "number") return Number.isInteger(value) ? count(value) : String(Math.round(value * 1000) / 1000);
    if (Array.isArray(value)) {
        if (value.length === 0) return "–";
        if (NAMES.includes(name)) return h("span", { class: "mono" }, value.join(" "));
        return value.every(one => typeof one === "number") && value.length <= LONG
            ? h("span", { class: "mono" }, value.map(one => count(one)).join(" "))
            : value.map(one => typeof one === "object" ? JSON.stringify(one) : valueWords(one)).join(", ");
    }
    if (typeof value === "object") {
        return Object.entries(value).map(([key, one], i) => [i ? " · " : "", `${title(key)} `, valueOf(store, key, one)]);
    }
    if (name !== "entry" && /^0x[0-9a-f]{16}$/i.test(value)) return addressLink(value);
    if (/^0x[0-9a-f]{1,10}$/i.test(value) && FRAMES.includes(name)) return frameLink(Number(value), value);
    if (NAMES.includes(name) || /^0x/.test(value)) return h("span", { class: "mono" }, value);
    return valueWords(value);
}
