// The page: opens the source, builds the frame around the views, and goes from one view to another by the URL.

import { h, later, s, show } from './dom.js';
import { firstLanguage, language, languages, recall, remember, setLanguage, t } from './i18n.js';
import { parseAddress } from './format.js';
import { isDark, onSystemTheme } from './palette.js';
import { onSystemContrast } from './patterns.js';
import { go, keep, readRoute, routeTo } from './route.js';
import { openSource } from './source.js';
import { Store } from './store.js';
import { timeBar } from './timebar.js';
import { compareView } from './view-compare.js';
import { explainView } from './view-explain.js';
import { machineView } from './view-machine.js';
import { mapView } from './view-map.js';
import { slabsView } from './view-slabs.js';
import { timeView } from './view-time.js';
import { virtualView } from './view-virtual.js';

const VIEWS = {
    machine: machineView, map: mapView, slabs: slabsView, virtual: virtualView, explain: explainView, time: timeView,
    compare: compareView,
};

const app = document.getElementById("app");
let store;
let shown = null;              // { name, view }
let main;
let live;
let frame;                     // what listens for the parts around the view

start();

async function start() {
    setLanguage(firstLanguage());
    const theme = recall("theme");
    if (theme) document.documentElement.dataset.theme = theme;
    show(app, h("div"), h("p", { class: "loading", role: "status" }, t("app.opening")));
    try {
        const source = await openSource();
        const info = await source.get("/api/info");
        store = new Store(source, info);
    }
    catch (error) {
        show(app, h("div"), h("div", { class: "empty" },
            h("strong", {}, t("app.cannotOpen")), h("p", { class: "problem" }, error.message),
            h("button", { class: "main", onclick: () => location.reload() }, t("app.again"))));
        return;
    }
    const { t: moment, a, b } = readRoute().parameters;
    if (a !== undefined) store.marks.a = Number(a);
    if (b !== undefined) store.marks.b = Number(b);
    const first = moment === undefined ? startingMoment() : Number(moment);
    if (store.canSeek) store.time.t = first;
    store.open(first);
    build();
    addEventListener("hashchange", () => route(false));
    addEventListener("keydown", key);
    onSystemTheme(() => store.emit("theme"));
    onSystemContrast(() => store.emit("theme"));
    const keepMoment = later(250, () => {
        if (store.canSeek && !store.time.playing) keep({ t: store.time.t });
    });
    store.on("time", keepMoment);
    store.on("marks", marks => keep(marks));
    store.on("problem", problem => say(problem.error));
}

// A recording opens where something is to be seen: at its middle, not at its empty beginning.
const startingMoment = () => store.canSeek ? Math.floor(store.info.events / 2) : undefined;

// ---- the frame

function build() {
    shown?.view.end();
    shown = null;
    frame?.end();
    frame = store.scope();
    main = h("main", { id: "main", tabindex: "-1" });
    live = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
    const lost = h("div", { class: "bar hidden", role: "alert" });
    const status = h("span", { class: "status" });
    const statusNow = () => {
        show(status, h("i", { "aria-hidden": "true" }), t(`status.${store.source.offline ? "file" : store.status}`));
        status.className = `status ${store.status}`;
        lost.classList.toggle("hidden", store.status !== "lost");
        show(lost, t("app.lost"), h("span", { class: "soft" }, store.reason ?? ""));
    };
    frame.on("status", statusNow);
    statusNow();
    show(app, h("div", {}, top(status), lost), main, timeBar(store, frame), live);
    route(true);
}

function top(status) {
    const address = h("input", {
        type: "search", name: "address", placeholder: "0xffff8880…", spellcheck: "false", autocomplete: "off",
        "aria-label": t("app.address"), title: `${t("app.address")} (/)`,
    });
    const search = h("form", {
        role: "search",
        onsubmit: e => {
            e.preventDefault();
            const value = parseAddress(address.value);
            address.setCustomValidity(value ? "" : t("app.noAddress"));
            if (value) go("explain", { address: value });
            else address.reportValidity();
        },
    }, address);
    address.addEventListener("input", () => address.setCustomValidity(""));
    const tabs = h("nav", { class: "tabs", "aria-label": t("app.views") }, Object.keys(VIEWS).map((name, i) =>
        h("a", { href: routeTo(name), "data-view": name, title: `${t(`view.${name}.about`)} (${i + 1})` },
            t(`view.${name}`))));
    return h("header", { class: "top" },
        h("a", { class: "skip", href: "#main", onclick: e => { e.preventDefault(); main.focus(); } }, t("app.skip")),
        h("h1", { class: "brand" }, logo(), "Kmem",
            h("span", { class: "name", translate: "no", title: store.info.name }, store.info.name)),
        tabs, search,
        h("div", { class: "tools" }, status,
            h("button", {
                onclick: nextLanguage, title: `${t("app.language")} (l)`, lang: language() === "en" ? "zh-CN" : "en",
            }, language() === "en" ? "中文" : "English"),
            h("button", { class: "icon", onclick: nextTheme, title: `${t("app.theme")} (t)`, "aria-label": t("app.theme") }, "◐"),
            h("button", { class: "icon", onclick: help, title: `${t("app.help")} (?)`, "aria-label": t("app.help") }, "?")));
}

