// Plan: a calculator of memory, time, price and compute-optimal models. The server calculates; every number has a formula.

import { isStopped } from "../api.js";
import { showChart } from "../charts.js";
import { commandLine, debounce, fill, h } from "../dom.js";
import { facts, figure, memoryBar, panel, refresh, segments, table } from "../figures.js";
import { bytes, count, flops, grouped, quantity, rate } from "../format.js";

const QUESTIONS = {
  inference: "Inference",
  train: "Training",
  fit: "Make it fit",
  budget: "Budget",
};
const SHAPE = [ // of a whole ModelSpec: its field, its label, what it is at first
  ["layers", "Layers", 32], ["width", "Width", 4096], ["heads", "Heads", 32], ["kv_heads", "Key-value heads", 8],
  ["head_width", "Head width", 128], ["mlp_width", "MLP width", 14336], ["vocabulary", "Vocabulary", 128256],
  ["spec_context", "Made for a context of", 8192],
];
const PRECISIONS = ["mixed", "amp", "bf16", "fp32"];
const OPTIMIZERS = ["adamw", "adam8bit", "adafactor", "muon", "lion", "momentum", "sgd"];
const SHARDS = ["none", "ddp", "zero1", "zero2", "fsdp", "hybrid"];
const KINDS = ["transformer", "rnn", "gru", "lstm"];

/** A text field: its name in the body and the link, its label, and an example shown while it is empty. */
const text = (name, label, placeholder, hint, wide = false) => ({ name, label, placeholder, hint, wide });
/** A choice; `empty` is what its option "" is called. */
const choice = (name, label, options, hint, empty = "default") => ({ name, label, options, hint, empty });

const SETUP = [
  text("micro_batch", "Sequences at a time", "1", "per device"),
  text("context", "Context", "the model's", "tokens"),
];
const SETUP_MORE = (names) => [
  choice("optimizer", "Optimizer", OPTIMIZERS),
  choice("train_dtype", "Precision", ["", ...PRECISIONS], "mixed: bf16 with float32 master weights", "by the device"),
  choice("recompute", "Recompute", ["none", "selective", "full"], "activations in the backward pass"),
  choice("attention", "Attention", ["flash", "plain"]),
  choice("loss", "Loss", ["whole", "chunked"], "chunked never holds all logits"),
  choice("shard", "Sharding", SHARDS, "over several devices"),
  text("lora", "LoRA rank", "none"),
  text("lora_targets", "LoRA on", "every matrix", "q,k,v,o,gate,up,down"),
  choice("base", "Frozen weights", names.bases, "with LoRA"),
];
const ONE_KIND = text("devices", "Devices", "h100", "8xh100, this, or NAME=24GB,1TB/s,165TFLOP/s", true);

/** The fields of a question, and those shown on demand. */
function fieldsOf(question, names) {
  if (question === "inference") return [[
    text("devices", "Devices", "rtx4090,a100,h100", "separated by commas; “this” machine is measured", true),
    text("context", "Context", "the model's", "tokens"),
    text("batch_size", "Sequences at a time", "1"),
    choice("dtype", "Weights", ["", ...names.dtypes], null, "as stored"),
    choice("kv_dtype", "Keys and values", ["bf16", ...names.dtypes.filter((type) => type !== "bf16")]),
  ], []];
  if (question === "train") return [[
    ONE_KIND, ...SETUP, text("tokens", "Tokens to train on", "20 a parameter"),
    text("mfu", "Share of the peak", "0.4", "assumed, 0 to 1"), text("price", "Price", "none", "$ per device and hour"),
  ], SETUP_MORE(names)];
  if (question === "fit") return [[ONE_KIND, ...SETUP], SETUP_MORE(names)];
  return [[
    text("budget", "Budget", "1e21", "FLOPs (1e21, 300 EFLOP, 10 PF-days), a time (3 days), or money ($500)", true),
    ONE_KIND,
    text("price", "Price", "none", "$ per device and hour, for a budget of money", true),
  ], [
    text("tokens_available", "Unique tokens available", "any number"),
    text("inference_tokens", "Tokens to process in use", "none"),
    text("mfu", "Share of the peak", "0.4", "assumed, 0 to 1"),
    choice("law", "Scaling law", names.laws),
  ]];
}

