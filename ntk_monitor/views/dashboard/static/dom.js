/** Elements, and the one tooltip of the page. */

/**
 * Make an element.
 * @param {string} tag Its name, with classes after dots: `div.card.wide`.
 * @param {Object} [props] Attributes; functions are listeners by event name.
 * @param {...(Node|string|null|Array)} children What goes into it.
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split('.');
  const element = document.createElement(name || 'div');
  if (classes.length) element.className = classes.join(' ');
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(key, value);
    else if (key === 'style') Object.assign(element.style, value);
    else if (key === 'css') for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * Text in which backticks mark code.
 * @param {string} text
 * @returns {Array<Node|string>}
 */
export function prose(text) {
  const parts = text.split('`');
  if (parts.length % 2 === 0) return [text]; // one without its other
  return parts.map((part, i) => (i % 2 ? h('code', {}, part) : part));
}

/**
 * Put children in place of those that an element has; where they read the same, nothing is touched.
 * @param {HTMLElement} element
 * @param {...(Node|string)} children
 */
export function fill(element, ...children) {
  const next = h(element.tagName, {}, ...children);
  if (next.innerHTML !== element.innerHTML) element.replaceChildren(...next.childNodes);
}

/**
 * Show the text in `data-tip` of whatever the mouse or the keyboard is on.
 * @param {HTMLElement} root
 */
export function addTooltip(root) {
  const bubble = h('div.tip', { role: 'tooltip', id: 'ntk-tip', hidden: true });
  root.append(bubble);
  const show = (event) => {
    const target = event.target.closest?.('[data-tip]');
    bubble.hidden = !target;
    if (!target) return;
    bubble.textContent = target.dataset.tip;
    if (event.type === 'focusin') target.setAttribute('aria-describedby', bubble.id);
    const box = target.getBoundingClientRect();
    const left = Math.min(box.left, window.innerWidth - bubble.offsetWidth - 12);
    const below = box.bottom + 6 + bubble.offsetHeight < window.innerHeight;
    bubble.style.left = `${Math.max(8, left)}px`;
    bubble.style.top = `${below ? box.bottom + 6 : box.top - bubble.offsetHeight - 6}px`;
  };
  root.addEventListener('mouseover', show);
  root.addEventListener('focusin', show);
  root.addEventListener('mouseleave', () => { bubble.hidden = true; });
  root.addEventListener('keydown', (event) => { if (event.key === 'Escape') bubble.hidden = true; });
}

/**
 * Have a screen reader say something.
 * @param {string} text
 */
export function announce(text) {
  document.querySelector('.ntk .live').textContent = text;
}

/**
 * A term with its explanation on hover.
 * @param {Map<string, Object>} glossary Terms by tag, numbers of modes written as `<i>`.
 * @param {string} tag
 * @param {string} [text] What to show in place of the term's name.
 * @returns {HTMLElement}
 */
export function term(glossary, tag, text) {
  const entry = glossary.get(tag.replace(/mode_\d+/, 'mode_<i>'));
  if (!entry) return h('span', {}, text ?? tag);
  const tip = [entry.meaning, entry.range && `Range: ${entry.range}`, entry.bad && `Looks bad: ${entry.bad}`];
  return h('span.term', { 'data-tip': tip.filter(Boolean).join('\n'), tabindex: 0, role: 'note' }, text ?? entry.name);
}
