/** Every logged number over time, as small multiples with 95 % bands. */

import { dashKey } from './board.js';
import { Chart } from './chart.js';
import { fill, h, term } from './dom.js';
import { DASHES } from './format.js';

const FRACTIONS = new Set(['ntk/core_cosine', 'ntk/temporal_core_cosine']);
const LOGARITHMIC = /\/(trace|alignment|\w*steps_to_learn|forecast_holds_for|norm|relative_size|headroom)$/;
/** These share one chart, each with a dash of its own; a forecast stands at the step that it is for. */
const AHEAD = { 'loss/now': 'came', 'loss/in_10_steps': '10 steps before', 'loss/in_30_steps': '30 steps before' };
const LATER = { 'loss/in_10_steps': 10, 'loss/in_30_steps': 30 };
const LOSSES = 'Loss, and its forecasts';
const ELSEWHERE = /_stderr$|^alert\/|\/(learned|steps_to_learn)$/;
const ORDER = [
  'loss/now', 'loss/in_10_steps', 'loss/in_30_steps',
  'ntk/core_cosine', 'ntk/temporal_core_cosine', 'core/effective_rank',
  'ntk/temporal_effective_rank', 'ntk/spatial_effective_rank', 'ntk/effective_rank', 'ntk/trace',
];

/**
 * @param {HTMLElement} root
 * @param {function(string)} pin Called with a chart that is to be pinned, or no longer.
 * @returns {{update: function(Object), charts: Iterable<Chart>}}
 */
export function createTimeline(root, pin) {
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
          const options = { title, sync: 'ntk', log: LOGARITHMIC.test(name), pin: () => pin(name),
            unit: unitOf(view, tags[0]), range: FRACTIONS.has(name) ? [0, 1] : undefined };
          charts.set(name, { title, chart: new Chart(grid, options) });
        }
        const { title, chart } = charts.get(name);
        const several = tags[0] in AHEAD && tags.length > 1;
        fill(title, term(view.glossary, tags[0], several ? LOSSES : undefined), tags.length > 1 ? dashKey(tags.map(placeOf), tags.map(wordOf)) : '');
        chart.update(view.loaded.flatMap(([run]) => tags.map((tag) => curve(view, run, tag, tags)))
          .filter((c) => c.x.length), { ...view.x, smooth: view.smooth, pinned: view.pins.has(name) });
        chart.root.classList.toggle('pinned', view.pins.has(name));
        const at = grid.children[place++] ?? null;
        if (at !== chart.root && !chart.root.closest('dialog')) grid.insertBefore(chart.root, at);
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
  return new Map([...groups].sort(([a], [b]) => view.pins.has(b) - view.pins.has(a)));
}

const unitOf = (view, tag) => view.glossary.get(tag.replace(/mode_\d+/, 'mode_<i>'))?.unit ?? (/loss/i.test(tag) ? 'loss' : '');

/** Which dash a tag has among those of its chart, from 1, and what the dash is called. */
const modeOf = (tag) => Number(tag.match(/mode_(\d+)/)?.[1] ?? 1);
const placeOf = (tag) => (tag in AHEAD ? Object.keys(AHEAD).indexOf(tag) + 1 : modeOf(tag));
const wordOf = (tag) => AHEAD[tag] ?? String(modeOf(tag));

function curve(view, run, tag, tags) {
  const place = placeOf(tag);
  const several = tags.length > 1;
  const label = [view.loaded.length > 1 ? view.short(run) : null, several ? AHEAD[tag] ?? `mode ${place}` : null];
  const drawn = view.curve(run, tag);
  return {
    ...drawn,
    x: tag in LATER && !view.x.time ? drawn.x.map((step) => step + LATER[tag]) : drawn.x,
    label: label.filter(Boolean).join(', ') || 'value',
    dash: several ? DASHES[(place - 1) % DASHES.length] : [],
  };
}
