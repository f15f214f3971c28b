/** What the last probe says of the loss and of the next steps: a row for each run. */

import { fill, h, term } from './dom.js';
import { finite, num, plusMinus } from './format.js';

/** Shorter than in the glossary, side by side in a table. */
const SHORT = { 'loss/now': 'loss now', 'loss/in_10_steps': 'in 10 steps', 'loss/in_30_steps': 'in 30 steps' };
const AHEAD = /^loss\/in_/;
const SHARES = /_units$/;

/**
 * @param {HTMLElement} root
 * @returns {{update: function(Object)}}
 */
export function createNow(root) {
  const table = h('div.table', { tabindex: 0, role: 'region', 'aria-label': 'The loss and the next steps' });
  const section = h('section', { id: 'now' }, h('h2', {}, 'The loss and the next steps',
    h('small', {}, 'On the batch that is probed, at the last probe; ± is one standard error.')), table);
  root.append(section);
  return {
    /** @param {Object} view */
    update(view) {
      const rows = view.loaded.filter(([, run]) => run.now.some(({ tag }) => tag === 'loss/now'));
      section.hidden = !rows.length;
      const known = new Set(rows.flatMap(([, run]) => run.now.map(({ tag }) => tag)));
      const tags = [...view.glossary.keys()].filter((tag) => known.has(tag));
      fill(table, h('table', {}, h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'run'),
        tags.map((tag) => h('th.right', { scope: 'col' }, term(view.glossary, tag, SHORT[tag]))))),
      h('tbody', {}, rows.map(([name, run]) => h('tr', { css: { '--run': view.color(name) } },
        h('td.run-cell', { 'data-tip': name }, h('i.swatch'), h('span', {}, view.short(name))),
        tags.map((tag) => cell(tag, run)))))));
    },
  };
}

function cell(tag, run) {
  const found = run.now.find((one) => one.tag === tag);
  if (!found) return h('td.number', {}, '–');
  const { value, error, step } = found;
  const old = step !== null && step !== run.step ? h('span.since', {}, `at ${num(step, 6)}`) : '';
  return h('td.number', {}, written(tag, value, error), ' ',
    AHEAD.test(tag) ? change(value, run) : '', old);
}

function written(tag, value, error) {
  if (SHARES.test(tag) && finite(value)) return `${num(100 * value, 2)} %`;
  if (tag === 'loss/forecast_holds_for') return `${num(value, 2)} steps`;
  return plusMinus(value, error);
}

/** By how much the loss changes, beside what it will be. */
function change(value, run) {
  const now = run.now.find((one) => one.tag === 'loss/now')?.value;
  if (!finite(value) || !finite(now) || now <= 0) return '';
  const percent = 100 * (value / now - 1);
  if (Math.abs(percent) < 0.05) return h('span.since', {}, '± 0 %');
  return h('span.since', {}, `${percent < 0 ? '−' : '+'}${num(Math.abs(percent), 2)} %`);
}
