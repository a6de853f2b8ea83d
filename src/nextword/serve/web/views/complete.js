// Complete: a prompt, what the model makes of it token by token, and at every token what else could have come.

import { isStopped } from "../api.js";
import { packSettings, readSettings, Tree } from "../branches.js";
import { Chips } from "../chips.js";
import { copyButton, debounce, fill, h } from "../dom.js";
import { grouped, tokensOf } from "../format.js";
import { Inspector } from "../inspector.js";
import { LEVELS, textOf, visible } from "../tokens.js";

const ENDS = { eos: "the model ended its text", limit: "as many tokens as asked for", context: "the model's context is full" };
const MOST_TREES = 8; // kept for the browser's back button

export default function mount(root, app) {
  const view = new Complete(root, app);
  app.onState((why) => view.follow(why));
  view.follow();
  return () => view.leave();
}

class Complete {
  constructor(root, app) {
    this.app = app;
    /** @type {Tree|null} */
    this.tree = null;
    this.branch = null; // the one that is shown
    this.running = null; // AbortController of the tokens being made
    this.asking = null; // the position whose distribution is fetched
    this.trees = new Map(); // by what they were run with

    this.prompt = h("textarea", { id: "prompt", rows: 3, spellcheck: "false", dir: "auto", placeholder: "Type the beginning of a text …",
      oninput: () => this.savePrompt() });
    const mac = /Mac|iPhone|iPad/.test(navigator.platform);
    this.go = h("button", { class: "primary", type: "button", title: `${mac ? "⌘" : "Ctrl"}+Enter`, onclick: () => this.run() }, "Complete");
    this.stopper = h("button", { type: "button", hidden: true, title: "Escape", onclick: () => this.stop() }, "Stop");
    this.count = h("input", { id: "count", type: "number", min: 1, max: 100000, step: 1, oninput: () => this.saveSettings() });
    this.seed = h("input", { id: "seed", inputmode: "numeric", placeholder: "random", autocomplete: "off",
      oninput: () => app.setState({ seed: this.seed.value.replace(/\D/g, "").slice(0, 15) }) });
    this.status = h("p", { class: "status hint" });
    this.problem = h("div", { class: "problem", role: "alert" });
    this.chips = new Chips("Tokens of the prompt and its completion", (position, { pointer }) => this.select(position, pointer),
      () => this.inspector.enter());
    this.legend = h("div", { class: "legend hint", "aria-hidden": "true" }, "probability ≥",
      LEVELS.map((least, level) => h("span", { class: "chip", data: { level } }, level < 6 ? `${100 * least}%` : "less")));
    this.hint = h("p", { class: "hint", hidden: true },
      "An example. Choose any token to see what else could have come there, take another one, move the sliders; or complete a text of your own.");
    this.changed = h("p", { class: "hint", hidden: true }, "The prompt has changed since.");
    this.copy = copyButton("Copy text", () => textOf(this.tree.path(this.branch).filter(({ bytes }) => bytes)));
    this.output = h("section", { class: "output card", "aria-label": "Completion" },
      this.hint, h("div", { class: "head" }, this.legend, this.copy), this.chips.element, this.changed, this.problem, this.status);
    this.tried = h("section", { class: "branches card", hidden: true, "aria-label": "Branches" });
    this.inspector = new Inspector({
      onSettings: () => this.saveSettings(),
      onChoose: (token) => this.choose(token),
      onStep: (step) => this.chips.pick(Math.max(0, Math.min(this.chips.chips.length, this.chips.selected + step)), false),
      onLeave: () => this.chips.element.focus(),
    });
    this.ask = debounce(() => this.inspect(), 60);

    root.append(h("div", { class: "complete" },
      h("div", { class: "main" },
        h("section", { class: "write" },
          h("label", { for: "prompt", class: "unseen" }, "Prompt"), this.prompt,
          h("div", { class: "row" }, this.go, this.stopper,
            h("label", { class: "field" }, "Tokens", this.count), h("label", { class: "field" }, "Seed", this.seed),
            h("span", { class: "keys hint" }, h("kbd", {}, mac ? "⌘" : "Ctrl"), " ", h("kbd", {}, "Enter"), " completes"))),
        this.output, this.tried),
      this.inspector.element));
    this.onKey = (event) => this.key(event);
    document.addEventListener("keydown", this.onKey);
  }

  leave() {
    document.removeEventListener("keydown", this.onKey);
    this.halt();
    this.ask.cancel();
    this.asking = null;
  }

