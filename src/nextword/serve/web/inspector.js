/**
 * What could have come at one position: bars for the likeliest tokens and one for everything else, which sliders
 * reshape at once, over the model's own distribution.
 */

import { fill, h } from "./dom.js";
import { grouped, tokensOf } from "./format.js";
import { NEUTRAL, shape, shareOf } from "./softmax.js";
import { percent, tokenOf, visible } from "./tokens.js";

const FEW = 12; // rows until "show all"
const range = (low, high, step) => Array.from({ length: Math.round((high - low) / step) + 1 }, (_, i) => Number((low + i * step).toFixed(4)));

/** The sliders: their values from left to right; `off` is the one that cuts nothing. */
const SLIDERS = [
  { key: "temperature", title: "Temperature", values: [...range(0, 2, 0.05), 2.5, 3, 4, 5], most: 1000, step: 0.05 },
  { key: "topK", title: "Top-k", off: 0, most: 1e9, step: 1,
    values: [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 64, 80, 100, 128, 200, 500, 1000, 5000, 0] },
  { key: "topP", title: "Top-p", off: 1, most: 1, step: 0.01, values: [...range(0.05, 0.95, 0.05), 0.97, 0.98, 0.99, 1] },
  { key: "minP", title: "Min-p", off: 0, most: 1, step: 0.01,
    values: [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1] },
];

export class Inspector {
  /**
   * @param {object} how
   * @param {(settings: object) => void} how.onSettings a slider was moved
   * @param {(token: import("./tokens.js").Token) => void} how.onChoose an alternative was chosen
   * @param {(step: number) => void} how.onStep to the previous or next position
   * @param {() => void} how.onLeave back to the text
   */
  constructor({ onSettings, onChoose, onStep, onLeave }) {
    Object.assign(this, { onSettings, onChoose, onStep });
    this.settings = { ...NEUTRAL };
    this.shown = null; // {next, chosen, canChoose}
    this.all = false;
    this.rows = [];
    this.sliders = SLIDERS.map((slider) => this.slider(slider));
    this.reset = h("button", { class: "quiet", type: "button", onclick: () => this.change(NEUTRAL) }, "Reset");
    this.title = h("h2", {}, "Next token");
    this.step = [-1, 1].map((step) => h("button", { class: "quiet", type: "button", onclick: () => onStep(step),
      "aria-label": step < 0 ? "Previous token" : "Next token" }, step < 0 ? "‹" : "›"));
    this.body = h("div", { class: "distribution" });
    this.element = h("aside", { class: "inspector card", "aria-label": "What could come here",
      onkeydown: (event) => this.onKey(event, onLeave) },
      h("section", { "aria-label": "Sampling" },
        h("div", { class: "head" }, h("h2", {}, "Sampling"), this.reset), this.sliders.map((slider) => slider.element)),
      h("section", { class: "position" }, h("div", { class: "head" }, this.title, h("span", {}, this.step)), this.body));
    this.empty("Choose a token to see what else could have come.");
  }

  // ---- sliders

  slider({ key, title, values, off, most, step }) {
    const id = `set-${key}`;
    const text = (value) => (value === off ? "off" : String(value));
    const bar = h("input", { type: "range", id, min: 0, max: values.length - 1, step: 1,
      oninput: () => this.change({ [key]: values[bar.value] }) });
    const box = h("input", { type: "number", "aria-label": `${title}, exactly`, min: 0, max: most, step, placeholder: "off",
      onchange: () => {
        const value = box.value === "" ? off ?? 1 : Number(box.value);
        this.change({ [key]: value >= 0 && value <= most ? (key === "topK" ? Math.round(value) : value) : this.settings[key] });
      } });
    const show = (value) => {
      let nearest = values.indexOf(value);
      if (nearest < 0) nearest = values.reduce((best, other, i) =>
        (other !== off && Math.abs(other - value) < Math.abs(values[best] - value) ? i : best), 0);
      if (Number(bar.value) !== nearest) bar.value = nearest;
      bar.setAttribute("aria-valuetext", text(value));
      box.value = value === off ? "" : value;
    };
    return { key, show, element: h("div", { class: "slider" }, h("label", { for: id }, title), bar, box) };
  }

  change(partial) {
    this.setSettings({ ...this.settings, ...partial });
    this.onSettings(this.settings);
  }

  setSettings(settings) {
    this.settings = settings;
    for (const slider of this.sliders) slider.show(settings[slider.key]);
    this.reset.disabled = SLIDERS.every(({ key }) => settings[key] === NEUTRAL[key]);
    this.paint();
  }

