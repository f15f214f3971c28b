/** Spectra, temporal modes and target patterns of one run, probe by probe. */

import { dashKey } from './board.js';
import { Chart } from './chart.js';
import { fill, h, term } from './dom.js';
import { DASHES, finite, fixed, num } from './format.js';

const SHOWN = 20;
const SHARE = 0.95;

/**
 * @param {HTMLElement} root
 * @param {Object} source Where snapshots come from: `snapshots(run, state)`.
 * @returns {{update: function(Object), recolor: function()}}
 */
export function createSnapshots(root, source) {
  const runs = h('select', { 'aria-label': 'Run', change: () => choose(runs.value) });
  const slider = h('input.slider', {
    type: 'range', min: 0, max: 0, step: 1, 'aria-label': 'Probe', input: () => show(Number(slider.value)) });
  const label = h('output.step');
  const facts = h('p.facts');
  const notes = h('div.notes');
  const titles = { variance: h('span'), modes: h('h3'), targets: h('h3') };
  const boxes = { variance: h('div'), modes: h('div'), targets: h('div') };
  const empty = h('p.empty-note', { hidden: true });
  const body = h('div.snapshots', {},
    h('div.column', {}, boxes.variance, facts),
    h('div.column', {}, titles.modes, boxes.modes), h('div.column', {}, titles.targets, boxes.targets));
  const section = h('section', { id: 'snapshots' }, h('h2', {}, 'Temporal modes and spectra'),
    h('div.controls', {}, h('label.choice', {}, 'run', runs), slider, label), notes, empty, body);
  root.append(section);
  const variance = new Chart(boxes.variance, {
    title: titles.variance, height: 232, range: [0, 1.02], line: SHARE, points: true, xName: 'modes',
    unit: 'share of the trace' });
  const stacks = { modes: [], targets: [] };
  let view = null;
  let current = { run: null, state: null, steps: [], records: [], at: 0 };
  let seen = false;
  new IntersectionObserver((entries) => {
    seen = seen || entries.some((entry) => entry.isIntersecting);
    if (seen) load();
  }, { rootMargin: '300px' }).observe(section);

  function choose(run) {
    current = { ...current, run, key: null };
    load();
  }

  /** Ask for the records if this run, state or its number of probes is new. */
  async function load() {
    if (!seen || !view || !current.run) return;
    const { run } = current;
    const key = `${run}\n${view.state}\n${view.data.get(run)?.step}`;
    if (key === current.key) return;
    const follow = current.at >= current.steps.length - 1 || current.records.length === 0;
    const step = current.steps[current.at];
    current.key = key;
    const found = await source.snapshots(run, view.state).catch((error) => ({
      steps: [], records: [], notes: [String(error.message ?? error)] }));
    if (current.key !== key) return;
    const same = found.steps.findIndex((other) => other >= step);
    Object.assign(current, found, { at: follow || same < 0 ? found.steps.length - 1 : same });
    fill(notes, found.notes.map((text) => h('p.note', {}, text)));
    slider.max = Math.max(found.steps.length - 1, 0);
    slider.value = current.at;
    body.hidden = !found.steps.length;
    slider.disabled = found.steps.length < 2;
    empty.hidden = !body.hidden;
    empty.textContent = 'This run has no records of its temporal modes: it was logged by an older '
      + 'version, or by a logger that writes no event files. Its numbers are above.';
    label.textContent = '';
    if (found.steps.length) show(current.at);
  }

  function show(at) {
    current.at = at;
    const record = current.records[at];
    const step = num(current.steps[at], 6);
    const whole = wholeAt(current.records, at);
    const old = whole === at || whole < 0 ? '' : `, kernel of step ${num(current.steps[whole], 6)}`;
    label.textContent = `step ${step}  (probe ${at + 1} of ${current.steps.length}${old})`;
    slider.setAttribute('aria-valuetext', `step ${step}`);
    try {
      draw(record, whole < 0 ? record : current.records[whole]);
    } catch (error) {
      fill(notes, h('p.note', {}, `The record at step ${step} could not be drawn: ${error.message}`));
    }
  }

  /** A probe, and the last one up to it that has the kernel's numbers. */
  function draw(record, kernel) {
    const [trials, steps, units] = kernel.state_shape;
    fill(titles.variance, term(view.glossary, 'record/cumulative_variance'));
    fill(titles.modes, term(view.glossary, 'record/temporal_modes', 'When gradient descent can act'));
    fill(titles.targets, term(view.glossary, 'record/target_modes', 'Target modes'), ', and what the NTK ',
      term(view.glossary, 'word/sees'), ' (grey)');
    const total = Number(kernel.trace) / units;
    const ntk = cumulative(kernel.temporal_spectrum, total);
    const core = cumulative(record.core_spectrum, Number(record.core_total));
    const color = view.color(current.run);
    variance.update([
      { label: `NTK, ${reach(ntk)}`, color, ...ntk },
      { label: `core, ${reach(core)}`, color, dash: DASHES[1], ...core },
    ].filter((curve) => curve.x.length));
    fill(facts, h('span.key', {}, dashKey([1], [`NTK, ${reach(ntk)}`])), h('span.key', {}, dashKey([2], [`core, ${reach(core)}`])),
      h('span', {}, term(view.glossary, 'word/hidden_state', 'State'), ` ${record.state.join(', ') || '?'}: ${trials} trials × ${steps} steps × ${units} units. `
        + `${kernel.products} products by ${kernel.method} (${kernel.scheme}); the core covers `
        + `${Math.round(Number(record.coverage) * 100)} % of the parameters behind the state. ${weights(kernel)}`));
    stack('modes', kernel.temporal_modes, null, (i) => {
      const share = finite(kernel.temporal_spectrum[i]) ? kernel.temporal_spectrum[i] / total : NaN;
      return `NTK mode ${i + 1}: ${finite(share) ? `${num(share * 100, 2)} % of the trace` : 'no finite share'}`;
    });
    const targets = kernel.seen_patterns ? kernel : record;
    stack('targets', targets.target_patterns, targets.seen_patterns, (i) => {
      const mode = record.target_modes[i];
      if (!mode) return `mode ${i + 1}`;
      const need = { null: '', Infinity: ', never, by the forecast' }[mode.steps_to_learn]
        ?? `, ${num(mode.steps_to_learn, 2)} steps to learn`;
      return `Mode ${mode.index}: learned ${fixed(mode.learned, 2)}${need}`;
    });
  }

  /** Which weights can move the state most. */
  function weights(kernel) {
    const largest = kernel.trace_by_site ?? [];
    return largest.length
      ? `Most of the trace is in ${largest.map(([name, share]) => `${name} (${num(share * 100, 2)} %)`).join(', ')}.` : '';
  }

  /** A chart above the other for each pattern. */
  function stack(name, patterns, seen, caption) {
    const charts = stacks[name];
    while (charts.length > patterns.items.length) charts.pop().remove();
    patterns.items.forEach((item, i) => {
      charts[i] ??= new Chart(boxes[name], { title: h('span'), height: 124, hover: false, points: false });
      const bars = patterns.steps.length === 1;
      fill(charts[i].options.title, caption(i));
      const behind = seen?.items[i] ? traces(seen.items[i], patterns, getComputedStyle(document.documentElement).getPropertyValue('--seen').trim(), bars, true) : [];
      charts[i].update([...behind, ...traces(item, patterns, view.color(current.run), bars)],
        { bars, xName: bars ? 'trial' : 'time step' });
    });
    if (!charts.length) fill(titles[name], 'None were recorded');
  }

  return {
    recolor() {
      for (const chart of [variance, ...stacks.modes, ...stacks.targets]) chart.recolor();
      if (current.records?.length) show(current.at);
    },
    /** @param {Object} next The view. */
    update(next) {
      view = next;
      const follow = new Set(view.runs.filter((run) => run.states.includes(view.state)).map((run) => run.name));
      const names = view.loaded.map(([name]) => name).filter((name) => follow.has(name));
      section.hidden = !names.length;
      fill(runs, names.map((name) => h('option', { value: name }, name)));
      if (!names.includes(current.run)) choose(names[0] ?? null);
      else load();
      runs.value = current.run;
    },
  };
}

/** Index of the last record up to this one that holds the kernel's numbers; -1 if none does. */
function wholeAt(records, at) {
  for (let i = at; i >= 0; i--) if (records[i].temporal_spectrum.length) return i;
  return -1;
}

/** Share of the total that the leading entries carry together. */
function cumulative(spectrum, total) {
  let sum = 0;
  const y = spectrum.slice(0, SHOWN).map((v) => (finite(v) && total > 0 ? (sum += v) / total : null));
  return { x: y.map((_, i) => i + 1), y };
}

function reach({ y }) {
  const at = y.findIndex((v) => v >= SHARE - 1e-9);
  return at < 0 ? `more than ${y.length} modes to 95 %` : `${at + 1} mode${at ? 's' : ''} to 95 %`;
}

/** A line over time for each trial, or bars over trials where there is no time. */
function traces(item, { trials, steps }, color, bars, behind = false) {
  const value = (v) => (v === null ? null : v * item.scale);
  const x = bars ? trials : steps;
  const rows = bars ? [item.values.map((row) => value(row[0]))] : item.values.map((row) => row.map(value));
  return rows.map((y, i) => ({ label: `trial ${i + 1}`, color: bars || behind ? color : `${color}b0`, x, y, behind }));
}
