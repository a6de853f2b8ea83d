// Prompt: one question after zero, one and a few examples, side by side: what is sent, and what the model makes of it.

import { isStopped } from "../api.js";
import { debounce, fill, h } from "../dom.js";
import { Examples, fields } from "../examples.js";
import { column } from "../labels.js";
import { Measure } from "../measure.js";
import { percent } from "../tokens.js";

const OWN = {
  name: "own", summary: "a template, labels and examples of your own", template: "Message: {text}\nMood: {output}", target: "output",
  labels: ["happy", "sad"], questions: [{ text: "They cancelled my train again." }],
  examples: [[
    { text: "The sun is out and I have the day off!", output: "happy" }, { text: "I lost my keys.", output: "sad" },
    { text: "Nobody came to the party.", output: "sad" }, { text: "We won the match!", output: "happy" },
  ]],
};
const FIRST = "sentiment", SHOTS = [0, 1, 4], MOST_COLUMNS = 6, MOST_SHOTS = 32;
const GAP = /\{\{|\}\}|\{([^\W\d]\w*)(?:\[\d{1,4}\])?\}/gu;
const TITLES = ["Zero-shot", "One-shot", "Few-shot"];

export default function mount(root, app) {
  const view = new Prompt(root, app);
  app.onState(() => view.follow());
  view.load();
  return () => view.leave();
}

/** JSON from the link; `otherwise` if it is none. */
function read(text, otherwise) {
  try { return JSON.parse(text) ?? otherwise; } catch { return otherwise; }
}

/** What the fields of a row follow from. */
const keyOf = ({ columns, labels }) => JSON.stringify([columns, labels]);

class Prompt {
  constructor(root, app) {
    Object.assign(this, { app, root, tasks: null, running: null, answer: null });
    this.ask = debounce(() => this.run(), 350);
    this.examples = new Examples((rows) => this.edit({ examples: JSON.stringify(rows) }), app.announce);
    this.measure = new Measure(app);
    this.columns = h("div", { class: "columns" });
    this.problem = h("div", { role: "alert" });
    this.form = h("section", { class: "form", "aria-label": "The prompt" });
    this.element = h("div", { class: "prompting" }, this.form,
      h("section", { class: "results", "aria-label": "What the model makes of it" }, this.problem, this.columns, this.measure.element));
  }

  leave() {
    this.left = true;
    this.ask.cancel();
    this.running?.abort();
    this.measure.leave();
  }

  async load() {
    fill(this.root, h("p", { class: "hint" }, "Reading the tasks …"));
    const found = await this.app.api.json("/v1/tasks").catch((error) => ({ fault: error.message }));
    if (this.left) return; // the root is another view's
    if (found.fault) {
      fill(this.root, h("p", { class: "error" }, found.fault), h("button", { type: "button", onclick: () => this.load() }, "Try again"));
      return;
    }
    this.tasks = [...found.tasks, OWN];
    fill(this.root, this.element);
    this.follow();
  }

  // ---- the link

  /** What the link says, with the task's own for everything it leaves out. */
  read() {
    const { state } = this.app, task = this.tasks.find(({ name }) => name === (state.task ?? FIRST)) ?? this.tasks[0];
    const number = Math.min(Number(state.q) || 0, task.questions.length - 1);
    const set = Math.min(Number(state.set) || 0, task.examples.length - 1);
    const shots = (state.shots ?? "").split(",").filter((part) => /^\d{1,2}$/.test(part)).map(Number).slice(0, MOST_COLUMNS);
    const words = state.labels === undefined ? task.labels : state.labels.split(",").map((word) => word.trim()).filter(Boolean);
    const own = task === OWN && state.labels === "-"; // free answers
    const values = task === OWN ? words : task.labels?.map((label, index) => (task.indexed ? index : label));
    const template = state.template ?? task.template;
    const given = read(state.examples, null);
    return {
      task, number, set, template, words: own ? null : words, shots: shots.length ? shots : SHOTS, target: task.target,
      columns: [...new Set([...template.matchAll(GAP)].map((match) => match[1]).filter(Boolean))]
        .filter((name) => name !== "output" && name !== task.target && (task === OWN || name in task.questions[0])),
      labels: own || !values ? null : values.map((value, index) => [value, words[index] ?? value]),
      question: read(state.question, task.questions[number]),
      examples: Array.isArray(given) ? given : null,
      chat: state.chat === "1", system: state.system ?? "",
    };
  }

