// Chat: messages on one side, on the other the exact token sequence that the model's template makes of them.

import { isStopped } from "../api.js";
import { answer, messagesOf, packTurns, readTurns, sequenceOf } from "../conversation.js";
import { copyButton, debounce, fill, h } from "../dom.js";
import { tokensOf } from "../format.js";
import { extend, readToken, sequence } from "../sequence.js";
import { textOf } from "../tokens.js";

const EXAMPLE = [{ user: "Write a haiku about the sea.", answers: ["The ocean's a mirror, reflecting the beauty of the world below.", null] }];
const EXAMPLE_BY = "smollm2-135m-instruct at temperature 0";
const IDEAS = ["What is a token?", "Why is the sky blue?", "What does <|im_end|> mean?"];
const ENDS = { length: "as many tokens as asked for", stop: "" };
const SIDES = ["A", "B"];
const PARTS = [["system", "system message"], ["user", "user"], ["assistant", "assistant"], ["answer", "answer"]];

const asAnswer = (token) => ({ ...token, part: "answer" });
const sizesOf = ({ tokens, written, isDraft }) => (isDraft ? `${tokensOf(tokens.length)}, with your message as it stands.`
  : `${tokensOf(tokens.length)} read${written.length ? `, ${written.length} written, darker where they were less likely` : ""}.`);

export default function mount(root, app) {
  const view = new Chat(root, app);
  app.onState(() => view.follow());
  view.follow();
  return () => view.leave();
}