export default function mount(root, app) {
  const view = new Plan(root, app);
  view.start();
  return () => view.end();
}

class Plan {
  constructor(root, app) {
    this.app = app;
    this.form = h("form", { class: "card inputs", "aria-label": "What to plan for", onsubmit: (event) => event.preventDefault() });
    this.results = h("section", { class: "results", "aria-label": "The plan", "aria-busy": "true" }, h("p", { class: "hint" }, "Calculating…"));
    root.append(h("h1", { class: "unseen" }, "Plan"), h("div", { class: "calculator" }, this.form, this.results));
    this.later = debounce(() => this.calculate(), 150);
    this.stop = null;
  }

  async start() {
    try {
      this.names = await this.app.api.json("/v1/plan/names");
    } catch (error) {
      return fill(this.results, h("p", { class: "error" }, error.message));
    }
    if (this.ended) return;
    this.app.onState(() => this.follow());
    this.follow();
  }

  follow() {
    this.draw();
    this.calculate();
  }

  end() {
    this.later.cancel();
    this.stop?.abort();
    this.chart?.end();
    this.ended = true;
  }

  get question() { return this.app.state.q in QUESTIONS ? this.app.state.q : "inference"; }

  get modelBy() {
    const by = this.app.state.by;
    return ["name", "size", "shape"].includes(by) ? by : "name";
  }

  get name() { return this.app.state.name ?? (this.names.models.includes(this.app.state.model) ? this.app.state.model : "llama-3-8b"); }

  set(partial, how) {
    this.app.setState(partial, how);
    this.later();
  }

  // ---- inputs

  draw() {
    const [main, more] = fieldsOf(this.question, this.names);
    const open = this.opened ?? more.some((field) => this.app.state[field.name]);
    refresh(this.form,
      this.radios("What to plan", "q", QUESTIONS, this.question),
      this.question !== "budget" && this.model(),
      h("div", { class: "fields" }, main.map((field) => this.field(field))),
      more.length > 0 && h("details", { open, ontoggle: (event) => { this.opened = event.currentTarget.open; } },
        h("summary", {}, "More settings"), h("div", { class: "fields" }, more.map((field) => this.field(field)))),
      h("p", { class: "row" }, h("button", { type: "button", class: "quiet", onclick: () => this.reset() }, "Reset")));
  }

  radios(label, name, options, chosen) {
    return segments(label, name, options, chosen, (value) => { this.set({ [name]: value }, { push: true }); this.draw(); });
  }

  model() {
    const by = this.modelBy;
    const body = {
      name: () => [h("div", { class: "fields one" }, this.field({ ...text("name", "Model", "llama-3-8b"), list: this.names.models, value: this.name })) ],
      size: () => [h("div", { class: "fields" }, this.field(text("params", "Parameters", "1B", "1B, 350M, 7e9")), this.field(choice("arch", "Architecture", KINDS)))],
      shape: () => [h("div", { class: "fields" }, SHAPE.map(([name, label, value]) => this.field(text(name, label, String(value)))),
        this.field(choice("tied", "Output head", ["", "tied"], "tied: the embedding's matrix", "of its own")))],
    }[by]();
    return h("div", { class: "model-by" }, this.radios("How the model is given", "by", { name: "By name", size: "By size", shape: "By shape" }, by), body);
  }

  field({ name, label, placeholder, options, empty, hint, list, value, wide }) {
    const id = `plan-${name}`;
    const own = value ?? this.app.state[name] ?? "";
    const changed = (event) => this.set({ [name]: event.currentTarget.value.trim() === options?.[0] ? null : event.currentTarget.value.trim() });
    const control = options
      ? h("select", { id, onchange: changed }, options.map((option) => h("option", { value: option, selected: option === (own || options[0]) }, option || empty)))
      : h("input", {
        id, value: own, placeholder, autocomplete: "off", spellcheck: "false", maxlength: 200, oninput: changed,
        list: list && `${id}-list`, "aria-describedby": hint && `${id}-hint`,
      });
    return h("div", { class: `field${wide ? " wide" : ""}`, data: { field: name } }, h("label", { for: id }, label), control,
      list && h("datalist", { id: `${id}-list` }, list.map((option) => h("option", { value: option }))),
      hint && h("small", { id: `${id}-hint` }, hint));
  }

