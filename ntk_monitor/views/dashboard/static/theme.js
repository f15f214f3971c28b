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
