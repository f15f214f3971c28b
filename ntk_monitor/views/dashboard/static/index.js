/** Where TensorBoard begins: the page in its tab, and data from its server. */

import { createDashboard } from './dashboard.js';

const PORTION = 200;

/** Called by TensorBoard once, in a frame of its own. */
export async function render() {
  await Promise.all(['vendor/uPlot.min.css', 'style.css'].map(style));
  await createDashboard(document.body, {
    live: true,
    runs: () => ask('runs'),
    series,
    snapshots: (run, state) => ask('snapshots', [['run', run], ['state', state]]),
  });
}

/** Data of runs, a portion after the other: the server takes no more than 500 at once. */
async function series(runs, state) {
  const found = { runs: {}, notes: [] };
  for (let i = 0; i < runs.length; i += PORTION) {
    const names = runs.slice(i, i + PORTION).map((run) => ['run', run]);
    const part = await ask('series', [...names, ['state', state]]);
    Object.assign(found.runs, part.runs);
    found.notes.push(...part.notes);
  }
  return found;
}

/** Resolves when the style applies, so that charts have their size. */
function style(name) {
  return new Promise((resolve) => {
    const link = document.createElement('link');
    Object.assign(link, { rel: 'stylesheet', href: new URL(name, import.meta.url), onload: resolve, onerror: resolve });
    document.head.append(link);
  });
}

/** Data of one of the plugin's addresses; many runs would not fit into the address itself. */
async function ask(name, values) {
  const body = values && new URLSearchParams(values);
  const response = await fetch(new URL(name, import.meta.url), values ? { method: 'POST', body } : {});
  const content = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(content.error ?? response.statusText);
  return content;
}
