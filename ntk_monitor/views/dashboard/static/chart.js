/** Curves with bands, drawn by uPlot when they come into view. */

import uPlot from './vendor/uPlot.esm.js';
import { fill, h } from './dom.js';
import { duration, finite, num, plusMinus } from './format.js';

/** Half width of a band in standard errors: 95 % of a normal distribution. */
const WIDTH = 1.96;
const SHOWN_ROWS = 12;
const FONT = '11px Roboto, system-ui, sans-serif';

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * @typedef {Object} Curve
 * @property {string} label What the hover calls it.
 * @property {string} color
 * @property {number[]} x
 * @property {Array} y Numbers; null is a gap, text a number that is not finite.
 * @property {Array} [error] Standard errors.
 * @property {boolean} [behind] Drawn broad, as a background of others.
 * @property {number[]} [dash]
 */

export class Chart {
  /**
   * @param {HTMLElement} root Where the chart goes.
   * @param {Object} options `title` (a node), `height`, `log`, `range` ([low, high] to include),
   *   `line` (a threshold), `sync` (a name: charts of the same name share their cursor), `bars`,
   *   `infinite` (what an infinite value means), `points`, `hover` (false: none), `time` (x is in seconds), `xName`.
   */
  constructor(root, options) {
    this.options = { height: 170, hover: true, ...options };
    this.title = h('div.chart-title', {}, options.title ?? '');
    this.badge = h('span.badge', { hidden: true });
    this.title.append(this.badge);
    this.box = h('div.chart-box', { style: { height: `${this.options.height}px` } });
    this.hover = h('div.hover', { hidden: true });
    this.root = h('div.chart', {}, this.title, this.box, this.hover);
    root.append(this.root);
    this.visible = false;
    this.curves = [];
    this.observers = [
      new IntersectionObserver((entries) => {
        this.visible = entries.at(-1).isIntersecting;
        if (this.visible && this.stale) this.#draw();
      }, { rootMargin: '150px' }),
      new ResizeObserver(() => {
        if (this.plot && this.box.clientWidth) this.plot.setSize(this.#size());
      }),
    ];
    for (const observer of this.observers) observer.observe(this.box);
  }

  /** Take the chart off the page, and out of those that share its cursor. */
  remove() {
    for (const observer of this.observers) observer.disconnect();
    this.visible = false;
    this.plot?.destroy();
    this.plot = null;
    this.root.remove();
  }

  /**
   * Show these curves; drawn now if in view, else as soon as it is.
   * @param {Curve[]} curves
   * @param {Object} [options] What changes of the constructor's.
   */
  update(curves, options = {}) {
    Object.assign(this.options, options);
    this.curves = curves;
    this.stale = true;
    if (this.visible) this.#draw();
  }

  /** Draw again with the colours that the page has now. */
  recolor() {
    this.shape = null;
    this.stale = true;
    if (this.visible) this.#draw();
  }

  #size() {
    return { width: this.box.clientWidth, height: this.options.height };
  }

