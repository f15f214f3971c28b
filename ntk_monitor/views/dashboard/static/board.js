/** The verdict on each run, and what is known of each target mode. */

import { Chart } from './chart.js';
import { fill, h, prose, term } from './dom.js';
import { courseOf } from './course.js';
import { DASHES, finite, fixed, num, plusMinus } from './format.js';

const LEARNED = 0.9;
/** Fewer rows than these leave a gap beside charts; then the charts are below. */
const FEW = 5;

/**
 * @param {string} state
 * @param {string} [tip]
 * @returns {HTMLElement} A coloured word.
 */
export const chip = (state, tip) =>
  h('span.chip', { 'data-state': state, 'data-tip': tip, tabindex: tip ? 0 : null }, state);

/**
 * @param {HTMLElement} root
 * @returns {{update: function(Object), charts: Chart[]}}
 */
export function createBoard(root) {
  const verdicts = h('div.verdicts', { tabindex: 0, role: 'region', 'aria-label': 'Verdicts' });
  const table = h('div.table', { tabindex: 0, role: 'region', 'aria-label': 'Target modes' });
  const side = h('div.side');
  root.append(
    h('section', { id: 'verdict' }, h('h2', {}, 'Verdict'), verdicts),
    h('section', { id: 'board' }, h('h2', {}, 'Target modes'),
      h('div.board', {}, table, side)));
  const title = [h('span'), h('span')];
  const learned = new Chart(side, {
    title: title[0], range: [0, 1], line: LEARNED, sync: 'ntk', height: 150, unit: 'fraction' });
  const steps = new Chart(side, { title: title[1], log: true, infinite: 'never', sync: 'ntk', height: 150, unit: 'steps' });

  return {
    charts: [learned, steps],
    /** @param {Object} view */
    update(view) {
      fill(verdicts, view.loaded.map(([name, run]) => verdict(name, run, view)));
      const rows = view.loaded.flatMap(([name, run]) => run.modes.map((mode) => ({ name, mode })));
      rows.sort((a, b) => a.mode.index - b.mode.index);
      root.querySelector('#board').hidden = !rows.length;
      root.querySelector('.board').classList.toggle('few', rows.length < FEW);
      fill(table, board(rows, view));
      const key = dashKey([...new Set(rows.map(({ mode }) => mode.index))]);
      fill(title[0], term(view.glossary, 'target/mode_1/learned'), key);
      fill(title[1], term(view.glossary, 'target/mode_1/steps_to_learn'), key.cloneNode(true));
      learned.update(curves(view, 'learned'), view.x);
      steps.update(curves(view, 'steps_to_learn'), view.x);
    },
  };
}

/**
 * @param {number[]} modes
 * @param {string[]} [words] What to call each, if not by its number.
 * @returns {HTMLElement} Which dash is which mode.
 */
export const dashKey = (modes, words = modes.map(String)) => h('span.dashes', {}, modes.map((mode, i) => {
  const [on, off] = DASHES[(mode - 1) % DASHES.length];
  const line = on ? `repeating-linear-gradient(90deg, currentColor 0 ${on}px, transparent 0 ${on + off}px)` : 'currentColor';
  return h('span', {}, h('i', { style: { background: line } }), words[i]);
}));

/** A mode's curves of every run: the colour is the run's, the dash the mode's. */
function curves(view, name) {
  return view.loaded.flatMap(([run, data]) => data.modes.map((mode) => ({
    ...view.curve(run, `target/mode_${mode.index}/${name}`),
    label: view.loaded.length > 1 ? `${view.short(run)}, mode ${mode.index}` : `mode ${mode.index}`,
    dash: DASHES[(mode.index - 1) % DASHES.length],
  })).filter((curve) => curve.x.length));
}

function verdict(name, run, view) {
  const { state, loss, flat, parts, note, when, detail, advice } = run.verdict;
  return h('article.verdict', { css: { '--run': view.color(name) } },
    h('div.verdict-head', {}, chip(state), h('span.verdict-run', { 'data-tip': name }, h('i.swatch'), view.short(name)),
      h('span.grow'), h('span.verdict-when', {}, when)),
    flat ? h('p.verdict-text', {}, loss) : null,
    shares(parts),
    h('ul.parts', {}, parts.map((part) => h('li', {}, fate(part, view), h('span', {}, part.text)))),
    loss && !flat ? h('p.verdict-loss', {}, loss) : null,
    note ? h(parts.length ? 'p.verdict-loss' : 'p.verdict-text', {}, note) : null,
    advice ? h('p.verdict-advice', {}, h('b', {}, 'What helps: '), prose(advice)) : null,
    run.step === null ? null : h('p.verdict-detail', {},
      `Last probe at step ${num(run.step, 6)}${detail ? `: ${detail}` : ''}`),
    run.facts.model ? h('p.verdict-detail', { 'data-tip': run.about.map(([what, text]) => `${what}: ${text}`).join('\n') },
      [run.about[0], run.about[1]].map(([, text]) => text).join(' · ')) : null);
}

