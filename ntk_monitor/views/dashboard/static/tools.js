/** The buttons of a chart: logarithmic axis, pin, full screen, and its numbers and picture as files. */

import { h } from './dom.js';
import { finite } from './format.js';
import { toSVG } from './svg.js';

/**
 * @param {Chart} chart
 * @returns {{update: function()}}
 */
export function createTools(chart) {
  const button = (text, label, click) =>
    h('button.tool', { type: 'button', 'aria-label': label, 'data-tip': label, click }, text);
  const log = button('log', 'Logarithmic axis', () => {
    chart.change({ log: !chart.options.log });
    update();
  });
  const pin = chart.options.pin && button('pin', 'Pin: keep this chart in front', () => chart.options.pin());
  const full = button('⤢', 'Full screen', () => (chart.root.closest('dialog') ? close() : open()));
  const file = () => chart.name.replace(/\W+/g, '_') || 'chart';
  const bar = h('div.tools', { role: 'group' }, log, pin, full,
    button('CSV', 'Download the numbers as CSV', () => save(`${file()}.csv`, 'text/csv', toCSV(chart))),
    button('SVG', 'Download the picture as SVG', () => save(`${file()}.svg`, 'image/svg+xml', toSVG(chart))));
  chart.title.append(bar);
  const place = h('div.chart-place', { hidden: true });
  let dialog = null;
  let height = null;

  function open() {
    dialog = h('dialog.full', { 'aria-label': chart.name, close });
    chart.root.before(place);
    place.hidden = false;
    chart.root.closest('.ntk').append(dialog);
    dialog.append(chart.root);
    height = chart.options.height;
    dialog.showModal();
    chart.change({ height: Math.max(window.innerHeight - 120, 200) });
    full.focus();
  }

  function close() {
    if (!dialog) return;
    const open_ = dialog;
    dialog = null;
    place.replaceWith(chart.root);
    open_.remove();
    chart.change({ height });
    full.focus();
  }

  function update() {
    log.setAttribute('aria-pressed', String(Boolean(chart.options.log)));
    pin?.setAttribute('aria-pressed', String(Boolean(chart.options.pinned)));
    bar.setAttribute('aria-label', `Chart of ${chart.name}`);
  }

  update();
  return { update };
}

/** Every value of every curve, not smoothed. */
export function toCSV(chart) {
  const { time, xName } = chart.options;
  const cell = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const number = (v) => (v === null || v === undefined ? '' : finite(v) ? String(v) : String(v).replace('Infinity', 'inf'));
  const rows = chart.curves.flatMap((curve) => curve.x.map((x, i) =>
    [cell(curve.label), x, number(curve.y[i]), number(curve.error?.[i])].join(',')));
  return `${['curve', time ? 'seconds' : xName, 'value', 'stderr'].join(',')}\n${rows.join('\n')}\n`;
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
