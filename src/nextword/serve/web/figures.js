// What Plan and Runs are made of: numbers that open their formula, memory as a bar of its parts, panels, tables.

import { fill, h } from "./dom.js";
import { bytes, grouped, general, quantity } from "./format.js";

let popover = null;

/**
 * A number that opens its formula, the formula with its values, and its source.
 * @param {Figure|Figure[]} figure or several, of which the number is made
 * @param {string} [text] shown instead of the value with its unit
 * @typedef {{name: string, value: number, unit: string, formula: string, filled: string, inputs: object, source: string}} Figure
 */
export function figure(figure, text) {
  const shown = text ?? quantity(figure.value, figure.unit);
  return h("button", {
    type: "button", class: "figure", "aria-haspopup": "dialog", title: "Show the formula",
    onclick: (event) => open(event.currentTarget, figure),
  }, shown);
}

function open(anchor, figure) {
  if (popover?.matches(":popover-open")) popover.hidePopover();
  const figures = [figure].flat();
  popover = h("div", { popover: "auto", class: "formula", role: "dialog", "aria-label": `Formula of ${figures.map(({ name }) => name).join(", ")}`, tabindex: 0 },
    figures.map(formula));
  const shown = popover;
  anchor.after(shown);
  shown.showPopover();
  const follow = () => place(shown, anchor.getBoundingClientRect());
  follow();
  shown.focus({ preventScroll: true });
  addEventListener("scroll", follow, { passive: true });
  shown.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    removeEventListener("scroll", follow);
    shown.remove();
  });
}

function formula({ name, value, unit, formula, filled, inputs, source }) {
  const symbolic = typeset(formula);
  return h("section", {},
    h("h3", {}, name),
    h("p", { class: "exact mono" }, `${exact(value)} ${unit}`),
    h("p", { class: "mono" }, "= ", symbolic),
    Object.keys(inputs).length > 0 && filled !== symbolic && h("p", { class: "mono filled" }, "= ", filled),
    source && h("p", { class: "hint" }, source));
}

/** Below its number, or above where there is no room. */
function place(element, at) {
  const { width, height } = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - width - 8));
  const below = at.bottom + 6;
  const top = below + height < innerHeight - 8 ? below : Math.max(8, at.top - height - 6);
  element.style.left = `${left}px`;
  element.style.top = `${top}px`;
}

const typeset = (formula) => formula.replaceAll("**", "^").replaceAll(" * ", " × ").replaceAll("*", "×").replaceAll(" - ", " − ");

function exact(value) {
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return grouped(value);
  return Math.abs(value) < 1e12 ? Number(value.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 12 }) : general(value, 6);
}

/**
 * Memory as one bar of its parts, each a button with its formula, against the lines of devices.
 * @param {{parts: object[], total: number}} memory @param {{name: string, memory: number}[]} devices
 */
export function memoryBar(memory, devices, { legend = true } = {}) {
  const widest = Math.max(memory.total, ...devices.map((device) => device.memory)) * 1.02;
  const share = (value) => `${(100 * value) / widest}%`;
  const sizes = new Map();
  for (const device of [...devices].sort((a, b) => a.memory - b.memory)) {
    sizes.set(device.memory, [...(sizes.get(device.memory) ?? []), device.name]);
  }
  const rows = rowsOf([...sizes.keys()].map((size) => size / widest));
  const lines = [...sizes].map(([size, names], at) => h("div", {
    class: `line${size > widest * 0.6 ? " left" : ""}`, style: { left: share(size), "--row": rows[at], "--narrow-row": at },
    "aria-hidden": "true",
  }, h("span", {}, `${names.join(", ")} ${bytes(size)}`)));
  const parts = memory.parts.filter((part) => part.value > 0);
  const bar = h("div", { class: "stack" }, parts.map((part) => h("button", {
    type: "button", class: "part", data: { part: part.name }, style: { width: share(part.value) }, tabindex: legend ? -1 : 0,
    "aria-label": `${part.name}: ${bytes(part.value)}`, title: `${part.name}: ${bytes(part.value)}`,
    onclick: (event) => open(event.currentTarget, part),
  })));
  return h("figure", { class: "memory", style: { "--rows": Math.max(...rows) + 1, "--narrow-rows": rows.length } },
    h("div", { class: "plot" }, lines, bar),
    legend && h("ul", { class: "parts" }, parts.map((part) => h("li", {},
      h("i", { class: "swatch", data: { part: part.name } }),
      h("span", {}, part.name), figure(part), h("small", {}, `${grouped((100 * part.value) / memory.total, 1)}%`)))));
}

/** The row of each line's name, for lines at these shares of the width: names that would meet stand above each other. */
function rowsOf(shares) {
  const rows = [];
  shares.forEach((share, at) => {
    const before = shares[at - 1] ?? -1;
    const room = share > 0.6 && before <= 0.6 ? 0.5 : 0.25; // these two names run towards each other
    rows.push(share - before < room ? rows[at - 1] + 1 : 0);
  });
  return rows;
}

/** A card with a heading. */
export const panel = (title, ...children) => h("section", { class: "card panel" }, h("h2", {}, title), children);

/** Names with what is said of each: rows of [name, ...values]; null and false are left out. */
export const facts = (...rows) => h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, ...values]) => [h("dt", {}, name), h("dd", {}, values)]));

/** A row of radio buttons, `options`: value → title. */
export function segments(label, name, options, chosen, onChange, size = "") {
  return h("fieldset", { class: `segments ${size}` }, h("legend", { class: "unseen" }, label), Object.entries(options).map(([value, title]) => h("label", {},
    h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onChange(value) }), h("span", {}, title))));
}

/** A table: rows of cells, the first of each a heading. `columns` are names, or `{name, left}`. */
export function table(columns, rows, props = {}) {
  const left = columns.map((column, at) => at === 0 || column.left);
  const cells = (row) => row.map((cell, at) => (at === 0
    ? h("th", { scope: "row" }, cell)
    : h("td", { class: left[at] ? "left" : null }, cell)));
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": props.label ?? "Table" }, h("table", { class: "numbers" },
    props.label && h("caption", { class: "unseen" }, props.label),
    h("thead", {}, h("tr", {}, columns.map((column, at) => h("th", { scope: "col", class: left[at] ? "left" : null }, column.name ?? column)))),
    h("tbody", {}, rows.map((row) => h("tr", { class: row.class ?? null }, cells(row.cells ?? row))))));
}

/** Replace what an element shows, keeping the place of the keyboard in it where possible. */
export function refresh(element, ...children) {
  const active = element.contains(document.activeElement) ? document.activeElement : null;
  const all = (root) => [...root.querySelectorAll("button, a, input, select")];
  const at = active ? all(element).indexOf(active) : -1;
  fill(element, ...children);
  if (at >= 0) all(element)[at]?.focus();
}
