// Figures and names as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A count: in full while it is short, then compact. */
export const count = (n) => (n === null || n === undefined ? "–" : Math.abs(n) < 100_000 ? whole.format(n) : short.format(n));

export const percent = (share) => {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  const value = share * 100;
  return value > 0 && value < 99.95 ? `${value.toFixed(1)}\u00a0%` : `${Math.round(value)}\u00a0%`;
};

/** Events per second. */
export const rate = (n) => (n === null || n === undefined ? "–" : n === 0 ? "0" : n < 1 ? String(Number(n.toPrecision(2))) : n < 10 ? n.toFixed(1) : whole.format(n));

/** A duration from milliseconds. */
export function ms(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0\u00a0ms";
  if (value < 1) return `${Math.max(1, Math.round(value * 1000))}\u00a0µs`;
  if (value < 10) return `${value.toFixed(1)}\u00a0ms`;
  if (value < 1000) return `${Math.round(value)}\u00a0ms`;
  return seconds(value / 1000);
}

/** A duration from seconds. */
export function seconds(value) {
  if (value < 1) return ms(value * 1000);
  if (value < 100) return `${value < 10 ? value.toFixed(1) : Math.round(value)}\u00a0s`;
  if (value < 5400) return `${Math.round(value / 60)}\u00a0min`;
  if (value < 172_800) return `${(value / 3600).toFixed(1)}\u00a0h`;
  return `${(value / 86_400).toFixed(1)}\u00a0days`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)}\u00a0${units[unit]}`;
}

export const clock = (date) => date.toTimeString().slice(0, 8);

// Characters that show nothing, or turn around what follows them, are written out.
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u{e0000}-\u{e0fff}]/gu;

/** A name that somebody else chose: visible in full, whatever it holds. */
export const name = (value) =>
  String(value).replace(HIDDEN, (char) => `⟨${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
