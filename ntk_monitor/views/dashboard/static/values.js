/** Curves as numbers: bands, ranges, the value at a step, smoothing. */

import { finite } from './format.js';

/** Half width of a band in standard errors: 95 % of a normal distribution. */
const WIDTH = 1.96;

/** Lower and upper end of a band; none where a number is not finite. */
export function ends(curve) {
  const end = (sign) => curve.y.map((y, i) =>
    (finite(y) && finite(curve.error[i]) ? y + sign * WIDTH * curve.error[i] : null));
  return [end(-1), end(1)];
}

/** The last value of a curve that is one, with its standard error. */
export function lastOf({ y, error }) {
  const at = y.findLastIndex((v) => v !== null);
  return { value: y[at], error: error?.[at] };
}

/** The least and the largest finite value. */
export function rangeOf(y) {
  const values = y.filter(finite);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [null, null];
}

/** Index of the value nearest to `index` that is one. */
export function nearest(values, index) {
  for (let d = 0; d < values.length; d++) {
    if (finite(values[index - d])) return index - d;
    if (finite(values[index + d])) return index + d;
  }
  return index;
}

/** Index of the entry of ascending `values` that is closest to `value`; -1 if there are none. */
export function closest(values, value) {
  let low = 0;
  let high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle;
    else high = middle;
  }
  if (high < 0) return -1;
  return Math.abs(values[high] - value) < Math.abs(values[low] - value) ? high : low;
}

/**
 * A curve as a pale background, and its moving average: exponential, freed of its bias towards 0, as TensorBoard's.
 * @param {Curve} curve
 * @param {number} weight Of what came before, from 0 to below 1.
 * @returns {Curve[]}
 */
export function smoothed(curve, weight) {
  let last = 0;
  let count = 0;
  const y = curve.y.map((v) => {
    if (!finite(v)) return null;
    last = weight * last + (1 - weight) * v;
    return last / (1 - weight ** ++count);
  });
  const plain = { ...curve, error: undefined };
  return [{ ...plain, color: `${curve.color}48`, dash: [] }, { ...plain, y }];
}