  reset() {
    const all = Object.keys(this.app.state).filter((key) => !["q", "model"].includes(key));
    this.set(Object.fromEntries(all.map((key) => [key, null])), { push: true });
    this.draw();
  }

  // ---- the request

  /** The body of POST /v1/plan for what is filled in. */
  get body() {
    const state = this.app.state;
    const fields = fieldsOf(this.question, this.names).flat().map((field) => field.name);
    const given = Object.fromEntries(fields.filter((name) => state[name]).map((name) => [name, state[name]]));
    if (given.mfu) given.mfu = Number(given.mfu);
    const body = { question: this.question, ...given };
    if (this.question === "budget") return budgetOf(body);
    if (this.modelBy === "size") return { ...body, params: state.params || "1B", ...(state.arch && { arch: state.arch }) };
    if (this.modelBy === "shape") return { ...body, spec: shapeOf(state) };
    return { ...body, model: this.name };
  }

  async calculate() {
    this.later.cancel();
    this.stop?.abort();
    const stop = this.stop = new AbortController();
    this.results.setAttribute("aria-busy", "true");
    try {
      const body = this.body;
      const answer = await this.app.api.json("/v1/plan", body, { signal: stop.signal });
      if (this.ended || stop !== this.stop) return;
      this.mark(null);
      this.show(body, answer);
    } catch (error) {
      if (isStopped(error) || this.ended || stop !== this.stop) return;
      this.mark(error.param, error.message);
    }
    this.results.setAttribute("aria-busy", "false");
  }

  /** Say what is wrong, at the field at fault if it is known; the results stay, as those of before. */
  mark(param, message) {
    this.form.querySelectorAll(".field.wrong").forEach((field) => {
      field.classList.remove("wrong");
      field.querySelector("input, select").removeAttribute("aria-invalid");
    });
    this.results.classList.toggle("stale", Boolean(message));
    this.results.querySelector(".problem")?.remove();
    if (!message) return;
    const alias = { model: "name", flops: "budget", minutes: "budget", hours: "budget", days: "budget", dollars: "budget", device: "devices" };
    const field = this.form.querySelector(`[data-field="${alias[param] ?? param}"]`);
    field?.classList.add("wrong");
    field?.querySelector("input, select").setAttribute("aria-invalid", "true");
    this.results.prepend(h("p", { class: "problem error", role: "status" }, message));
  }

  // ---- results

  show(body, { plan, command, charts }) {
    this.chart?.end();
    this.chart = null;
    const make = { inference, train, fit, budget }[body.question];
    refresh(this.results, make.call(this, plan, charts ?? {}), command && commandLine(command));
    this.app.announce(this.results.querySelector(".headline")?.textContent ?? "");
  }
}

const COUNTS = /^[\d_,.]+(e[+-]?\d+)?$/i;

/** A budget as one text: money, FLOPs, or a time. */
function budgetOf({ budget, ...body }) {
  const text = (budget ?? "1e21").trim();
  if (/^[$€£]|(usd|eur|dollars?|[$€£])$/i.test(text)) return { ...body, dollars: text };
  const { price, ...rest } = body;
  if (COUNTS.test(text) || /flops?$|pf-?days$/i.test(text)) return { ...rest, flops: text };
  return { ...rest, hours: text };
}

/** A ModelSpec from the link. */
function shapeOf(state) {
  const numbers = SHAPE.map(([name, , value]) => [name === "spec_context" ? "context" : name, Number(state[name] || value)]);
  return { kind: "transformer", ...Object.fromEntries(numbers), tied: state.tied === "tied" };
}

