/** The whole page: what is shown, and from where it comes. */

import { createAlerts } from './alerts.js';
import { createBoard } from './board.js';
import { addTooltip, fill, h } from './dom.js';
import { runColor, shortNames } from './format.js';
import { createHeader } from './header.js';
import { createNow } from './now.js';
import { createSnapshots } from './snapshots.js';
import { chosenColors, followTheme } from './theme.js';
import { createTimeline } from './timeline.js';

const FIRST_SHOWN = 10;
const POLL = 30_000;
const PINS = 'ntk_monitor.pins';
const SNIPPET = `from ntk_monitor import NTKMonitor, StallAlert

trainer = Trainer(callbacks=[NTKMonitor(every_n_steps=200), StallAlert()])`;

/**
 * @typedef {Object} Source Where data comes from.
 * @property {boolean} live Whether there may be more of it later.
 * @property {function(): Promise<Object>} runs Runs with their states, and the glossary.
 * @property {function(string[], string): Promise<Object>} series Curves, modes, verdict and alerts.
 * @property {function(string, string): Promise<Object>} snapshots Records of a run's probes.
 */

/**
 * Build the dashboard and keep it up to date.
 * @param {HTMLElement} root
 * @param {Source} source
 * @returns {Promise<{refresh: function(): Promise<void>}>} Once it is drawn.
 */
export async function createDashboard(root, source) {
  const model = {
    runs: [], glossary: new Map(), data: new Map(), shown: null, axis: 'step', state: '', dark: false, notes: [],
    smooth: 0, pins: storedPins(), colors: new Map() };
  const page = h('div.ntk', {}, h('div.live', { role: 'status', 'aria-live': 'polite' }));
  root.append(page);
  addTooltip(page);
  const header = createHeader(page, {
    toggle: (name) => select((shown) => (shown.has(name) ? shown.delete(name) : shown.add(name))),
    only: (name) => select((shown) => { shown.clear(); shown.add(name); }),
    all: (names, on) => select((shown) => names.forEach((name) => (on ? shown.add(name) : shown.delete(name)))),
    axis: (name) => { model.axis = name; show(); },
    smooth: (weight) => { model.smooth = weight; show(); },
    state: (name) => { model.state = name; model.data.clear(); refresh(); },
    refresh: source.live ? () => refresh() : null,
  });
  const notes = h('div.notes', { 'aria-live': 'polite' });
  const message = h('section.message', { hidden: true });
  const main = h('main');
  page.append(notes, message, main);
  const parts = [createBoard(main), createNow(main), createTimeline(main, pin), createSnapshots(main, source), createAlerts(main)];
  let asked = 0;
  let before = '';

  followTheme((dark) => {
    model.dark = dark;
    if (!model.shown) return;
    show();
    for (const part of parts) {
      part.recolor?.();
      for (const chart of part.charts ?? []) chart.recolor();
    }
  });

  function pin(name) {
    if (!model.pins.delete(name)) model.pins.add(name);
    try {
      localStorage.setItem(PINS, JSON.stringify([...model.pins]));
    } catch {
      // a page that is opened as a file may have no storage: pins then last as long as the page
    }
    show();
  }

  function select(change) {
    change(model.shown);
    show();
    if ([...model.shown].some((name) => !model.data.has(name))) refresh();
  }

  /** Ask for what there is, and show what is new. */
  async function refresh() {
    const ask = ++asked;
    page.dataset.busy = 'true';
    try {
      const { runs, glossary } = await source.runs();
      if (ask !== asked) return;
      welcome(runs, glossary);
      const names = [...model.shown];
      const found = names.length ? await source.series(names, model.state) : { runs: {}, notes: [] };
      if (ask !== asked) return;
      model.notes = found.notes;
      for (const [name, run] of Object.entries(found.runs)) model.data.set(name, run);
      model.colors = source.live ? chosenColors() : new Map();
      const now = JSON.stringify([runs, found, model.state, [...model.colors]]);
      if (now !== before) show();
      else say([]);
      before = now;
    } catch (error) {
      say([`The data could not be read: ${error.message}. ${source.live ? 'The page tries again in 30 s.' : ''}`]);
    } finally {
      if (ask === asked) delete page.dataset.busy;
    }
  }

  /** Take in the runs: which are new, which are gone. */
  function welcome(runs, glossary) {
    const known = new Set(model.runs.filter((run) => !run.reason).map((run) => run.name));
    const usable = runs.filter((run) => !run.reason).map((run) => run.name);
    model.runs = runs;
    model.glossary = new Map(glossary.map((term) => [term.tag, term]));
    model.names = shortNames(usable);
    model.order = new Map(runs.map((run) => [run.name, run.place]));
    model.shown ??= new Set(usable.slice(-FIRST_SHOWN));
    for (const name of usable) {
      if (known.size && !known.has(name) && model.shown.size < FIRST_SHOWN) model.shown.add(name);
    }
    for (const name of model.shown) if (!usable.includes(name)) model.shown.delete(name);
    const states = [...new Set(runs.flatMap((run) => run.states))];
    if (states.length && !states.includes(model.state)) model.state = states[0];
    model.states = states;
  }

  function show() {
    const view = viewOf(model);
    page.dataset.runs = view.loaded.length;
    for (const part of [header, ...parts]) {
      try {
        part.update(view);
      } catch (error) {
        model.notes = [...model.notes, `A part of the page could not be drawn: ${error.message}`];
      }
    }
    say([]);
    const text = emptyText(model, view);
    message.hidden = !text;
    main.hidden = Boolean(text);
    if (text) fill(message, text);
  }

  function say(texts) {
    fill(notes, [...texts, ...model.notes].map((text) => h('p.note', {}, text)));
  }

  await refresh();
  if (source.live) {
    setInterval(() => { if (!document.hidden && root.clientWidth) refresh(); }, POLL);
  }
  page.dataset.ready = 'true';
  return { refresh };
}

