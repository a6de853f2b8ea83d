/**
 * The playground's shell: tabs, the link, the models, the theme, and dialogs.
 *
 * A view is a module `views/ID.js`, listed in VIEWS below, whose default export is `mount(root, app)`. It fills `root`
 * and may return a function that ends what it began: timers, requests.
 *
 * @typedef {object} App what a view gets
 * @property {Object<string, string>} state of the view, from the link `#ID?key=value&…`; read only
 * @property {(partial: Object<string, any>, how?: {push?: boolean}) => void} setState change keys of the state and the
 *   link; null, undefined and "" take a key out. `push`: as a step that the browser's back button undoes
 * @property {(listener: (why?: "model") => void) => void} onState call when the link changes otherwise: back, forward,
 *   pasted, or another model chosen ("model"). Until the view is left
 * @property {(view: string, state?: Object<string, any>) => string} link the link of a state, for an href
 * @property {import("./api.js").Api} api `json(path, body, {signal})`, `events(path, body, {signal})`
 * @property {string[]} models that the server lists
 * @property {() => Promise<void>} reloadModels ask for them again: a training run may have finished
 * @property {string} model the chosen one: `state.model` if it is listed, else the first
 * @property {(text: string) => void} announce for screen readers
 * @property {(message: string, retry?: () => void) => void} notice a line above the view that stays until closed;
 *   "" closes it
 */

import { Api } from "./api.js";
import { debounce, fill, h } from "./dom.js";

const VIEWS = [
  { id: "complete", title: "Complete" },
  { id: "prompt", title: "Prompt" },
  { id: "chat", title: "Chat" },
  { id: "plan", title: "Plan" },
  { id: "runs", title: "Runs" },
];
const LONGEST = 16_000; // characters of a link; what is longer stays in this tab

const root = document.getElementById("view");
const announcer = document.getElementById("announcer");
const system = matchMedia("(prefers-color-scheme: dark)");
let current = null; // {id, cleanup, onState}
let models = [];
let state = {};

// ---- the link

