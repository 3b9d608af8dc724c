// What all views share: the machine's description, the moment shown, the connection, the address in the location bar.
//
//    source ──text──▶ store ──"time", "machine", "ticker", "cells", "status", "problem"──▶ views
//           ◀─send───       ◀────────────── seek, step, play, view, filter ──────────────
//
// The server keeps nothing that a lost connection would lose: after a reconnect the store says again what it wants.

const RETRY_MS = [300, 1000, 2000, 5000];

export class Store {
    constructor(source, info) {
        this.source = source;
        this.info = info;
        this.time = { t: info.events ?? 0, playing: false, speed: 0, ns: null, event: null };
        this.machine = null;
        this.ticks = [];
        this.status = "connecting";        // then "open", "lost"
        this.marks = { a: null, b: null };
        this._asked = null;         // a moment that was asked for while there was no connection
        this.cacheNames = new Map();
        this.siteNames = new Map();
        this.speed = null;                 // chosen for play; null: a good one for the length of the recording
        this._listeners = new Map();
        this._wanted = { view: null, filter: null, topics: new Map() };
        this._viewId = 0;
        this._tries = 0;
        this._sites = new Set();
        this._closed = false;
        this.kinds = new Map(info.kinds.map(kind => [kind.id, kind]));
        this.zones = new Map(info.zones.map(zone => [zone.id, zone]));
        this.takeCaches(info.caches);
    }

    // ---- listening

    /** Calls on each event of that name; returns what ends it. */
    on(name, listener) {
        const all = this._listeners.get(name) ?? this._listeners.set(name, new Set()).get(name);
        all.add(listener);
        return () => all.delete(listener);
    }

    emit(name, value) {
        for (const listener of this._listeners.get(name) ?? []) listener(value);
    }

    /** Listeners and other things that end together. */
    scope() {
        const ends = [];
        return {
            on: (name, listener) => ends.push(this.on(name, listener)),
            add: end => ends.push(end),
            end: () => ends.splice(0).forEach(end => end()),
        };
    }

    // ---- the connection

    open(t) {
        this._firstMoment = t;
        this._connect();
    }

    close() {
        this._closed = true;
        clearTimeout(this._timer);
        this._connection?.close();
    }

    _connect() {
        this._connection = this.source.connect({
            text: message => this._text(message),
            cells: buffer => this.emit("cells", buffer),
            closed: reason => this._lost(reason),
        });
    }

    _lost(reason) {
        if (this._closed) return;
        this._set("lost");
        this.reason = reason;
        this._timer = setTimeout(() => this._connect(), RETRY_MS[Math.min(this._tries++, RETRY_MS.length - 1)]);
    }

    _set(status) {
        if (this.status === status) return;
        this.status = status;
        this.emit("status", status);
    }

    send(message) {
        this._connection?.send(message);
    }

    _text(message) {
        switch (message.type) {
            case "hello":
                this._hello(message);
                break;
            case "time":
                this.time = message;
                if (this.canSeek) this._forget(message.t);
                this.emit("time", message);
                break;
            case "machine":
                this.machine = message;
                this.emit("machine", message);
                break;
            case "ticker":
                this._tick(message.items);
                break;
            case "error":
                this.emit("problem", message);
                break;
        }
    }

    _hello() {
        const again = this._tries > 0;
        this._tries = 0;
        this._set("open");
        const t = this._asked ?? (again ? this.time.t : this._firstMoment);
        this._asked = null;
        if (this.info.seekable && t !== undefined && t !== null) this.send({ type: "seek", t });
        if (again && this.time.playing) this.send({ type: "play", speed: this.time.speed });
        if (this._wanted.filter) this.send(this._wanted.filter);
        if (this._wanted.view) this.send(this._wanted.view);
        this._subscribe();
    }

    _tick(items) {
        for (const item of items) {
            if (!this.canSeek || item.t <= this.time.t) this.ticks.push(item);
        }
        if (this.ticks.length > 200) this.ticks.splice(0, this.ticks.length - 200);
        this.emit("ticker", items);
    }

    /** Back in time, what lies ahead has not happened yet. */
    _forget(t) {
        const before = this.ticks.length;
        if (before === 0 || this.ticks.every(tick => tick.t <= t)) return;
        this.ticks = this.ticks.filter(tick => tick.t <= t);
        this.emit("ticker", []);
    }

    // ---- wishes

    /** Asks for a topic until the returned function is called. */
    subscribe(topic) {
        const topics = this._wanted.topics;
        topics.set(topic, (topics.get(topic) ?? 0) + 1);
        this._subscribe();
        return () => {
            topics.set(topic, topics.get(topic) - 1);
            this._subscribe();
        };
    }

