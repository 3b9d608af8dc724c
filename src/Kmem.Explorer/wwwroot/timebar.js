// The bar below every view: where in time, back and forth. The line above is how many frames were free, the bars below
// are what happened in each part of the recording (objects, pages, slow paths); two marks are the moments of a difference.

import { fit, h, onFrame, show } from './dom.js';
import { count, seconds } from './format.js';
import { t } from './i18n.js';
import { css, page } from './palette.js';
import { icon } from './parts.js';
import { go } from './route.js';
import { eventWords } from './words.js';

const SPEEDS = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000];

/** The bar as an element; it lives as long as the scope. */
export function timeBar(store, scope) {
    return store.canSeek ? recordingBar(store, scope) : liveBar(store, scope);
}

function liveBar(store, scope) {
    const play = h("button", { class: "play main", onclick: () => store.play(store.time.playing ? 0 : 1) });
    const text = h("span", { class: "where" });
    const update = () => {
        show(play, icon(store.time.playing ? "pause" : "play"), " ", t(store.time.playing ? "time.freeze" : "time.goOn"));
        text.textContent = t(store.time.playing ? "time.live" : "time.frozen", { t: count(store.time.t) });
    };
    scope.on("time", onFrame(update));
    update();
    if (store.info.source === "state") {
        return h("footer", { class: "time", "aria-label": t("time.label") },
            h("p", { class: "soft" }, t("time.state")));
    }
    return h("footer", { class: "time", "aria-label": t("time.label") }, h("div", { class: "row" }, play, text));
}

function recordingBar(store, scope) {
    const { events } = store.info;
    const button = (label, title, key, action) =>
        h("button", { class: "icon", title: `${title} (${key})`, "aria-label": title, onclick: action }, label);
    const play = h("button", { class: "play main", title: t("time.playKey"), onclick: () => store.togglePlay() });
    const where = h("span", { class: "where", "data-at": "time" });
    const event = h("span", { class: "event" });
    const speed = speedChoice(store);
    const marks = h("span", { class: "row" });
    const canvas = h("canvas", { "aria-hidden": "true" });
    const track = h("div", {
        class: "track", role: "slider", tabindex: "0", "aria-label": t("time.slider"), "aria-valuemin": 0,
        "aria-valuemax": events,
    }, canvas);

    let histogram = null;
    const draw = onFrame(() => drawTrack(canvas, store, histogram));
    const update = onFrame(() => {
        const { t: at, playing, ns } = store.time;
        show(play, icon(playing ? "pause" : "play"), " ", t(playing ? "time.pause" : "time.play"));
        play.setAttribute("aria-label", t(playing ? "time.pause" : "time.play"));
        const since = ns === null || store.info.firstNs === null ? "" : ` · ${seconds((ns - store.info.firstNs) / 1e9)}`;
        show(where, t("time.where", { t: count(at), of: count(events) }), h("span", { class: "seconds" }, since));
        event.textContent = eventWords(store.time.event);
        event.title = event.textContent;
        track.setAttribute("aria-valuenow", at);
        track.setAttribute("aria-valuetext", where.textContent);
        draw();
    });
    const showMarks = () => {
        show(marks, markButton(store, "a"), markButton(store, "b"), h("button", {
            disabled: store.marks.a === null || store.marks.b === null,
            onclick: () => go("compare", { from: store.marks.a, to: store.marks.b }),
        }, t("time.compare")));
        draw();
    };
    follow(track, store);
    scope.on("time", update);
    scope.on("marks", showMarks);
    scope.on("theme", draw);
    store.ask("/api/histogram", { buckets: Math.min(600, Math.max(1, events)) })
        .then(answer => { histogram = answer; draw(); }, () => { });
    const observer = new ResizeObserver(draw);
    observer.observe(track);
    scope.add(() => observer.disconnect());
    update();
    showMarks();

    return h("footer", { class: "time", "aria-label": t("time.label") },
        h("div", { class: "row controls" },
            button(icon("first"), t("time.first"), "Home", () => store.seek(0)),
            button(icon("back"), t("time.back"), ",", () => store.step(-1)),
            play,
            button(icon("forth"), t("time.forth"), ".", () => store.step(1)),
            button(icon("last"), t("time.last"), "End", () => store.seek(events)),
            speed, where, event, marks),
        track);
}

