"use strict";
// The examples as data: no element of the page is touched here, so that node can test it.

/** One item under one condition, put together from the columns of data.py. */
function answerOf(data, number, place) {
  const condition = data.conditions[number];
  const asked = condition.base === undefined ? condition : data.conditions[condition.base];
  const template = data.templates[asked.template];
  const model = data.models[asked.model];
  const [id, group] = data.items[place];
  const column = (name) => (asked[name] ? asked[name][place] : undefined);
  return {
    id, group, condition: condition.name, shots: asked.shots[place], score: condition.score[place], said: condition.said[place],
    prompt: [...asked.prefix, ...model.tails[asked.tails[place]]], tokens: model.tokens, control: model.control,
    choices: data.output === "multiple_choice" ? template.choices[template.choices.length === 1 ? 0 : place] : null,
    gold: template.gold[place], logprobs: column("logprobs"), written: column("written"),
    by: condition.by, range: condition.range, scores: condition.scores ? condition.scores[place] : undefined,
  };
}

const isRight = (answer) => answer.score >= 0.5;
const wordOf = (answer, gold) => (answer.choices ? answer.choices[gold] ?? "none of them" : String(gold));
const golds = (answer) => answer.gold.map((gold) => wordOf(answer, gold));
const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });
const WHOLE = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

function isWhole(bytes) {
  try {
    WHOLE.decode(Uint8Array.from(bytes));
    return true;
  } catch {
    return false;
  }
}

/** The prompt as pieces of text with their tokens: one token each, or those that only together make characters. */
function pieces(answer) {
  const found = [];
  let ids = [], bytes = [];
  const end = () => {
    if (ids.length) found.push({ ids, text: UTF8.decode(Uint8Array.from(bytes)) });
    [ids, bytes] = [[], []];
  };
  for (const id of answer.prompt) {
    const token = answer.tokens[id];
    if (typeof token === "string") {
      end();
      found.push({ ids: [id], text: token });
    } else {
      ids.push(id);
      bytes.push(...token); // of a part of a character
      if (isWhole(bytes)) end();
    }
  }
  end();
  return found;
}

const promptOf = (answer) => pieces(answer).map((piece) => piece.text).join("");

/** p of each choice among the choices, from ln p. */
function shares(logprobs) {
  const most = Math.max(...logprobs);
  const powers = logprobs.map((p) => Math.exp(p - most));
  const sum = powers.reduce((one, other) => one + other, 0);
  return powers.map((power) => power / sum);
}

const SHOWS = {
  all: () => true,
  right: (answer) => isRight(answer),
  wrong: (answer) => !isRight(answer),
  close: (answer) => Boolean(answer.logprobs) && Math.max(...shares(answer.logprobs)) < 0.6,
  changed: (answer, other) => Boolean(other) && isRight(answer) !== isRight(other),
  lost: (answer, other) => Boolean(other) && isRight(answer) && !isRight(other),
  won: (answer, other) => Boolean(other) && !isRight(answer) && isRight(other),
};

/** Pairs of answers, [under the condition, beside it or null], that the filters let through. */
function chosen(data, filters) {
  const text = filters.text.toLowerCase();
  const holds = (answer) =>
    [promptOf(answer), answer.written ?? "", ...(answer.choices ? [] : golds(answer))].join("\n").toLowerCase().includes(text);
  const pairs = data.items.map((_, place) => [
    answerOf(data, filters.condition, place), filters.beside === null ? null : answerOf(data, filters.beside, place),
  ]);
  return pairs.filter(([answer, other]) =>
    SHOWS[filters.which](answer, other) && (!filters.gold || golds(answer).includes(filters.gold)) && (!text || holds(answer)));
}

/** The right answers to filter by; none where there are too many of them for a list. */
function labels(data) {
  if (data.output !== "multiple_choice") return [];
  const found = new Set();
  for (const template of Object.values(data.templates))
    template.gold.forEach((gold, place) => gold.forEach((each) => found.add(template.choices[template.choices.length === 1 ? 0 : place][each] ?? "none of them")));
  return found.size <= 30 ? [...found].sort() : [];
}

if (typeof module !== "undefined") module.exports = { answerOf, chosen, golds, isRight, labels, pieces, promptOf, shares };