    _subscribe() {
        const topics = [...this._wanted.topics].filter(([, users]) => users > 0).map(([topic]) => topic);
        this.send({ type: "subscribe", topics, rate: 10 });
    }

    /** Shows a window of frames in the map; returns the id that its cells will carry. */
    view(first, count, level) {
        this._wanted.view = { type: "view", id: ++this._viewId, first, count, level };
        if (this.status === "open") this.send(this._wanted.view);
        return this._viewId;
    }

    endView() {
        this._wanted.view = null;
        this.send({ type: "view", id: ++this._viewId, count: 0 });
    }

    filter(fields) {
        this._wanted.filter = { type: "filter", ...fields };
        if (this.status === "open") this.send(this._wanted.filter);
    }

    // ---- time

    get canSeek() {
        return this.info.seekable;
    }

    seek(t) {
        if (!this.canSeek) return;
        const to = Math.max(0, Math.min(this.info.events, Math.round(t)));
        if (this.status === "open") this.send({ type: "seek", t: to });
        else this._asked = to;      // nobody hears it yet: asked for when the connection stands
    }

    step(by) {
        if (!this.canSeek) return;
        if (this.status === "open") this.send({ type: "step", by });
        else this.seek((this._asked ?? this.time.t) + by);
    }

    /** Plays at a number of events a second, or a live machine on; 0 pauses. */
    play(speed) {
        this.send({ type: "play", speed: this.canSeek ? speed : Math.sign(speed) });
    }

    togglePlay() {
        if (this.time.playing) return this.play(0);
        if (this.canSeek && this.time.t >= this.info.events) this.seek(0);
        this.play(this.playSpeed);
    }

    /** Events a second: what was chosen, or the whole recording in half a minute. */
    get playSpeed() {
        return this.speed ?? Math.max(1, Math.round((this.info.events || 1) / 30));
    }

    mark(which, t = this.time.t) {
        this.marks[which] = t;
        this.emit("marks", this.marks);
    }

    // ---- questions

    /** The answer to a question about the moment shown (or the one given as t). */
    get(path, parameters = {}) {
        const query = new URLSearchParams();
        if (this.canSeek && !("t" in parameters)) query.set("t", this.time.t);
        for (const [name, value] of Object.entries(parameters)) {
            if (value !== null && value !== undefined && value !== "") query.set(name, value);
        }
        const text = query.toString();
        return this.source.get(text ? `${path}?${text}` : path);
    }

    /** The same, without a moment: for what is true at all times. */
    ask(path, parameters = {}) {
        return this.get(path, { t: null, ...parameters });
    }

    takeCaches(caches) {
        for (const cache of caches) this.cacheNames.set(cache.id, cache.name);
    }

    cacheName(id) {
        if (id && !this.cacheNames.has(id)) {
            this.cacheNames.set(id, `#${id}`);
            this.ask("/api/caches").then(answer => this.takeCaches(answer.caches ?? answer), () => { });
        }
        return this.cacheNames.get(id) ?? "–";
    }

    /** A call site's name, or null until it is known: then "sites" is emitted. */
    siteName(id) {
        if (!id) return null;
        const name = this.siteNames.get(id);
        if (name === undefined) {
            this.siteNames.set(id, null);
            this._sites.add(id);
            clearTimeout(this._siteTimer);
            this._siteTimer = setTimeout(() => this._askSites(), 50);
        }
        return name ?? null;
    }

    async _askSites() {
        const ids = [...this._sites].slice(0, 400);
        for (const id of ids) this._sites.delete(id);
        if (ids.length === 0) return;
        try {
            const { sites } = await this.ask("/api/sites", { ids: ids.join(",") });
            for (const site of sites) this.siteNames.set(site.id, site.name);
            this.emit("sites");
        }
        catch {
            for (const id of ids) this.siteNames.delete(id);
        }
        if (this._sites.size > 0) this._askSites();
    }
}

/**
 * Keeps an answer up to date while the moment moves: never more than one question on its way, at most one every
 * `pause` milliseconds, and the last moment is always answered.
 */
export class Follower {
    constructor(store, ask, taken, failed, pause = 350) {
        Object.assign(this, { store, ask, taken, failed, pause });
        this._busy = false;
        this._stale = false;
        this._ended = false;
        this._end = store.on("time", () => this.refresh());
    }

    async refresh() {
        if (this._ended) return;
        if (this._busy) {
            this._stale = true;
            return;
        }
        this._busy = true;
        this._stale = false;
        try {
            const answer = await this.ask();
            if (!this._ended && answer !== undefined) this.taken(answer);
        }
        catch (error) {
            if (!this._ended) this.failed(error);
        }
        setTimeout(() => {
            this._busy = false;
            if (this._stale) this.refresh();
        }, this.pause);
    }

    end() {
        this._ended = true;
        this._end();
    }
}
