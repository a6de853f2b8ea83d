/**
 * A sequence of tokens exactly as a model reads it: chips in running text; control tokens, which only a template can
 * write, in boxes.
 * @typedef {import("./tokens.js").Token & {control: boolean, part?: string}} Token `part`: whose words it is of
 */

import { h } from "./dom.js";
import { percent, running, surprise, tokenOf, visible } from "./tokens.js";

const BLOCK = 150; // chips
const LONG = 10; // blocks; of more the browser skips those that are out of sight

/** @returns {Token} a token as the server shows it: {id, piece, control?, logprob?} */
export function readToken({ id, piece, control = false, logprob = null }) {
  return { ...tokenOf(id, piece, logprob), control };
}

/** A token as a chip, tinted by its own probability; its title says what it is. In a `name` no line breaks. */
export function chip(token, logprob = token.logprob, name = false) {
  const kind = token.control ? " control" : token.text === null ? " bytes" : "";
  const probability = logprob === null ? "" : ` · ${percent(Math.exp(logprob))}`;
  const title = `${token.control ? "control token " : ""}${visible(token)} · id ${token.id}${probability}`;
  const data = { level: surprise(token.logprob), ...(token.part && { part: token.part }) };
  return h("span", { class: `chip${kind}`, title, data }, name && /\n/.test(token.text) ? visible(token) : running(token));
}

/** The chips of `tokens` in a box that scrolls. */
export function sequence(tokens, label) {
  const element = h("div", { class: "sequence", role: "region", tabindex: 0, "aria-label": label, dir: "auto" });
  extend(element, tokens);
  return element;
}

/** Put more chips at the end of a sequence. */
export function extend(element, tokens) {
  for (const token of tokens) {
    const last = element.lastElementChild;
    const block = last && last.childElementCount < BLOCK ? last : element.appendChild(h("div", { class: "block" }));
    block.append(chip(token));
  }
  element.classList.toggle("long", element.childElementCount > LONG);
}
