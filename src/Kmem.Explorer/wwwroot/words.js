// Words for what the server names: values of enumerations, migrate types, events.

import { count } from './format.js';
import { language, named, t } from './i18n.js';
import { placeText } from './sentence-zh.js';

/** A value of an enumeration, or a short text of the server's, as words. */
export const valueWords = text => language() === "zh-CN" ? placeText(String(text)) : named(`value.${text}`, text);

/** A migrate type by its name in the kernel. */
export const typeWords = name => name === null || name === undefined ? null : named(`type.${name}`, name);

/** What an event did, in the page's language. */
export function eventWords(event) {
    if (!event) return "";
    const words = named(`event.${event.kind}`, null);
    if (words === null || event.result === "refused") return event.text ?? "";
    return t(`event.${event.kind}`, {
        asked: count(event.bytesRequested ?? 0), given: count(event.bytesAllocated ?? 0),
        pages: count(2 ** (event.order ?? 0)),
    });
}