const tile = (label, value, note, kind) => h("div", { class: `tile ${kind ?? ""}` }, h("dt", {}, label), h("dd", {}, value, note && h("small", {}, note)));
const tiles = (...all) => h("dl", { class: "tiles" }, all);

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The model in a line, whose parameters open by part. */
function about(model) {
  const { parameters, spec } = model;
  const active = parameters.active < parameters.total ? `, ${count(parameters.active)} active` : "";
  return h("details", { class: "about" },
    h("summary", { class: "headline" }, h("strong", {}, model.name), ` ${grouped(parameters.total)} parameters${active}`,
      h("small", {}, ` ${spec.layers} layers of width ${grouped(spec.width)}, vocabulary ${grouped(spec.vocabulary)}${model.note ? ` (${model.note})` : ""}`)),
    table(["part", "parameters", "share"], parameters.parts.map((part) => [part.name, figure(part), `${grouped((100 * part.value) / parameters.total, 1)}%`]), { label: "Parameters by part" }));
}

function inference(plan) {
  const first = plan.devices[0];
  const devices = plan.devices.map((row) => row.device);
  const stored = plan.use.weight_bytes != null;
  return [
    about(plan.model),
    panel(["Memory: ", figure(first.memory.parts, bytes(first.memory.total))],
      h("p", { class: "hint" }, `${stored ? "weights as stored" : plan.use.dtype}, ${grouped(plan.use.batch)} ${plan.use.batch === 1 ? "sequence" : "sequences"} of ${grouped(plan.use.context)} tokens`),
      memoryBar(first.memory, devices)),
    panel("Devices", table([
      "device", "memory", { name: "fits", left: true }, "most sequences", "longest context", "decode", "prefill", "first token"],
    plan.devices.map(({ device, fit, speed }) => [
      device.name, bytes(device.memory),
      fit.fits ? h("span", { class: "good" }, "✓ fits") : h("span", { class: "bad" }, `✗ ${bytes(-fit.headroom)} short`),
      fit.largest_batch < 2 ** 20 ? grouped(fit.largest_batch) : "any",
      fit.longest_context < 2 ** 27 ? grouped(fit.longest_context) : "any",
      speed ? ["≤ ", figure(speed.decode, rate(speed.decode.value))] : "—",
      speed ? figure(speed.prefill, rate(speed.prefill.value)) : "—",
      speed ? figure(speed.first_token) : fit.devices_needed ? `${grouped(fit.devices_needed)} hold it` : "—",
    ]), { label: "Devices" }),
    h("p", { class: "hint" }, "Tokens per second: decoding the whole batch is bounded by bandwidth or arithmetic; prompts are read at half the peak.",
      ` The model was made for ${grouped(plan.model.spec.context)} tokens.`)),
    panel("Weights in every type", h("ul", { class: "types" }, Object.entries(plan.weights).map(([name, weights]) => h("li", {},
      h("span", {}, name), figure(weights))))),
  ];
}

