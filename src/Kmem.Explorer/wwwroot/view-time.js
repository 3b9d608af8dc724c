// Time: the events of the recording around the moment shown, with filters; each leads to its moment, its object, its reason.

import { h, later, show } from './dom.js';
import { bytes, count, seconds } from './format.js';
import { named, t } from './i18n.js';
import { addressLink, empty, loading, problem, table } from './parts.js';
import { go, keep, routeTo } from './route.js';
import { eventWords } from './words.js';

const PAGE = 60;
const FILTERS = ["kind", "cpu", "cache", "site", "address", "pid"];

export function timeView(store, main, parameters) {
    if (!store.canSeek) {
        const why = store.info.source === "state" ? "time.noEventsState" : "time.noEvents";
        main.append(empty(t(why), t("time.noEventsAbout")));
        return { end() { } };
    }
    return new TimeView(store, main, parameters);
}

class TimeView {
    constructor(store, main, parameters) {
        this.store = store;
        this.scope = store.scope();
        this.events = [];
        this.filter = Object.fromEntries(FILTERS.map(name => [name, parameters[name] ?? ""]));
        this.build(main);
        const follow = later(120, () => this.follow());
        this.scope.on("time", time => {
            this.markNow();
            if (!time.playing || !this.has(time.t - 1)) follow();
        });
        this.scope.on("marks", () => this.showMarks());
        this.load();
        this.showMarks();
    }

    build(main) {
        const change = later(250, () => {
            keep(Object.fromEntries(FILTERS.map(name => [name, this.filter[name] || null])));
            this.load();
        });
        const field = (name, size, type = "search") => h("label", { class: "row small" }, t(`time.filter.${name}`), h("input", {
            type, size, value: this.filter[name], spellcheck: "false", "data-filter": name,
            oninput: e => { this.filter[name] = e.target.value.trim(); change(); },
        }));
        const kinds = h("select", {
            "data-filter": "kind",
            onchange: e => { this.filter.kind = e.target.value; change(); },
        }, h("option", { value: "" }, t("time.anyKind")), this.store.info.eventKinds.filter(kind => kind.count !== 0).map(kind =>
            h("option", { value: kind.name, translate: "no", selected: kind.name === this.filter.kind },
                `${kind.name} (${count(kind.count)})`)));
        const cpus = h("select", { "data-filter": "cpu", onchange: e => { this.filter.cpu = e.target.value; change(); } },
            h("option", { value: "" }, t("time.anyCpu")), Array.from({ length: this.store.info.cpus }, (_, i) =>
                h("option", { value: String(i), selected: String(i) === this.filter.cpu }, `CPU ${i}`)));
        this.body = h("div", { class: "scroll" }, loading());
        this.marks = h("div", { class: "row" });
        this.older = h("button", { onclick: () => this.more(-1) }, t("time.older"));
        this.newer = h("button", { onclick: () => this.more(1) }, t("time.newer"));
        main.append(h("div", { class: "stack" },
            h("section", { class: "panel", "aria-label": t("time.marks") }, h("header", {}, h("h2", {}, t("time.marks")),
                h("span", { class: "soft" }, t("time.marksAbout"))), this.marks),
            h("section", { class: "panel", "aria-label": t("time.events") }, h("header", {}, h("h2", {}, t("time.events")),
                h("span", { class: "soft" }, t("time.eventsAbout"))),
            h("div", { class: "row", style: { "margin-bottom": "8px" } }, h("label", { class: "row small" }, t("time.filter.kind"), kinds),
                h("label", { class: "row small" }, t("time.filter.cpu"), cpus),
                field("cache", 12), field("site", 16), field("address", 20), field("pid", 6)),
            h("div", { class: "row" }, this.older), this.body, h("div", { class: "row" }, this.newer))));
    }

    query(from, limit, direction) {
        const { address, ...rest } = this.filter;
        return this.store.ask("/api/events", {
            from, limit, direction, ...rest, address: address && !address.startsWith("0x") ? `0x${address}` : address,
        });
    }

