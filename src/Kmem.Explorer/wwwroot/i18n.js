// The page's texts: one dictionary per language, the same keys in each (a test compares them). {name} is replaced.

import en from './texts-en.js';
import zh from './texts-zh-CN.js';

export const languages = { "en": en, "zh-CN": zh };

let current = "en";

/** The language in use. */
export const language = () => current;

/** Takes a language that exists; others are ignored. */
export function setLanguage(name) {
    if (!(name in languages)) return;
    current = name;
    document.documentElement.lang = name;
}

/** The language to begin with: the address's `?lang=`, chosen before, or the browser's. */
export function firstLanguage() {
    const asked = new URLSearchParams(location.search).get("lang");
    if (asked) return asked.toLowerCase().startsWith("zh") ? "zh-CN" : "en";
    const kept = recall("language");
    if (kept in languages) return kept;
    return (navigator.languages ?? []).some(l => l.toLowerCase().startsWith("zh")) ? "zh-CN" : "en";
}

/** A text of the page; a key without a text shows itself, so that a missing one is seen. */
export function t(key, values) {
    const text = languages[current][key] ?? en[key] ?? key;
    return values ? text.replaceAll(/\{(\w+)\}/g, (all, name) => values[name] ?? all) : text;
}

/** A text if there is one for the key; else what was given. For names that come from the server. */
export const named = (key, otherwise) => languages[current][key] ?? en[key] ?? otherwise;

/** Remembers a choice; a page from a file may not be allowed to, and then it is forgotten. */
export function remember(name, value) {
    try {
        localStorage.setItem("kmem." + name, value);
    }
    catch { /* storage is a comfort, not a need */ }
}

/** A remembered choice, or null. */
export function recall(name) {
    try {
        return localStorage.getItem("kmem." + name);
    }
    catch {
        return null;
    }
}
