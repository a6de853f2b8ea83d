/**
 * A prompt's completions as a tree. Branch 0 continues the prompt; every other one leaves its parent at a position,
 * where it has another token. The server's tokens are a function of what precedes them, the settings and the seed, so
 * prompt, seed and the choices (`encode`) are all a link has to keep.
 *
 * @typedef {import("./tokens.js").Token} Token
 * @typedef {import("./softmax.js").Settings & {n: number}} Settings with how many tokens to make
 * @typedef {object} Branch
 * @property {number} index
 * @property {Branch|null} parent
 * @property {number} at the position of its first token, counted from the prompt's first one
 * @property {Token[]} tokens its own, the chosen one first
 * @property {Settings} settings it is made with; n does not count the chosen token
 * @property {string} end "" until it is whole, then "limit", "eos" or "context"
 */

import { tokenOf } from "./tokens.js";

const LETTERS = { temperature: "t", topK: "k", topP: "p", minP: "m" };
const DEFAULTS = { temperature: 1, topK: 0, topP: 1, minP: 0, n: 48 };
const MOST_BRANCHES = 200; // read from a link

/** Settings as "t0.8k40n48"; those at their default are left out. */
export function packSettings(settings) {
  const parts = Object.entries(LETTERS).filter(([key]) => settings[key] !== DEFAULTS[key]);
  return `${parts.map(([key, letter]) => letter + settings[key]).join("")}n${settings.n}`;
}

/** @returns {Settings} from `packSettings`; whatever is not valid is the default */
export function readSettings(text = "") {
  const find = (letter) => Number(text.match(`${letter}([0-9.]+(?:e-?[0-9]+)?)`)?.[1] ?? NaN);
  const within = (value, low, high, otherwise) => (value >= low && value <= high ? value : otherwise);
  const temperature = within(find("t"), 0, 1000, 1);
  return {
    temperature: temperature < 0.01 ? 0 : temperature,
    topK: Math.round(within(find("k"), 0, 1e9, 0)),
    topP: within(find("p"), 0, 1, 1),
    minP: within(find("m"), 0, 1, 0),
    n: Math.round(within(find("n"), 0, 1e9, DEFAULTS.n)),
  };
}

export class Tree {
  /**
   * @param {import("./api.js").Api} api @param {string} model @param {string} text the prompt
   * @param {Settings} settings @param {string} seed
   */
  constructor(api, model, text, settings, seed) {
    Object.assign(this, { api, model, text, seed });
    /** @type {Token[]} */
    this.prompt = [];
    /** @type {Branch[]} */
    this.branches = [{ index: 0, parent: null, at: 0, tokens: [], settings, end: "" }];
    this.speed = 0; // tokens per second of the last request
    this.distributions = new Map();
  }

  /** A tree that was made before and needs no server, as `docs/make_playground.py` writes it. */
  static fromExample(api, example) {
    const tree = new Tree(api, example.model, example.prompt, readSettings(example.settings), example.seed);
    const tokens = (rows) => rows.map(([id, piece, logprob]) => tokenOf(id, piece, logprob));
    tree.example = true;
    tree.prompt = tokens(example.tokens);
    tree.branches = [];
    for (const { parent, at, settings, end, made } of example.branches) {
      tree.branches.push({ index: tree.branches.length, parent: tree.branches[parent] ?? null, at, tokens: tokens(made),
        settings: readSettings(settings), end });
    }
    for (const [key, next] of Object.entries(example.next)) tree.distributions.set(key, Promise.resolve(readNext(next)));
    return tree;
  }

  /** The tokens of the prompt, once. */
  async tokenize(signal) {
    if (this.prompt.length) return;
    const body = { model: this.model, content: this.text, add_special: true, with_pieces: true };
    const { tokens } = await this.api.json("/tokenize", body, { signal });
    if (!tokens.length) throw new Error("There is nothing to continue. Type a few words above.");
    this.prompt = tokens.map(({ id, piece }) => tokenOf(id, piece));
    this.branches[0].at = this.prompt.length;
  }

  /** Fill in how likely the model finds the prompt's tokens. */
  async scorePrompt(signal) {
    if (this.prompt.length < 2 || this.prompt[1].logprob !== null) return;
    const body = { model: this.model, prompt: this.prompt.map(({ id }) => id), max_tokens: 0, echo: true, logprobs: 0 };
    const { choices } = await this.api.json("/v1/completions", body, { signal });
    choices[0].logprobs.token_logprobs.forEach((logprob, i) => { this.prompt[i].logprob = logprob; });
  }

  /** @returns {Token[]} everything from the prompt's first token to the branch's last */
  path(branch) {
    const before = branch.parent ? this.path(branch.parent).slice(0, branch.at) : this.prompt;
    return [...before, ...branch.tokens];
  }

