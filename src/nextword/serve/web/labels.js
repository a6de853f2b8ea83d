// What a model makes of one prompt: the probability of each label, or the answer that it wrote; and the prompt itself.

import { copyButton, h } from "./dom.js";
import { tokensOf } from "./format.js";
import { chip, readToken, sequence } from "./sequence.js";
import { percent } from "./tokens.js";

/** @param {object} answer a column of /v1/prompt @param {any} right the right free answer @returns {Node[]} */
export function column(answer, right) {
  if (answer.error) return [h("p", { class: "error" }, `Not asked: ${answer.error}.`)];
  const tokens = answer.tokens.map(readToken);
  return [
    answer.labels ? labels(answer) : written(answer, right),
    h("section", { class: "sent" },
      h("div", { class: "head" }, h("h3", {}, "What is sent"), h("span", { class: "hint" }, tokensOf(tokens.length)), copyButton("Copy", () => answer.prompt)),
      sequence(tokens, `The prompt with ${answer.shots} examples, ${tokensOf(tokens.length)}`)),
  ];
}

function labels({ labels, none, chosen, right }) {
  const rows = labels.map((label, index) => row(label, index === chosen, index === right));
  return h("div", { class: "labels" },
    verdict(labels[chosen].label, right === null ? null : right === chosen, right === null ? "" : labels[right].label),
    h("div", { class: "label-row heads", "aria-hidden": "true" }, h("span"), h("span", {}, "of everything"), h("span", {}, "of the labels")),
    h("ul", {}, rows,
      none !== null && h("li", { class: "label-row others" }, h("span", { class: "name" }, "none of them"), h("span", {}, percent(none)), h("b", {}, "–"), track(0, none))));
}

function row(label, chosen, right) {
  const tokens = label.tokens.map(readToken), known = tokens.length - label.logprobs.length;
  const chips = tokens.map((token, index) => chip(token, index < known ? null : label.logprobs[index - known], true));
  return h("li", { class: `label-row${chosen ? " chosen" : ""}`, title: `ln p = ${label.logprob.toFixed(3)}` },
    h("span", { class: "name" }, chips, right && h("span", { class: "right" }, " ✓", h("span", { class: "unseen" }, " the right one"))),
    h("span", {}, percent(Math.exp(label.logprob))), h("b", {}, percent(label.share)), track(label.share, Math.exp(label.logprob)));
}

/** A bar of a share over a paler one of the probability itself. */
function track(share, probability) {
  return h("span", { class: "track", "aria-hidden": "true" },
    h("i", { class: "ghost", style: { transform: `scaleX(${probability})` } }), h("i", { class: "now", style: { transform: `scaleX(${share})` } }));
}

function verdict(said, isRight, right) {
  const word = isRight === null ? null : h("span", { class: isRight ? "verdict right" : "verdict wrong" }, isRight ? "✓ right" : `✗ right is ${right}`);
  return h("p", { class: `said${said.length > 30 ? " long" : ""}` }, h("b", { dir: "auto" }, said), word);
}

function written({ written, answer, score }, right) {
  const correct = Array.isArray(right) ? right.join(" / ") : right;
  return h("div", { class: "labels" },
    verdict(written.trim() || "(nothing)", score === null ? null : score === 1, correct),
    h("p", { class: "hint" }, "It wrote, each token the likeliest:"),
    h("p", { class: "wrote" }, answer.map((token) => chip(readToken(token)))));
}
