/** Numbers as text, and the colours of runs. */

/** TensorBoard's own, in its order: a run has one colour in all of its tabs. */
const PALETTE = ['#425066', '#12b5cb', '#e52592', '#f9ab00', '#9334e6', '#7cb342', '#e8710a'];
const FIRST_IN_THE_DARK = '#8e98a3';
const SHADES = [0, -0.35, 0.35];
/** Dashes of target modes, from mode 1 on. */
export const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [12, 4], [1, 2]];

/**
 * @param {*} value A number, or text that stands for one that is not finite.
 * @returns {boolean}
 */
export const finite = (value) => typeof value === 'number' && Number.isFinite(value);

/**
 * @param {*} value
 * @param {number} [digits]
 * @returns {string} `0.767`, `3.24e10`, `NaN`, or a dash where there is nothing.
 */
export function num(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (!finite(value)) return { NaN: 'NaN', Infinity: '∞', '-Infinity': '−∞' }[String(value)] ?? '?';
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return trim(value.toExponential(digits - 1)).replace('e+', 'e');
  if (size >= 10 ** digits) return String(Math.round(value));
  return trim(value.toPrecision(digits));
}

/**
 * @param {*} value A share.
 * @param {number} digits Behind the point.
 * @returns {string} Never a zero with a sign.
 */
export const fixed = (value, digits) =>
  (finite(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, '$1') : num(value));

const trim = (text) => text.replace(/(\.\d*?)0+(e|$)/, '$1$2').replace(/\.(e|$)/, '$1');

/**
 * @param {*} value
 * @param {*} error Its standard error, if it has one.
 * @returns {string}
 */
export const plusMinus = (value, error) =>
  num(value) + (error === null || error === undefined ? '' : ` ± ${num(error, 2)}`);

/**
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  const size = Math.abs(seconds);
  if (size < 120) return `${num(seconds)} s`;
  if (size < 7200) return `${num(seconds / 60)} min`;
  return size < 172800 ? `${num(seconds / 3600)} h` : `${num(seconds / 86400)} d`;
}

/**
 * @param {number} place Which run, in the order in which TensorBoard counts them.
 * @param {boolean} dark Whether the page is dark.
 * @returns {string} `#rrggbb`; of runs that have the same in TensorBoard, shades of it.
 */
export function runColor(place, dark) {
  const at = place % PALETTE.length;
  const shade = SHADES[Math.floor(place / PALETTE.length) % SHADES.length];
  return mixed(dark && at === 0 ? FIRST_IN_THE_DARK : PALETTE[at], shade);
}

/**
 * Names of runs without the folders, in front and behind, that all of them share.
 * @param {string[]} names
 * @returns {Map<string, string>} The short name of each.
 */
export function shortNames(names) {
  const parts = names.map((name) => name.split('/'));
  const shared = (at) => parts.length > 1 && parts.every((p) => p.length > 1 && p.at(at) === parts[0].at(at));
  while (shared(0)) parts.forEach((p) => p.shift());
  while (shared(-1)) parts.forEach((p) => p.pop());
  return new Map(names.map((name, i) => [name, parts[i].join('/')]));
}

/** A colour with a share of white, or of black where it is negative. */
function mixed(color, share) {
  const towards = share > 0 ? 255 : 0;
  const part = (at) => {
    const value = parseInt(color.slice(at, at + 2), 16);
    const next = Math.round(value + (towards - value) * Math.abs(share));
    return next.toString(16).padStart(2, '0');
  };
  return `#${part(1)}${part(3)}${part(5)}`;
}
