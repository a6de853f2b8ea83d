/**
 * Tokens as a running text of chips, each tinted by how likely it was. A list box: one stop of the Tab key, in which
 * arrow keys move. Chips live in blocks that the browser skips while they are out of sight.
 */

import { h } from "./dom.js";
import { percent, running, surprise, visible } from "./tokens.js";

const BLOCK = 150, LONGEST_BLOCK = 400; // chips; a block ends at a line break, or where it is long

export class Chips {
  /** @param {(position: number, how: {pointer: boolean}) => void} onSelect @param {() => void} onEnter */
  constructor(label, onSelect, onEnter) {
    this.onSelect = onSelect;
    /** @type {HTMLElement[]} */
    this.chips = [];
    this.selected = -1;
    this.end = h("span", { class: "chip next", role: "option", id: "chip-end", "aria-label": "the next token" }, "+");
    this.element = h("div", {
      class: "chips", role: "listbox", tabindex: "0", "aria-label": label,
      onclick: (event) => {
        const chip = event.target.closest(".chip");
        if (chip && !getSelection().toString()) this.pick(this.positionOf(chip), true);
      },
      onkeydown: (event) => {
        const to = this.target(event.key);
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key === "Enter") onEnter();
        else if (to === null) return;
        else this.pick(to, false);
        event.preventDefault();
      },
    });
  }

  /** Show `tokens`, whose first `prompt` are the prompt's. Chips that stay the same stay in place. */
  set(tokens, prompt) {
    this.end.remove();
    let same = 0;
    const stays = (chip, i) => chip.token === tokens[i] && chip.classList.contains("prompt") === i < prompt;
    while (same < this.chips.length && same < tokens.length && stays(this.chips[same], same)) same++;
    for (const chip of this.chips.splice(same)) chip.remove();
    while (this.element.lastChild && this.element.lastChild !== this.chips.at(-1)?.parentNode) this.element.lastChild.remove();
    for (let i = same; i < tokens.length; i++) this.add(tokens[i], i < prompt);
    this.block().append(this.end);
    this.mark(this.selected); // it may only now be there
  }

  add(token, isPrompt) {
    const position = this.chips.length;
    const chip = h("span", { class: `chip${isPrompt ? " prompt" : ""}${token.text === null ? " bytes" : ""}`,
      role: "option", id: `chip-${position}` }, running(token));
    chip.token = token;
    this.chips.push(chip);
    this.tint(position);
    this.block().append(chip);
  }

  /** The block that the next chip belongs to. */
  block() {
    const last = this.element.lastElementChild, length = last?.childElementCount;
    if (last && length < LONGEST_BLOCK && (length < BLOCK || !last.textContent.endsWith("\n"))) return last;
    return this.element.appendChild(h("div", { class: "block", role: "presentation" }));
  }

  /** Show how likely the token at `position` is, which may have become known. */
  tint(position) {
    const chip = this.chips[position], { logprob } = chip.token;
    chip.dataset.level = surprise(logprob);
    chip.setAttribute("aria-label", visible(chip.token) + (logprob === null ? "" : `, ${percent(Math.exp(logprob))}`));
  }

  /** Mark the chip at `position` as selected; -1: none; the number of chips: the next token. */
  mark(position, scroll = false) {
    this.selected = position;
    const chip = this.chipAt(position);
    if (chip !== this.marked) this.marked?.removeAttribute("aria-selected");
    this.marked = chip;
    chip?.setAttribute("aria-selected", "true");
    if (chip) this.element.setAttribute("aria-activedescendant", chip.id);
    else this.element.removeAttribute("aria-activedescendant");
    if (scroll) chip?.scrollIntoView({ block: "nearest" });
  }

  chipAt(position) {
    return position === this.chips.length ? this.end : this.chips[position];
  }

  positionOf(chip) {
    return chip === this.end ? this.chips.length : Number(chip.id.slice(5));
  }

  pick(position, pointer) {
    this.mark(position, true);
    this.onSelect(position, { pointer });
  }

  /** Where a key leads; null if it leads nowhere. */
  target(key) {
    const last = this.chips.length, here = this.selected;
    if (key === "Home") return 0;
    if (key === "End") return last;
    if (here < 0) return key.startsWith("Arrow") ? 0 : null;
    if (key === "ArrowRight") return Math.min(here + 1, last);
    if (key === "ArrowLeft") return Math.max(here - 1, 0);
    if (key === "ArrowDown") return this.line(here, 1);
    if (key === "ArrowUp") return this.line(here, -1);
    if (key === "PageDown") return Math.min(here + 100, last);
    if (key === "PageUp") return Math.max(here - 100, 0);
    return null;
  }

  /** The chip of the line above or below that is nearest. */
  line(here, step) {
    const box = (position) => this.chipAt(position).getClientRects()[0] ?? new DOMRect();
    const from = box(here), middle = from.x + from.width / 2;
    let best = here, line = null, distance = Infinity;
    for (let position = here + step; position >= 0 && position <= this.chips.length; position += step) {
      const rect = box(position);
      if (Math.abs(rect.y - from.y) < from.height / 2) continue;
      line ??= rect.y;
      if (Math.abs(rect.y - line) > from.height / 2) break;
      const away = Math.abs(rect.x + rect.width / 2 - middle);
      if (away < distance) [best, distance] = [position, away];
    }
    return best;
  }
}
