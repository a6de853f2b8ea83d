/**
 * A conversation with one or two sides that answer the same messages, and what each side reads: the token sequence
 * that the model's template makes of its messages.
 *
 * @typedef {object} Turn
 * @property {string} user what the user says
 * @property {(string|null)[]} answers of each side
 */

import { readToken } from "./sequence.js";
import { tokenOf } from "./tokens.js";

const encoder = new TextEncoder();

/** The messages that a side reads before its answer to the last turn. Where it has no answer, it reads the other's. */
export function messagesOf(system, turns, side) {
  const messages = system ? [{ role: "system", content: system }] : [];
  turns.forEach(({ user, answers }, index) => {
    messages.push({ role: "user", content: user });
    if (index < turns.length - 1) messages.push({ role: "assistant", content: answers[side] ?? answers[1 - side] ?? "" });
  });
  return messages;
}

/** Turns from the link, and into it: [["user", "answer", "other answer"], …]. */
export function readTurns(text) {
  let found = null;
  try { found = JSON.parse(text); } catch { /* none */ }
  if (!Array.isArray(found)) return [];
  const isText = (value) => typeof value === "string";
  return found.filter((turn) => Array.isArray(turn) && isText(turn[0]))
    .map(([user, ...answers]) => ({ user, answers: [0, 1].map((side) => (isText(answers[side]) ? answers[side] : null)) }));
}

export function packTurns(turns) {
  return JSON.stringify(turns.map(({ user, answers: [a, b] }) => (b === null ? (a === null ? [user] : [user, a]) : [user, a, b])));
}

/**
 * Mark each token with whose words it is: `part` is the role of the message whose content holds its first byte, and
 * `message` its number. What the template adds has none.
 */
export function attribute(tokens, messages) {
  const starts = [], all = [];
  for (const token of tokens) {
    starts.push(all.length);
    for (const byte of token.bytes) all.push(byte);
  }
  let from = 0, at = 0;
  messages.forEach(({ role, content }, number) => {
    const wanted = encoder.encode(content.trim());
    const begin = wanted.length ? find(all, wanted, from) : -1;
    if (begin < 0) return; // the template changed it
    from = begin + wanted.length;
    while (at < tokens.length && starts[at] + tokens[at].bytes.length <= begin) at++;
    for (; at < tokens.length && starts[at] < from; at++) if (!tokens[at].control) Object.assign(tokens[at], { part: role, message: number });
  });
  return tokens;
}

function find(all, wanted, from) {
  for (let start = all.indexOf(wanted[0], from); start >= 0; start = all.indexOf(wanted[0], start + 1)) {
    let same = 1;
    while (same < wanted.length && all[start + same] === wanted[same]) same++;
    if (same === wanted.length) return start;
  }
  return -1;
}

/** The exact tokens that a model reads of a conversation, up to its answer. */
export async function sequenceOf(api, model, messages, signal) {
  const { tokens } = await api.json("/apply-template", { model, messages, with_pieces: true }, { signal });
  return attribute(tokens.map(readToken), messages);
}

/** The bytes of a token that is not in the text, from its name; null for a control token. */
function bytesOf(name) {
  const parts = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name);
  return parts ? parts[1].slice(2).split("\\x").map((part) => parseInt(part, 16)) : name === "" ? [] : null;
}

/**
 * Answer a conversation, token by token.
 * @param {object} how `model`, `messages`, `temperature`, `most`, `seed` (null: random)
 * @returns {AsyncGenerator<{text: string, tokens: object[], end: string|null, seed: number|null}>}
 */
export async function* answer(api, { model, messages, temperature, most, seed }, signal) {
  const body = { model, messages, temperature, max_tokens: most, ...(seed !== null && { seed }), stream: true, logprobs: true, nextword: true };
  for await (const event of api.events("/v1/chat/completions", body, { signal })) {
    const [choice] = event.choices;
    if (!choice) continue;
    const ids = choice.nextword?.tokens ?? [];
    const tokens = (choice.logprobs?.content ?? []).map(({ token, bytes, logprob }, index) => {
      const own = bytes.length ? bytes : bytesOf(token), control = own === null;
      return { ...tokenOf(ids[index]?.id ?? null, control ? token : own, logprob), control };
    });
    yield { text: choice.delta.content ?? "", tokens, end: choice.finish_reason, seed: choice.nextword?.seed ?? null };
  }
}