  /** As many examples as the most shots: those of the link, then those of the set. */
  rows({ examples, task, set, shots, columns }) {
    const most = Math.max(...shots), rows = examples ? examples.slice(0, MOST_SHOTS) : task.examples[set].slice(0, most);
    const known = new Set(rows.map((row) => JSON.stringify(row)));
    const rest = task.examples[set].filter((row) => !known.has(JSON.stringify(row)));
    const blank = { ...Object.fromEntries(columns.map((name) => [name, ""])), [task.target]: task.examples[set][0][task.target] };
    while (rows.length < most) rows.push(rest.shift() ?? blank);
    return rows;
  }

  /** Change the link and ask again; the form stays as it is. */
  edit(partial) {
    this.app.setState(partial);
    this.ask();
  }

  /** Change the link, as a step to go back, and show everything anew. */
  change(partial) {
    this.app.setState(partial, { push: true });
    this.follow();
  }

  follow() {
    if (!this.tasks) return;
    this.ask.cancel();
    const form = this.read();
    this.show(form);
    this.frame(form);
    this.run();
  }

  // ---- the form

  show(form) {
    const { task } = form, own = task === OWN;
    const choose = h("select", { id: "task", onchange: () => this.change({ task: choose.value === FIRST ? null : choose.value, q: null,
      question: null, set: null, examples: null, template: null, labels: null }) },
      this.tasks.map(({ name }) => h("option", { value: name }, name === "own" ? "your own" : name)));
    choose.value = task.name;
    const template = h("textarea", { id: "template", rows: form.template.split("\n").length, spellcheck: "false", dir: "auto",
      oninput: () => { this.edit({ template: template.value === task.template ? null : template.value }); this.showFields(); } });
    template.value = form.template;
    const labels = h("input", { id: "labels", dir: "auto", autocomplete: "off", value: form.words?.join(", ") ?? "",
      oninput: () => this.relabel(labels.value) });
    const chat = h("input", { id: "chat", type: "checkbox", onchange: () => this.change({ chat: chat.checked ? 1 : null }) });
    chat.checked = form.chat;
    const system = h("textarea", { id: "system", rows: 2, dir: "auto", placeholder: "none of your own", oninput: () => this.edit({ system: system.value }) });
    system.value = form.system;
    this.templateError = h("p", { class: "error", id: "template-error" });
    fill(this.form,
      h("div", { class: "card" },
        h("div", { class: "field" }, h("label", { for: "task" }, "Task"), choose, h("p", { class: "hint" }, task.summary)),
        h("div", { class: "field" }, h("label", { for: "template" }, "Template"), template, this.templateError,
          h("p", { class: "hint" }, "Each ", h("code", {}, "{column}"), " is filled from the question and the examples; ",
            h("code", {}, "{output}"), " is where the answer goes.")),
        task.labels && h("div", { class: "field" }, h("label", { for: "labels" }, own ? "Labels" : "Words for the labels"), labels,
          own && h("p", { class: "hint" }, "Separated by commas; none: the model writes a free answer.")),
        h("label", { class: "row" }, chat, "Through the model's chat template, examples as turns"),
        form.chat && h("div", { class: "field" }, h("label", { for: "system" }, "System message"), system)),
      this.question = h("div", { class: "card" }),
      h("div", { class: "card" },
        h("div", { class: "head" }, h("h2", {}, "Examples"), this.sets(form)),
        h("p", { class: "hint" }, own ? "k shots are the first k of these, in this order." :
          "k shots are the first k of these, in this order. The sets are those that nextword eval draws."),
        this.examples.element,
        h("button", { type: "button", onclick: () => this.addExample() }, "Add an example")));
    this.showRows(form);
  }