/** Charts that were pinned, in this browser. */
function storedPins() {
  try {
    return new Set(JSON.parse(localStorage.getItem(PINS) ?? '[]'));
  } catch {
    return new Set();
  }
}

/** What the parts of the page show: the shown runs, with ways to get at their curves. */
function viewOf(model) {
  const color = (name) => model.colors.get(name) ?? runColor(model.order?.get(name) ?? 0, model.dark);
  const loaded = model.runs.map(({ name }) => [name, model.data.get(name)])
    .filter(([name, run]) => run && model.shown.has(name));
  const timed = loaded.some(([, run]) => run.axes.some(({ times }) => times.at(-1) > times[0]));
  const axis = timed ? model.axis : 'step';
  const time = axis === 'time';
  return {
    ...model, color, loaded, short: (name) => model.names.get(name) ?? name, axis, timed, x: { time, xName: 'step' },
    states: model.states ?? [],
    curve(name, tag) {
      const run = model.data.get(name);
      const series = run?.series[tag];
      if (!series) return { x: [], y: [], color: color(name) };
      const { steps, times } = run.axes[series.axis];
      const start = Math.min(...run.axes.map((other) => other.times[0] ?? Infinity));
      let last = 0;
      const x = time ? times.map((t) => (last = Math.max(last, t - start))) : steps;
      return { x, y: series.values, error: errors(run, tag, series), color: color(name) };
    },
  };
}

/** Standard errors at the steps of a curve, or null where it has none. */
function errors(run, tag, { axis }) {
  const twin = run.series[`${tag}_stderr`];
  if (!twin) return null;
  if (twin.axis === axis) return twin.values;
  const known = new Map(run.axes[twin.axis].steps.map((step, i) => [step, twin.values[i]]));
  return run.axes[axis].steps.map((step) => known.get(step) ?? null);
}

/** What is said in place of charts, where there are none. */
function emptyText(model, view) {
  if (!model.runs.length) {
    return [h('h2', {}, 'No runs yet'),
      h('p', {}, 'There are no event files in the log folder. They appear here as soon as a training has written some.')];
  }
  if (model.runs.every((run) => run.reason)) {
    return [h('h2', {}, 'No NTK data in these runs'),
      h('p', {}, 'Add NTKMonitor to the Trainer\'s callbacks. It measures what gradient descent can and cannot learn, and leaves the training as it was.'),
      h('pre', {}, SNIPPET)];
  }
  if (!view.loaded.length && !model.shown.size) return [h('p', {}, 'No run is ticked: tick one above.')];
  return null;
}
