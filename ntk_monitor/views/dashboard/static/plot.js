/** What uPlot is told of a chart: axes, series, cursor. */

import uPlot from './vendor/uPlot.esm.js';
import { duration, finite, num } from './format.js';
import { nearest } from './values.js';

const FONT = '11px Roboto, system-ui, sans-serif';
const LABEL = 14;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * @param {Chart} chart Its curves as they are drawn, and its options.
 * @param {function(uPlot)} say Called when the cursor has moved.
 * @returns {Object} Options of uPlot.
 */
export function description(chart, say) {
  const { log, range, line, sync, bars, points, time, xName, unit, height, hover } = chart.options;
  const series = [{}];
  const bands = [];
  for (const curve of chart.drawn) {
    series.push({
      label: curve.label, stroke: curve.color, width: curve.behind ? 4 : 1.5, dash: curve.dash, spanGaps: false,
      fill: bars ? curve.color : undefined,
      paths: bars ? uPlot.paths.bars({ size: [curve.behind ? 0.9 : 0.5] }) : undefined,
      points: { show: points ?? curve.y.length < 25, size: 4, fill: curve.color },
    });
    if (!curve.error) continue;
    const edge = { stroke: 'transparent', width: 0, points: { show: false } };
    series.push(edge, edge);
    const strength = chart.drawn.length > 6 ? '18' : '30';
    bands.push({ series: [series.length - 1, series.length - 2], fill: curve.color + strength });
  }
  const axis = { stroke: () => css('--muted'), font: FONT, labelFont: FONT, labelSize: LABEL, labelGap: 0, ticks: { show: false } };
  const grid = { stroke: () => css('--grid'), width: 1 };
  const only = log ? { filter: decades } : {};
  return {
    ...chart.size(),
    series,
    bands,
    legend: { show: false },
    padding: [8, 14, 0, 0],
    scales: {
      x: { time: false, ...(bars ? { range: (u, low, high) => [low - 0.5, high + 0.5] } : {}) },
      y: { distr: log ? 3 : 1, range: (u, low, high) => limits(low, high, log, range) },
    },
    axes: [
      { ...axis, size: 22, gap: 3, space: 60, grid: { ...grid, show: false }, label: time ? 'time since start' : xName,
        values: (u, at) => at.map((v) => (v === null ? '' : time ? duration(v) : num(v, 6))) },
      { ...axis, size: 50, gap: 4, space: Math.max(26, height / 6), label: unit,
        grid: { ...grid, ...only }, ...only,
        values: (u, at) => at.map((v) => (v === null ? '' : num(v))) },
    ],
    cursor: {
      y: false, show: hover, points: { size: 6 },
      drag: { x: hover, y: false },
      sync: sync ? { key: sync, setSeries: false, scales: ['x', null] } : undefined,
      dataIdx: (u, at, index) => nearest(u.data[at], index),
    },
    hooks: {
      setCursor: [say],
      setSelect: [(u) => { if (u.select.width > 0) chart.zoomed = true; }],
      draw: [(u) => notes(u, line, chart.broken)],
      ready: [(u) => u.over.addEventListener('dblclick', () => { chart.zoomed = false; })],
    },
  };
}

/** The threshold, and where numbers are not finite. */
function notes(u, line, broken) {
  const { ctx, bbox } = u;
  const ratio = window.devicePixelRatio || 1;
  ctx.save();
  ctx.font = `${10.5 * ratio}px Roboto, system-ui, sans-serif`;
  if (line !== undefined) {
    const y = u.valToPos(line, 'y', true);
    ctx.strokeStyle = css('--muted');
    ctx.setLineDash([4 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
  }
  ctx.textAlign = 'center';
  for (const { x, text, curve } of broken) {
    ctx.fillStyle = curve.color;
    ctx.fillText(text, u.valToPos(x, 'x', true), text === '∞' ? bbox.top + 10 * ratio : bbox.top + bbox.height - 6 * ratio);
  }
  ctx.restore();
}

/** The range of an axis that shows all values, and what it has to include. */
function limits(low, high, log, range) {
  if (low === null || low === undefined) return range ?? (log ? [1, 10] : [0, 1]);
  if (log) return uPlot.rangeLog(low, high, 10, true);
  if (!range) return uPlot.rangeNum(low, high, 0.1, true);
  return [Math.min(range[0], low), Math.max(range[1], high) * (high > range[1] ? 1.05 : 1)];
}

/** Of the splits of a logarithmic axis, powers of ten, five or so. */
function decades(u, splits) {
  const powers = splits.map((v) => Math.round(Math.log10(v)));
  const every = Math.max(1, Math.ceil((powers.at(-1) - powers[0]) / 5));
  return splits.map((v, i) =>
    (finite(v) && Math.abs(v / 10 ** powers[i] - 1) < 1e-6 && powers[i] % every === 0 ? v : null));
}