// A block split in four: two buddies, one of them split again.
function logo() {
    const cell = (x, y, w, hgt, fill) => s("rect", { x, y, width: w, height: hgt, rx: 1.5, fill });
    return s("svg", { width: 22, height: 22, viewBox: "0 0 22 22", "aria-hidden": "true" },
        cell(1, 1, 9.4, 20, "#56b4e9"), cell(11.6, 1, 9.4, 9.4, "#009e73"), cell(11.6, 11.6, 4.2, 9.4, "#e69f00"),
        cell(16.8, 11.6, 4.2, 9.4, "#cc79a7"));
}

/** Says something to a screen reader, and to everybody in the corner for a moment. */
function say(text) {
    live.textContent = "";
    requestAnimationFrame(() => { live.textContent = text; });
}

// ---- going to a view

function route(anew) {
    const { view: name, parameters } = readRoute();
    if (!(name in VIEWS)) {
        history.replaceState(null, "", routeTo("machine", parameters));
        return route(anew);
    }
    if (parameters.t !== undefined && Number(parameters.t) !== store.time.t && !anew) store.seek(Number(parameters.t));
    if (shown?.name === name && !anew) {
        shown.view.enter?.(parameters);
        return;
    }
    shown?.view.end();
    main.textContent = "";
    main.className = "";
    main.scrollTop = 0;
    for (const tab of app.querySelectorAll(".tabs a")) {
        if (tab.dataset.view === name) {
            tab.setAttribute("aria-current", "page");
            tab.scrollIntoView({ block: "nearest", inline: "nearest" });
        }
        else tab.removeAttribute("aria-current");
    }
    document.title = `${t(`view.${name}`)} · Kmem · ${store.info.name}`;
    shown = { name, view: VIEWS[name](store, main, parameters) };
    if (store.canSeek && parameters.t === undefined) keep({ t: store.time.t });
    say(t(`view.${name}`));
}

// ---- keys

function key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = e.target.closest?.("input, select, textarea, dialog");
    if (typing) {
        if (e.key === "Escape") e.target.blur?.();
        return;
    }
    if (e.key === " " && e.target.closest?.("button, a, summary, [role=button]")) return;
    const action = keys()[e.key];
    if (!action) {
        shown?.view.key?.(e);
        return;
    }
    e.preventDefault();
    action();
}

const keys = () => ({
    " ": () => store.togglePlay(),
    ",": () => store.step(-1),
    ".": () => store.step(1),
    "<": () => store.step(-100),
    ">": () => store.step(100),
    "Home": () => store.seek(0),
    "End": () => store.seek(store.info.events),
    "[": () => store.mark("a"),
    "]": () => store.mark("b"),
    "/": () => app.querySelector("input[name=address]").focus(),
    "?": help,
    "t": nextTheme,
    "l": nextLanguage,
    ...Object.fromEntries(Object.keys(VIEWS).map((name, i) => [String(i + 1), () => go(name)])),
});

function help() {
    const row = (keyNames, text) => h("tr", {}, h("td", { class: "nowrap" }, keyNames.map(name => [h("kbd", {}, name), " "])),
        h("td", {}, text));
    const box = h("dialog", { "aria-label": t("app.help"), onclose: () => box.remove() },
        h("h2", {}, t("app.help")),
        h("table", {}, h("tbody", {},
            row(["1", "…", "7"], t("key.views")),
            row(["Space"], t("key.play")),
            row([",", "."], t("key.step")),
            row(["<", ">"], t("key.hundred")),
            row(["Home", "End"], t("key.ends")),
            row(["[", "]"], t("key.marks")),
            row(["/"], t("key.address")),
            row(["+", "−", "0"], t("key.zoom")),
            row(["← → ↑ ↓"], t("key.move")),
            row(["Enter", "Esc"], t("key.open")),
            row(["c", "h"], t("key.colour")),
            row(["t", "l", "?"], t("key.page")))),
        h("p", { class: "row" }, h("button", { class: "main", onclick: () => box.close() }, t("app.close"))));
    document.body.append(box);
    box.showModal();
}

function nextTheme() {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember("theme", theme);
    store.emit("theme");
}

function nextLanguage() {
    const names = Object.keys(languages);
    setLanguage(names[(names.indexOf(language()) + 1) % names.length]);
    remember("language", language());
    build();
}