    has(n) {
        return this.events.length > 0 && n >= this.events[0].n && n <= this.events.at(-1).n;
    }

    /** Loads the events around the moment shown. */
    async load() {
        const asked = this.asked = Symbol("load");
        try {
            const at = Math.max(0, this.store.time.t - 1);
            const [before, after] = await Promise.all([
                at > 0 ? this.query(at - 1, PAGE / 2, -1) : { events: [], more: false },
                this.query(at, PAGE / 2, 1),
            ]);
            if (this.asked !== asked || this.ended) return;
            this.events = [...before.events, ...after.events].sort((a, b) => a.n - b.n);
            this.older.disabled = !before.more;
            this.newer.disabled = !after.more;
            this.loadedFor = this.store.time.t;
            this.draw();
        }
        catch (error) {
            if (this.asked === asked && !this.ended) show(this.body, problem(error));
        }
    }

    async more(direction) {
        const edge = direction < 0 ? this.events[0]?.n - 1 : this.events.at(-1)?.n + 1;
        if (!(edge >= 0)) return;
        try {
            const answer = await this.query(edge, PAGE, direction);
            this.events = [...this.events, ...answer.events].sort((a, b) => a.n - b.n);
            (direction < 0 ? this.older : this.newer).disabled = !answer.more;
            this.draw();
        }
        catch (error) {
            show(this.body, problem(error));
        }
    }

    follow() {
        if (!this.has(this.store.time.t - 1)) this.load();
    }

    draw() {
        if (this.events.length === 0) {
            show(this.body, empty(t("time.noneFound"), t("time.noneFoundAbout")));
            return;
        }
        show(this.body, table([
            { key: "n", title: "#", number: true, of: event => h("button", { class: "link", title: t("time.goTo"), onclick: () => this.store.seek(event.n + 1) }, count(event.n)) },
            { key: "ns", title: t("time.at"), number: true, of: event => event.ns === null ? "–" : seconds((event.ns - (this.store.info.firstNs ?? 0)) / 1e9) },
            { key: "cpu", title: "CPU", number: true, of: event => event.cpu ?? "–" },
            { key: "kind", title: t("map.kind"), of: event => h("code", {}, event.kind) },
            {
                key: "text", title: t("time.what"), of: event => h("a", {
                    href: routeTo("explain", { event: event.n }), title: t("explain.event"),
                }, eventWords(event)),
            },
            { key: "address", title: t("object.address"), of: event => addressLink(event.address) },
            { key: "result", title: t("time.result"), of: event => named(`result.${event.result}`, event.result ?? "") },
            { key: "site", title: t("object.site"), of: event => h("span", { class: "mono" }, event.site?.name ?? "–") },
        ], this.events, {
            label: t("time.events"),
            row: (event, cells) => h("tr", { "data-n": event.n, title: event.gfp ? `${event.gfp}${event.bytesAllocated ? ` · ${bytes(event.bytesAllocated)}` : ""}` : null }, cells),
        }));
        this.markNow(true);
    }

    markNow(scroll = false) {
        const now = this.store.time.t - 1;
        for (const row of this.body.querySelectorAll("tr[data-n]")) {
            const on = Number(row.dataset.n) === now;
            row.setAttribute("aria-selected", String(on));
            if (on && (scroll || this.store.time.playing)) row.scrollIntoView({ block: scroll ? "center" : "nearest" });
        }
    }

    showMarks() {
        const { a, b } = this.store.marks;
        const one = (name, at) => h("span", { class: "row" }, h("b", {}, name.toUpperCase()),
            at === null ? h("span", { class: "soft" }, t("time.notSet")) : h("button", { class: "link", onclick: () => this.store.seek(at) }, count(at)),
            h("button", { onclick: () => this.store.mark(name) }, t("time.markHere")));
        show(this.marks, one("a", a), one("b", b), h("button", {
            class: "main", disabled: a === null || b === null, onclick: () => go("compare", { from: a, to: b }),
        }, t("time.compare")));
    }

    end() {
        this.ended = true;
        this.scope.end();
    }
}
