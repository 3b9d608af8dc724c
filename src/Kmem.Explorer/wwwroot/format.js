// Numbers as people and kernels write them. Addresses come as strings ("0xffff8880…"), because 64 bits do not fit into a
// JavaScript number; counts and frame numbers do.

const groups = new Intl.NumberFormat("en", { useGrouping: true });

/** 1234567 as "1 234 567". */
export const count = n => n === undefined || n === null ? "–" : groups.format(n).replaceAll(",", "\u202f");

/** A frame number as the kernel prints it. */
export const pfn = n => "0x" + Number(n).toString(16);

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** Bytes, in the largest unit that keeps it exact or at most one digit behind the point. */
export function bytes(n) {
    let value = Number(n);
    let unit = 0;
    while (Math.abs(value) >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit++;
    }
    const text = Number.isInteger(value) ? String(value) : value.toFixed(value >= 100 ? 0 : 1);
    return `${text} ${units[unit]}`;
}

/** Seconds of a recording, with as many digits as its events need. */
export const seconds = n => n === undefined || n === null ? "–" : `${Number(n).toFixed(6)} s`;

/** 0.374 as "37 %". */
export const percent = share => `${Math.round(share * 100)}\u202f%`;

/** An address with an apostrophe-free, narrow grouping: "ffff8880 0123 4000" is hard to copy, so only the prefix is cut. */
export const shortAddress = text => {
    const digits = String(text).replace(/^0x/, "");
    return digits.length > 9 ? `…${digits.slice(-8)}` : `0x${digits}`;
};

/** Parses what a person typed into the address field: hexadecimal with or without 0x; null if it is not a number. */
export function parseAddress(text) {
    const digits = text.trim().replace(/^0x/i, "").replaceAll(/[_\s]/g, "");
    return /^[0-9a-f]{1,16}$/i.test(digits) ? "0x" + digits.toLowerCase() : null;
}