  #draw() {
    if (!this.box.clientWidth) return;
    this.stale = false;
    this.hover.hidden = true;
    const data = this.#aligned();
    const { log, time, xName } = this.options;
    const looks = this.curves.map((c) => [c.label, c.color, c.dash, hasBand(c)]);
    const shape = JSON.stringify([looks, log, time, xName]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data, !this.zoomed);
      if (this.zoomed) this.plot.redraw();
      return;
    }
    this.plot?.destroy();
    this.shape = shape;
    this.zoomed = false;
    this.plot = new uPlot(this.#description(), data, this.box);
  }

  /** One column of x for all curves, and for each its values and the ends of its band. */
  #aligned() {
    const usable = (v) => (finite(v) && (!this.options.log || v > 0) ? v : null);
    this.broken = [];
    const tables = this.curves.map((curve) => {
      curve.y.forEach((v, i) => {
        if (v !== null && !finite(v)) this.broken.push({ x: curve.x[i], text: num(v), curve });
      });
      const columns = [curve.x, curve.y.map(usable)];
      if (hasBand(curve)) columns.push(...ends(curve).map((end) => end.map(usable)));
      return columns;
    });
    this.badge.hidden = !this.broken.length;
    this.badge.textContent = this.#broken();
    this.badge.dataset.tip = this.broken.slice(0, 8)
      .map(({ x, text, curve }) => `${curve.label}: ${text} at ${num(x, 6)}`).join('\n');
    if (!tables.length) return [[]];
    return uPlot.join(tables, tables.map((columns) => columns.map(() => 1)));
  }

  /** How many values are not finite, or what it means if they are infinite. */
  #broken() {
    const { infinite } = this.options;
    const all = infinite && this.broken.every(({ text }) => text === '∞');
    return all ? `${this.broken.length} × ${infinite}` : `${this.broken.length} not finite`;
  }

  #description() {
    const { log, range, line, sync, bars, points, time, xName, height } = this.options;
    const series = [{}];
    const bands = [];
    for (const curve of this.curves) {
      series.push({
        label: curve.label, stroke: curve.color, width: curve.behind ? 4 : 1.5, dash: curve.dash, spanGaps: false,
        fill: bars ? curve.color : undefined,
        paths: bars ? uPlot.paths.bars({ size: [curve.behind ? 0.9 : 0.5] }) : undefined,
        points: { show: points ?? curve.y.length < 25, size: 4, fill: curve.color },
      });
      if (!hasBand(curve)) continue;
      const edge = { stroke: 'transparent', width: 0, points: { show: false } };
      series.push(edge, edge);
      const strength = this.curves.length > 6 ? '18' : '30';
      bands.push({ series: [series.length - 1, series.length - 2], fill: curve.color + strength });
    }
    const axis = { stroke: () => css('--muted'), font: FONT, ticks: { show: false } };
    const grid = { stroke: () => css('--grid'), width: 1 };
    const only = log ? { filter: decades } : {};
    return {
      ...this.#size(),
      series,
      bands,
      legend: { show: false },
      padding: [8, 14, 0, 0],
      scales: {
        x: { time: false, ...(bars ? { range: (u, low, high) => [low - 0.5, high + 0.5] } : {}) },
        y: { distr: log ? 3 : 1, range: (u, low, high) => limits(low, high, log, range) },
      },
      axes: [
        { ...axis, size: 25, gap: 3, space: 60, grid: { ...grid, show: false },
          values: (u, at) => at.map((v) => (v === null ? '' : time ? duration(v) : num(v, 6))) },
        { ...axis, size: 50, gap: 4, space: Math.max(26, height / 6),
          grid: { ...grid, ...only }, ...only,
          values: (u, at) => at.map((v) => (v === null ? '' : num(v))) },
      ],
      cursor: {
        y: false, show: this.options.hover, points: { size: 6 },
        drag: { x: this.options.hover, y: false },
        sync: sync ? { key: sync, setSeries: false, scales: ['x', null] } : undefined,
        dataIdx: (u, at, index) => nearest(u.data[at], index),
      },
      hooks: {
        setCursor: [(u) => this.#say(u, xName)],
        setSelect: [(u) => { if (u.select.width > 0) this.zoomed = true; }],
        draw: [(u) => this.#notes(u, line)],
        ready: [(u) => u.over.addEventListener('dblclick', () => { this.zoomed = false; })],
      },
    };
  }

  /** The values under the mouse, in the chart that it is on. */
  #say(u, xName) {
    const { left, top, idx } = u.cursor;
    this.hover.hidden = idx === null || idx === undefined || left < 0 || !u.over.matches(':hover');
    if (this.hover.hidden) return;
    const x = u.data[0][idx];
    const rows = [];
    for (const curve of this.curves) {
      const at = closest(curve.x, x);
      if (at < 0) continue;
      const y = curve.y[at];
      const gap = finite(y) ? Math.abs(u.valToPos(y, 'y') - top) : 0;
      const row = h('div.hover-row', {}, h('i.swatch', { css: { '--run': curve.color } }),
        h('span.hover-label', {}, curve.label), h('b', {}, plusMinus(y, curve.error?.[at])));
      rows.push({ gap, row });
    }
    const many = rows.length > SHOWN_ROWS;
    if (many) rows.sort((a, b) => a.gap - b.gap);
    const name = this.options.time ? duration(x) : `${xName ?? 'step'} ${num(x, 6)}`;
    fill(this.hover, h('div.hover-x', {}, name), rows.slice(0, SHOWN_ROWS).map(({ row }) => row),
      many ? h('div.hover-x', {}, `${rows.length - SHOWN_ROWS} more are further away`) : null);
    const right = left > u.over.clientWidth / 2;
    this.hover.style.left = right ? '' : `${left + 66}px`;
    this.hover.style.right = right ? `${u.over.clientWidth - left + 30}px` : '';
  }

  /** The threshold, and where numbers are not finite. */
  #notes(u, line) {
    const { ctx, bbox } = u;
    const ratio = window.devicePixelRatio || 1;
    ctx.save();
    ctx.font = `${10.5 * ratio}px Roboto, system-ui, sans-serif`;
    if (line !== undefined) {
      const y = u.valToPos(line, 'y', true);
      ctx.strokeStyle = css('--muted');
      ctx.setLineDash([4 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.textAlign = 'center';
    for (const { x, text, curve } of this.broken) {
      ctx.fillStyle = curve.color;
      ctx.fillText(text, u.valToPos(x, 'x', true), text === '∞' ? bbox.top + 10 * ratio : bbox.top + bbox.height - 6 * ratio);
    }
    ctx.restore();
  }
}

const hasBand = (curve) => Boolean(curve.error);

/** Lower and upper end of a band; none where a number is not finite. */
function ends(curve) {
  const end = (sign) => curve.y.map((y, i) =>
    (finite(y) && finite(curve.error[i]) ? y + sign * WIDTH * curve.error[i] : null));
  return [end(-1), end(1)];
}

/** The range of an axis that shows all values, and what it has to include. */
function limits(low, high, log, range) {
  if (low === null || low === undefined) return range ?? (log ? [1, 10] : [0, 1]);
  if (log) return uPlot.rangeLog(low, high, 10, true);
  if (!range) return uPlot.rangeNum(low, high, 0.1, true);
  return [Math.min(range[0], low), Math.max(range[1], high) * (high > range[1] ? 1.05 : 1)];
}

/** Of the splits of a logarithmic axis, powers of ten, five or so. */
function decades(u, splits) {
  const powers = splits.map((v) => Math.round(Math.log10(v)));
  const every = Math.max(1, Math.ceil((powers.at(-1) - powers[0]) / 5));
  return splits.map((v, i) =>
    (Math.abs(v / 10 ** powers[i] - 1) < 1e-6 && powers[i] % every === 0 ? v : null));
}

/** Index of the value nearest to `index` that is one. */
function nearest(values, index) {
  for (let d = 0; d < values.length; d++) {
    if (finite(values[index - d])) return index - d;
    if (finite(values[index + d])) return index + d;
  }
  return index;
}

/** Index of the entry of ascending `values` that is closest to `value`. */
function closest(values, value) {
  let low = 0;
  let high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle;
    else high = middle;
  }
  if (high < 0) return -1;
  return Math.abs(values[high] - value) < Math.abs(values[low] - value) ? high : low;
}