  sets({ task, set, examples }) {
    if (task.examples.length < 2) return examples && h("button", { class: "quiet", type: "button", onclick: () => this.change({ examples: null }) }, "Reset");
    const choose = h("select", { "aria-label": "Set of examples", onchange: () => this.change({ set: Number(choose.value) || null, examples: null }) },
      examples && h("option", { value: "" }, "yours"), task.examples.map((_, number) => h("option", { value: number }, `set ${number + 1}`)));
    choose.value = examples ? "" : String(set);
    return choose;
  }

  /** The question and the examples: the fields that follow from the template and the labels. */
  showRows(form) {
    this.shownFields = keyOf(form);
    const { task, number } = form, changed = this.app.state.question !== undefined;
    const several = task.questions.length > 1;
    const step = (by, sign, label) => h("button", { class: "quiet", type: "button", "aria-label": label, onclick: () => {
      this.change({ q: (number + by + task.questions.length) % task.questions.length || null, question: null });
      this.question.querySelector(`[aria-label="${label}"]`).focus();
    } }, sign);
    fill(this.question,
      h("div", { class: "head" }, h("h2", {}, "Question"), h("span", { class: "row" },
        changed && h("button", { class: "quiet", type: "button", onclick: () => this.change({ question: null }) }, "Reset"),
        several && [h("span", { class: "hint" }, `${number + 1} of ${task.questions.length}`), step(-1, "‹", "Previous question"), step(1, "›", "Next question")])),
      fields(form, form.question, "Question", (row) => this.edit({ question: JSON.stringify(row) }), "not known"));
    this.examples.show(form, this.rows(form));
  }

  /** Show the fields anew if the template or the labels ask for others. */
  showFields() {
    const form = this.read();
    if (keyOf(form) !== this.shownFields) this.showRows(form);
  }

  /** Other labels. Where they are the user's own, the answers of question and examples are renamed with them. */
  relabel(text) {
    const before = this.read(), own = before.task === OWN;
    this.edit({ labels: text === before.task.labels.join(", ") ? null : text.trim() || (own ? "-" : null) });
    const after = this.read();
    if (own && before.words && after.words?.length === before.words.length) {
      const renamed = (row) => ({ ...row, output: after.words[before.words.indexOf(row.output)] ?? row.output });
      this.edit({ examples: JSON.stringify(this.rows(before).map(renamed)), question: JSON.stringify(renamed(before.question)) });
    }
    this.showFields();
  }

  addExample() {
    const form = this.read(), rows = this.rows(form);
    if (rows.length >= MOST_SHOTS) return;
    const most = Math.max(...form.shots);
    const more = this.rows({ ...form, examples: rows, shots: [rows.length + 1] });
    const shots = form.shots.map((count) => (count === most ? more.length : count));
    this.change({ examples: JSON.stringify(more), shots: shots.join(",") });
    this.examples.element.lastElementChild.querySelector("textarea, input")?.focus();
  }

  // ---- the columns