/** What becomes of a part of the target, in a word that explains itself. */
const fate = (part, view) => {
  const entry = view.glossary.get(`verdict/${part.fate}`);
  const tip = entry ? `${entry.meaning}\nLooks bad: ${entry.bad}` : null;
  return h('i.fate', { role: 'img', 'data-fate': part.fate, 'data-tip': tip, tabindex: tip ? 0 : null, 'aria-label': part.fate });
};

/** The whole target as a bar, each part as long as its share. */
function shares(parts) {
  if (!parts.length || !parts.every(({ share }) => finite(share))) return null;
  return h('div.shares', {}, parts.map(({ fate: what, share, text }) => h('i', {
    'data-fate': what, 'data-tip': text, style: { flexGrow: Math.max(share, 0.004) } })));
}

function board(rows, view) {
  const all = rows.map(({ mode }) => mode.steps_to_learn).filter((v) => finite(v) && v > 0).map(Math.log10);
  const span = [Math.floor(Math.min(...all)), Math.ceil(Math.max(...all))];
  const shared = rows.some(({ mode }) => finite(mode.share));
  const shown = rows.some(({ mode }) => mode.course.length || mode.outputs.length);
  const head = (tag, text) => h('th', { scope: 'col' }, term(view.glossary, tag, text));
  let before = null;
  let drawn = null;
  return h('table', {}, h('thead', {}, h('tr', {},
    head('word/mode'), shown ? head('word/in_the_data') : null, h('th', { scope: 'col' }, 'run'),
    shared ? head('record/share') : null, head('word/state'),
    head('target/mode_1/learned'), head('target/mode_1/steps_to_learn'),
    head('record/gain'), head('target/mode_1/alignment'), head('record/core_overlap'))),
  h('tbody', {}, rows.map(({ name, mode }) => {
    const run = view.data.get(name);
    const first = mode.index !== before;
    before = mode.index;
    const data = JSON.stringify([mode.course, mode.outputs]);
    const same = !first && data === drawn;
    drawn = data;
    return h(first ? 'tr.first' : 'tr', { css: { '--run': view.color(name) } },
      h('td.mode', {}, first ? String(mode.index) : '', first && mode.output
        ? h('span.since', {}, mode.output) : null),
      shown ? h('td.course', {}, same ? '' : courseOf(mode)) : null,
      h('td.run-cell', { 'data-tip': name }, h('i.swatch'), h('span', {}, view.short(name))),
      shared ? h('td.number', {}, finite(mode.share) ? `${num(100 * mode.share, 2)} %` : '–') : null,
      h('td.state', {}, chip(mode.state, history(mode)), since(mode)),
      h('td', {}, bar(mode.learned)),
      h('td', {}, marker(mode, span)),
      h('td.number', { 'data-tip': mode.where || undefined }, num(mode.gain), where(mode)),
      h('td.number', {}, plusMinus(mode.alignment, mode.alignment_stderr),
        finite(mode.alignment_step) && mode.alignment_step !== run?.step
          ? h('span.since', {}, `at ${num(mode.alignment_step, 6)}`) : ''),
      h('td.number', {}, num(mode.core_overlap, 2)));
  })));
}

/** The weight in which most of the mode can be learned. */
function where({ sites }) {
  if (!sites.length) return '';
  const [name, share] = sites[0];
  return h('span.where', {}, `${num(100 * share, 2)} % in ${name.split('.').slice(-2).join('.')}`);
}

const since = (mode) =>
  (finite(mode.since) ? h('span.since', {}, `since ${num(mode.since, 6)}`) : '');

const history = (mode) => (mode.history.length
  ? mode.history.map(([step, state]) => `step ${num(step, 6)}: ${state}`).join('\n') : undefined);

function bar(value) {
  const width = finite(value) ? Math.min(Math.max(value, 0), 1) * 100 : 0;
  return h('div.meter', {}, h('div.meter-track', {}, h('div.meter-fill', { style: { width: `${width}%` } }),
    h('div.meter-line', { style: { left: `${LEARNED * 100}%` } })), h('span.number', {}, fixed(value, 3)));
}

/** Steps to learn: where they lie among those of all modes, on a logarithmic axis, and in words. */
function marker({ steps_to_learn: value, steps_text: text }, [low, high]) {
  if (!finite(value)) return h('span.words', {}, text);
  const at = value > 0 && high > low ? ((Math.log10(value) - low) / (high - low)) * 100 : null;
  const tip = at === null ? null : `${num(value, 4)} steps, on an axis from 1e${low} to 1e${high}`;
  return h('div.meter', { 'data-tip': tip }, h('div.log-track', {},
    at === null ? null : h('i.log-dot', { style: { left: `${at}%` } })),
  h('span.number', {}, text));
}
