// The sentence of an explanation in Chinese, made from the same values as the English one, which the server sends.

import { bytes, count } from './format.js';
import { named, t } from './i18n.js';

const value = name => named(`value.${name}`, name);

/** The sentence, or null if the values are not known. */
export function chineseSentence(it, pageBytes) {
    if (!it) return null;
    const birth = it.life.findLast(event => event.kind === "objectAllocated");
    const asked = birth && (it.kind === "slabObject" || it.kind === "largeKmalloc") ? birthText(birth) : "";
    const slab = it.kind === "slabObject"
        ? `其所在 slab（${placeText(it.slab.place)}）的 ${it.slab.objects} 个对象中 ${it.slab.live} 个已分配。` : "";
    const source = it.decision?.source ? sourceText(it, pageBytes) : "";
    return `${it.address} ${whatText(it)}${asked}。${slab}${source}`;
}

function whatText(it) {
    const { object, slab, page, area } = it;
    switch (it.kind) {
        case "nothing": return nothingText(it);
        case "reserved": return `在页框 ${page.frame} 中，该页框从未交给页分配器`;
        case "freeBlock": return freeText(it);
        case "pcpList": {
            const { cpu, list, order, length, position } = it.pcp;
            return `空闲：在 CPU ${cpu} 的${value(list)}链表（阶 ${order}）上，共 ${length} 项，前面有 ${position} 项`;
        }
        case "pageTable": return it.table
            ? `在一张 ${it.table.name} 页表中，512 个表项有 ${it.table.present} 个在用，映射 ${it.table.maps} 起的地址`
            : "在一张页表中";
        case "slabObject": return `是 ${slab.cache} 的第 ${object.number} 个对象的第 ${object.offset} 字节，已分配`;
        case "freeObject":
            return `在 ${slab.cache} 的一个 slab 中（共 ${slab.objects} 个对象）第 ${object.number} 个对象内，`
                + `该对象空闲：${placeText(object.freeOn)}`;
        case "slabPadding":
            return `在 ${slab.cache} 的一个 slab 中（${slab.objects} 个对象中 ${slab.live} 个已分配），位于对象之间`;
        case "largeKmalloc":
            return `是一个 ${count(object.size)} 字节 kmalloc 块的第 ${object.offset} 字节，占阶 ${page.order} 的整页`;
        case "vmallocPage": return `在区域 ${area.start}${byText(area)}的第 ${area.page} 页，页框 ${page.frame}`;
        case "guardPage": return `在区域 ${area.start} 之后的保护页中：那里没有映射`;
        default:
            return `在一个已分配的阶 ${page.order} 的块中，页框 ${page.blockFirst}`
                + (page.references > 0 ? `，引用计数 ${page.references}` : "");
    }
}

function nothingText(it) {
    if (it.region === "not canonical") return "不是规范地址：处理器不接受它";
    if (it.area) return `在区域 ${it.area.start} 中（${value(it.area.state)}），但那里没有映射`;
    const last = it.mapping?.steps.at(-1);
    if (it.mapping && !it.mapping.mapped && last) return `没有映射：遍历止于 ${last.level} 的第 ${last.index} 项`;
    if (it.mapping?.mapped) return "映射到不属于本机器 RAM 的内存";
    return it.region === "direct map" ? "在空洞中：那里没有内存" : "不是本机器的内存";
}

function freeText(it) {
    const { order, first, list, position, buddy, buddyUse } = it.freeBlock;
    const at = position < 0 ? "不在链表上" : `在内存区 ${it.zone.name} 的${value(list)}链表第 ${position + 1} 位`;
    const other = order >= 10 ? "" : `；其伙伴 ${buddy} 是${placeText(buddyUse)}`;
    return `空闲：在起始于 ${first} 的阶 ${order} 的块中，${at}${other}`;
}

const byText = area => area.caller === "unknown" ? "" : `（由 ${area.caller} 建立）`;

const birthText = birth => `。它在事件 ${birth.event} 由 CPU ${birth.cpu} 上的 ${birth.callSite ?? t("value.unknown")} 请求，`
    + `${count(birth.bytes)} 字节`;