function train(plan) {
  const { cost, device, memory, setup } = plan;
  const left = device.memory - memory.total;
  const each = setup.devices > 1 ? `on each of ${grouped(setup.devices)}` : `of ${bytes(device.memory)}`;
  return [
    about(plan.model),
    tiles(
      tile("Memory", figure(memory.parts, bytes(memory.total)), plan.fits ? `${each}: ${bytes(left)} left` : `${each}: ${bytes(-left)} short`, plan.fits ? "good" : "bad"),
      tile("Time", figure(cost.seconds), `on ${setup.devices > 1 ? `${grouped(setup.devices)} × ` : ""}${device.name} at ${grouped(100 * cost.seconds.inputs.mfu)}% of its peak`),
      cost.money ? tile("Price", figure(cost.money), `${count(cost.device_hours.value)} device hours`) : tile("Device hours", figure(cost.device_hours, count(cost.device_hours.value)), "give a price for the cost"),
      tile("Compute", figure(cost.flops.parts, flops(cost.flops.total)), `${count(plan.tokens)} tokens`)),
    panel(`Memory on each ${device.title}`, memoryBar(memory, [device]),
      h("p", { class: plan.fits ? "good" : "bad" }, plan.fits
        ? `Fits. Largest batch ${grouped(plan.largest_batch)} at this context, longest context ${grouped(plan.longest_context)} at this batch.`
        : ["Does not fit. ", h("a", { href: this.app.link("plan", { ...this.app.state, q: "fit", tokens: null, mfu: null, price: null }) }, "What would make it fit?")])),
    h("div", { class: "columns" },
      panel("FLOPs", table(["part", "FLOPs", "share"], cost.flops.parts.map((part) => [part.name, figure(part, flops(part.value)), `${grouped((100 * part.value) / cost.flops.total, 1)}%`]), { label: "FLOPs by part" }),
        h("p", { class: "hint" }, "The rule ", figure(cost.flops.rule, `${cost.flops.rule.name} = ${flops(cost.flops.rule.value)}`), ` is ${grouped((100 * cost.flops.rule.value) / cost.flops.total, 1)}% of the exact count.`)),
      panel("Rules of thumb", table(["rule", "bytes", "of the sum"], plan.rules.map((rule) => [rule.name, figure(rule), `${grouped(rule.value / memory.total, 2)}×`]), { label: "Rules of thumb for memory" }),
        h("p", { class: "hint" }, "What is often quoted, beside the sum of this page.")),
      plan.activations.length > 0 && panel("Activations", table(["part", "bytes"], plan.activations.map((part) => [part.name, figure(part)]), { label: "Activations" }))),
  ];
}

const LINKED = { // a Training's fields → those of the link
  micro_batch: (setup) => setup.batch, context: (setup) => setup.context, optimizer: (setup) => setup.optimizer,
  train_dtype: (setup) => setup.precision, recompute: (setup) => setup.recompute, attention: (setup) => setup.kernel,
  loss: (setup) => (setup.chunked_loss ? "chunked" : "whole"), shard: (setup) => setup.shard, lora: (setup) => setup.lora || null,
  lora_targets: (setup) => setup.lora_targets.join(",") || null, base: (setup) => setup.base,
};

function fit(plan) {
  const { device, memory } = plan;
  const short = memory.total - device.memory;
  const linked = (setup) => {
    const fields = Object.fromEntries(Object.entries(LINKED).map(([name, of]) => [name, of(setup)]));
    const count = setup.devices > 1 ? `${setup.devices}x` : "";
    return this.app.link("plan", { ...this.app.state, q: "train", devices: `${count}${this.app.state.devices?.replace(/^\s*\d+\s*[x×*]\s*/i, "") || "h100"}`, ...fields });
  };
  const rows = plan.remedies.slice(0, 8).map((remedy) => [
    h("span", { title: remedy.changes.map((change) => change.why).join("; ") }, remedy.name),
    memoryBar(remedy.memory, [device], { legend: false }), bytes(remedy.memory.total), `${grouped(remedy.time, 2)}×`,
    remedy.same_result ? "the same" : "another", h("a", { href: linked(remedy.setup) }, "Plan it")]);
  const advice = plan.devices_needed
    ? `${grouped(plan.devices_needed)} such ${plan.devices_needed === 1 ? "device holds" : "devices hold"} it with FSDP and full recomputation.`
    : "Even 4,096 such devices with FSDP and full recomputation do not hold it: shorten the context.";
  return [
    about(plan.model),
    panel(plan.fits ? `Fits: ${bytes(memory.total)} of ${bytes(device.memory)}` : `Does not fit: ${bytes(short)} short`,
      memoryBar(memory, [device]),
      h("p", { class: plan.fits ? "good" : "bad" }, plan.fits
        ? `Largest batch ${grouped(plan.largest_batch)}, longest context ${grouped(plan.longest_context)}.`
        : `${bytes(memory.total)} are needed, ${device.title} has ${bytes(device.memory)}.`)),
    !plan.fits && (rows.length > 0
      ? panel("The cheapest changes that make it fit", table([{ name: "changes", left: true }, { name: "memory", left: true }, "", "time", { name: "trained model", left: true }, ""], rows, { label: "Changes that make it fit" }),
        h("p", { class: "hint" }, "Time relative to the requested run: FLOPs are counted, other costs assumed.", plan.devices_needed > 1 && ` ${advice}`))
      : panel("Nothing makes it fit", plan.closest && h("p", {}, `The least is ${bytes(plan.closest.memory.total)}: ${plan.closest.name}.`), h("p", {}, advice))),
  ];
}

