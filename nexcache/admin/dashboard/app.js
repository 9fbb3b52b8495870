// Starts, keeps time, and holds together what the page knows.

import { Api, Refused } from "./api.js";
import { charts } from "./charts.js";
import { act, close, explain, invalidateAny, toast } from "./dialogs.js";
import { $, fill, h, text } from "./dom.js";
import { clock, name } from "./format.js";
import * as panels from "./panels.js";

const STORED = "nexcache.key";
const EVERY = { figures: 2000, state: 3000, stored: 15_000, tenants: 10_000 };
const SMOOTHED = 10_000; // milliseconds over which the rate of one operation is taken
const KEPT = 120_000;
const TENANTS = 50;
const SHOWN = 10; // requests a second in the feed

let draw = null;
let board = null;

/** What is open: one key, one tenant. */
class Board {
  constructor(api, me) {
    this.api = api;
    this.me = me;
    this.paused = false;
    this.lost = false;
    this.tenant = me.tenant;
    this.tenants = [];
    this.tenantStats = new Map();
    this.timers = [];
    this.#empty();
  }

  #empty() {
    this.looks = [];
    this.rates = [];
    this.slots = new Map();
    this.usage = null;
    this.stats = null;
    this.switched = new Map();
    this.state = null;
    this.held = null;
    this.since = null;
  }

  /** The tenant as the endpoints want it: named by operators only. */
  query() {
    return this.me.operator ? { tenant: this.tenant } : {};
  }

  async start() {
    if (this.me.operator) await this.#guard(() => this.#look_at_tenants());
    this.#keep(EVERY.figures, () => this.#figures());
    this.#keep(EVERY.state, () => this.#condition());
    this.#keep(EVERY.stored, () => this.#stored());
    if (this.me.operator) this.#keep(EVERY.tenants, () => this.#look_at_tenants());
    this.listen();
  }

  end() {
    this.api.end();
    this.stream?.abort();
    this.timers.forEach(clearTimeout);
    this.ended = true;
  }

  /** Look at another tenant. */
  choose(tenant) {
    if (tenant === this.tenant) return;
    this.tenant = tenant;
    this.#empty();
    $("tenant").value = tenant;
    for (const feed of ["invalidations", "requests"]) fill($(feed));
    this.#draw_tenants();
    this.refresh();
    this.listen();
  }

  /** Ask for everything now, as after a change. */
  refresh() {
    for (const look of [this.#figures, this.#condition, this.#stored]) this.#guard(() => look.call(this));
  }

  // --- asking, again and again ---------------------------------------------------------------------------

  #keep(every, look) {
    const run = async () => {
      if (this.ended) return;
      if (!document.hidden) await this.#guard(look);
      const index = this.timers.indexOf(timer);
      timer = setTimeout(run, every);
      this.timers[index < 0 ? this.timers.length : index] = timer;
    };
    let timer = null;
    run();
  }

  async #guard(look) {
    try {
      await look();
      this.#connected(true);
    } catch (error) {
      if (this.ended) return;
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401) leave("This key is not accepted, or no longer.");
      else if (error.status === 0 || error.status >= 500) this.#connected(false);
      else this.#told(error.message);
    }
  }

  #told(message) {
    if (this.last === message) return;
    this.last = message;
    toast(message, "bad");
  }

  #connected(well) {
    if (well) this.seen = new Date();
    if (well === !this.lost) return;
    this.lost = !well;
    $("board").classList.toggle("stale", this.lost);
    $("lost").hidden = well;
    if (well) {
      toast("Connected again", "good");
      this.wake?.();
      this.refresh();
    } else fill($("lost"), h("strong", {}, "Connection lost."), ` What is shown is of ${this.seen ? clock(this.seen) : "before"}. Trying again…`);
    this.#linked();
  }

  #linked() {
    const link = $("link"), live = !this.lost && this.streaming;
    link.hidden = false;
    link.className = `link ${live ? "live" : this.lost ? "lost" : ""}`;
    text(link, live ? "live" : this.lost ? "connection lost" : "connecting…");
  }

  async #figures() {
    const tenant = this.tenant;
    if (tenant === null) return;
    const [stats, trend] = await Promise.all([
      this.api.ask("stats", { query: { ...this.query(), usage: 0 } }),
      this.api.ask("trends", { query: { ...this.query(), since: this.since } }),
    ]);
    if (tenant !== this.tenant) return;
    for (const slot of trend.slots) this.slots.set(slot.at, slot);
    for (const at of this.slots.keys()) if (at < trend.now - 3600) this.slots.delete(at);
    this.since = trend.now - 2 * trend.slot_seconds;
    this.stats = stats;
    this.recent = trend.minutes["5"];
    this.trend = { now: trend.now, step: trend.slot_seconds };
    this.#measure(stats);
    this.#draw();
    const unseen = Object.keys(stats.operations).some((each) => this.usage !== null && !(each in this.usage.operations));
    if (unseen) await this.#stored(); // somebody asks for something new
  }

  async #condition() {
    const tenant = this.tenant;
    const [health, alerts, held, operations] = await Promise.all([
      this.api.ask("health"),
      this.me.operator ? this.api.ask("alerts") : { alerts: [] },
      this.me.operator ? this.api.ask("memory") : null,
      tenant === null ? { operations: [] } : this.api.ask("operations", { query: { ...this.query(), limit: 1000 } }),
    ]);
    if (tenant !== this.tenant) return;
    this.state = health.state;
    this.held = held;
    this.switched = new Map(operations.operations.map((each) => [each.name, each.disabled]));
    panels.health(health);
    panels.alerts(this.state, alerts.alerts.filter((alert) => alert.firing));
    if (this.stats !== null) this.#draw();
  }

  async #stored() {
    const tenant = this.tenant;
    if (tenant === null) return;
    const stats = await this.api.ask("stats", { query: this.query() });
    if (tenant !== this.tenant) return;
    this.usage = stats;
    if (this.stats !== null) this.#draw();
  }

  async #look_at_tenants() {
    const found = [];
    let cursor = null, estimated = false;
    do {
      const page = await this.api.ask("tenants", { query: { limit: 1000, cursor } });
      found.push(...page.tenants);
      cursor = page.next;
      estimated = page.estimated;
    } while (cursor !== null && found.length < 5000);
    this.tenants = found;
    this.estimated = estimated || cursor !== null;
    if (this.tenant === null) this.tenant = found.find((each) => each.id !== null)?.id ?? null;
    fill($("tenant"), found.filter((each) => each.id !== null).map((each) => h("option", { value: each.id, selected: each.id === this.tenant }, name(each.id))));
    $("tenant").hidden = found.length === 0;
    const wanted = found.filter((each) => each.id !== null).slice(0, TENANTS);
    for (let start = 0; start < wanted.length; start += 4) {
      const some = wanted.slice(start, start + 4);
      const read = await Promise.all(some.map((each) => this.api.ask("stats", { query: { tenant: each.id } })));
      some.forEach((each, index) => this.#rate_of_tenant(each.id, read[index]));
    }
    this.#draw_tenants();
  }

  #rate_of_tenant(id, stats) {
    const before = this.tenantStats.get(id), now = performance.now();
    if (before !== undefined && now - before.at < 1000) return;
    const change = before ? stats.requests - before.stats.requests : -1;
    this.tenantStats.set(id, { stats, at: now, rate: change >= 0 ? (change * 1000) / (now - before.at) : null });
  }

  // --- drawing ---------------------------------------------------------------------------------------------

  #draw_tenants() {
    if (!this.me.operator) return;
    const list = this.tenants.slice(0, TENANTS + 1).map((each) => ({ ...each, ...(this.tenantStats.get(each.id) ?? {}) }));
    list.sort((a, b) => (b.stats?.requests ?? -1) - (a.stats?.requests ?? -1));
    panels.tenants(list, this.tenant, (id) => this.choose(id), this.estimated || this.tenants.length > list.length);
    $("tenants-card").hidden = false;
  }

  #measure(stats) {
    const now = performance.now();
    if (this.looks.length > 0 && stats.requests < this.looks.at(-1).stats.requests) this.looks = [];
    this.looks.push({ at: now, stats });
    while (this.looks[0].at < now - KEPT) this.looks.shift();
    const speed = this.#since(3 * EVERY.figures, (each) => each.requests);
    if (speed !== null) this.rates.push(speed);
    if (this.rates.length > KEPT / EVERY.figures) this.rates.shift();
  }

  /** Events per second over the last `span` milliseconds; null where that cannot be said. */
  #since(span, read) {
    const last = this.looks.at(-1), first = this.looks.find((each) => each.at >= last.at - span - 100) ?? last;
    return last.at - first.at < 500 ? null : Math.max(0, ((read(last.stats) - read(first.stats)) * 1000) / (last.at - first.at));
  }

  #operations() {
    const { stats, usage } = this;
    const names = new Set([...this.switched.keys(), ...Object.keys(stats.operations)]);
    return [...names].map((each) => {
      const figures = stats.operations[each], held = usage?.operations[each];
      return {
        name: each,
        disabled: this.switched.get(each) ?? false,
        rate: figures ? this.#since(SMOOTHED, (all) => all.operations[each]?.requests ?? 0) : 0,
        figures: figures ? { ...figures, entries: held?.entries ?? null, bytes: held?.bytes ?? null } : null,
      };
    }).sort((a, b) => (b.figures?.requests ?? 0) - (a.figures?.requests ?? 0) || (a.name < b.name ? -1 : 1));
  }

  #draw() {
    const { stats, recent } = this, operations = this.#operations();
    const hit = recent.latency.hit.p50, miss = recent.latency.miss.p50;
    panels.tiles({ stats, recent, live: { rate: this.rates.at(-1) ?? null, rates: this.rates, factor: hit > 0 && miss > 0 ? miss / hit : 0 } });
    panels.operations(operations, (operation) => attempt(() => act(this, operation)));
    panels.slowest(operations);
    panels.savings(operations);
    if (this.usage !== null) panels.memory(this.usage, this.held);
    draw ??= charts();
    const slots = [...this.slots.values()].sort((a, b) => a.at - b.at);
    draw({ slots, now: this.trend.now, step: this.trend.step, clock: Date.now() / 1000 });
    text($("foot"), stats.merged ? "Figures are of all processes; invalidations and requests are shown as they happen in the process that answers this page." : "All figures are of the process that answers this page.");
  }

  // --- what happens, as it happens -------------------------------------------------------------------------

  /** Listen from now on; what was listened to before is given up. */
  async listen() {
    this.stream?.abort();
    const stream = (this.stream = new AbortController());
    let wait = 500;
    while (!this.ended && !stream.signal.aborted) {
      try {
        const query = { ...this.query(), answered: this.paused || document.hidden ? 0 : SHOWN };
        for await (const { event, data } of this.api.events("events", { query, signal: stream.signal })) {
          if (stream.signal.aborted) return;
          if (event === "open") { this.#streams(true); wait = 500; } else this.#hear(event, data);
        }
      } catch (error) {
        if (this.ended || stream.signal.aborted) return;
        if (error instanceof Refused && error.status === 401) { leave("This key is not accepted, or no longer."); return; }
        wait = Math.min(wait * 2, 8000);
      }
      this.#streams(false);
      await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, wait); });
    }
  }

  #streams(well) {
    this.streaming = well;
    this.#linked();
  }

  #hear(event, data) {
    if (event === "answered") panels.answered(data);
    else if (event === "invalidated") panels.invalidated(data);
    else if (event === "audited") this.#audited(data);
    else if (event === "backend_changed") { panels.noted(`The store is ${data.available ? "back" : `away (${data.kind})`}.`, data.available ? "" : "warn"); this.#guard(() => this.#condition()); }
    else if (event === "backplane_changed") panels.noted(`The backplane is ${data.connected ? "connected" : "lost"}.`, data.connected ? "" : "warn");
  }

  #audited({ action, target, who, outcome }) {
    if (outcome === "refused" || outcome === "rejected") return;
    const what = { disable: "switched off", enable: "switched on", enable_again: "switched on", warm: "warmed" }[action];
    if (what !== undefined) panels.noted(`${target} ${what} by ${who}.`);
    else panels.signed(who);
    this.#guard(() => this.#condition());
  }
}

