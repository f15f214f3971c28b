/** Light or dark, as TensorBoard is, or else as the system is. */

/**
 * Set `data-theme` on the page, now and whenever it changes.
 * @param {function(boolean): void} changed Called with whether the page is dark.
 */
export function followTheme(changed) {
  const host = tensorboard();
  const query = window.matchMedia('(prefers-color-scheme: dark)');
  const apply = () => {
    const dark = host ? host.classList.contains('dark-mode') : query.matches;
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
    changed(dark);
  };
  if (host) new MutationObserver(apply).observe(host, { attributeFilter: ['class'] });
  else query.addEventListener('change', apply);
  apply();
}

/**
 * The colours that the user sees, or has chosen, in TensorBoard's list of runs.
 * @returns {Map<string, string>} By the run's name; empty until that list has been shown.
 */
export function chosenColors() {
  const rows = tensorboard()?.querySelectorAll('tb-data-table-content-row') ?? [];
  return new Map([...rows].flatMap((row) => {
    const color = hex(row.querySelector('.run-color-swatch')?.style.backgroundColor);
    return color ? [[row.textContent.trim(), color]] : [];
  }));
}

/** `rgb(1, 2, 3)` as `#010203`. */
function hex(color) {
  const parts = color?.match(/^rgb\((\d+), (\d+), (\d+)\)$/);
  return parts && `#${parts.slice(1).map((part) => Number(part).toString(16).padStart(2, '0')).join('')}`;
}

/** The body of the page around this one, if that is TensorBoard. */
function tensorboard() {
  try {
    if (window.parent === window) return null;
    const outer = window.parent.document;
    return outer.querySelector('tb-webapp') ? outer.body : null;
  } catch {
    return null; // another origin
  }
}
