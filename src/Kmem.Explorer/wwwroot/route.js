// The part of the URL behind "#": #/map?first=512&color=zone. Every view can be linked, with its moment and its settings.

/** What the location says now. */
export function readRoute() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    return { view: path, parameters: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

/** The hash of a view with parameters; those without a value are left out. */
export function routeTo(view, parameters = {}) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
        if (value !== null && value !== undefined && value !== "") query.set(name, value);
    }
    const text = query.toString();
    return `#/${view}${text ? "?" + text : ""}`;
}

/** Goes to another view: a new entry in the browser's history. */
export function go(view, parameters) {
    location.hash = routeTo(view, parameters);
}

/** Writes the present view's settings into the location, without a new entry. */
export function keep(changes) {
    const { view, parameters } = readRoute();
    const hash = routeTo(view, { ...parameters, ...changes });
    if (hash !== location.hash) history.replaceState(null, "", hash);
}
