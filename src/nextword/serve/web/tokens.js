/**
 * Tokens and probabilities as text.
 * @typedef {{id: number, bytes: number[], text: string|null, logprob: number|null}} Token `text` is null for a part of
 *   a character; `logprob` is ln p under the model, null where it is not known
 */

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();
const ESCAPES = { "\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", " ": "␣" };
const IN_TEXT = { "\n": "⏎\n", "\t": "⇥", " ": " " };
const HIDDEN = /[\p{C}\p{Z}]/u; // as Python's str.isprintable has it

/** @returns {Token} a token from its id and its bytes, or its text */
export function tokenOf(id, piece, logprob = null) {
  const bytes = typeof piece === "string" ? [...encoder.encode(piece)] : piece;
  return { id, bytes, text: typeof piece === "string" ? piece : decode(bytes), logprob };
}

/** The text of several tokens; bytes that are not UTF-8 become U+FFFD. */
export function textOf(tokens) {
  return new TextDecoder().decode(Uint8Array.from(tokens.flatMap((token) => token.bytes)));
}

function decode(bytes) {
  try { return decoder.decode(Uint8Array.from(bytes)); } catch { return null; }
}

/** A token with its spaces and control characters shown: "␣the", "\n", "<0xE2>". */
export function visible(token) {
  return shown(token, (character) => ESCAPES[character] ?? escaped(character)) || "(empty)";
}

/** A token as a chip in running text: spaces stay spaces, a line break shows its sign and breaks the line. */
export function running(token) {
  if (/^ +$/.test(token.text)) return "␣".repeat(token.text.length);
  return shown(token, (character) => IN_TEXT[character] ?? escaped(character)) || "∅";
}

function shown(token, write) {
  const characters = token.text === null ? split(token.bytes) : [...token.text];
  const text = characters.map((part) => (typeof part === "number" ? hex(part) : write(part))).join("");
  return (/^\p{M}/u.test(text) ? "◌" : "") + text; // a mark needs something to stand on
}

/** Bytes as characters, and as numbers where they are only a part of one. */
function split(bytes) {
  const parts = [];
  for (let i = 0; i < bytes.length;) {
    const length = [1, 2, 3, 4].find((n) => i + n <= bytes.length && decode(bytes.slice(i, i + n)) !== null);
    parts.push(length ? decode(bytes.slice(i, i + length)) : bytes[i]);
    i += length ?? 1;
  }
  return parts;
}

function escaped(character) {
  if (!HIDDEN.test(character)) return character;
  const code = character.codePointAt(0).toString(16);
  return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
}

const hex = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

/** A probability in at most six characters: "41.23%", "<0.01%"; "100%" only for a certainty. */
export function percent(p) {
  if (p >= 1) return "100%";
  if (p >= 0.99995) return ">99.9%";
  if (p > 0 && p < 0.00005) return "<0.01%";
  return `${(100 * p).toFixed(2)}%`;
}

/** How surprising a token was, from 0 (even odds or better) to 6 (under one in a thousand); "" if not known. */
export function surprise(logprob) {
  if (logprob === null) return "";
  const p = Math.exp(logprob);
  return LEVELS.findIndex((least) => p >= least);
}
export const LEVELS = [0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 0];
