// Where data comes from: the server that sent this page, or the file that holds it. docs/explorer.md has the contract.

import { openOffline } from './offline.js';

/** The source of this page. */
export const openSource = async () =>
    window.KMEM_EXPORT ? await openOffline(window.KMEM_EXPORT) : { get, connect, offline: false };

async function get(path) {
    let response;
    try {
        response = await fetch(path, { cache: "no-store" });
    }
    catch (reason) {
        throw failure("unreachable", 0, reason);
    }
    const body = await response.json().catch(() => null);
    if (response.ok && body !== null) return body;
    throw failure(body?.error ?? `${response.status} ${response.statusText}`, response.status);
}

function failure(text, status, cause) {
    const error = new Error(text, { cause });
    error.status = status;
    return error;
}

function connect(handlers) {
    const address = new URL("ws", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    const socket = new WebSocket(address);
    const waiting = [];
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
        for (const text of waiting.splice(0)) socket.send(text);
    };
    socket.onmessage = ({ data }) => {
        if (typeof data === "string") handlers.text(JSON.parse(data));
        else handlers.cells(data);
    };
    socket.onclose = ({ code, reason }) => handlers.closed(reason || String(code));
    return {
        send(message) {
            const text = JSON.stringify(message);
            if (socket.readyState === WebSocket.CONNECTING) waiting.push(text);
            else if (socket.readyState === WebSocket.OPEN) socket.send(text);
        },
        close() {
            socket.onclose = null;
            socket.close();
        },
    };
}