function sourceText(it, pageBytes) {
    const { source, zones, cpu, event, slowPath } = it.decision;
    const whose = it.slab ? "该 slab 的页" : "其页";
    const from = {
        cpuList: `取自 CPU ${cpu} 的链表`, cpuListRefilled: `取自 CPU ${cpu} 补充后的链表`, freeList: "取自伙伴系统的空闲链表",
    }[source.place] ?? value(source.place);
    const served = zones.find(zone => zone.result === "served");
    const above = served ? bytes(Math.max(0, served.free - served.low) * pageBytes) : "";
    const zone = served ? `，内存区 ${served.zone}（当时高出 low 水位线 ${above}）` : "";
    const cut = source.splits > 0 ? `，由阶 ${source.foundOrder} 的空闲块经 ${source.splits} 次拆分得到` : "";
    const stolen = !source.stolen ? ""
        : source.blockClaimed ? `，此前属于${value(source.foundType)}，连同其页块一并认领`
        : `，取自${value(source.foundType)}页块`;
    const slow = slowPath.length === 0 ? "" : `，经过慢速路径：${slowPath.map(value).join("、")}`;
    return `${whose}（事件 ${event}）${from}${zone}${cut}${stolen}${slow}。`;
}

// Places come as English texts with numbers in them.
const PLACES = [
    [/^current slab of CPU (\d+)$/, "CPU $1 的当前 slab"],
    [/^kept partial by CPU (\d+)$/, "CPU $1 保留的部分空闲 slab"],
    [/^partial list of node (\d+)$/, "在节点 $1 的 partial 链表上"],
    [/^on no list$/, "不在任何链表上"],
    [/^full: on no list$/, "已满，不在任何链表上"],
    [/^free list of the slab, (\d+) before it$/, "在 slab 的空闲链表上，前面有 $1 个"],
    [/^free list of CPU (\d+), (\d+) before it$/, "在 CPU $1 的空闲链表上，前面有 $2 个"],
    [/^main sheaf of CPU (\d+), (\d+) before it$/, "在 CPU $1 的主 sheaf 中，前面有 $2 个"],
    [/^spare sheaf of CPU (\d+), (\d+) before it$/, "在 CPU $1 的备用 sheaf 中，前面有 $2 个"],
    [/^sheaf waiting for readers of CPU (\d+), (\d+) before it$/, "在 CPU $1 等待 RCU 的 sheaf 中，前面有 $2 个"],
    [/^a sheaf in the barn$/, "在 barn 的一个 sheaf 中"],
    [/^no larger order$/, "无（已是最大阶）"],
    [/^a hole$/, "空洞"],
    [/^slab (\S+)$/, "$1 的 slab"],
];

const ORDER = /^(.+), order (\d+)$/;

/** Such a text in Chinese; a text of another kind stays as it is. */
export function placeText(text) {
    const [, use, order] = ORDER.exec(text) ?? [];
    if (use) return `${placeText(use)}，阶 ${order}`;
    const found = PLACES.find(([pattern]) => pattern.test(text));
    return found ? text.replace(...found) : value(text);
}

// What the server answers to a question that it cannot answer.
const ERRORS = [
    [/^nothing in this recording has made page tables$/, "此记录中没有建立过页表"],
    [/^(0x\w+) is not in the direct map$/, "$1 不在直接映射中"],
    [/^there is no memory at (0x\w+)$/, "$1 处没有内存"],
    [/^(0x\w+) is in the unused rest of a slab of (\S+)$/, "$1 在 $2 的一个 slab 末尾未使用的部分"],
    [/^there is no cache (\d+) at this moment$/, "此刻没有缓存 $1"],
    [/^there is no event (\d+): the recording has (\d+)$/, "没有事件 $1：记录共有 $2 个事件"],
    [/^there is no frame (\d+): the machine has (\d+)$/, "没有页框 $1：机器共有 $2 个页框"],
    [/^this is no recording: there are no (events and no )?other moments$/, "这不是记录：没有其他时刻"],
    [/^(\S+) is '(.*)', expected a number from (\S+) to (\S+)$/, "参数 $1 是 “$2”，应为 $3 到 $4 的数"],
    [/^(\S+) is '(.*)', expected up to 16 hexadecimal digits$/, "参数 $1 是 “$2”，应为最多 16 位十六进制数字"],
];

/** Such an answer in Chinese; null if there are no words for it. */
export function chineseError(text) {
    const found = ERRORS.find(([pattern]) => pattern.test(text));
    return found ? text.replace(...found) : null;
}