  key(event) {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.run();
    } else if (event.key === "Escape" && this.running) this.stop();
  }

  // ---- the link

  get settings() {
    return { ...this.inspector.settings, n: Math.max(1, Math.round(Number(this.count.value)) || 1) };
  }

  /** What is typed is the prompt `p`; a draft `d` beside it once `p` has been run. */
  savePrompt() {
    const { run, p } = this.app.state, text = this.prompt.value;
    this.app.setState(run ? { d: text === p ? null : text } : { p: text });
    this.showStale();
  }

  saveSettings() {
    this.app.setState({ s: packSettings(this.settings) });
    this.showStale();
  }

  /** Show what the link says: its prompt, its settings, and its tree, made again where it is not known any more. */
  async follow(why = "") {
    const { p = "", d, s, seed, run, b, on, at } = this.app.state;
    this.halt(); // what was under way belongs to another link
    this.prompt.value = d ?? p;
    this.seed.value = seed ?? "";
    this.setSettings(readSettings(s));
    if (!p && !run && !s) return this.showExample();
    const [settings, drawn] = (run ?? "").split(".seed"), { model } = this.app;
    if (!drawn || !/^\d+$/.test(drawn)) return this.clear();
    let tree = this.trees.get(keyOf(p, run, model));
    if (!tree && why === "model") { // another model's tokens would be others
      this.app.setState({ p: this.prompt.value, d: null, run: null, b: null, on: null, at: null });
      return this.clear();
    }
    if (!tree) {
      tree = new Tree(this.app.api, model, p, readSettings(settings), drawn);
      tree.readBranches(b);
      this.remember(tree);
    }
    await this.show(tree, tree.branches[on] ?? tree.branches[0], at === undefined ? -1 : Number(at));
  }

  remember(tree) {
    const key = keyOf(tree.text, runOf(tree), tree.model);
    this.trees.delete(key);
    this.trees.set(key, tree);
    if (this.trees.size > MOST_TREES) this.trees.delete(this.trees.keys().next().value);
  }

  setSettings(settings) {
    this.count.value = settings.n;
    this.inspector.setSettings({ temperature: settings.temperature, topK: settings.topK, topP: settings.topP, minP: settings.minP });
  }

  /** Nothing has been run. */
  clear() {
    this.tree = this.branch = null;
    this.chips.mark(-1);
    this.render();
    this.inspector.empty("Complete a prompt, and choose a token to see what else could have come.");
  }

  async showExample() {
    this.clear();
    const example = await this.app.api.json("/web/example.json").catch(() => null);
    const { p, s } = this.app.state;
    if (!example || this.tree || p || s || document.activeElement === this.prompt) return; // somebody was quicker
    this.prompt.value = example.prompt;
    this.setSettings(readSettings(example.settings));
    this.tree = Tree.fromExample(this.app.api, example);
    this.branch = this.tree.branches[example.on];
    this.render();
    this.chips.mark(example.at);
    this.inspect();
  }

  // ---- running

  /** Complete the prompt as it stands, as a new tree. */
  async run() {
    this.stop();
    const settings = this.settings, text = this.prompt.value;
    const seed = /^\d+$/.test(this.seed.value) ? this.seed.value : String(crypto.getRandomValues(new Uint32Array(1))[0]);
    const tree = new Tree(this.app.api, this.app.model, text, settings, seed);
    this.app.setState({ d: null }); // going back leads to the prompt that was run
    this.app.setState(this.treeState(tree, tree.branches[0], -1), { push: true });
    this.remember(tree);
    await this.show(tree, tree.branches[0]);
  }

  /** Take another token at the selected position, and complete from there. */
  async choose(token) {
    this.stop();
    const position = this.chips.selected, { tree } = this, path = tree.path(this.branch);
    if (path[position]?.id === token.id) return;
    tree.example = false; // from here on it is this server's
    this.remember(tree);
    const branch = tree.branch(this.branch, position, token, this.settings);
    this.chips.element.focus({ preventScroll: true });
    this.app.setState(this.treeState(tree, branch, position), { push: true });
    await this.show(tree, branch, position);
  }

  treeState(tree, branch, at) {
    return { p: tree.text, s: packSettings(this.settings), run: runOf(tree), b: tree.encode(), on: branch.index || null, at: at >= 0 ? at : null };
  }

  /** Show a branch and make the tokens it lacks. */
  async show(tree, branch, at = -1) {
    const mine = this.running = new AbortController();
    Object.assign(this, { tree, branch });
    fill(this.problem);
    this.chips.selected = at;
    this.render();
    if (at >= 0) this.inspect();
    else this.inspector.empty("Choose a token to see what else could have come.");
    let frame = 0;
    const onToken = () => { frame ||= requestAnimationFrame(() => { frame = 0; if (this.running === mine) this.render(); }); };
    let failed = null;
    const before = tree.path(branch).length;
    try {
      await tree.grow(branch, { signal: mine.signal, onToken });
    } catch (error) {
      if (!isStopped(error)) failed = error;
    }
    cancelAnimationFrame(frame);
    if (this.running !== mine) return;
    this.running = null;
    if (this.chips.selected > tree.path(branch).length) this.chips.selected = -1;
    this.render();
    if (failed) this.fail(failed);
    else if (tree.path(branch).length !== before) this.app.announce(`${tokensOf(branch.tokens.length)}: ${textOf(branch.tokens)}`);
    if (this.chips.selected >= 0) this.ask();
    if (!failed) this.score();
  }

  /** How likely the prompt's own tokens are, once there is time. */
  async score() {
    const { tree } = this;
    try {
      await tree.scorePrompt((this.scoring = new AbortController()).signal);
      if (this.tree === tree) tree.prompt.forEach((_, i) => this.chips.chips[i] && this.chips.tint(i));
    } catch { /* they stay untinted */ }
  }

  halt() {
    this.scoring?.abort();
    this.running?.abort();
    this.running = null;
  }

  /** Stop making tokens. What there is stays, and the link will make as many. */
  stop() {
    const { running, tree, branch } = this;
    this.halt();
    if (!running) return;
    if (branch.tokens[0]?.bytes) {
      branch.settings = { ...branch.settings, n: Math.max(1, branch.tokens.length - (branch.parent ? 1 : 0)) };
      branch.end = "limit";
      this.app.setState(this.treeState(tree, branch, this.chips.selected));
      this.remember(tree);
    }
    this.render();
  }

  /** Make more tokens where the branch ends. */
  async more() {
    const { tree, branch } = this;
    branch.settings = { ...branch.settings, n: branch.tokens.length - (branch.parent ? 1 : 0) + this.settings.n };
    if (branch.end === "limit") branch.end = "";
    this.app.setState(this.treeState(tree, branch, this.chips.selected));
    this.remember(tree);
    await this.show(tree, branch, this.chips.selected);
  }

  fail(error) {
    const kept = this.branch.tokens.length ? " What had arrived is kept." : "";
    fill(this.problem, h("p", { class: "error" }, error.message, kept),
      error.status !== 400 && h("p", {}, h("button", { type: "button", onclick: () => this.show(this.tree, this.branch, this.chips.selected) },
        kept ? "Continue" : "Try again")));
    this.app.announce(error.message);
  }

  // ---- the distribution

  select(position, pointer) {
    this.inspector.entering = false;
    this.inspector.body.inert = true; // until the position's own is there
    if (!this.tree.example) this.app.setState({ at: position });
    this.ask();
    const panel = this.inspector.element;
    if (pointer && panel.getBoundingClientRect().top > innerHeight - 160) {
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      panel.scrollIntoView({ block: "start", behavior: still ? "instant" : "smooth" });
    }
  }

  /** Show what could come at the selected position. */
  async inspect() {
    this.ask.cancel();
    const { tree, branch } = this, position = this.chips.selected;
    const mine = this.asking = {};
    if (!tree || position < 0) return;
    const path = tree.path(branch), chosen = path[position] ?? null;
    if (position > path.length) return;
    const title = [position === path.length ? "Next token" : `Token ${grouped(position + 1)}`, chosen?.bytes && h("code", {}, visible(chosen))];
    if (position === 0) return this.inspector.empty("Nothing precedes the first token, so the model has no distribution for it.");
    if (tree.model !== this.app.model && !tree.knows(branch, position)) {
      return this.inspector.empty(`This text was made with ${tree.model}. Complete it with ${this.app.model} to see its tokens.`);
    }
    this.inspector.wait(title);
    try {
      const next = await tree.next(branch, position);
      if (this.asking === mine) this.inspector.show(title, next, chosen, tree.model === this.app.model);
    } catch (error) {
      if (this.asking === mine) this.inspector.fail(title, error.message, () => this.inspect());
    }
  }

  // ---- drawing

  render() {
    const { tree, branch } = this, path = tree?.prompt.length ? tree.path(branch) : [];
    const known = path.filter((token) => token.bytes);
    const atEnd = this.chips.element.scrollTop + this.chips.element.clientHeight > this.chips.element.scrollHeight - 40;
    this.chips.set(known, Math.min(tree?.prompt.length ?? 0, promptShared(branch)));
    if (this.running && atEnd) this.chips.element.scrollTop = this.chips.element.scrollHeight;
    this.output.hidden = !tree;
    this.hint.hidden = !tree?.example;
    this.output.toggleAttribute("data-running", Boolean(this.running));
    this.copy.hidden = !known.length;
    this.stopper.hidden = !this.running;
    this.showStatus();
    this.showBranches();
  }

  showStatus() {
    const { tree, branch, running } = this;
    if (!tree) return fill(this.status);
    const made = branch.tokens.length;
    if (running) return fill(this.status, made ? `${tokensOf(made)} …` : "Waiting for the first token …");
    const more = branch.end !== "eos" && branch.end !== "context" && made > 0 && !tree.example;
    fill(this.status, made ? tokensOf(made) : "Nothing yet", branch.end && ` · ${ENDS[branch.end]}`,
      tree.speed ? ` · ${tree.speed.toFixed(0)} tokens/s` : "", made > 0 && ` · perplexity ${perplexity(branch)}`, ` · ${describe(branch.settings)} · seed ${tree.seed}`,
      tree.example && ` · made before with ${tree.model}`,
      more && h("button", { class: "quiet", type: "button", onclick: () => this.more() }, "More"));
    return this.showStale();
  }

  /** Say when the text was not made with the prompt and the settings that are shown. */
  showStale() {
    const { tree } = this;
    this.go.textContent = tree && !tree.example && tree.text === this.prompt.value ? "Complete again" : "Complete";
    const stale = Boolean(tree) && tree.text !== this.prompt.value && !this.running;
    this.output.classList.toggle("stale", stale);
    this.changed.hidden = !stale;
  }

  showBranches() {
    const { branches } = this.tree ?? { branches: [] };
    this.tried.hidden = branches.length < 2;
    if (this.tried.hidden) return;
    const children = (parent) => branches.filter((branch) => branch.parent === parent);
    const item = (branch) => h("li", {},
      h("button", { type: "button", "aria-current": branch === this.branch ? "true" : null,
        "aria-label": `Branch ${branch.index + 1}: ${textOf(branch.tokens.filter(({ bytes }) => bytes)).slice(0, 80)}`,
        onclick: () => this.goTo(branch) },
        h("span", { class: "where" }, branch.parent ? `@${grouped(branch.at + 1)}` : "start"),
        h("span", { class: "text mono" }, branch.parent && h("b", {}, label(branch.tokens[0])),
          snippet(branch)),
        h("span", { class: "ppl", title: "Perplexity" }, branch.tokens.length > 1 ? perplexity(branch) : "")),
      children(branch).length > 0 && h("ul", {}, children(branch).map(item)));
    fill(this.tried, h("div", { class: "head" }, h("h2", {}, "Branches"), h("span", { class: "hint" }, "perplexity")), h("ul", { class: "tree" }, item(branches[0])));
  }

  async goTo(branch) {
    this.stop();
    const at = branch.parent ? branch.at : -1;
    if (!this.tree.example) this.app.setState(this.treeState(this.tree, branch, at), { push: true });
    await this.show(this.tree, branch, at);
  }
}

