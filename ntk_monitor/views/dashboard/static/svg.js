/** A chart as a picture that can be enlarged: what uPlot shows, in the same ranges and colours. */

import { duration, finite, num } from './format.js';
import { ends } from './values.js';

const WIDTH = 640;
const HEIGHT = 360;
const LEFT = 70;
const TOP = 34;
const RIGHT = 16;
const BOTTOM = 46;
const ROW = 16;

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/**
 * @param {Chart} chart One that has been drawn.
 * @returns {string} An SVG document.
 */
export function toSVG(chart) {
  const { log, time, xName, unit, line, bars } = chart.options;
  const { scales } = chart.plot;
  const at = (v) => (log ? Math.log10(v) : v);
  const x = (v) => LEFT + ((v - scales.x.min) / (scales.x.max - scales.x.min || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (v) => HEIGHT - BOTTOM - ((at(v) - at(scales.y.min)) / (at(scales.y.max) - at(scales.y.min) || 1)) * (HEIGHT - TOP - BOTTOM);
  const inside = (v, i, curve) => finite(v) && (!log || v > 0) && curve.x[i] >= scales.x.min && curve.x[i] <= scales.x.max;
  const label = (px, py, text, more = '') => `<text x="${px}" y="${py}" ${more}>${escaped(text)}</text>`;
  const parts = chart.drawn.map((curve) => {
    const look = `stroke="${curve.color}" stroke-width="${curve.behind ? 4 : 1.5}" stroke-dasharray="${(curve.dash ?? []).join(' ')}"`;
    if (bars) {
      return curve.y.map((v, i) => (inside(v, i, curve)
        ? `<line x1="${x(curve.x[i])}" x2="${x(curve.x[i])}" y1="${y(0)}" y2="${y(v)}" ${look}/>` : '')).join('');
    }
    return band(curve, x, y, inside) + `<path fill="none" ${look} d="${path(curve, x, y, inside)}"/>`;
  });
  const grid = ticks(scales.y, log).map((v) =>
    `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(v)}" y2="${y(v)}" stroke="#ddd"/>${label(LEFT - 6, y(v) + 4, num(v), 'text-anchor="end"')}`);
  const below = ticks(scales.x, false).map((v) =>
    label(x(v), HEIGHT - BOTTOM + 16, time ? duration(v) : num(v, 6), 'text-anchor="middle"'));
  const limit = line === undefined ? ''
    : `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(line)}" y2="${y(line)}" stroke="#666" stroke-dasharray="4 4"/>`;
  const shown = chart.curves.filter((curve) => !curve.behind);
  const key = shown.map((curve, i) => `<line x1="${LEFT}" x2="${LEFT + 24}" y1="${HEIGHT + i * ROW}" y2="${HEIGHT + i * ROW}" stroke="${curve.color}"
    stroke-width="2" stroke-dasharray="${(curve.dash ?? []).join(' ')}"/>${label(LEFT + 32, HEIGHT + i * ROW + 4, curve.label)}`);
  const whole = HEIGHT + ROW * shown.length;
  const middle = (TOP + HEIGHT - BOTTOM) / 2;
  return standing(`<svg width="${WIDTH}" height="${whole}" viewBox="0 0 ${WIDTH} ${whole}" `
    + 'font-family="sans-serif" font-size="11" fill="#333"><rect width="100%" height="100%" fill="#fff"/>'
    + label(LEFT, 20, chart.name, 'font-size="13"') + grid.join('') + below.join('') + limit + parts.join('')
    + label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, time ? 'time since start' : xName, 'text-anchor="middle"')
    + label(14, middle, unit ?? '', `text-anchor="middle" transform="rotate(-90 14 ${middle})"`) + `${key.join('')}</svg>`);
}

/** Markup as a document of its own, with its namespace. */
function standing(markup) {
  const box = document.createElement('div');
  box.innerHTML = markup;
  return new XMLSerializer().serializeToString(box.firstChild);
}

/** The line of a curve; a value that is none breaks it. */
function path(curve, x, y, inside) {
  let down = false;
  return curve.y.map((v, i) => {
    const before = down;
    down = inside(v, i, curve);
    return down ? `${before ? 'L' : 'M'}${x(curve.x[i]).toFixed(1)} ${y(v).toFixed(1)}` : '';
  }).join('');
}

function band(curve, x, y, inside) {
  if (!curve.error) return '';
  const [low, high] = ends(curve);
  const known = curve.x.map((_, i) => i).filter((i) => inside(low[i], i, curve) && inside(high[i], i, curve));
  const points = [...known.map((i) => [i, low[i]]), ...known.reverse().map((i) => [i, high[i]])];
  return `<polygon fill="${curve.color}" fill-opacity="0.19" points="${points.map(([i, v]) => `${x(curve.x[i]).toFixed(1)},${y(v).toFixed(1)}`).join(' ')}"/>`;
}

/** Five or so round numbers in a range; powers of ten if it is logarithmic. */
function ticks({ min, max }, log) {
  if (log) {
    const low = Math.ceil(Math.log10(min) - 1e-9);
    const count = Math.floor(Math.log10(max) + 1e-9) - low + 1;
    const every = Math.max(1, Math.ceil(count / 6));
    return Array.from({ length: Math.max(count, 0) }, (_, i) => 10 ** (low + i)).filter((_, i) => i % every === 0);
  }
  const raw = (max - min) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
  const first = Math.ceil(min / step - 1e-9);
  const count = Math.floor(max / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