function budget(plan, charts) {
  const { best, choice, concrete, flat, interval } = plan;
  const made = plan.limited ?? plan.aware ?? best; // what the choice is
  const surface = charts.surface && h("div", { class: "chart", tabindex: 0, role: "group", "aria-label": "Chart" });
  if (surface) this.chart = showChart(surface, charts.surface, 250);
  return [
    h("p", { class: "headline" }, h("strong", {}, "Budget "), figure(plan.flops, flops(plan.flops.value))),
    tiles(
      tile("Parameters", figure(made.figures, count(choice.parameters)), choice.reason),
      tile("Tokens", figure(made.figures, count(choice.tokens)), `${grouped(choice.tokens / choice.parameters, 1)} a parameter`),
      tile("Loss", figure(made.loss_parts ?? made.figures, grouped(choice.loss, 3)), `nats a token, ${grouped(choice.interval.low, 3)} to ${grouped(choice.interval.high, 3)}`),
      concrete.time && tile("Time", figure(concrete.time), `${concrete.run.train.devices} × ${plan.device.name}`)),
    plan.warnings.map((warning) => h("p", { class: "warning" }, warning)),
    panel("The optimum by every law", table(["law", "parameters", "tokens", "a parameter", "loss"], plan.optima.map((optimum) => ({
      class: optimum.law === best.law ? "chosen" : null,
      cells: [optimum.law, figure(optimum.figures.filter((part) => part.name !== "tokens"), count(optimum.parameters)),
        figure(optimum.figures.filter((part) => part.name !== "parameters"), count(optimum.tokens)),
        optimum.ratio < 1e4 ? grouped(optimum.ratio, 1) : quantity(optimum.ratio, ""), figure(optimum.loss_parts, grouped(optimum.loss, 3))],
    })), { label: "Optimum by law" }),
    h("p", { class: "hint" }, `Loss by ${best.law}: 95% interval ${grouped(interval.low, 3)} to ${grouped(interval.high, 3)}, of the law's constants alone. `,
      `${count(flat.smallest)} to ${count(flat.largest)} parameters are within ${grouped(100 * flat.tolerance, 1)}% of that loss; half the size costs ${grouped(100 * flat.half_costs, 2)}%, double ${grouped(100 * flat.double_costs, 2)}%.`)),
    surface && panel(capital(charts.surface.title.text), h("p", { class: "hint" }, charts.surface.title.subtitle), surface),
    [["The best for the available tokens", plan.limited], ["Cheapest for training and use together", plan.aware]].map(([title, part]) => part && panel(title,
      facts(...Object.entries({
        parameters: count(part.parameters), tokens: count(part.tokens), ...Object.fromEntries(part.figures.map((each) => [each.name, figure(each)])),
      })))),
    concrete.model && panel("A model that can be built", concreteModel(plan), concrete.memory && memoryBar(concrete.memory, [plan.device])),
  ];
}

function concreteModel({ concrete, device }) {
  const { model, run, time } = concrete;
  return facts(
    ["shape", `${model.layers} layers, width ${grouped(model.width)}, ${model.heads} heads (${model.kv_heads} for keys and values), MLP ${grouped(model.mlp_width)}`],
    ["text", `vocabulary ${grouped(model.vocabulary)}, context ${grouped(model.context)}`],
    run && ["steps", `${grouped(run.train.steps)} of ${grouped(run.train.batch_size)} × ${grouped(run.train.context)} tokens, ${grouped(run.train.micro_batch)} sequences at a time`],
    run && ["learning rate", `${run.train.learning_rate} to ${run.train.final_learning_rate}, ${run.train.schedule}, ${grouped(run.train.warmup_steps)} steps of warm-up`],
    time && ["time", figure(time), ` on ${grouped(run.train.devices)} × ${device.name}`]);
}
