// Draws what the endpoints answered.

import { spark } from "./charts.js";
import { $, fill, h, text } from "./dom.js";
import { bytes, clock, count, ms, name, percent, rate, seconds } from "./format.js";

const RUNGS = {
  "ok": ["OK", "All is well."],
  "backplane-lost": ["Backplane lost", "Invalidations of other nodes are noticed when a lease ends, not at once."],
  "slow": ["Slow", "The store takes most of the time that requests wait for it."],
  "down": ["Down", "The store is away: this process answers from what it has filled itself, for a short time."],
  "disabled": ["Disabled", "The cache is switched off: all requests go to the app."],
};
const VERDICTS = {
  "seldom-hit": "Seldom hit: entries are gone or of no use before anybody asks again. Look at lifetime, invalidations and key.",
  "cheap": "The app answers about as fast as the cache.",
};
const TRIGGERS = { ingest: "spans arrived", admin: "by hand", api: "called by the app", write: "written by the app" };

const bdi = (value) => h("bdi", { class: "name", title: name(value) }, name(value));

/** The state of the cache, on its ladder. */
export function health(document) {
  const known = Object.keys(RUNGS), current = known.indexOf(document.state);
  fill($("ladder"), known.map((rung, index) => h("li", { class: `rung ${rung}${index === current ? " here" : ""}`, "aria-current": index === current ? "step" : null, title: RUNGS[rung][1] }, RUNGS[rung][0])));
  const details = document.details ?? {};
  const facts = [
    ["store", { redis: "Redis", memory: "this process's memory", fallback: "fallback memory" }[document.mode] ?? document.mode],
    ["answers in", document.mode === "memory" ? null : ms(document.response_time_ms)],
    ["connections", document.mode === "memory" ? null : count(document.connections)],
    ["backplane", details.backplane === null || details.backplane === undefined ? null : details.backplane ? "connected" : "lost"],
    ["computing", details.running_fills === undefined ? null : count(details.running_fills)],
    ["invalidations waiting", details.queued_invalidations ? count(details.queued_invalidations) : null],
  ];
  fill($("facts"), facts.filter(([, value]) => value !== null).map(([what, value]) => h("div", {}, h("dt", {}, what), h("dd", {}, value))));
}

/** What is wrong: the state of the ladder, and alerts for those who may see them. */
export function alerts(state, firing) {
  const found = [];
  if (state !== null && state !== "ok" && RUNGS[state] !== undefined) found.push({ key: `state ${state}`, bad: state === "down", title: RUNGS[state][0], text: RUNGS[state][1] });
  for (const alert of firing) {
    const figure = alert.value === null || alert.alert === "breaker" ? "" : ` It is ${figureOf(alert, alert.value)}; the threshold is ${figureOf(alert, alert.threshold)}.`;
    found.push({ key: alert.alert, bad: true, title: `Alert: ${alert.alert}`, text: alert.summary + figure });
  }
  const place = $("alerts"), shown = found.map((each) => each.key + each.text).join("\n");
  if (place.dataset.shown === shown) return;
  place.dataset.shown = shown;
  fill(place, found.map((each) => h("div", { class: `banner ${each.bad ? "bad" : "warn"}` }, h("strong", {}, name(each.title)), " ", name(each.text))));
}

function figureOf(alert, value) {
  if (["hit-rate", "error-rate", "quota", "memory"].includes(alert.alert)) return percent(value);
  return alert.alert === "staleness" ? seconds(value) : String(value);
}

/** The key figures. `live` has what the last looks at the statistics differ by. */
export function tiles({ stats, recent, live }) {
  const asked = recent.requests - recent.bypasses - recent.errors;
  const hit = recent.latency.hit, miss = recent.latency.miss;
  fill($("tiles"), [
    tile("Requests", rate(live.rate), "per second", spark(live.rates, `Requests per second over the last two minutes, now ${rate(live.rate)}`)),
    tile("Hit ratio", asked > 0 ? percent(recent.hit_rate) : "–", "5 min", meter(asked > 0 ? recent.hit_rate : 0)),
    tile("A hit takes", ms(hit.mean > 0 ? hit.p50 : null), "median", quantiles(hit)),
    tile("A miss takes", ms(miss.mean > 0 ? miss.p50 : null), "median", quantiles(miss)),
    tile("Computations saved", count(stats.saved.computations), `since ${day(stats.since)}`, note(recent.requests > 0 ? `${percent((recent.hits + recent.stale + recent.coalesced) / Math.max(1, recent.requests))} of all, of late` : "")),
    tile("Waiting saved", seconds(stats.saved.seconds), `since ${day(stats.since)}`, note(live.factor > 1 ? `a hit is ${count(Math.round(live.factor))} times as fast` : "")),
  ]);
}