function parse() {
  const [name, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const id = VIEWS.some((view) => view.id === name) ? name : VIEWS[0].id;
  const entries = query.split("&").filter(Boolean).map((part) => part.split(/=(.*)/s).map(decode));
  const found = Object.fromEntries(entries.map(([key, value = ""]) => [key, value]));
  const long = found.long && history.state?.long;
  if (found.long && !long) return { id, state: {}, lost: true };
  delete found.long;
  return { id, state: { ...found, ...long } };
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

const given = (state) => Object.entries(state).filter(([, value]) => value != null && value !== "");

function link(id, state = {}) {
  const parts = given(state).map(([key, value]) => `${encodeURIComponent(key)}=${encodeURIComponent(value)}`);
  return `#${id}${parts.length ? `?${parts.join("&")}` : ""}`;
}

function write(push) {
  later.cancel();
  let hash = link(current.id, state), kept = null;
  if (hash.length > LONGEST) { // long texts go along in the history's entry
    const isLong = ([, value]) => value.length > 500;
    kept = { long: Object.fromEntries(Object.entries(state).filter(isLong)) };
    hash = link(current.id, { ...Object.fromEntries(Object.entries(state).filter((entry) => !isLong(entry))), long: 1 });
  }
  history[push ? "pushState" : "replaceState"](kept, "", hash);
}
const later = debounce(() => write(false), 200); // browsers refuse hundreds of changes a second
addEventListener("pagehide", () => later.flush());

function setState(partial, { push = false } = {}) {
  if (push) later.flush();
  state = Object.fromEntries(given({ ...state, ...partial }).map(([key, value]) => [key, String(value)]));
  if (push) write(true);
  else later();
}

async function follow() {
  const parsed = parse();
  later.cancel();
  state = parsed.state;
  if (parsed.lost) notice("This link was longer than a link may be: its text stayed in the tab where it was made.");
  showModels();
  if (current?.id === parsed.id) current.onState.forEach((listener) => listener());
  else await open(parsed.id);
}
addEventListener("popstate", follow);

// ---- views

async function open(id) {
  current?.cleanup?.();
  const mine = current = { id, cleanup: null, onState: [] };
  const { title } = VIEWS.find((view) => view.id === id);
  document.title = `${title} · nextword`;
  for (const tab of tabs.children) tab.setAttribute("aria-current", tab.dataset.id === id ? "page" : "false");
  root.dataset.view = id;
  try {
    const { default: mount } = await import(`./views/${id}.js`);
    await ready;
    if (current !== mine) return;
    fill(root);
    mine.cleanup = mount(root, app) ?? null;
  } catch (error) {
    if (current === mine) fill(root, h("p", { class: "error" }, `This view failed to open: ${error.message}`));
    console.error(error);
  }
}

const tabs = document.getElementById("tabs");
fill(tabs, VIEWS.map(({ id, title }) => h("a", { href: `#${id}`, data: { id }, onclick: keepModel(id) }, title)));

/** A tab keeps the chosen model; the rest of a link belongs to its view. */
function keepModel(id) {
  return (event) => { event.currentTarget.href = link(id, { model: state.model }); };
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the link's fragment is the view's
  root.focus();
});

// ---- models

const chooser = document.getElementById("model");
chooser.addEventListener("change", () => {
  setState({ model: chooser.value === models[0] ? null : chooser.value }, { push: true });
  current.onState.forEach((listener) => listener("model"));
});

async function loadModels(again = false) {
  try {
    models = (await app.api.json("/v1/models")).data.map((model) => model.id);
    if (again) notice("");
  } catch (error) {
    notice(error.message, () => loadModels(true));
  }
  showModels();
}

function showModels() {
  fill(chooser, models.map((id) => h("option", { value: id }, id)));
  chooser.value = app.model;
  chooser.disabled = models.length < 2;
}

// ---- theme, notices, dialogs

const themeButton = document.getElementById("theme");
const theme = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");

function showTheme() {
  const other = theme() === "dark" ? "light" : "dark";
  fill(themeButton, other === "dark" ? "☾" : "☀");
  themeButton.title = `Use the ${other} theme`;
  themeButton.setAttribute("aria-label", themeButton.title);
}
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  try { localStorage.setItem("nextword-theme", theme()); } catch { /* for this page only */ }
  showTheme();
});
system.addEventListener("change", showTheme);

function notice(message, retry) {
  const close = h("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: () => notice("") }, "×");
  fill(document.getElementById("notice"), message && h("p", {}, h("span", {}, message),
    retry && h("button", { type: "button", onclick: retry }, "Try again"), close));
}

/** @returns {Promise<string|null>} the server's key; null if the user gives none */
function askKey(wrong) {
  const field = h("input", { type: "password", autocomplete: "off", required: true });
  const form = h("form", { method: "dialog" },
    h("h2", {}, "This server asks for its key"),
    wrong && h("p", { class: "error" }, "That key is wrong."),
    h("label", {}, "Key", field),
    h("p", { class: "hint" }, "It stays in this tab until you close it."),
    h("div", { class: "row" },
      h("button", { class: "primary", type: "submit", value: "ok" }, "Use this key"),
      h("button", { type: "submit", formnovalidate: true, value: "" }, "Cancel")));
  const dialog = h("dialog", { "aria-label": "The server's key" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue && field.value.trim() ? field.value.trim() : null);
  }));
}

// ---- start

/** @type {App} */
const app = {
  get state() { return state; },
  setState,
  onState: (listener) => current.onState.push(listener),
  link,
  api: new Api(askKey),
  get models() { return models; },
  reloadModels: loadModels,
  get model() { return models.includes(state.model) ? state.model : models[0] ?? ""; },
  announce: (text) => { announcer.textContent = text; },
  notice,
};
showTheme();
const ready = loadModels();
await follow();