  /** A branch that takes `token` at `position` of another one. The same choice twice is one branch. */
  branch(from, position, token, settings) {
    const parent = this.owner(from, position);
    const packed = packSettings(settings);
    const same = this.branches.find((other) => other.parent === parent && other.at === position
      && other.tokens[0].id === token.id && packSettings(other.settings) === packed);
    if (same) return same;
    const branch = { index: this.branches.length, parent, at: position, tokens: [token], settings, end: "" };
    this.branches.push(branch);
    return branch;
  }

  /** The branch that what precedes `position` ends in. */
  owner(branch, position) {
    while (branch.parent && position <= branch.at) branch = branch.parent;
    return branch;
  }

  /**
   * Make the tokens that a branch, and what it stands on, still lacks. Stopped by `signal`, it keeps what it has.
   * @param {Branch} branch @param {{signal: AbortSignal, onToken: () => void, until?: number}} how `until`: a position
   *   at which to stop early
   */
  async grow(branch, { signal, onToken, until = Infinity }) {
    await this.tokenize(signal);
    if (branch.parent) {
      await this.grow(branch.parent, { signal, onToken, until: branch.at });
      if (this.length(branch.parent) < branch.at) throw new Error("The link's branches do not fit this model's text.");
      if (!branch.tokens[0].bytes) branch.tokens[0] = await this.named(branch, signal);
    }
    const chosen = branch.parent ? 1 : 0;
    const left = Math.min(branch.settings.n + chosen - branch.tokens.length, until - this.length(branch));
    if (left > 0 && (!branch.end || branch.end === "limit")) await this.generate(branch, left, signal, onToken);
    if (!branch.end && branch.tokens.length >= branch.settings.n + chosen) branch.end = "limit";
  }

  async generate(branch, count, signal, onToken) {
    const { temperature, topK, topP, minP } = branch.settings;
    const body = {
      model: this.model, prompt: this.path(branch).map(({ id }) => id), n_predict: count, n_probs: 1, stream: true,
      seed: Number(this.seed), temperature, top_k: topK, top_p: topP, min_p: minP,
    };
    branch.end = "";
    let last = null;
    for await (const event of this.api.events("/completion", body, { signal })) {
      for (const { id, bytes, logprob } of event.completion_probabilities ?? []) {
        branch.tokens.push(tokenOf(id, bytes, logprob));
      }
      if (event.stop) last = event;
      onToken();
    }
    if (!last) throw new Error("The answer broke off: the server ended in the middle of it.");
    this.speed = last.timings.predicted_per_second;
    if (last.stop_type === "eos") branch.end = "eos";
    else if (last.tokens_predicted < count) branch.end = "context";
  }

  /** The position behind a branch's last token. */
  length(branch) {
    return branch.at + branch.tokens.length;
  }

  knows(branch, position) {
    return this.distributions.has(`${this.owner(branch, position).index}:${position}`);
  }

  /** @returns {Promise<import("./softmax.js").Next>} what can come at `position` of a branch; asked for once */
  next(branch, position) {
    const owner = this.owner(branch, position), key = `${owner.index}:${position}`;
    if (!this.distributions.has(key)) {
      const prompt = this.path(owner).slice(0, position).map(({ id }) => id);
      const asked = this.api.json("/v1/next", { model: this.model, prompt });
      this.distributions.set(key, asked);
      asked.catch(() => this.distributions.delete(key));
    }
    return this.distributions.get(key);
  }

  /** The token that a link names by its id. */
  async named(branch, signal) {
    const { id } = branch.tokens[0];
    const next = await this.next(branch.parent, branch.at);
    const found = next.top.find((candidate) => candidate.id === id);
    if (found) return tokenOf(id, found.bytes, found.logit - next.log_sum);
    const { content } = await this.api.json("/detokenize", { model: this.model, tokens: [id] }, { signal });
    return tokenOf(id, content);
  }

  /** The choices as text for a link, from which `readBranches` makes them again. */
  encode() {
    return this.branches.slice(1).map(({ parent, at, tokens, settings }) =>
      `${parent.index}-${at}-${tokens[0].id}-${packSettings(settings)}`).join("_");
  }

  /** Take the choices of a link. Their tokens are made when they are looked at. */
  readBranches(text = "") {
    for (const part of text.split("_").slice(0, MOST_BRANCHES)) {
      const [, parent, at, id, settings] = part.match(/^(\d+)-(\d+)-(\d+)-(\w[\w.-]*)$/) ?? [];
      if (id === undefined || parent >= this.branches.length || at < 1) return;
      this.branches.push({
        index: this.branches.length, parent: this.branches[parent], at: Number(at), end: "",
        tokens: [{ id: Number(id), bytes: null, text: null, logprob: null }], settings: readSettings(settings),
      });
    }
  }
}

/** A distribution of the example, whose candidates and bins are rows. */
function readNext({ vocabulary, log_sum, top, rest }) {
  return {
    vocabulary, log_sum,
    top: top.map(([id, piece, logit]) => ({ id, bytes: tokenOf(id, piece).bytes, logit })),
    rest: rest.map(([count, mean, variance]) => ({ count, mean, variance })),
  };
}
