/** Curves with bands, drawn by uPlot when they come into view. */

import uPlot from './vendor/uPlot.esm.js';
import { announce, fill, h } from './dom.js';
import { duration, finite, num, plusMinus } from './format.js';
import { description } from './plot.js';
import { createTools } from './tools.js';
import { closest, ends, lastOf, rangeOf, smoothed } from './values.js';

const SHOWN_ROWS = 12;
const SAID_CURVES = 6;

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
   *   `infinite` (what an infinite value means), `points`, `hover` (false: none), `time` (x is in seconds), `xName`,
   *   `unit` (of the values), `smooth` (0 to 1), `pin` (a function: the chart can be pinned).
   */
  constructor(root, options) {
    this.options = { height: 180, hover: true, xName: 'step', ...options };
    this.badge = h('span.badge', { hidden: true });
    this.title = h('div.chart-title', {}, options.title ?? '', this.badge);
    this.box = h('div.chart-box', { role: 'img', tabindex: this.options.hover ? 0 : null,
      style: { height: `${this.options.height}px` }, keydown: (event) => this.#key(event), blur: () => this.#leave() });
    this.hover = h('div.hover', { hidden: true });
    this.root = h('div.chart', {}, this.title, this.box, this.hover);
    this.tools = this.options.hover ? createTools(this) : null;
    root.append(this.root);
    this.visible = false;
    this.curves = [];
    this.observers = [
      new IntersectionObserver((entries) => {
        this.visible = entries.at(-1).isIntersecting;
        if (this.visible && this.stale) this.#draw();
      }, { rootMargin: '150px' }),
      new ResizeObserver(() => {
        if (this.plot && this.box.clientWidth) this.plot.setSize(this.size());
      }),
    ];
    for (const observer of this.observers) observer.observe(this.box);
  }

  /** What the chart is of, without the key of its dashes. */
  get name() {
    const { title } = this.options;
    return ((title?.firstChild ?? title)?.textContent ?? String(title ?? '')).trim();
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
    this.box.setAttribute('aria-label', this.#inWords());
    this.tools?.update();
    this.#redraw();
  }

  /** Draw again with the colours that the page has now. */
  recolor() {
    this.shape = null;
    this.#redraw();
  }

  /**
   * Change how it is drawn.
   * @param {Object} options `log`, or `height`.
   */
  change(options) {
    Object.assign(this.options, options);
    this.box.style.height = `${this.options.height}px`;
    this.recolor();
  }

  size() {
    return { width: this.box.clientWidth, height: this.options.height };
  }

  #redraw() {
    this.stale = true;
    if (this.visible) this.#draw();
  }

  #draw() {
    if (!this.box.clientWidth) return;
    this.stale = false;
    this.hover.hidden = true;
    const { smooth } = this.options;
    this.drawn = smooth ? this.curves.flatMap((curve) => smoothed(curve, smooth)) : this.curves;
    const data = this.#aligned();
    const { log, time, xName, unit } = this.options;
    const looks = this.drawn.map((c) => [c.label, c.color, c.dash, Boolean(c.error)]);
    const shape = JSON.stringify([looks, log, time, xName, unit]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data, !this.zoomed);
      if (this.zoomed) this.plot.redraw();
      return;
    }
    this.plot?.destroy();
    this.shape = shape;
    this.zoomed = false;
    this.plot = new uPlot(description(this, (u) => this.#say(u)), data, this.box);
  }

  /** One column of x for all curves, and for each its values and the ends of its band. */
  #aligned() {
    const usable = (v) => (finite(v) && (!this.options.log || v > 0) ? v : null);
    this.broken = this.curves.flatMap((curve) => curve.y.flatMap((v, i) =>
      (v !== null && !finite(v) ? [{ x: curve.x[i], text: num(v), curve }] : [])));
    const tables = this.drawn.map((curve) => {
      const columns = [curve.x, curve.y.map(usable)];
      if (curve.error) columns.push(...ends(curve).map((end) => end.map(usable)));
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

  /** The chart for those who do not see it: last values with their errors, and ranges. */
  #inWords() {
    const said = this.curves.filter((curve) => !curve.behind).map((curve) => {
      const [low, high] = rangeOf(curve.y);
      const { value, error } = lastOf(curve);
      return `${curve.label}: last ${plusMinus(value, error)}, from ${num(low)} to ${num(high)}`;
    });
    const more = said.length - SAID_CURVES;
    return [`Chart of ${this.name || 'values'}`, ...said.slice(0, SAID_CURVES), more > 0 ? `and ${more} more` : '',
      this.options.hover ? 'Arrow keys tell the values' : ''].filter(Boolean).join('. ');
  }

  /** What is at a place of the x-axis, in words. */
  #at(x) {
    return this.options.time ? duration(x) : `${this.options.xName} ${num(x, 6)}`;
  }

  /** Arrow keys move the cursor along the steps, and say the values there. */
  #key(event) {
    const to = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === 'Escape') this.#leave();
    if (to === undefined || !this.plot?.data[0]?.length) return;
    event.preventDefault();
    const xs = this.plot.data[0];
    const { min, max } = this.plot.scales.x;
    const seen = xs.flatMap((x, i) => (x >= min && x <= max ? [i] : []));
    const last = seen.length - 1;
    const place = (this.place ?? (to === 1 ? -1 : last + 1)) + to;
    this.place = Math.min(Math.max(place, 0), last);
    const x = xs[seen[this.place]];
    this.plot.setCursor({ left: this.plot.valToPos(x, 'x'), top: this.plot.over.clientHeight / 2 });
    announce(`${this.#at(x)}. ${this.#rows(this.plot, x, 0).map(({ text }) => text).slice(0, SHOWN_ROWS).join('. ')}`);
  }

  #leave() {
    if (this.place === undefined) return;
    this.place = undefined;
    this.plot?.setCursor({ left: -10, top: -10 });
    this.hover.hidden = true;
  }

  /** The value of each curve near x, the nearest to the cursor first if there are many. */
  #rows(u, x, top) {
    const rows = this.curves.flatMap((curve) => {
      const at = closest(curve.x, x);
      if (at < 0 || curve.behind) return [];
      const y = curve.y[at];
      const value = plusMinus(y, curve.error?.[at]);
      return [{ curve, value, gap: finite(y) ? Math.abs(u.valToPos(y, 'y') - top) : 0, text: `${curve.label}: ${value}` }];
    });
    return rows.length > SHOWN_ROWS ? rows.sort((a, b) => a.gap - b.gap) : rows;
  }

  /** The values under the cursor, in the chart that the mouse or the keyboard is on. */
  #say(u) {
    const { left, top, idx } = u.cursor;
    const here = u.over.matches(':hover') || this.place !== undefined;
    this.hover.hidden = idx === null || idx === undefined || left < 0 || !here;
    if (this.hover.hidden) return;
    const x = u.data[0][idx];
    const rows = this.#rows(u, x, top);
    fill(this.hover, h('div.hover-x', {}, this.#at(x)), rows.slice(0, SHOWN_ROWS).map(({ curve, value }) =>
      h('div.hover-row', {}, h('i.swatch', { css: { '--run': curve.color } }),
        h('span.hover-label', {}, curve.label), h('b', {}, value))),
    rows.length > SHOWN_ROWS ? h('div.hover-x', {}, `${rows.length - SHOWN_ROWS} more are further away`) : null);
    const right = left > u.over.clientWidth / 2;
    this.hover.style.left = right ? '' : `${left + 66}px`;
    this.hover.style.right = right ? `${u.over.clientWidth - left + 30}px` : '';
  }
}