function attempt(action) {
  try {
    action();
  } catch (error) {
    toast(error.message, "bad");
  }
}

// --- coming and going ------------------------------------------------------------------------------------------

function forget() {
  try { sessionStorage.removeItem(STORED); } catch { /* storage may be off */ }
}

function leave(words = "") {
  board?.end();
  board = null;
  forget();
  close();
  for (const id of ["board", "who", "link", "leave", "lost", "tenants-card", "role", "tenant", "tenant-name"]) $(id).hidden = true;
  for (const id of ["tiles", "operations", "slowest", "savings", "unpaid", "memory", "invalidations", "requests", "tenants", "alerts", "facts", "ladder", "tenant", "tenant-name"]) fill($(id));
  draw?.({ slots: [], now: 0, step: 30, clock: 0 });
  $("alerts").dataset.shown = "";
  $("entrance").hidden = false;
  $("key").value = "";
  text($("refused"), words);
  $("key").focus();
}

async function enter(key, header, keep) {
  const api = new Api(key, header);
  let me;
  try {
    me = await api.ask("whoami");
  } catch (error) {
    leave(error instanceof Refused ? error.message : String(error));
    return;
  }
  if (keep) {
    try { sessionStorage.setItem(STORED, JSON.stringify({ key, header })); } catch { /* as above */ }
  }
  $("entrance").hidden = true;
  for (const id of ["board", "who", "leave"]) $(id).hidden = false;
  $("tenant-name").hidden = me.operator;
  text($("tenant-name"), name(me.tenant ?? ""));
  $("role").hidden = !me.operator;
  text($("role"), "operator");
  document.title = `NexCache · ${name(me.operator ? "operator" : me.tenant)}`;
  text($("req-note"), `at most ${SHOWN} a second are shown`);
  board = new Board(api, me);
  await board.start();
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("key").value.trim(), $("header").value, $("keep").checked);
});
$("leave").addEventListener("click", () => leave());
$("tenant").addEventListener("change", () => board?.choose($("tenant").value));
$("explain-open").addEventListener("click", () => explain(board));
$("invalidate-open").addEventListener("click", () => invalidateAny(board));
$("pause").addEventListener("click", () => {
  board.paused = !board.paused;
  $("pause").setAttribute("aria-pressed", String(board.paused));
  text($("pause"), board.paused ? "Show again" : "Pause");
  board.listen();
});
const named = () => {
  const dark = document.documentElement.dataset.theme === "dark";
  text($("theme"), dark ? "☀" : "☾");
  $("theme").setAttribute("aria-label", dark ? "Light theme" : "Dark theme");
};
$("theme").addEventListener("click", () => toggleTheme());
addEventListener("theme", named);
document.addEventListener("visibilitychange", () => {
  board?.listen(); // no hit is to pay for what nobody looks at
  if (!document.hidden) board?.refresh();
});
named();

function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given !== null) { // a link that signs in: the key leaves the address bar, and its history, at once
    history.replaceState(null, "", location.pathname + location.search);
    return enter(given, "X-API-Key", true);
  }
  let kept = null;
  try { kept = JSON.parse(sessionStorage.getItem(STORED)); } catch { /* as above */ }
  return kept !== null ? enter(kept.key, kept.header, false) : leave();
}
begin();
