// Making elements. h() for HTML, s() for SVG; a property that starts with "on" is a listener, "class", "data-*", "aria-*"
// and the like are attributes. Text is always text: nothing in this page is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
    for (const name in properties) {
        const value = properties[name];
        if (value === undefined || value === null || value === false) continue;
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "style" && typeof value === "object") {
            for (const key in value) element.style.setProperty(key, value[key]);
        }
        else if (name === "value" || name === "checked" || name === "tabIndex") element[name] = value;
        else element.setAttribute(name, value === true ? "" : value);
    }
    append(element, children);
    return element;
}

function append(element, children) {
    for (const child of children) {
        if (child === undefined || child === null || child === false) continue;
        if (Array.isArray(child)) append(element, child);
        else element.append(child);
    }
}

/** An HTML element. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** An SVG element. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Replaces what an element shows. */
export function show(element, ...children) {
    element.textContent = "";
    append(element, children);
    return element;
}

/** Calls at most once per painted frame, with the latest arguments. */
export function onFrame(action) {
    let asked = false;
    let latest;
    return (...parameters) => {
        latest = parameters;
        if (asked) return;
        asked = true;
        requestAnimationFrame(() => {
            asked = false;
            action(...latest);
        });
    };
}

/** Calls at once, and then at most every so many milliseconds; the last wish is always fulfilled. */
export function atMost(milliseconds, action) {
    let due = 0;
    let timer = 0;
    return () => {
        if (timer !== 0) return;
        timer = setTimeout(() => {
            timer = 0;
            due = performance.now() + milliseconds;
            action();
        }, Math.max(0, due - performance.now()));
    };
}

/** Calls once, when nothing was asked for some milliseconds. */
export function later(milliseconds, action) {
    let timer = 0;
    return (...parameters) => {
        clearTimeout(timer);
        timer = setTimeout(action, milliseconds, ...parameters);
    };
}

/** Sizes a canvas to its box in device pixels; returns its context, scaled so that drawing is in CSS pixels. */
export function fit(canvas) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
}
