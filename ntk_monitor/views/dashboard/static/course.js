/** What a target mode is in the data: its time course, small, and its outputs. */

import { h } from './dom.js';
import { finite, num } from './format.js';

const WIDTH = 92;
const HEIGHT = 30;
const EDGE = 2;

/**
 * @param {Object} mode With `course` (lines from -1 to 1), `over` (time or trials) and `outputs`.
 * @returns {HTMLElement[]} A picture, and in words which outputs the mode is made of.
 */
export function courseOf({ index, course, over, outputs }) {
  const named = outputs.map(([name, part]) => (outputs.length > 1 ? `${name} ${num(part, 2).replace('-', '−')}` : name)).join(', ');
  const trials = over === 'time' ? `, ${course.length} trials` : '';
  const label = `Mode ${index} in the data over ${over}${trials}${named ? `: ${named}` : ''}`;
  const picture = h('span.spark', { role: 'img', 'aria-label': label, 'data-tip': label });
  if (course.length) picture.innerHTML = drawn(course, over);
  return [course.length ? picture : null, named ? h('span.since.outputs', {}, named) : null];
}

/** A line for each trial, or bars over trials where there is no time. */
function drawn(course, over) {
  const x = (i, count) => EDGE + (i / Math.max(count - 1, 1)) * (WIDTH - 2 * EDGE);
  const y = (v) => HEIGHT / 2 - v * (HEIGHT / 2 - EDGE);
  const line = (row) => row.map((v, i) => (finite(v) ? `${x(i, row.length).toFixed(1)},${y(v).toFixed(1)}` : '')).join(' ');
  const bars = (row) => row.map((v, i) => (finite(v)
    ? `<line x1="${x(i, row.length).toFixed(1)}" x2="${x(i, row.length).toFixed(1)}" y1="${y(0)}" y2="${y(v).toFixed(1)}"></line>` : '')).join('');
  const shapes = over === 'time' ? course.map((row) => `<polyline points="${line(row)}"></polyline>`).join('') : bars(course[0]);
  return `<svg width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" aria-hidden="true">`
    + `<line class="zero" x1="0" x2="${WIDTH}" y1="${y(0)}" y2="${y(0)}"></line>${shapes}</svg>`;
}
