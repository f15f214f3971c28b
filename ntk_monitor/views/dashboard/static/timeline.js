/** Every logged number over time, as small multiples with 95 % bands. */

import { dashKey } from './board.js';
import { Chart } from './chart.js';
import { fill, h, term } from './dom.js';
import { DASHES } from './format.js';

const FRACTIONS = new Set(['ntk/core_cosine', 'ntk/temporal_core_cosine']);
const LOGARITHMIC = /\/(trace|alignment|\w*steps_to_learn|forecast_holds_for|norm|relative_size|headroom)$/;
/** These share one chart, each with a dash of its own. */
const AHEAD = { 'loss/now': 'now', 'loss/in_10_steps': 'in 10 steps', 'loss/in_30_steps': 'in 30 steps' };
const ELSEWHERE = /_stderr$|^alert\/|\/(learned|steps_to_learn)$/;
const ORDER = [
  'loss/now', 'loss/in_10_steps', 'loss/in_30_steps',
  'ntk/core_cosine', 'ntk/temporal_core_cosine', 'core/effective_rank',
  'ntk/temporal_effective_rank', 'ntk/spatial_effective_rank', 'ntk/effective_rank', 'ntk/trace',
];

/**
 * @param {HTMLElement} root
 * @returns {{update: function(Object), charts: Iterable<Chart>}}
 */
export function createTimeline(root) {
  const grid = h('div.grid');
  root.append(h('section', { id: 'timeline' }, h('h2', {}, 'Over time',
    h('small', {}, 'Bands are 95 % (1.96 standard errors); ± is one standard error. Drag to zoom, double-click to go back.')), grid));
  const charts = new Map();

  return {
    get charts() { return [...charts.values()].map(({ chart }) => chart); },
    /** @param {Object} view */
    update(view) {
      const groups = grouped(view);
      for (const [name, { chart }] of charts) {
        if (groups.has(name)) continue;
        chart.remove();
        charts.delete(name);
      }
      let place = 0;
      for (const [name, tags] of groups) {
        if (!charts.has(name)) {
          const title = h('span');
          const options = { title, sync: 'ntk', log: LOGARITHMIC.test(name),
            range: FRACTIONS.has(name) ? [0, 1] : undefined };
          charts.set(name, { title, chart: new Chart(grid, options) });
        }
        const { title, chart } = charts.get(name);
        fill(title, term(view.glossary, tags[0]), tags.length > 1 ? dashKey(tags.map(placeOf), tags.map(wordOf)) : '');
        chart.update(view.loaded.flatMap(([run]) => tags.map((tag) => curve(view, run, tag, tags)))
          .filter((c) => c.x.length), view.x);
        const at = grid.children[place++] ?? null;
        if (at !== chart.root) grid.insertBefore(chart.root, at);
      }
    },
  };
}

/** The tags of each chart: those of the target modes share one. */
function grouped(view) {
  const tags = new Set(view.loaded.flatMap(([, run]) => Object.keys(run.series)));
  const known = [...tags].filter((tag) => !ELSEWHERE.test(tag)).sort();
  const losses = known.filter((tag) => !view.glossary.has(tag.replace(/mode_\d+/, 'mode_<i>')));
  const rest = known.filter((tag) => !ORDER.includes(tag) && !losses.includes(tag));
  const groups = new Map();
  for (const tag of [...losses, ...ORDER.filter((tag) => tags.has(tag)), ...rest]) {
    const name = tag in AHEAD ? 'loss/now' : tag.replace(/mode_\d+/, 'mode_<i>');
    groups.set(name, [...(groups.get(name) ?? []), tag]);
  }
  return groups;
}

/** Which dash a tag has among those of its chart, from 1, and what the dash is called. */
const modeOf = (tag) => Number(tag.match(/mode_(\d+)/)?.[1] ?? 1);
const placeOf = (tag) => (tag in AHEAD ? Object.keys(AHEAD).indexOf(tag) + 1 : modeOf(tag));
const wordOf = (tag) => AHEAD[tag] ?? String(modeOf(tag));

function curve(view, run, tag, tags) {
  const place = placeOf(tag);
  const several = tags.length > 1;
  const label = [view.loaded.length > 1 ? view.short(run) : null, several ? AHEAD[tag] ?? `mode ${place}` : null];
  return {
    ...view.curve(run, tag),
    label: label.filter(Boolean).join(', ') || 'value',
    dash: several ? DASHES[(place - 1) % DASHES.length] : [],
  };
}