function speedChoice(store) {
    const chosen = store.playSpeed;
    const options = [...new Set([...SPEEDS.filter(value => value <= store.info.events * 2), chosen])].sort((a, b) => a - b);
    return h("select", {
        "aria-label": t("time.speed"), title: t("time.speed"),
        onchange: e => {
            store.speed = Number(e.target.value);
            if (store.time.playing) store.play(store.speed);
        },
    }, options.map(value =>
        h("option", { value: String(value), selected: value === chosen }, t("time.perSecond", { n: count(value) }))));
}

function markButton(store, which) {
    const at = store.marks[which];
    const name = which.toUpperCase();
    return h("button", {
        title: `${t("time.mark", { name })} (${which === "a" ? "[" : "]"})`, "aria-pressed": String(at !== null),
        onclick: () => store.mark(which),
    }, at === null ? name : `${name} ${count(at)}`);
}

/** Dragging and keys on the track. */
function follow(track, store) {
    const toMoment = e => {
        const box = track.getBoundingClientRect();
        return (e.clientX - box.left) / box.width * store.info.events;
    };
    const seek = onFrame(at => store.seek(at));
    track.addEventListener("pointerdown", e => {
        track.setPointerCapture(e.pointerId);
        seek(toMoment(e));
    });
    track.addEventListener("pointermove", e => {
        if (e.buttons & 1) seek(toMoment(e));
    });
    track.addEventListener("keydown", e => {
        const page = Math.max(1, Math.round(store.info.events / 50));
        const by = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -page, PageUp: page }[e.key];
        if (by) store.step(by);
        else if (e.key === "Home") store.seek(0);
        else if (e.key === "End") store.seek(store.info.events);
        else return;
        e.preventDefault();
        e.stopPropagation();
    });
}

function drawTrack(canvas, store, histogram) {
    const context = fit(canvas);
    const { clientWidth: width, clientHeight: height } = canvas;
    const { cell, line, text, soft, accent } = page();
    context.clearRect(0, 0, width, height);
    context.fillStyle = css(cell);
    context.fillRect(0, 0, width, height);
    if (histogram) drawHistogram(context, width, height, histogram, soft);
    else {
        context.fillStyle = css(line);
        context.fillRect(0, height - 3, width, 3);
    }
    const x = at => store.info.events === 0 ? 0 : at / store.info.events * width;
    for (const which of ["a", "b"]) {
        if (store.marks[which] === null) continue;
        const at = Math.min(width - 1, Math.max(1, x(store.marks[which])));
        context.fillStyle = css(text);
        context.fillRect(at - 0.5, 0, 1, height);
        context.font = "700 10px system-ui, sans-serif";
        const left = at > width - 16;
        context.fillRect(left ? at - 13 : at, 0, 13, 13);
        context.fillStyle = css(cell);
        context.fillText(which.toUpperCase(), left ? at - 10 : at + 3, 10);
    }
    const now = x(store.time.t);
    context.fillStyle = css(accent).replace(")", " / 0.14)");
    context.fillRect(0, 0, now, height);
    context.fillStyle = css(accent);
    context.fillRect(Math.max(0, Math.min(width - 2, now - 1)), 0, 2, height);
    context.beginPath();
    context.arc(Math.max(5, Math.min(width - 5, now)), height - 5, 5, 0, 7);
    context.fill();
}

const SERIES = { objects: [0, 158, 115], pages: [230, 159, 0], slow: [213, 94, 0] };

function drawHistogram(context, width, height, histogram, soft) {
    const { buckets, series, freeFrames } = histogram;
    const step = width / buckets;
    const half = Math.round(height * 0.45);
    if (freeFrames?.length) {
        const low = Math.min(...freeFrames);
        const range = Math.max(1, Math.max(...freeFrames) - low);
        context.strokeStyle = css(soft);
        context.lineWidth = 1.5;
        context.beginPath();
        freeFrames.forEach((value, i) => context.lineTo((i + 0.5) * step, 4 + (half - 6) * (1 - (value - low) / range)));
        context.stroke();
    }
    let most = 1;
    for (let i = 0; i < buckets; i++) most = Math.max(most, series.reduce((sum, one) => sum + (one.counts[i] ?? 0), 0));
    for (let i = 0; i < buckets; i++) {
        let y = height;
        for (const one of series) {
            const n = one.counts[i] ?? 0;
            if (n === 0) continue;
            const tall = Math.max(one.name === "slow" ? 4 : 0.5, n / most * (height - half - 6));
            y -= tall;
            context.fillStyle = css(SERIES[one.name] ?? SERIES.objects);
            context.fillRect(i * step, y, step + 0.4, tall);
        }
    }
}
