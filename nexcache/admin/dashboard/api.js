// Asks the admin endpoints: with the key that was typed in, of this server only.

const ROOT = new URL("../", import.meta.url);
const TIMEOUT = 10_000;
const PATIENCE = 40_000; // the stream says something every 15 seconds

/** A name as one segment of a path. Dots alone would be taken for a way up, however they are written. */
export function segment(name) {
  if (name === "." || name === "..") throw new Refused(400, "A name of dots alone cannot be part of a URL: use the command line.");
  return encodeURIComponent(name);
}

/** The endpoints said no; `status` is 0 where nobody answered. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export class Api {
  constructor(key, header = "X-API-Key") {
    const token = /^[\w-]+\.[\w-]+\.[\w-]+$/.test(key);
    this.headers = token ? { Authorization: `Bearer ${key}` } : { [header]: key };
    this.ended = new AbortController();
  }

  /** Stop everything that is under way. */
  end() {
    this.ended.abort();
  }

  /** Ask, and give the document. Raises Refused. */
  async ask(path, { method = "GET", query = {} } = {}) {
    const response = await this.#fetch(path, { method, query, signal: AbortSignal.any([this.ended.signal, AbortSignal.timeout(TIMEOUT)]) });
    try {
      return await response.json();
    } catch {
      throw new Refused(0, "The answer was cut short.");
    }
  }

  /** Give the lines of an answer that comes bit by bit. Raises Refused. */
  async *lines(path, { method = "GET", query = {}, accept, signal = null, patience = null }) {
    const silence = new AbortController();
    const signals = [this.ended.signal, silence.signal, signal].filter(Boolean);
    let timer = null;
    const heard = () => {
      if (patience === null) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), patience);
    };
    heard();
    try {
      const response = await this.#fetch(path, { method, query, accept, signal: AbortSignal.any(signals) });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        let part;
        try {
          part = await reader.read();
        } catch {
          throw new Refused(0, "The connection was lost.");
        }
        if (part.done) return;
        heard();
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();
        yield* lines;
      }
    } finally {
      clearTimeout(timer);
      silence.abort();
    }
  }

  /** Give server-sent events as { event, data } until the stream ends. Raises Refused. */
  async *events(path, options) {
    let event = "message", data = "", open = false;
    for await (const line of this.lines(path, { ...options, accept: "text/event-stream", patience: PATIENCE })) {
      if (!open) {
        open = true;
        yield { event: "open", data: null };
      }
      if (line === "") {
        if (data !== "") yield { event, data: JSON.parse(data) };
        event = "message";
        data = "";
      } else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
  }

  async #fetch(path, { method, query, accept = "application/json", signal }) {
    const url = new URL(path, ROOT);
    for (const [name, value] of Object.entries(query)) {
      if (value !== null && value !== undefined) url.searchParams.set(name, value);
    }
    let response;
    try {
      response = await fetch(url, { method, signal, headers: { ...this.headers, Accept: accept }, cache: "no-store", credentials: "same-origin", redirect: "error", referrerPolicy: "no-referrer" });
    } catch (error) {
      if (this.ended.signal.aborted) throw error;
      throw new Refused(0, "The server does not answer.");
    }
    if (response.ok) return response;
    let detail = `The server answered ${response.status}.`;
    try { detail = (await response.json()).detail ?? detail; } catch { /* not ours */ }
    throw new Refused(response.status, detail);
  }
}
