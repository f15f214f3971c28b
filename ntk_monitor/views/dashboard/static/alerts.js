/** Alerts of the shown runs, the newest first. */

import { chip } from './board.js';
import { fill, h, prose } from './dom.js';
import { num } from './format.js';

const MOST = 200;

/**
 * @param {HTMLElement} root
 * @returns {{update: function(Object)}}
 */
export function createAlerts(root) {
  const list = h('ol.alerts', { tabindex: 0, 'aria-label': 'Alerts' });
  root.append(h('section', { id: 'alerts' }, h('h2', {}, 'Alerts'), list));
  return {
    /** @param {Object} view */
    update(view) {
      const all = view.loaded.flatMap(([name, run]) => run.alerts.map((alert) => ({ name, alert })));
      all.sort((a, b) => b.alert.step - a.alert.step);
      fill(list, all.length ? all.slice(0, MOST).map((entry) => item(entry, view))
        : h('li.empty-note', {}, 'No alerts. They come from StallAlert(), beside NTKMonitor in the Trainer\'s callbacks.'));
    },
  };
}

function item({ name, alert }, view) {
  const { step, mode, kind, severity, reason, message, replaced } = alert;
  return h('li.alert', { 'data-severity': severity, css: { '--run': view.color(name) } },
    h('div.alert-head', {}, h('span.severity', {}, severity), chip(kind),
      mode === null ? null : h('b', {}, `mode ${mode}`), h('span', {}, `step ${num(step, 6)}`),
      h('span.run-cell', { 'data-tip': name }, h('i.swatch'), view.short(name)),
      reason ? h('span.reason', {}, `reason: ${reason}`) : null,
      replaced ? h('span.reason', {}, `replaced at step ${num(replaced, 6)}`) : null),
    h('p', {}, prose(message)));
}
