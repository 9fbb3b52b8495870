// The trends of the last hour, with uPlot; small lines and bars as plain SVG.

import { s, text } from "./dom.js";
import { clock, ms, percent, rate } from "./format.js";

const HEIGHT = 190;
const LEAST = 600; // seconds that a chart always shows

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const time = (_, splits) => splits.map((at) => clock(new Date(at * 1000)).slice(0, 5));

/** A line through the last values, for a tile. */
export function spark(values, label) {
  const width = 120, height = 32, most = Math.max(...values, 1e-9);
  const step = width / Math.max(1, values.length - 1);
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(height - 2 - (value / most) * (height - 4)).toFixed(1)}`);
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("polygon", { points: `0,${height} ${points.join(" ")} ${width},${height}` }),
    s("polyline", { points: points.join(" ") }));
}

/** One chart: it is drawn again when its data, its width or the theme change. */
class Chart {
  constructor(id, series, { axis, scale = null, range = null, log = false, stacked = false, bars = false }) {
    this.place = document.getElementById(`plot-${id}`);
    this.legend = document.getElementById(`legend-${id}`);
    this.series = series;
    this.options = { axis, scale, range, log, stacked, bars };
    this.data = [[], ...series.map(() => [])];
    this.plot = null;
    this.labels = series.map((each) => {
      const value = document.createElement("b");
      const item = document.createElement("span");
      item.className = `key ${each.color}${each.dash ? " dashed" : ""}`;
      item.append(each.label, " ", value);
      this.legend.append(item);
      return value;
    });
    this.place.setAttribute("role", "img");
    new ResizeObserver(() => {
      if (this.plot !== null && this.place.clientWidth > 0) this.plot.setSize({ width: this.place.clientWidth, height: HEIGHT });
    }).observe(this.place);
    addEventListener("theme", () => { this.#destroy(); this.#draw(); });
  }

  /** Show values: `at` in seconds, one column for each series; null where there is nothing to show. */
  set(at, columns, window) {
    this.values = columns;
    this.window = window;
    this.data = [at, ...(this.options.stacked ? stack(columns) : columns)];
    this.#draw();
    this.#tell(null);
  }

  #draw() {
    if (this.place.clientWidth === 0 || this.window === undefined) return;
    if (this.plot === null) this.plot = new uPlot(this.#configuration(), this.data, this.place);
    else this.plot.setData(this.data);
  }

  #destroy() {
    this.plot?.destroy();
    this.plot = null;
  }

  #tell(index) {
    const shown = index ?? this.data[0].length - 1;
    const told = this.series.map((each, number) => {
      const value = this.values?.[number]?.[shown];
      const words = value === null || value === undefined ? "–" : this.options.axis(value);
      text(this.labels[number], words);
      return `${each.label} ${words}`;
    });
    if (index === null) this.place.setAttribute("aria-label", `${told.join(", ")}`);
  }

  #configuration() {
    const { axis, scale, range, log, bars } = this.options;
    const grid = { stroke: css("--line"), width: 1 }, ink = css("--muted");
    const font = `11px ${css("--font")}`;
    return {
      width: this.place.clientWidth,
      height: HEIGHT,
      padding: [10, 18, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { setScale: false }, points: { size: 7 }, sync: { key: "nexcache" } },
      scales: {
        x: { time: true, range: () => this.window },
        y: { distr: log ? 3 : 1, range: range ?? ((_, low, high) => (log ? around(low, high) : [0, high > 0 ? high * 1.1 : 1])) },
      },
      axes: [
        { stroke: ink, grid: { show: false }, ticks: { show: false }, values: time, font, gap: 6, size: 28, space: 64 },
        { stroke: ink, grid, ticks: { show: false }, font, gap: 6, size: 54, space: 34,
          ...(log ? { filter: (_, splits) => splits, splits: (_, __, low, high) => tens(low, high) } : {}),
          values: (_, splits) => splits.map((value) => (value === null ? "" : (scale ?? axis)(value))) },
      ],
      series: [
        {},
        ...this.series.map((each) => ({
          stroke: bars ? undefined : css(each.color_variable),
          fill: bars ? css(each.color_variable) : each.filled ? `${css(each.color_variable)}22` : undefined,
          width: bars ? 0 : 2,
          dash: each.dash,
          points: { show: (_, number) => !bars && lonely(this.data[number]), size: 4, fill: css(each.color_variable) },
          paths: bars ? uPlot.paths.bars({ size: [0.9, 14, 1], align: 1, radius: 0 }) : uPlot.paths.spline(),
          spanGaps: false,
        })),
      ],
      hooks: { setCursor: [(plot) => this.#tell(plot.cursor.idx)] },
    };
  }
}

/** Whether no two values stand side by side, so that a line would show nothing. */
const lonely = (column) => !column.some((value, index) => index > 0 && value !== null && column[index - 1] !== null);

/** The powers of ten within a range, at most about six of them. */
function tens(low, high) {
  const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9), step = Math.ceil((to - from) / 6) || 1;
  const found = [];
  for (let power = from; power <= to; power += step) found.push(10 ** power);
  return found;
}

/** Whole powers of ten around a range, at least one. */
function around(low, high) {
  if (!(low > 0) || !(high > 0)) return [0.1, 100];
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  return [10 ** from, 10 ** (to === from ? to + 1 : to)];
}

/** Sums from the last series to the first: the first one is drawn first, behind the others, and as high as all. */
function stack(columns) {
  const sums = columns.map((column) => [...column]);
  for (let number = sums.length - 2; number >= 0; number -= 1) {
    for (let index = 0; index < sums[number].length; index += 1) sums[number][index] += sums[number + 1][index];
  }
  return sums;
}

const line = (label, color, more = {}) => ({ label, color, color_variable: `--${color}`, ...more });

/** Make the four charts; the returned function shows what `GET /trends` answered. */
export function charts() {
  const requests = new Chart("requests", [line("errors", "error"), line("bypassed", "bypass"), line("misses", "miss"), line("stale", "stale"), line("hits", "hit")], { axis: rate, stacked: true, bars: true });
  const latency = new Chart("latency", [line("miss p95", "miss"), line("p50", "miss", { dash: [4, 4] }), line("hit p95", "hit"), line("p50", "hit", { dash: [4, 4] })], { axis: ms, log: true });
  const ratio = new Chart("ratio", [line("of what was asked of the cache", "hit", { filled: true })], { axis: percent, scale: (share) => `${Math.round(share * 100)}\u00a0%`, range: () => [0, 1.02] });
  const invalidations = new Chart("invalidations", [line("invalidated, whatever the cause", "accent")], { axis: rate, bars: true });

  return ({ slots, now, step, clock: at }) => {
    const first = slots.length > 0 ? slots[0].at : now;
    const start = Math.min(now - LEAST, Math.max(first, now - 3600));
    const times = [];
    for (let each = Math.max(start - (start % step), first); each <= now; each += step) times.push(each);
    const by = new Map(slots.map((slot) => [slot.at, slot]));
    const lasted = (each) => (each === now ? Math.max(5, at - now) : step);
    const per = (field, unit = 1) => times.map((each) => ((by.get(each)?.[field] ?? 0) * unit) / lasted(each));
    const measured = (kind, quantile) => times.map((each) => { const slot = by.get(each); return slot && slot.latency[kind].mean > 0 ? Math.max(0.001, slot.latency[kind][quantile]) : null; });
    const window = [start, now + step];
    requests.set(times, ["errors", "bypasses", "misses", "stale", "hits"].map((field) => per(field)), window);
    latency.set(times, [measured("miss", "p95"), measured("miss", "p50"), measured("hit", "p95"), measured("hit", "p50")], window);
    ratio.set(times, [times.map((each) => { const slot = by.get(each); return slot && slot.requests > slot.bypasses + slot.errors ? slot.hit_rate : null; })], window);
    invalidations.set(times, [per("invalidations", 60)], window);
  };
}
