/** The bar at the top: which runs, which state, which x-axis. */

import { fill, h } from './dom.js';

/**
 * @param {HTMLElement} root
 * @param {Object} actions `toggle(name)`, `only(name)`, `all(shown)`, `axis(name)`, `smooth(weight)`, `state(name)`,
 *   `refresh()` or null where nothing can change.
 * @returns {{update: function(Object)}}
 */
export function createHeader(root, actions) {
  const filter = h('input.filter', {
    type: 'search', placeholder: 'Filter runs', 'aria-label': 'Filter runs', input: () => sift() });
  const list = h('div.runs', { role: 'group', 'aria-label': 'Runs' });
  const states = h('select', { 'aria-label': 'State', change: () => actions.state(states.value) });
  const stateBox = h('label.choice', {}, 'state', states);
  const axes = ['step', 'time'].map((name) => h('button.segment', {
    type: 'button', 'data-axis': name, click: () => actions.axis(name) },
  name === 'step' ? 'Step' : 'Relative time'));
  const smooth = h('input', { type: 'range', min: 0, max: 0.95, step: 0.05, value: 0, 'aria-label': 'Smoothing',
    input: () => actions.smooth(Number(smooth.value)) });
  const count = h('span.count');
  const refresh = actions.refresh && h('button.icon', {
    type: 'button', click: actions.refresh, 'aria-label': 'Refresh',
    'data-tip': 'Look for new data now; otherwise every 30 s.' }, '↻');
  const matching = () => [...list.children].filter((item) => !item.hidden)
    .filter((item) => !item.classList.contains('empty')).map((item) => item.dataset.run);
  root.append(h('header.bar', {},
    h('div.bar-row', {}, filter,
      h('button.link', { type: 'button', click: () => actions.all(matching(), true) }, 'show all'),
      h('button.link', { type: 'button', click: () => actions.all(matching(), false) }, 'none'),
      count, h('span.grow'), stateBox,
      h('label.choice', { 'data-tip': 'Moving average of the curves over time; what was logged stays in pale.' }, 'smoothing', smooth),
      h('div.segments', { role: 'group', 'aria-label': 'X-axis' }, axes), refresh),
    list));

  function sift() {
    const text = filter.value.toLowerCase();
    for (const item of list.children) item.hidden = !item.dataset.run.toLowerCase().includes(text);
  }

  return {
    /** @param {Object} view What is shown: see dashboard.js. */
    update(view) {
      fill(list, view.runs.map((run) => chip(run, view)));
      for (const item of list.children) {
        const { run } = item.dataset;
        const box = item.querySelector('input');
        box.checked = view.shown.has(run);
        box.onchange = () => actions.toggle(run);
        item.ondblclick = () => actions.only(run);
      }
      sift();
      count.textContent = `${view.shown.size} of ${view.runs.length} runs`;
      stateBox.hidden = view.states.length < 2;
      fill(states, view.states.map((name) =>
        h('option', { value: name }, name.replace(/\/$/, '') || 'default')));
      states.value = view.state;
      for (const button of axes) {
        button.setAttribute('aria-pressed', String(button.dataset.axis === view.axis));
        if (button.dataset.axis === 'time') button.hidden = !view.timed;
      }
    },
  };
}

function chip(run, view) {
  const name = run.name === '.' ? '. (the log folder)' : run.name;
  return h(run.reason ? 'label.run.empty' : 'label.run', {
    'data-run': run.name, css: { '--run': view.color(run.name) },
    'data-tip': run.reason ?? `${name}\nDouble-click shows this run only.` },
  h('input', { type: 'checkbox', disabled: Boolean(run.reason) }),
  h('i.swatch'), h('span.run-name', {}, name));
}