class Chat {
  constructor(root, app) {
    Object.assign(this, { app, running: new Map(), side: 0, reading: null });
    this.made = new Map(); // tokens of answers as they were drawn, by side and text
    this.drawn = [null, null]; // tokens of the answers being made, or made last
    this.sequences = [null, null]; // {tokens, written, …} or {error} of each side
    this.soon = debounce(() => this.readAll(), 250);
    this.settings = h("section", { class: "card settings", "aria-label": "Settings" });
    this.log = h("ol", { class: "turns", "aria-label": "Conversation" });
    this.problem = h("div", { role: "alert", class: "problem" });
    this.draft = h("textarea", { id: "draft", rows: 2, dir: "auto", placeholder: "Write a message …",
      oninput: () => { app.setState({ draft: this.draft.value }); this.soon(); },
      onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); } } });
    this.go = h("button", { class: "primary", type: "button", onclick: () => this.send() }, "Send");
    this.stopper = h("button", { type: "button", hidden: true, title: "Escape", onclick: () => this.stop() }, "Stop");
    this.clear = h("button", { class: "quiet", type: "button", onclick: () => this.change({ turns: "[]", draft: null }) }, "New conversation");
    this.panel = h("aside", { class: "reads card", "aria-label": "What the model reads" });
    fill(root, h("div", { class: "chat" },
      h("div", { class: "main" }, this.settings, this.log, this.problem,
        h("div", { class: "composer" }, h("label", { for: "draft", class: "unseen" }, "Your message"), this.draft,
          h("div", { class: "row" }, this.go, this.stopper, h("span", { class: "hint keys" }, h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift"), " ", h("kbd", {}, "Enter"), " breaks the line"),
            h("span", { class: "space" }), this.clear))),
      this.panel));
    this.onKey = (event) => { if (event.key === "Escape" && this.running.size && !document.querySelector("dialog[open]")) this.stop(); };
    document.addEventListener("keydown", this.onKey);
  }

  leave() {
    document.removeEventListener("keydown", this.onKey);
    this.soon.cancel();
    this.reading?.abort();
    this.drop();
  }

  // ---- the link

  get form() {
    const { state, models, model } = this.app, compare = state.b === "1";
    const number = (text, otherwise, least, most) => (text !== undefined && Number(text) >= least && Number(text) <= most ? Number(text) : otherwise);
    const temperature = number(state.t, 0.7, 0, 5);
    return {
      compare, system: state.system ?? "", most: Math.round(number(state.n, 200, 1, 100_000)),
      seed: /^\d{1,15}$/.test(state.seed ?? "") ? Number(state.seed) : null,
      isExample: state.turns === undefined, turns: state.turns === undefined ? structuredClone(EXAMPLE) : readTurns(state.turns),
      sides: [{ model, temperature }, { model: models.includes(state.model2) ? state.model2 : model, temperature: number(state.t2, compare ? 0 : temperature, 0, 5) }].slice(0, compare ? 2 : 1),
    };
  }

  change(partial) {
    this.app.setState(partial, { push: true });
    this.follow();
  }

  follow() {
    this.drop();
    this.drawn = [null, null];
    fill(this.problem);
    this.draft.value = this.app.state.draft ?? "";
    if (this.side >= this.form.sides.length) this.side = 0;
    this.showSettings();
    this.showTurns();
    this.readAll();
  }

  // ---- settings

  showSettings() {
    const { app } = this, { compare, system, most, seed, sides } = this.form;
    const number = (id, label, key, value, more) => {
      const box = h("input", { type: "number", id, ...more, onchange: () => {
        if (box.value !== "") box.value = Math.max(more.min, Math.min(more.max ?? Infinity, Number(box.value)));
        app.setState({ [key]: box.value });
      } });
      box.value = value ?? "";
      return h("span", { class: "setting" }, h("label", { for: id }, label), box);
    };
    const shared = () => [number("most", "Most tokens", "n", most, { min: 1, max: 100_000 }), number("seed", "Seed", "seed", seed, { min: 0, placeholder: "random" })];
    const temperature = (side) => number(`temperature-${side}`, "Temperature", side ? "t2" : "t", sides[side].temperature, { min: 0, max: 5, step: 0.1 });
    const box = h("textarea", { id: "system", rows: 1, dir: "auto", placeholder: "none; a template may bring its own",
      oninput: () => { app.setState({ system: box.value }); this.soon(); } });
    box.value = system;
    const both = h("input", { id: "compare", type: "checkbox", onchange: () => {
      this.change({ b: both.checked ? 1 : null, ...(both.checked ? {} : { model2: null, t2: null }) });
      document.getElementById("compare").focus();
    } });
    both.checked = compare;
    const second = h("select", { id: "model2", onchange: () => this.change({ model2: second.value }) }, app.models.map((id) => h("option", { value: id }, id)));
    if (compare) second.value = sides[1].model;
    fill(this.settings,
      h("div", { class: "field" }, h("label", { for: "system" }, "System message"), box),
      h("div", { class: "row" },
        compare ? h("b", { class: "side-name" }, "A") : null, temperature(0),
        !compare && shared(),
        h("label", { class: "setting" }, both, "Compare")),
      compare && h("div", { class: "row" }, h("b", { class: "side-name" }, "B"), temperature(1),
        app.models.length > 1 && h("span", { class: "setting" }, h("label", { for: "model2" }, "Model"), second)),
      compare && h("div", { class: "row" }, shared()));
  }

  // ---- the conversation

  showTurns() {
    const { turns, isExample, sides } = this.form;
    this.answers = turns.map(() => []);
    fill(this.log,
      isExample && h("li", { class: "hint" }, "An example. Edit it, ask on, or begin a ", h("button", { class: "quiet", type: "button", onclick: () => this.clear.click() }, "new conversation"), "."),
      turns.map((turn, index) => h("li", { class: "turn" },
        this.message("user", turn.user, index, null),
        h("div", { class: "answers", data: { sides: sides.length } }, sides.map((_, side) => this.message("assistant", turn.answers[side], index, side))))),
      !turns.length && h("li", { class: "row" }, h("span", { class: "hint" }, "Try:"), IDEAS.map((text) => h("button", { type: "button", onclick: () => {
        this.draft.value = text;
        this.app.setState({ draft: text });
        this.draft.focus();
        this.soon();
      } }, text))));
    this.showRunning();
  }

  /** A message with what can be done with it; `side` is null for the user's. */
  message(role, text, index, side) {
    const { sides } = this.form, isUser = side === null, place = `${isUser ? "message" : "answer"} ${index + 1}`;
    const content = h("div", { class: "content", dir: "auto" }, text ?? ""), foot = h("span", { class: "hint foot" });
    const apart = new Set(sides.map(({ model }) => model)).size > 1, last = index === this.form.turns.length - 1;
    const name = isUser ? "You" : this.form.isExample && side === 0 ? EXAMPLE_BY : sides.length === 1 ? sides[0].model
      : `${SIDES[side]} · ${apart ? `${sides[side].model} at` : "temperature"} ${sides[side].temperature}`;
    const change = (title, onclick, label, more = "") => h("button", { class: `quiet change${more}`, type: "button", "aria-label": label, onclick }, title);
    const item = h("div", { class: `message ${role}`, data: { key: `${index}-${side ?? "user"}` },
      onmouseenter: () => this.light(index, isUser, true), onmouseleave: () => this.light(index, isUser, false) },
      h("div", { class: "head" }, h("span", { class: "who" }, name), h("span", { class: "does" },
        change("Edit", () => this.edit(item, role, index, side), `Edit ${place}`),
        !isUser && change(text === null ? "Answer" : "Regenerate", () => this.regenerate(index, side), `Regenerate ${place}`, " again"),
        copyButton("Copy", () => content.textContent))),
      content, foot);
    if (!isUser) this.answers[index][side] = { content, foot, item };
    if (!isUser && text === null) fill(content, h("span", { class: "hint" }, last ? "no answer yet" : `reads ${SIDES[1 - side]}'s answer here`));
    return item;
  }

  edit(item, role, index, side) {
    const { turns } = this.form, isUser = side === null;
    const box = h("textarea", { dir: "auto", rows: 3, "aria-label": isUser ? "Your message" : "The answer", onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey && isUser) { event.preventDefault(); save(); }
      if (event.key === "Escape") { event.stopPropagation(); this.showTurns(); }
    } });
    box.value = isUser ? turns[index].user : turns[index].answers[side] ?? "";
    const save = () => {
      if (isUser) return box.value.trim() && this.ask([...turns.slice(0, index), { user: box.value, answers: [null, null] }]);
      turns[index].answers[side] = box.value;
      return this.change({ turns: packTurns(turns) });
    };
    fill(item, box, h("div", { class: "row" }, h("button", { class: "primary", type: "button", onclick: save }, isUser ? "Send" : "Save"),
      h("button", { type: "button", onclick: () => this.showTurns() }, "Cancel"),
      h("span", { class: "hint" }, isUser ? "What follows is answered anew." : "As if the model had said so.")));
    box.focus();
  }

  send() {
    const text = this.draft.value, { turns, isExample } = this.form;
    if (!text.trim() || this.running.size) return;
    this.draft.value = "";
    this.ask([...(isExample ? [] : turns), { user: text, answers: [null, null] }]);
  }

  regenerate(index, side) {
    const { turns } = this.form, kept = turns.slice(0, index + 1);
    kept[index] = { ...kept[index], answers: kept[index].answers.map((text, own) => (own === side ? null : text)) };
    this.ask(kept, [side]);
  }

  /** Show these turns and let the sides answer the last one. */
  ask(turns, which = this.form.sides.map((_, side) => side)) {
    this.change({ turns: packTurns(turns), draft: this.draft.value || null });
    for (const side of which) this.answer(side);
  }

  async answer(side) {
    const { sides, turns, system, most, seed } = this.form, index = turns.length - 1, { content, foot, item } = this.answers[index][side];
    const mine = new AbortController(), messages = messagesOf(system, turns, side);
    this.running.set(side, mine);
    this.showRunning();
    fill(content);
    fill(item.querySelector(".again"), "Regenerate");
    let text = "", end = null, drawn = null, frame = 0;
    const tokens = this.drawn[side] = [];
    const paint = () => { frame = 0; fill(content, text); this.showWritten(side); };
    try {
      for await (const part of answer(this.app.api, { ...sides[side], messages, most, seed }, mine.signal)) {
        text += part.text;
        tokens.push(...part.tokens);
        end = part.end ?? end;
        drawn = part.seed ?? drawn;
        frame ||= requestAnimationFrame(paint);
      }
    } catch (error) {
      if (!isStopped(error)) this.fail(error, sides[side].model);
      end = isStopped(error) ? "stopped" : "failed";
    }
    cancelAnimationFrame(frame);
    if (this.running.get(side) !== mine) return;
    this.running.delete(side);
    this.made.set(`${side} ${text}`, tokens);
    const now = this.form.turns;
    now[index].answers[side] = text || (end === "failed" ? null : "");
    this.app.setState({ turns: packTurns(now) });
    paint();
    if (end === "failed" && !text) fill(content, h("span", { class: "hint" }, "no answer"));
    else fill(foot, [tokensOf(tokens.length), ENDS[end] ?? end, drawn !== null && sides[side].temperature > 0 && `seed ${drawn}`].filter(Boolean).join(" · "));
    this.showRunning();
    this.app.announce(`${sides.length > 1 ? `${SIDES[side]}: ` : ""}${text}`);
  }

  /** End the answers being made; what there is of them stays. */
  stop() {
    for (const controller of this.running.values()) controller.abort();
  }

  /** End and forget them: the conversation has become another one. */
  drop() {
    this.stop();
    this.running.clear();
  }

  showRunning() {
    const busy = this.running.size > 0;
    this.stopper.hidden = !busy;
    this.go.disabled = busy;
    this.clear.disabled = !this.form.turns.length;
    for (const [side] of this.running) this.answers.at(-1)?.[side]?.item.setAttribute("aria-busy", "true");
    for (const button of this.log.querySelectorAll(".change")) button.disabled = busy;
    if (!busy) for (const item of this.log.querySelectorAll("[aria-busy]")) item.removeAttribute("aria-busy");
  }

  fail(error, model) {
    const complete = h("a", { href: this.app.link("complete", { model }) }, "Complete a text");
    const instead = this.app.models.length > 1 ? ", or choose another model." : " instead.";
    fill(this.problem, error.type === "no_chat_template_error"
      ? h("p", {}, h("b", {}, `${model} has no chat template`), ": it was not trained on conversations. ", complete, instead)
      : h("p", { class: "error" }, error.message));
  }

  // ---- what the model reads

  /** The turns that are read: with the draft as a new one, if there is one. */
  get read() {
    const { turns } = this.form, draft = this.draft.value;
    return draft.trim() ? { turns: [...turns, { user: draft, answers: [null, null] }], isDraft: true } : { turns, isDraft: false };
  }

  async readAll() {
    this.reading?.abort();
    const mine = this.reading = new AbortController(), { system, sides } = this.form, { turns, isDraft } = this.read;
    if (!turns.length && !system) {
      this.sequences = [null, null];
      this.showPanel();
      return;
    }
    await Promise.all(sides.map(async ({ model }, side) => {
      try {
        const messages = turns.length ? messagesOf(system, turns, side) : [{ role: "system", content: system }];
        const tokens = await sequenceOf(this.app.api, model, messages, mine.signal), last = turns.at(-1);
        const text = isDraft ? null : last?.answers[side] ?? null;
        const made = text ? this.made.get(`${side} ${text}`) : null;
        const written = made ?? (text ? await this.tokenize(model, text, mine.signal) : []);
        if (this.reading !== mine) return;
        this.sequences[side] = { tokens, written, isDraft, again: Boolean(text) && !made };
        if (!isDraft && this.drawn[side]) Object.assign(this.sequences[side], { written: this.drawn[side], again: false });
        if (!this.running.size) fill(this.problem);
      } catch (error) {
        if (isStopped(error) || this.reading !== mine) return;
        this.sequences[side] = { error };
        this.fail(error, model);
      }
    }));
    if (this.reading === mine) this.showPanel();
  }

  /** The tokens of an answer that was not made here: as the tokenizer has them. */
  async tokenize(model, content, signal) {
    const { tokens } = await this.app.api.json("/tokenize", { model, content, parse_special: false, with_pieces: true }, { signal });
    return tokens.map(readToken);
  }

  /** An answer as it arrives. */
  showWritten(side) {
    const own = this.sequences[side];
    if (!own?.tokens || own.isDraft) return;
    Object.assign(own, { written: this.drawn[side], again: false });
    if (side !== this.side) return;
    if (this.shown?.own !== own) return this.showPanel();
    const { element, count } = this.shown, atEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - 40;
    extend(element, own.written.slice(count).map(asAnswer));
    this.shown.count = own.written.length;
    fill(this.sizes, sizesOf(own));
    if (atEnd) element.scrollTop = element.scrollHeight;
  }

  showPanel() {
    const { sides } = this.form, own = this.sequences[this.side];
    const choose = (side) => () => { this.side = side; this.showPanel(); this.panel.querySelector("[aria-pressed=true]").focus(); };
    const tabs = sides.length > 1 && h("span", { class: "row", role: "group", "aria-label": "Side" },
      sides.map((_, side) => h("button", { type: "button", "aria-pressed": String(side === this.side), onclick: choose(side) }, SIDES[side])));
    const head = (copy) => h("div", { class: "head" }, h("h2", {}, "What the model reads"), tabs, copy);
    this.shown = null;
    if (!own?.tokens) {
      fill(this.panel, head(), h("p", { class: "hint" }, own?.error ? "Without a template there is no sequence." : "Write a message to see what the template makes of it."));
      return;
    }
    const { tokens, written, again } = own, all = [...tokens, ...written.map(asAnswer)];
    const element = sequence(all, "Token sequence"), shows = (part) => all.some((token) => token.part === part);
    this.sizes = h("p", { class: "hint" }, sizesOf(own));
    fill(this.panel, head(copyButton("Copy", () => textOf([...tokens, ...own.written]))), this.sizes,
      h("p", { class: "legend hint", "aria-hidden": "true" }, h("span", { class: "chip control" }, "control"), "of the template",
        PARTS.filter(([part]) => shows(part) || part === "answer").map(([part, title]) => h("span", { class: "chip", data: { part } }, title))),
      element,
      again && h("p", { class: "hint" }, "The answer as the tokenizer splits it; regenerate it to see the tokens as they are drawn."));
    element.scrollTop = element.scrollHeight;
    this.shown = { own, element, count: written.length };
  }

  /** Show which tokens a message became. */
  light(index, isUser, on) {
    const own = this.sequences[this.side];
    if (!own?.tokens) return;
    const { system, turns } = this.form, number = (system ? 1 : 0) + 2 * index + (isUser ? 0 : 1);
    const chips = this.panel.querySelectorAll(".sequence .chip");
    [...own.tokens, ...own.written].forEach((token, at) => {
      const mine = token.message === number || (!isUser && index === turns.length - 1 && at >= own.tokens.length && !own.isDraft);
      chips[at]?.classList.toggle("lit", on && mine);
    });
  }
}