const tile = (title, figure, what, below) => h("div", { class: "card tile" }, h("h2", {}, title), h("p", { class: "figure" }, figure, h("small", {}, what)), below);
const note = (words) => h("p", { class: "muted" }, words);
const quantiles = (latency) => note(latency.mean > 0 ? `p95\u00a0${ms(latency.p95)} · p99\u00a0${ms(latency.p99)}` : "none of late");
const meter = (share, kind = null) => h("div", { class: "meter" }, h("i", { class: kind, style: { width: `${(share * 100).toFixed(1)}%` } }));

function day(instant) {
  const date = new Date(instant);
  return date.toDateString() === new Date().toDateString() ? clock(date).slice(0, 5) : date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

/** The operations, the most asked first. */
export function operations(list, act) {
  const head = ["Operation", "Requests/s", "Hit ratio", "Hit p50", "p95", "Miss p50", "p95", "Saved", "Stored", ""];
  const rows = list.map((each) => {
    const { figures } = each, hit = figures?.latency.hit, miss = figures?.latency.miss;
    const asked = figures ? figures.requests - figures.bypasses - figures.errors : 0;
    const time = (latency, quantile) => (latency && latency.mean > 0 ? ms(latency[quantile]) : "–");
    return h("tr", { class: each.disabled ? "off" : null },
      h("th", { scope: "row" }, bdi(each.name), each.disabled ? h("span", { class: "badge warn" }, "off") : null),
      cell("Requests/s", rate(each.rate)),
      h("td", { "data-label": "Hit ratio" }, h("span", { class: "ratio" }, asked > 0 ? percent(figures.hit_rate) : "–", meter(asked > 0 ? figures.hit_rate : 0))),
      cell("Hit p50", time(hit, "p50")), cell("Hit p95", time(hit, "p95")),
      cell("Miss p50", time(miss, "p50")), cell("Miss p95", time(miss, "p95")),
      cell("Saved", figures ? seconds(figures.saved.seconds) : "–"),
      cell("Stored", figures && figures.entries !== null ? `${count(figures.entries)} · ${bytes(figures.bytes)}` : "–"),
      h("td", { class: "act" }, h("button", { type: "button", "data-key": `act ${each.name}`, "aria-label": `Act on ${name(each.name)}`, click: () => act(each) }, "Act…")));
  });
  fill($("operations"), h("thead", {}, h("tr", {}, head.map((title) => h("th", { scope: "col" }, title || h("span", { class: "visually-hidden" }, "Actions"))))),
    h("tbody", {}, rows.length > 0 ? rows : h("tr", {}, h("td", { colspan: head.length, class: "muted empty" }, "Nothing has been asked for yet."))));
  text($("ops-note"), list.length > 0 ? `${list.length}, the most asked first` : "");
}

function quotaCell(quota) {
  const used = fullness(quota);
  if (used === null) return "–";
  return h("span", { class: "ratio", title: quota.refused > 0 ? `${count(quota.refused)} answers not kept by this process` : null }, percent(used), meter(Math.min(1, used), used >= NEARLY ? "stale" : null));
}

const cell = (label, value) => h("td", { "data-label": label }, value);

/** What takes longest, and how little of it a hit takes. */
export function slowest(list) {
  const slow = list.filter((each) => each.figures?.latency.miss.mean > 0).sort((a, b) => b.figures.latency.miss.p95 - a.figures.latency.miss.p95).slice(0, 6);
  const most = Math.max(...slow.map((each) => each.figures.latency.miss.p95), 1e-9);
  fill($("slowest"), slow.length > 0 ? slow.map(({ name: operation, figures: { latency } }) =>
    bar(operation, [["miss", latency.miss.p95 / most], ["hit over", latency.hit.mean > 0 ? Math.max(0.004, latency.hit.p95 / most) : 0]], ms(latency.miss.p95), latency.hit.mean > 0 ? ms(latency.hit.p95) : "no hit yet")) : empty("Nothing has been computed yet."));
}

/** What caching saves, and where it does not pay. */
export function savings(list) {
  const known = list.filter((each) => each.figures);
  const paid = known.filter((each) => each.figures.saved.seconds > 0).sort((a, b) => b.figures.saved.seconds - a.figures.saved.seconds).slice(0, 6);
  const most = Math.max(...paid.map((each) => each.figures.saved.seconds), 1e-9);
  fill($("savings"), paid.length > 0 ? paid.map(({ name: operation, figures: { saved } }) =>
    bar(operation, [["hit", saved.seconds / most]], seconds(saved.seconds), `${count(saved.computations)} ×`)) : empty("Nothing yet: it begins with the first hit."));
  const unpaid = known.filter((each) => VERDICTS[each.figures.saved.verdict] !== undefined);
  fill($("unpaid"), unpaid.length > 0 ? [h("h3", {}, "Where it does not pay"), h("ul", { class: "notes" }, unpaid.map((each) => h("li", {}, bdi(each.name), " ", h("span", { class: "muted" }, VERDICTS[each.figures.saved.verdict]))))]
    : known.some((each) => each.figures.saved.verdict === "pays") ? h("p", { class: "muted good" }, "It pays for every operation that can be judged.") : []);
}

/** How much of a quota is used up, from 0 to 1; null where it does not limit what is held, or that is not known. */
function fullness(quota) {
  const parts = quota ? [[quota.used, quota.limit], [quota.entries.used, quota.entries.limit]] : [];
  const known = parts.filter(([used, limit]) => limit !== null && used !== null);
  return known.length > 0 ? Math.max(...known.map(([used, limit]) => used / Math.max(1, limit))) : null;
}

const NEARLY = 0.9;

function quotaRows(quota) {
  const limit = (title, used, most, words) => most === null ? null
    : bar(title, [[used / Math.max(1, most) >= NEARLY ? "stale" : "accent", used === null ? 0 : used / Math.max(1, most)]], words(used), `of ${words(most)}`);
  const fills = quota.fills_per_second === null ? "" : `At most ${count(quota.fills_per_second)} answers a second are kept.`;
  const refused = quota.refused > 0 ? `${count(quota.refused)} not kept by this process for want of quota.` : "";
  return [h("p", { class: "divider muted" }, "Quota of this tenant"), limit("bytes", quota.used, quota.limit, bytes), limit("entries", quota.entries.used, quota.entries.limit, count),
    fills || refused ? h("p", { class: "muted small" }, [fills, refused].filter(Boolean).join(" ")) : null].filter((each) => each !== null);
}

/** What is held, by operation, and the tenant's quota; the process's own memory for operators. */
export function memory(stats, held) {
  const list = Object.entries(stats.operations).map(([operation, figures]) => ({ operation, ...figures })).filter((each) => each.bytes > 0).sort((a, b) => b.bytes - a.bytes).slice(0, 6);
  const most = Math.max(...list.map((each) => each.bytes), 1e-9);
  const rows = list.map((each) => bar(each.operation, [["accent", each.bytes / most]], bytes(each.bytes), `${count(each.entries)} ${each.entries === 1 ? "entry" : "entries"}`));
  if (rows.length === 0) rows.push(empty(stats.entries === null ? "The store could not be asked." : "Nothing is stored."));
  if (stats.quota) rows.push(...quotaRows(stats.quota));
  if (held !== null) rows.push(h("p", { class: "divider muted" }, "This process, all tenants"), bar("bytes", [["accent", held.max_bytes > 0 ? held.bytes / held.max_bytes : 0]], bytes(held.bytes), `of ${bytes(held.max_bytes)}`), bar("entries", [["accent", held.entries / held.max_entries]], count(held.entries), `of ${count(held.max_entries)}`));
  fill($("memory"), rows);
  text($("mem-note"), stats.entries === null ? "" : `${stats.estimated ? "about " : ""}${bytes(stats.bytes)} in ${count(stats.entries)} ${stats.entries === 1 ? "entry" : "entries"}`);
}

const empty = (words) => h("p", { class: "muted empty" }, words);

function bar(title, parts, figure, more) {
  return h("div", { class: "bar" }, title === null ? h("span", {}) : bdi(title),
    h("div", { class: "track" }, parts.map(([kind, share]) => h("i", { class: kind, style: { width: `${Math.min(100, share * 100).toFixed(2)}%` } }))),
    h("b", {}, figure), h("span", { class: "muted" }, more));
}

/** The tenants, for operators. */
export function tenants(list, chosen, choose, estimated) {
  const rows = list.map((each) => h("tr", { class: each.id === chosen ? "chosen" : null },
    h("th", { scope: "row" }, each.id === null ? each.name : h("button", { type: "button", class: "linkish", "data-key": `tenant ${each.id}`, "aria-pressed": each.id === chosen, click: () => choose(each.id) }, bdi(each.id))),
    cell("Requests/s", rate(each.rate)), cell("Requests", count(each.stats?.requests)),
    h("td", { "data-label": "Hit ratio" }, h("span", { class: "ratio" }, each.stats ? percent(each.stats.hit_rate) : "–", meter(each.stats?.hit_rate ?? 0))),
    cell("Stored", each.stats && each.stats.entries !== null ? `${count(each.stats.entries)} · ${bytes(each.stats.bytes)}` : "–"),
    h("td", { "data-label": "Quota" }, quotaCell(each.stats?.quota)),
    cell("Saved", each.stats ? seconds(each.stats.saved.seconds) : "–"),
    cell("Errors", count(each.stats?.errors))));
  fill($("tenants"), h("thead", {}, h("tr", {}, ["Tenant", "Requests/s", "Requests", "Hit ratio", "Stored", "Quota used", "Waiting saved", "Errors"].map((title) => h("th", { scope: "col" }, title)))), h("tbody", {}, rows));
  text($("tenants-note"), `${list.length}${estimated ? " or more" : ""}; what follows is of the one chosen`);
}

const FEED = 60;

function prepend(feed, item) {
  feed.prepend(item);
  while (feed.children.length > FEED) feed.lastElementChild.remove();
}

let byHand = null;

/** One invalidation, with its cause. */
export function invalidated(data) {
  const targets = data.scope === "tenant" ? ["everything"] : [...(data.operations ?? []), ...(data.tags ?? []).map((tag) => `tag ${tag}`)];
  const shown = targets.slice(0, 4), rest = targets.length - shown.length;
  const who = h("span", { class: "muted" });
  if (data.trigger === "admin") byHand = who;
  prepend($("invalidations"), h("li", {}, h("time", {}, clock(new Date())),
    h("span", { class: `badge cause ${data.trigger}` }, TRIGGERS[data.trigger] ?? data.trigger),
    h("span", { class: "what" }, shown.map((target) => [bdi(target), " "]).flat(), rest > 0 ? h("span", { class: "muted" }, `and ${rest} more `) : null, who),
    h("span", { class: "muted end" }, data.acknowledged ? ms(data.duration * 1000) : h("span", { class: "badge warn" }, "queued"))));
}

/** Say who did the last invalidation by hand: that is told just after it. */
export function signed(who) {
  byHand?.append("by ", bdi(who));
  byHand = null;
}

/** Something else that belongs among the invalidations: the store's coming and going, switches. */
export function noted(words, kind = "") {
  prepend($("invalidations"), h("li", {}, h("time", {}, clock(new Date())), h("span", { class: `badge ${kind}` }, "note"), h("span", { class: "what" }, name(words)), h("span", {})));
}

/** One request. */
export function answered(data) {
  const how = data.coalesced ? "joined" : data.tier ?? data.reason ?? "";
  prepend($("requests"), h("li", {}, h("time", {}, clock(new Date())), h("span", { class: `badge result ${data.result}` }, data.result),
    h("span", { class: "what" }, bdi(data.operation), " ", h("span", { class: "muted" }, [how, data.size !== undefined ? bytes(data.size) : null, data.age >= 1 ? `${seconds(data.age)} old` : null].filter(Boolean).join(" · "))),
    h("span", { class: "end" }, ms(data.duration * 1000))));
}
