// "Measure this": the command that measures a prompt over a whole task, and what stored evaluations found.

import { commandLine, fill, h } from "./dom.js";
import { grouped } from "./format.js";

export class Measure {
  constructor(app) {
    Object.assign(this, { app, shown: null, stored: null, asked: "" });
    this.above = h("div", { class: "row" });
    this.body = h("section", { class: "card", hidden: true, "aria-label": "Measure this" });
    this.element = h("div", { class: "below" }, this.above, this.body);
    this.onFocus = () => { if (!document.hidden) this.fetch(true); }; // back from the terminal
    document.addEventListener("visibilitychange", this.onFocus);
  }

  leave() {
    document.removeEventListener("visibilitychange", this.onFocus);
  }

  /** @param {object} answer of /v1/prompt @param {{task: string|null, rows: object[], columns: string[]}} prompt */
  show(answer, prompt) {
    this.shown = { answer, prompt };
    this.render();
    this.fetch();
  }

  async fetch(again = false) {
    if (!this.shown?.prompt.task) return;
    const { task } = this.shown.prompt, { model } = this.app, key = `${task} ${model}`;
    if (key === this.asked && !again) return;
    if (key !== this.asked) this.stored = null;
    this.asked = key;
    const found = await this.app.api.json("/v1/evaluations", { task, model }).catch((error) => ({ fault: error.message }));
    if (this.asked !== key) return;
    this.stored = found.evaluations ?? [];
    this.fault = found.fault;
    this.render();
  }

  render() {
    const { answer, prompt } = this.shown;
    this.body.hidden = false;
    fill(this.body,
      h("h2", {}, "Measure this"),
      h("p", { class: "hint" }, prompt.task
        ? "One question shows little. This command asks all of these prompts over the task's own questions, and gives accuracies with error bars."
        : "One question shows little. Put labelled questions into a table, questions.csv, and this command measures these prompts on them."),
      commandLine(answer.command),
      !prompt.task && h("p", { class: "hint" }, `questions.csv needs the columns ${[...prompt.columns, "output"].join(", ")}.`),
      answer.own_examples && h("p", { class: "row" }, h("button", { type: "button", onclick: () => save(prompt.rows) }, "Save examples.jsonl"),
        h("span", { class: "hint" }, "The examples as they stand here, for the folder in which the command runs.")),
      prompt.task && this.reports(answer.digest));
  }

  reports(digest) {
    if (this.stored === null) return h("p", { class: "hint" }, "Looking for stored results …");
    if (this.fault) return h("p", { class: "hint" }, `Stored results cannot be read: ${this.fault}`);
    if (!this.stored.length) return h("p", { class: "hint" }, "No stored result of this task with this model yet. It will appear here.");
    const same = this.stored.filter((report) => report.rows.some((row) => row.digest === digest));
    const rest = this.stored.filter((report) => report !== same[0]);
    return [
      same.length ? table(same[0], digest) : h("p", { class: "hint" }, "No stored result of this very prompt."),
      rest.length > 0 && h("details", {}, h("summary", {}, `${grouped(rest.length)} other stored result${rest.length === 1 ? "" : "s"} of this task`),
        rest.map((report) => table(report))),
    ];
  }
}

function table(report, digest) {
  const when = new Date(report.finished * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
  const templates = new Set(report.rows.map((row) => row.template));
  const rows = report.rows.filter((row) => digest === undefined || row.digest === digest);
  return h("div", { class: "report" },
    h("p", {}, h("b", {}, `Measured on ${when}`), h("span", { class: "hint" }, ` · ${grouped(report.items)} questions · ${report.precision}`)),
    h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "shots"), h("th", { scope: "col" }, report.metric), h("th", { scope: "col", class: "wide" }, "95% interval"), h("th"))),
      h("tbody", {}, rows.map((row) => h("tr", {},
        h("td", {}, [templates.size > 1 && digest === undefined && row.template, `${row.one_set ? "this one set of " : ""}${row.shots}`, row.variant !== "plain" && row.variant].filter(Boolean).join(", ")),
        h("td", {}, row.value.toFixed(3)),
        h("td", { class: "wide" }, interval(row)),
        h("td", { class: "hint" }, `${row.low.toFixed(3)} – ${row.high.toFixed(3)}`))))),
    h("p", { class: "hint" }, "All of it: ", h("code", {}, `nextword eval runs show ${report.name}`)));
}

/** A mean with its interval on a line from 0 to 1. */
function interval({ value, low, high }) {
  const at = (share) => `${(100 * Math.max(0, Math.min(1, share))).toFixed(1)}%`;
  return h("span", { class: "interval", "aria-hidden": "true" },
    h("i", { class: "reach", style: { left: at(low), right: at(1 - high) } }), h("i", { class: "mean", style: { left: at(value) } }));
}

function save(rows) {
  const lines = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  const url = URL.createObjectURL(new Blob([lines], { type: "application/jsonl" }));
  h("a", { href: url, download: "examples.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