  /** A frame for each number of shots; `run` fills them. */
  frame(form) {
    this.frames = form.shots.map((count, index) => {
      const body = h("div", { class: "body", "aria-busy": "true" }, h("p", { class: "hint" }, "Asking the model …"));
      const box = h("input", { type: "number", min: 0, max: MOST_SHOTS, value: count, id: `shots-${index}`,
        onchange: () => {
          const next = Math.max(0, Math.min(MOST_SHOTS, Math.round(Number(box.value)) || 0));
          this.setShots(form.shots.map((other, place) => (place === index ? next : other)), index);
        } });
      const remove = form.shots.length > 1 && h("button", { class: "quiet", type: "button", "aria-label": "Remove this column",
        onclick: () => this.setShots(form.shots.filter((_, place) => place !== index)) }, "×");
      const element = h("article", { class: "card", "aria-label": `${count} shots` },
        h("div", { class: "head" }, h("h2", {}, TITLES[Math.min(count, 2)]), h("span", { class: "row" }, box, h("label", { for: box.id, class: "hint" }, `example${count === 1 ? "" : "s"}`), remove)), body);
      return { body, element };
    });
    const more = form.shots.length < MOST_COLUMNS && h("button", { type: "button",
      onclick: () => this.setShots([...form.shots, Math.min(MOST_SHOTS, 2 * Math.max(1, ...form.shots))]) }, "+ another number of examples");
    fill(this.columns, this.frames.map(({ element }) => element));
    fill(this.measure.above, more);
  }

  setShots(shots, focus) {
    const most = Math.max(...shots), { examples } = this.read();
    const text = shots.join(",");
    this.change({ shots: text === SHOTS.join(",") ? null : text, examples: examples && JSON.stringify(examples.slice(0, Math.max(most, 1))) });
    if (focus !== undefined) document.getElementById(`shots-${focus}`)?.focus();
  }

  // ---- asking

  async run() {
    this.running?.abort();
    const mine = this.running = new AbortController(), form = this.read();
    for (const { body } of this.frames) body.setAttribute("aria-busy", "true");
    const rows = this.rows(form).slice(0, Math.max(...form.shots)), own = form.task === OWN, { state } = this.app;
    const body = {
      model: this.app.model, question: form.question, examples: rows, shots: form.shots, chat: form.chat,
      ...(own ? {} : { task: form.task.name }),
      ...(own || state.template !== undefined ? { template: form.template } : {}),
      ...(form.words && (own || state.labels !== undefined) ? { labels: form.words } : {}),
      ...(form.chat && form.system ? { system: form.system } : {}),
    };
    try {
      const answer = await this.app.api.json("/v1/prompt", body, { signal: mine.signal });
      if (this.running !== mine) return;
      this.showAnswer(answer, form);
      this.measure.show(answer, { task: own ? null : form.task.name, rows, columns: form.columns });
    } catch (error) {
      if (this.running === mine && !isStopped(error)) this.fail(error, form);
    }
  }

  showAnswer(answer, form) {
    fill(this.templateError);
    fill(this.problem, answer.warnings.map((line) => h("p", { class: "hint" }, `Note: ${line}.`)));
    const right = form.labels ? null : form.question[form.target];
    answer.columns.forEach((own, index) => {
      const { body } = this.frames[index];
      fill(body, column(own, right));
      const sent = body.querySelector(".sequence");
      if (sent) sent.scrollTop = sent.scrollHeight; // where the question is
      body.removeAttribute("aria-busy");
    });
    const said = ({ labels, chosen, written, error }) => (labels ? `${labels[chosen].label} ${percent(labels[chosen].share)}` : error ?? written);
    this.app.announce(answer.columns.map((own) => `${own.shots} shots: ${said(own)}`).join("; "));
  }

  fail(error, form) {
    const atTemplate = error.param === "template";
    fill(this.templateError, atTemplate && error.message);
    const noTemplate = form.chat && error.message.includes("no chat template");
    fill(this.problem, !atTemplate && h("p", { class: "error" }, error.message),
      noTemplate && h("button", { type: "button", onclick: () => this.change({ chat: null }) }, "Use plain text"),
      error.status === 0 && h("button", { type: "button", onclick: () => this.run() }, "Try again"));
    for (const { body } of this.frames) {
      fill(body, h("p", { class: "hint" }, atTemplate ? "Waiting for a template that can be filled." : "No answer."));
      body.removeAttribute("aria-busy");
    }
  }
}
