// What can be done: each with what it would reach, before it is done.

import { Refused, segment } from "./api.js";
import { $, fill, h, text } from "./dom.js";
import { bytes, count, ms, name, percent, rate, seconds } from "./format.js";

const bdi = (value) => h("bdi", { class: "name" }, name(value));

/** Say something in the corner, for a while. */
export function toast(words, kind = "") {
  const item = h("p", { class: `toast ${kind}` }, words);
  $("toasts").append(item);
  setTimeout(() => item.remove(), 6000);
}

let key = null;

function open(title, ...content) {
  const dialog = $("dialog");
  key = document.activeElement?.dataset?.key ?? null;
  dialog.replaceChildren(
    h("div", { class: "head" }, h("h2", { id: "dialog-h" }, title), h("div", { class: "spacer" }),
      h("button", { type: "button", class: "quiet icon", "aria-label": "Close", click: () => dialog.close() }, "✕")),
    ...content);
  if (!dialog.open) dialog.showModal();
}

/** Close what is open, as when the key is given back. */
export const close = () => $("dialog").close();

$("dialog").addEventListener("close", () => {
  $("dialog").replaceChildren();
  // the table may have been drawn anew meanwhile, and the button that opened this with it
  if (key !== null) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
});
$("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) close(); });

const said = (error) => (error instanceof Refused ? error.message : String(error));

/** A button that does something once, and says how it went. */
function doing(label, kind, action) {
  const result = h("p", { class: "result", role: "status" });
  const button = h("button", { type: "button", class: kind, click: async () => {
    button.disabled = true;
    result.className = "result";
    try {
      fill(result, await action(result));
      result.classList.add("good");
    } catch (error) {
      fill(result, said(error));
      result.classList.add("bad");
    }
    button.disabled = false;
  } }, label);
  return [button, result];
}

function reach(preview) {
  const many = preview.entries === 1 ? "1 entry" : `${count(preview.entries)} entries`;
  const rows = Object.entries(preview.operations);
  return [h("p", {}, preview.estimated ? "About " : "", h("strong", {}, many), preview.entries === 1 ? " would become a miss." : " would become misses."),
    rows.length > 1 ? h("ul", { class: "notes" }, rows.slice(0, 8).map(([operation, number]) => h("li", {}, bdi(operation), ` ${count(number)}`)), rows.length > 8 ? h("li", { class: "muted" }, `and ${rows.length - 8} more`) : null) : null];
}

async function invalidate(board, path, changed) {
  const done = await board.api.ask(path, { method: "DELETE", query: board.query() });
  const words = done.acknowledged ? `Done in ${ms(done.waited_ms)}: no request that starts now is answered from before.` : "The store is away: it holds in this process, and is queued for the others.";
  toast(done.acknowledged ? "Invalidated" : "Invalidation queued", done.acknowledged ? "good" : "warn");
  changed();
  return words;
}

/** Act on one operation. */
export function act(board, operation) {
  const path = `invalidate/${segment(operation.name)}`;
  const figures = h("div", { class: "reach", role: "status" }, h("p", { class: "muted" }, "Looking at what is stored…"));
  const look = () => board.api.ask(path, { method: "DELETE", query: { ...board.query(), dry_run: 1 } }).then((preview) => fill(figures, reach(preview)), (error) => fill(figures, h("p", { class: "bad" }, said(error))));
  look();
  const [button, result] = doing("Invalidate", "danger", () => invalidate(board, path, () => { look(); board.refresh(); }));
  const asked = operation.figures ? operation.figures.requests - operation.figures.bypasses - operation.figures.errors : 0;
  const load = `${rate(operation.rate)} requests per second${asked > 0 ? `, ${percent(operation.figures.hit_rate)} of them hits` : ""}`;
  open(bdi(operation.name),
    h("section", {}, h("h3", {}, "Invalidate"), figures, h("div", { class: "do" }, button, result)),
    board.me.tenant !== null && board.me.tenant === board.tenant ? h("section", {}, h("h3", {}, "Warm"), h("p", { class: "muted" }, "Compute its recent requests again, with your permissions, before anybody waits for them."), warming(board, operation.name)) : null,
    switching(board, operation, load));
}

function warming(board, operation) {
  const progress = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Requests computed" });
  const [button, result] = doing("Warm", "", async (result) => {
    progress.hidden = false;
    progress.value = 0;
    let last = null;
    for await (const line of board.api.lines(`warm/${segment(operation)}`, { method: "POST", accept: "application/x-ndjson" })) {
      if (line === "") continue;
      last = JSON.parse(line);
      const done = last.refreshed + last.failed;
      progress.value = last.requested > 0 ? done / last.requested : 1;
      text(result, `${count(done)} of ${count(last.requested)}`);
    }
    progress.value = 1;
    board.refresh();
    if (last === null) throw new Refused(0, "It was cut short.");
    if (last.requested === 0) return "There was no recent request in this process to compute again.";
    return `${count(last.refreshed)} of ${count(last.requested)} computed again in ${ms(last.ms)}${last.failed > 0 ? `; ${count(last.failed)} could not be stored` : ""}.`;
  });
  return h("div", { class: "do" }, button, progress, result);
}

function switching(board, operation, load) {
  const section = h("section", {});
  const draw = (off) => {
    const path = `operations/${segment(operation.name)}/${off ? "enable" : "disable"}`;
    const [button, result] = doing(off ? "Switch on" : "Switch off", off ? "primary" : "danger", async () => {
      const done = await board.api.ask(path, { method: "POST", query: board.query() });
      toast(done.disabled ? "Switched off" : "Switched on", "good");
      board.refresh();
      draw(done.disabled);
      const where = done.scope === "process" ? "in this process" : "on all nodes within two seconds";
      section.append(h("p", { class: "result good", role: "status" }, done.disabled ? `Off ${where}.` : off && !done.disabled ? `On ${where}.` : "Done."));
      return "";
    });
    fill(section, h("h3", {}, off ? "Switched off" : "Switch off"),
      h("p", { class: off ? "" : "muted" }, off ? "All its requests of this tenant go to the app. What is stored may be served again afterwards, unless it is invalidated." : `The app would then get all of this tenant's requests of it: ${load}.`),
      h("div", { class: "do" }, button, result));
  };
  draw(operation.disabled);
  return section;
}

/** Invalidate by pattern, tag, or everything. */
export function invalidateAny(board) {
  const figures = h("div", { class: "reach", role: "status" }, h("p", { class: "muted" }, "Nothing is chosen yet."));
  const input = h("input", { id: "target", autocomplete: "off", spellcheck: "false", placeholder: "dashboard_*", "aria-describedby": "target-h" });
  const kinds = [["operation", "operations, by name or pattern"], ["tag", "all that carries a tag"], ["all", "everything of this tenant"]];
  const chosen = () => document.querySelector("#dialog input[name=kind]:checked").value;
  const path = () => ({ operation: () => `invalidate/${segment(input.value)}`, tag: () => `invalidate/tags/${segment(input.value)}`, all: () => "invalidate" })[chosen()]();
  let turn = 0, timer = null, looked = null;
  const look = async () => {
    const mine = (turn += 1);
    button.disabled = true;
    if (chosen() !== "all" && input.value === "") { fill(figures, h("p", { class: "muted" }, "Nothing is chosen yet.")); return; }
    try {
      const wanted = path(), preview = await board.api.ask(wanted, { method: "DELETE", query: { ...board.query(), dry_run: 1 } });
      if (mine !== turn) return;
      looked = wanted;
      fill(figures, reach(preview));
      button.disabled = false;
    } catch (error) {
      if (mine === turn) fill(figures, h("p", { class: "bad" }, said(error)));
    }
  };
  const [button, result] = doing("Invalidate", "danger", () => invalidate(board, looked, () => { board.refresh(); look(); }));
  button.disabled = true;
  const changed = () => {
    input.disabled = chosen() === "all";
    input.placeholder = chosen() === "tag" ? "service:checkout" : "dashboard_*";
    button.disabled = true;
    turn += 1;
    clearTimeout(timer);
    timer = setTimeout(look, 250);
  };
  input.addEventListener("input", changed);
  open("Invalidate",
    h("fieldset", { change: changed }, h("legend", { class: "visually-hidden" }, "What"), kinds.map(([value, words], index) => h("label", { class: "check" }, h("input", { type: "radio", name: "kind", value, checked: index === 0 }), words))),
    h("label", { for: "target" }, "Name"), input, h("p", { class: "muted", id: "target-h" }, "* stands for any characters, ? for one, in names of operations."),
    figures, h("div", { class: "do" }, button, result));
  input.focus();
}

/** Explain a URL. */
export function explain(board) {
  const input = h("input", { id: "url", autocomplete: "off", spellcheck: "false", placeholder: "/api/v1/dashboard?range=1h", required: true });
  const result = h("div", { role: "status" });
  const ask = async (event) => {
    event.preventDefault();
    fill(result, h("p", { class: "muted" }, "Looking…"));
    try {
      fill(result, explained(await board.api.ask("explain", { query: { ...board.query(), path: pathOf(input.value) } })));
    } catch (error) {
      fill(result, h("p", { class: "bad" }, said(error)));
    }
  };
  open("Explain a URL", h("form", { submit: ask, class: "inline" }, h("label", { for: "url", class: "visually-hidden" }, "URL or path"), input, h("button", { type: "submit", class: "primary" }, "Explain")), result);
  input.focus();
}

/** A URL's path and query, encoded as a browser would send it. */
function pathOf(value) {
  const url = new URL(value.trim(), location.origin);
  return url.pathname + url.search;
}

const WORDS = {
  "stored": ["good", "It would be answered from the cache."],
  "not-stored": ["warn", "The cache would be asked, and have no answer: the app would compute it."],
  "bypass": ["warn", "The cache would not be asked."],
  "no-policy": ["", "No policy is for this path: the cache does not see it."],
};

function explained(found) {
  const [kind, words] = WORDS[found.verdict] ?? ["", found.verdict];
  const rows = [];
  const row = (title, ...value) => rows.push(h("dt", {}, title), h("dd", {}, ...value));
  if (found.bypass !== null) row("Why", name(found.bypass));
  if (found.policy !== null) row("Policy", bdi(found.policy.operation ?? found.policy.op ?? ""), h("span", { class: "muted" }, ` ${[found.policy.path, found.policy.ttl !== undefined ? `for ${seconds(found.policy.ttl)}` : null].filter(Boolean).join(", ")}`));
  for (const copy of found.copies) {
    row(`In ${copy.tier}`, copy.usable ? `usable: ${copy.age >= 1 ? `${seconds(copy.age)} old` : "new"}, for ${seconds(copy.ttl)} more, status ${copy.status}, ${bytes(copy.bytes)}` : `not usable: ${name(copy.why_not)}`);
  }
  if (found.store_failed !== null) row("Store", `could not be asked: ${name(found.store_failed)}`);
  if (found.not_stored !== null) row("Not kept", `${name(found.not_stored.reason)}, ${seconds(found.not_stored.seconds_ago)} ago`);
  if (found.generations.length > 0) row("Depends on", h("ul", { class: "plain" }, found.generations.map((each) => h("li", {}, bdi(each.of), each.present ? "" : h("span", { class: "badge warn" }, "gone")))));
  const by = [...found.invalidated_by.operations.map((operation) => (operation === "*" ? "everything" : operation)), ...found.invalidated_by.tags.map((tag) => `tag ${tag}`)];
  if (by.length > 0) row("Invalidated by", by.map((target, index) => [index > 0 ? ", " : "", bdi(target)]).flat());
  if (found.key !== null) {
    row("Key", h("code", {}, name(found.key.name)));
    row("Made of", h("ul", { class: "plain" }, Object.entries(found.key.parts).filter(([, value]) => value !== null && value !== "" && !(Array.isArray(value) && value.length === 0)).map(([part, value]) => h("li", {}, h("span", { class: "muted" }, `${part.replace("_", " ")}: `), Array.isArray(value) ? value.map((each) => [bdi(`${each.name}: ${each.value}`), " "]).flat() : bdi(value)))));
  }
  return [h("p", { class: `verdict ${kind}` }, words), h("dl", { class: "explained" }, rows)];
}
