/**
 * The examples of a few-shot prompt: their fields, their answers, and their order, which the mouse and the keyboard
 * change.
 */

import { fill, h } from "./dom.js";

/** A row's value as text to edit: a list has a line for each entry. */
const asText = (value) => (Array.isArray(value) ? value.join("\n") : value == null ? "" : String(value));
const asValue = (text, old) => (Array.isArray(old) ? text.split("\n") : text);

/**
 * The fields of a row.
 * @param {object} form `columns` of the question, `target`: the answer's, `labels`: [value, word] or null for free ones
 * @param {Object<string, any>} row @param {string} name for screen readers, as in "Example 1"
 * @param {(row: Object<string, any>) => void} onChange @param {string} [unknown] the choice of no answer, if allowed
 */
export function fields(form, row, name, onChange, unknown) {
  const change = (column, value) => onChange(row = { ...row, [column]: value });
  const questions = form.columns.map((column) => {
    const text = asText(row[column]);
    const rows = Math.min(5, Math.max(text.split("\n").length, Math.ceil(text.length / 44), 1));
    const area = h("textarea", { rows, dir: "auto", spellcheck: "false", "aria-label": `${name}: ${column}`,
      oninput: () => change(column, asValue(area.value, row[column])) });
    area.value = text;
    return h("label", { class: "field" }, form.columns.length > 1 && h("span", {}, column), area);
  });
  return h("div", { class: "fields" }, questions,
    h("label", { class: "field answer" }, h("span", {}, form.target), answer(form, row, name, change, unknown)));
}

function answer({ target, labels }, row, name, change, unknown) {
  const value = row[target], aria = `${name}: ${target}`;
  if (!labels) {
    const box = h("input", { dir: "auto", "aria-label": aria, value: asText(value).replaceAll("\n", " / "), placeholder: unknown,
      oninput: () => change(target, Array.isArray(value) ? box.value.split(" / ") : box.value) });
    return box;
  }
  const options = labels.map(([label, word]) => h("option", { value: String(label) }, word));
  const choose = h("select", { "aria-label": aria, onchange: () => {
    change(target, choose.value === "" ? null : labels.find(([label]) => String(label) === choose.value)[0]);
  } }, unknown && h("option", { value: "" }, unknown), options);
  choose.value = value == null ? "" : String(value);
  return choose;
}

export class Examples {
  /** @param {(rows: Object<string, any>[]) => void} onChange @param {(text: string) => void} announce */
  constructor(onChange, announce) {
    Object.assign(this, { onChange, announce, rows: [], form: null });
    this.element = h("ol", { class: "examples", "aria-label": "Examples, in the order of the prompt" });
    this.dragged = -1;
  }

  show(form, rows) {
    Object.assign(this, { form, rows });
    fill(this.element, rows.map((row, index) => this.item(row, index)));
  }

  item(row, index) {
    const number = index + 1, name = `Example ${number}`;
    const button = (label, sign, disabled, work) => h("button", { class: "quiet", type: "button", "aria-label": `${label} ${name.toLowerCase()}`,
      title: label, disabled, onclick: work }, sign);
    const item = h("li", { class: "example",
      ondragover: (event) => { if (this.dragged >= 0) { event.preventDefault(); item.dataset.over = this.dragged < index ? "below" : "above"; } },
      ondragleave: () => delete item.dataset.over,
      ondrop: (event) => { event.preventDefault(); delete item.dataset.over; this.move(this.dragged, index); },
    },
      h("div", { class: "row" },
        h("span", { class: "grip", draggable: "true", title: "Drag to another place", "aria-hidden": "true",
          ondragstart: (event) => {
            this.dragged = index;
            event.dataTransfer.effectAllowed = "move";
            event.dataTransfer.setData("text/plain", name);
            event.dataTransfer.setDragImage(item, 12, 12);
          },
          ondragend: () => { this.dragged = -1; },
        }, "⠿"),
        h("b", {}, number),
        h("span", { class: "space" }),
        button("Move up", "↑", index === 0, () => this.move(index, index - 1)),
        button("Move down", "↓", index === this.rows.length - 1, () => this.move(index, index + 1)),
        button("Remove", "×", false, () => this.change(this.rows.filter((_, other) => other !== index)))),
      fields(this.form, row, name, (changed) => {
        this.rows = this.rows.map((own, other) => (other === index ? changed : own));
        this.onChange(this.rows);
      }));
    return item;
  }

  /** Put an example in another place; the focus stays with it. */
  move(from, to) {
    if (from < 0 || from === to) return;
    const up = to < from, rows = [...this.rows];
    rows.splice(to, 0, ...rows.splice(from, 1));
    this.change(rows);
    const buttons = [...this.element.children[to].querySelectorAll(".row button")].slice(0, 2);
    (up ? buttons : buttons.reverse()).find((button) => !button.disabled)?.focus();
    this.announce(`Example moved to place ${to + 1} of ${rows.length}`);
  }

  change(rows) {
    this.show(this.form, rows);
    this.onChange(rows);
  }
}