/** What a tree's first branch was made with, as a link has it. */
function runOf(tree) {
  return `${packSettings(tree.branches[0].settings)}.seed${tree.seed}`;
}

const keyOf = (text, run, model) => JSON.stringify([text, run, model]);

/** How many of the prompt's tokens a branch keeps. */
function promptShared(branch) {
  let kept = Infinity;
  for (let other = branch; other?.parent; other = other.parent) kept = Math.min(kept, other.at);
  return kept;
}

/** e to the mean of −ln p of a branch's own tokens, the chosen one left out. */
function perplexity(branch) {
  const own = branch.tokens.slice(branch.parent ? 1 : 0);
  const sum = own.reduce((total, { logprob }) => total - logprob, 0);
  return own.length ? Math.exp(sum / own.length).toPrecision(3).replace(/e\+(\d+)/, " · 10^$1") : "–";
}

/** The settings that tokens were drawn with. */
function describe({ temperature, topK, topP, minP }) {
  return [`T = ${temperature}`, topK > 0 && `top-k ${topK}`, topP < 1 && `top-p ${topP}`, minP > 0 && `min-p ${minP}`].filter(Boolean).join(", ");
}

function label(token) {
  return token.bytes ? visible(token) : `token ${token.id}`;
}

function snippet(branch) {
  const own = branch.tokens.slice(branch.parent ? 1 : 0, 60);
  return own.length ? textOf(own).replace(/\s+/g, " ") : " …";
}