  // ---- what is shown below them

  empty(text) {
    this.shown = null;
    this.setTitle(null);
    fill(this.body, h("p", { class: "hint" }, text));
  }

  /** Another position's distribution is on its way: what is shown until then cannot be chosen from. */
  wait(title) {
    this.setTitle(title);
    this.body.setAttribute("aria-busy", "true");
    this.body.inert = true;
    if (!this.shown) fill(this.body, h("p", { class: "hint" }, "Asking the model …"));
  }

  fail(title, message, retry) {
    this.shown = null;
    this.setTitle(title);
    fill(this.body, h("p", { class: "error" }, message),
      retry && h("p", {}, h("button", { type: "button", onclick: retry }, "Try again")));
  }

  /**
   * @param {string} title @param {import("./softmax.js").Next} next
   * @param {import("./tokens.js").Token|null} chosen the token that came here @param {boolean} canChoose
   */
  show(title, next, chosen, canChoose) {
    this.setTitle(title);
    this.own = shape(next, NEUTRAL);
    this.shown = { next, chosen, canChoose };
    this.build();
    if (this.entering) this.enter();
  }

  setTitle(title) {
    this.body.removeAttribute("aria-busy");
    this.body.inert = false;
    fill(this.title, title ?? "Next token");
    for (const button of this.step) button.hidden = title === null;
  }

