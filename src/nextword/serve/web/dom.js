/**
 * An element. Text is set as text and never parsed, so whatever a model writes is harmless.
 * @param {string} tag
 * @param {Object<string, any>} [props] `class`, `style` (an object), `data` (an object), `on…` handlers; booleans
 *   set or leave out the attribute, null and undefined leave it out, everything else is an attribute
 * @param {...(Node|string|number|null|undefined|false|Array)} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...clean(children));
  return element;
}

/** Put these children in place of an element's own. */
export function fill(element, ...children) {
  element.replaceChildren(...clean(children));
  return element;
}

/** A button that copies `text()`, and says so. */
export function copyButton(title, text, props = {}) {
  const button = h("button", { class: "quiet", type: "button", "aria-live": "polite", ...props, onclick: async () => {
    let done = "Copied";
    try { await navigator.clipboard.writeText(text()); } catch { done = "Not allowed"; }
    fill(button, done);
    setTimeout(() => fill(button, title), 1200);
  } }, title);
  return button;
}

/** A command for the terminal, to copy. */
export function commandLine(command) {
  return h("div", { class: "command" }, h("code", {}, command), copyButton("Copy", () => command, { "aria-label": "Copy the command" }));
}

/** Call `work` once nothing has asked for it for `ms` milliseconds; `.cancel()` and `.flush()`. */
export function debounce(work, ms) {
  let timer = 0;
  const later = () => { clearTimeout(timer); timer = setTimeout(() => { timer = 0; work(); }, ms); };
  later.cancel = () => { clearTimeout(timer); timer = 0; };
  later.flush = () => { if (timer) { later.cancel(); work(); } };
  return later;
}

function clean(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}