  /** The rows of this position; `paint` gives them their widths. */
  build() {
    const { next, chosen } = this.shown;
    const count = this.all ? next.top.length : Math.min(FEW, next.top.length);
    const listed = next.top.slice(0, count).map(({ id, bytes, logit }, i) => ({ token: tokenOf(id, bytes), logit, place: i }));
    const place = chosen ? next.top.findIndex(({ id }) => id === chosen.id) : -1;
    if (chosen && !(place >= 0 && place < count) && chosen.logprob !== null) {
      listed.push({ token: chosen, logit: place >= 0 ? next.top[place].logit : chosen.logprob + next.log_sum, place });
    }
    this.rows = listed.map((item) => this.row(item));
    this.focus = this.rows.find(({ item }) => item.token.id === chosen?.id) ?? this.rows[0];
    this.others = { item: null, bar: h("i", { class: "now" }), ghost: h("i", { class: "ghost" }), now: h("b"), own: h("span") };
    const outside = next.vocabulary - listed.length;
    this.scale = h("span", {});
    this.facts = h("tbody");
    this.formula = h("div", { class: "softmax" });
    const list = h("ol", { class: "bars", "aria-label": "Alternatives, the likeliest first" }, this.rows.map(({ element }) => element));
    fill(this.body,
      h("div", { class: "bar-row heads", "aria-hidden": "true" }, h("span", {}, "token"), this.scale, h("span", {}, "model"), h("span", {}, "now")),
      list,
      outside > 0 && h("div", { class: "bar-row others" }, h("span", { class: "name" }, "everything else", h("small", {}, tokensOf(outside))),
        h("span", { class: "track" }, this.others.ghost, this.others.bar), this.others.own, this.others.now),
      next.top.length > FEW && h("button", { class: "quiet more", type: "button", onclick: () => { this.all = !this.all; this.build(); } },
        this.all ? `Show ${FEW}` : `Show all ${next.top.length}`),
      h("table", { class: "amounts" },
        h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "model"), h("th", { scope: "col" }, "now"))), this.facts),
      this.formula);
    this.paint();
  }

  row(item) {
    const chosen = item.token.id === this.shown.chosen?.id;
    const row = { item, bar: h("i", { class: "now" }), ghost: h("i", { class: "ghost" }), own: h("span"), now: h("b") };
    row.button = h("button", { type: "button", class: "bar-row", disabled: !this.shown.canChoose && !chosen,
      tabindex: this.rows.length ? -1 : 0, onclick: () => this.shown.canChoose && this.onChoose(this.tokenIn(item)),
      onfocus: () => this.explain(row), onmouseenter: () => this.explain(row) },
      h("span", { class: "name mono" }, visible(item.token)),
      h("span", { class: "track" }, row.ghost, row.bar), row.own, row.now);
    row.element = h("li", { class: chosen ? "chosen" : null }, row.button);
    return row;
  }

  tokenIn({ token, logit }) {
    return { ...token, logprob: logit - this.shown.next.log_sum };
  }

  /** Widths and numbers at the settings as they are. No request is made. */
  paint() {
    if (!this.shown) return;
    const { next, chosen } = this.shown, now = shape(next, this.settings), own = this.own;
    const single = (item, settings, of) => (item.place >= 0 ? of.shares[item.place] : shareOf(item.logit, settings, of));
    let left = 1, ownLeft = 1, most = 0;
    for (const row of this.rows) {
      row.p = single(row.item, this.settings, now);
      row.q = single(row.item, NEUTRAL, own);
      left -= row.p;
      ownLeft -= row.q;
      most = Math.max(most, row.p, row.q);
    }
    Object.assign(this.others, { p: left < 1e-9 ? 0 : left, q: ownLeft < 1e-9 ? 0 : ownLeft });
    most = Math.max(most, this.others.p, this.others.q);
    const full = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((value) => most <= value) ?? 1;
    for (const row of [...this.rows, this.others]) {
      row.bar.style.setProperty("transform", `scaleX(${row.p / full})`);
      row.ghost.style.setProperty("transform", `scaleX(${row.q / full})`);
      write(row.own, percent(row.q));
      write(row.now, row.p > 0 ? percent(row.p) : "–");
      if (!row.item) continue;
      row.button.classList.toggle("cut", row.p === 0);
      const choice = row.item.token.id === chosen?.id ? "it came here" : this.shown.canChoose ? "branch here" : "";
      row.button.setAttribute("aria-label",
        `${visible(row.item.token)}: ${percent(row.q)} by the model, ${row.p > 0 ? percent(row.p) : "cut"} at these settings; ${choice}`);
    }
    write(this.scale, `full width: ${100 * full}%`);
    const fact = (name, model, value) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, model), h("td", {}, value));
    fill(this.facts,
      fact("entropy", `${own.bits.toFixed(2)} bits`, `${now.bits.toFixed(2)} bits`),
      fact("tokens in 90% of the mass", grouped(own.covering), grouped(now.covering)),
      fact("tokens that can be drawn", grouped(next.vocabulary), `${now.approximate ? "≈ " : ""}${grouped(now.kept)}`));
    this.now = now;
    this.explain(this.focus);
  }

  /** The softmax of one row's token with the numbers put in. */
  explain(row) {
    this.focus = row;
    const { next } = this.shown, { temperature: T } = this.settings, { item, p } = row, { now } = this;
    const name = h("code", {}, visible(item.token));
    if (T === 0) {
      fill(this.formula, h("p", {}, "T = 0 takes the largest logit: ", h("code", {}, visible(tokenOf(0, next.top[0].bytes))), "."));
      return;
    }
    const z = item.logit.toFixed(3).replace("-", "−"), weight = Math.exp(item.logit / T);
    const sup = (text) => h("sup", {}, text);
    const fraction = (top, bottom) => h("span", { class: "fraction" }, h("span", {}, top), h("span", {}, bottom));
    const lines = p === 0
      ? [h("p", {}, name, " is cut: ", this.cutBy(item))]
      : [h("p", { class: "sum" }, "p(", name, ") = ", fraction(["e", sup("z / T")], ["Σ e", sup("z / T")]), " = ",
          fraction(["e", sup(`${z} / ${T}`)], now.sum.toPrecision(4)), " = ",
          fraction(weight.toPrecision(4), now.sum.toPrecision(4)), " = ", h("b", {}, percent(p)))];
    fill(this.formula, lines,
      h("p", { class: "hint" }, `z: the logit less the largest one. Σ goes over ${now.approximate ? "about " : ""}${grouped(now.kept)} tokens.`,
        now.approximate && " The cut falls among the tokens that came as a histogram, so it is approximate."));
  }

  cutBy({ logit, place }) {
    const { topK, topP, minP, temperature } = this.settings;
    if (topK && place >= topK) return `it is not among the top ${topK}.`;
    if (minP && Math.exp(logit / temperature) < minP) return `it weighs less than ${minP} of the likeliest.`;
    return `likelier tokens already hold ${topP} of the mass.`;
  }

  // ---- keys

  onKey(event, onLeave) {
    const here = this.rows.findIndex(({ button }) => button === document.activeElement);
    if (here < 0) return;
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: this.rows.length - 1 }[event.key];
    if (to !== undefined) this.rows[Math.max(0, Math.min(to, this.rows.length - 1))].button.focus();
    else if (event.key === "ArrowLeft" || event.key === "Escape") onLeave();
    else if (event.key === "ArrowRight") return;
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Move the keyboard to the alternatives, once they are there. */
  enter() {
    this.entering = this.body.inert;
    if (!this.entering) this.rows[0]?.button.focus();
  }
}

/** Set an element's text; one that stays is left alone, so that nothing is laid out again. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
