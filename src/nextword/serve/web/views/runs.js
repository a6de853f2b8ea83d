// Runs: the training runs of the server's folder, followed while they are written, and compared.

import { isStopped } from "../api.js";
import { showChart } from "../charts.js";
import { fill, h } from "../dom.js";
import { facts, panel, refresh, segments, table } from "../figures.js";
import { bytes, count, general, grouped, rate, seconds } from "../format.js";

const POLL = 2000; // ms between looks at what is being written, while the page is visible
const CALM = 5; // looks that are left out where nothing runs
const MOST_POINTS = 4000; // of a curve here; then the server thins it anew
const COLOURS = ["blue", "orange", "cyan", "red", "purple", "green"];
const AXES = { tokens: ["Tokens", 1, "tokens seen"], steps: ["Steps", 0, "steps"], time: ["Time", 2, "hours of training"] };

export default function mount(root, app) {
  const view = new Runs(root, app);
  view.look();
  return () => view.end();
}

class Runs {
  constructor(root, app) {
    this.app = app;
    this.rows = null; // of the list, the newest first
    this.known = new Map(); // name → the run as far as it is known
    this.looks = 0;
    this.list = h("section", { class: "card run-list", tabindex: 0, "aria-label": "Runs" }, h("p", { class: "hint" }, "Reading the runs…"));
    this.trouble = h("p", { class: "error", role: "status" });
    this.head = h("div", { class: "run-head" });
    this.plot = h("div", { class: "chart", tabindex: 0, role: "group", "aria-label": "Chart" });
    this.details = h("div", { class: "results" });
    this.axes = h("div", {});
    this.main = h("div", { class: "results", hidden: true }, this.head,
      h("section", { class: "card panel" }, h("div", { class: "row spread" }, h("h2", {}, "Loss"), this.axes), this.plot,
        this.legend = h("p", { class: "hint" })),
      this.details);
    root.append(h("h1", { class: "unseen" }, "Runs"), h("div", { class: "calculator" }, this.list, h("div", {}, this.trouble, this.main)));
    app.onState(() => { this.draw(); this.look(); });
    this.onVisible = () => { if (!document.hidden) this.look(); };
    document.addEventListener("visibilitychange", this.onVisible);
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    this.stop?.abort();
    this.chart?.end();
    document.removeEventListener("visibilitychange", this.onVisible);
  }

  /** The names that are shown: those of the link, else the newest run that can be read. */
  get chosen() {
    const named = (this.app.state.runs ?? "").split("/").filter((name) => this.rows?.some((row) => row.name === name));
    if (named.length) return named.slice(0, COLOURS.length);
    const first = this.rows?.find((row) => !row.problem);
    return first ? [first.name] : [];
  }

  get axis() { return this.app.state.x in AXES ? this.app.state.x : "tokens"; }

  choose(names) {
    this.app.setState({ runs: names.join("/"), sample: null }, { push: true });
    this.draw();
    this.look();
  }

  // ---- following

  /** Read the list and the chosen runs, and again after a while. */
  async look() {
    clearTimeout(this.timer);
    this.stop?.abort();
    const stop = this.stop = new AbortController();
    try {
      const { runs, folder, left_out: leftOut } = await this.app.api.json("/v1/runs", undefined, { signal: stop.signal });
      Object.assign(this, { rows: runs.sort((a, b) => Boolean(a.problem) - Boolean(b.problem)), folder, leftOut });
      await Promise.all(this.chosen.map((name) => this.follow(name, stop.signal)));
      if (runs.some((row) => row.model && !this.app.models.includes(row.model))) await this.app.reloadModels();
      if (stop.signal.aborted) return;
      fill(this.trouble);
      this.draw();
    } catch (error) {
      if (isStopped(error) || this.ended) return;
      fill(this.trouble, error.message);
      if (this.rows === null) fill(this.list, h("p", { class: "hint" }, "No runs to show."));
    }
    if (!this.ended) this.timer = setTimeout(() => this.again(), POLL);
  }

  again() {
    this.looks += 1;
    const busy = this.trouble.textContent || this.rows?.some((row) => row.state === "running");
    if (!document.hidden && (busy || this.looks % CALM === 0)) this.look();
    else this.timer = setTimeout(() => this.again(), POLL);
  }

  /** What came to a run since the last look; nothing is asked where nothing can have come. */
  async follow(name, signal) {
    const row = this.rows.find((each) => each.name === name);
    const known = this.known.get(name);
    if (row.problem) return;
    const same = known && known.state === row.state && known.step === row.step && known.steps === row.steps && row.state !== "running";
    if (same) return void Object.assign(known, row);
    const after = known?.place && known.points.length < MOST_POINTS ? `?after=${encodeURIComponent(known.place)}` : "";
    const path = `/v1/runs/${encodeURIComponent(name)}`;
    const run = await this.app.api.json(path + after, undefined, { signal });
    if (!run.whole && known) {
      run.points = [...known.points, ...run.points];
      run.evaluations = [...known.evaluations, ...run.evaluations];
      run.samples = [...known.samples, ...run.samples];
      run.rejected = [...known.rejected, ...run.rejected];
      run.latest = { ...known.latest, ...run.latest };
    }
    this.known.set(name, run);
  }

  // ---- what is shown

  draw() {
    if (this.rows === null) return;
    this.drawList();
    const runs = this.chosen.map((name) => this.known.get(name)).filter(Boolean);
    this.main.hidden = runs.length === 0;
    if (!runs.length) return;
    refresh(this.head, runs.length === 1 ? this.heading(runs[0]) : h("h2", {}, `${runs.length} runs`));
    refresh(this.axes, this.radios());
    const band = runs.length === 1 && runs[0].predicted?.low != null ? " Band: the loss predicted before the run." : "";
    fill(this.legend, `Faint: the steps. Line: their running mean. Dots: held-out text.${band}`);
    refresh(this.details, runs.length === 1 ? this.single(runs[0]) : this.compared(runs));
    this.drawCurves(runs);
  }

  drawList() {
    const chosen = this.chosen;
    if (!this.rows.length) {
      fill(this.list, h("h2", {}, "No runs yet"), h("p", {}, "There are no training runs in ", h("code", {}, this.folder), "."),
        h("p", {}, "Start one: ", h("code", {}, "nextword train FOLDER --minutes 20")),
        h("p", { class: "hint" }, "Runs of another folder: ", h("code", {}, "nextword serve --runs DIR")));
      return;
    }
    refresh(this.list, h("h2", {}, `Runs in ${this.folder}`), h("ul", { class: "runs" }, this.rows.map((row) => this.item(row, chosen))),
      this.leftOut > 0 && h("p", { class: "hint" }, `${grouped(this.leftOut)} older ones are not shown.`));
  }

  item(row, chosen) {
    const at = chosen.indexOf(row.name);
    if (row.problem) return h("li", { class: "run broken" }, h("strong", {}, row.name), h("small", {}, `Cannot be read: ${row.problem}`));
    const done = row.steps ? Math.min(1, row.step / row.steps) : 0;
    const toggle = () => this.choose(at < 0 ? [...chosen, row.name].slice(-COLOURS.length) : chosen.length > 1 ? chosen.filter((name) => name !== row.name) : chosen);
    return h("li", { class: `run${at >= 0 ? " chosen" : ""}` },
      h("input", {
        type: "checkbox", checked: at >= 0, "aria-label": `Compare ${row.name}`, onchange: toggle,
        style: at >= 0 ? { "accent-color": `var(--${COLOURS[at]})` } : {},
      }),
      h("button", { type: "button", class: "quiet", "aria-current": at >= 0 ? "true" : null, onclick: () => this.choose([row.name]) },
        h("strong", {}, row.name),
        h("small", {}, `${row.kind}, ${count(row.parameters)} parameters`),
        h("small", { class: `state ${row.state}` }, row.state === "finished"
          ? `${grouped(row.nats_per_token, 3)} nats a token`
          : standing(row)),
        row.state !== "finished" && h("span", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(100 * done), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": `Progress of ${row.name}` },
          h("span", { style: { width: `${100 * done}%` } }))));
  }

  heading(run) {
    return [h("h2", {}, run.name), h("span", { class: `badge ${run.state}` }, standing(run)),
      run.model
        ? h("a", { class: "button", href: this.app.link("complete", { model: run.model }) }, "Complete with it")
        : h("small", {}, run.state === "finished" ? "Its folder has no model." : "Its model can be used once it has finished.")];
  }

  radios() {
    const titles = Object.fromEntries(Object.entries(AXES).map(([name, [title]]) => [name, title]));
    return segments("Horizontal axis", "axis", titles, this.axis, (name) => { this.app.setState({ x: name === "tokens" ? null : name }); this.restart(); }, "small");
  }

  single(run) {
    return [
      h("div", { class: "columns" }, panel("Predicted and measured", predictions(run)), this.samples(run)),
      run.rejected.length > 0 && panel("Rejected steps", table(["step", { name: "what was done", left: true }, { name: "why", left: true }], run.rejected.slice(-20).map((each) => [grouped(each.step), each.action, each.reason]), { label: "Rejected steps" })),
      panel("Settings", settings(run)),
    ];
  }

  samples(run) {
    if (!run.samples.length) return panel("Samples", h("p", { class: "hint" }, "None: ", h("code", {}, "run.sample_every"), " of the configuration asks for them."));
    const last = run.samples.length - 1;
    const wanted = Number(this.app.state.sample);
    const at = this.app.state.sample === undefined || !(wanted <= last) ? last : wanted;
    const text = h("pre", { class: "sample", tabindex: 0 }), label = h("output", { for: "sample" });
    const show = (number) => {
      const { step, text: written } = run.samples[number];
      fill(label, `step ${grouped(step)}`, h("small", {}, ` (${number + 1} of ${last + 1})`));
      fill(text, written);
    };
    show(at);
    const slider = h("input", {
      id: "sample", type: "range", min: 0, max: last, value: at, "aria-label": "Sample", disabled: last === 0,
      oninput: (event) => {
        const number = Number(event.currentTarget.value);
        this.app.setState({ sample: number === last ? null : number });
        show(number);
      },
    });
    slider.value = at;
    return panel("Samples as they were made", h("div", { class: "row" }, slider, label), text);
  }

  compared(runs) {
    const rows = runs.map((run, at) => [
      [h("i", { class: "swatch", style: { background: `var(--${COLOURS[at]})` } }), run.name], run.kind, grouped(run.parameters), count(run.tokens),
      number(run.nats_per_token), number(run.bits_per_byte), quantityOf(run.measured?.tokens_per_second ?? run.latest.tokens_per_second, rate), quantityOf(run.measured?.memory, bytes),
      run.model ? h("a", { href: this.app.link("complete", { model: run.model }) }, "Complete with it") : "",
    ]);
    const flat = runs.map((run) => flattened(run.config));
    const names = [...new Set(flat.flatMap(Object.keys))].filter((name) => new Set(flat.map((config) => config[name])).size > 1);
    return [
      panel("Results", table(["run", { name: "kind", left: true }, "parameters", "tokens", "nats a token", "bits a byte", "tokens/s", "memory", ""], rows, { label: "Results of the runs" })),
      panel("Settings that differ", names.length
        ? table(["setting", ...runs.map((run) => ({ name: run.name, left: true }))], names.map((name) => [name, ...flat.map((config) => config[name] ?? "—")]), { label: "Settings that differ" })
        : h("p", { class: "hint" }, "None.")),
    ];
  }

  // ---- the chart

  /** Draw the chart anew, for another axis. */
  restart() {
    this.chart?.end();
    this.chart = null;
    this.draw();
  }

  async drawCurves(runs) {
    const names = runs.map((run) => run.name).join("/");
    if (this.chart && this.drawn !== names) { this.chart.end(); this.chart = null; }
    this.drawn = names;
    this.chart ??= showChart(this.plot, curvesSpec(this.axis), 80);
    const view = await this.chart.ready;
    if (!view || this.ended) {
      if (view === null && !this.ended && this.chart) this.withoutChart(runs);
      return;
    }
    const { points, evaluations, predicted, low, high, right } = curvesData(runs, AXES[this.axis][1]);
    view.data("points", points).data("evaluations", evaluations).data("predicted", predicted);
    view.signal("low", low).signal("high", high).signal("right", right);
    await view.runAsync();
  }

  /** Where the server has no charts: the evaluations as a table. */
  withoutChart(runs) {
    const rows = runs.flatMap((run) => run.evaluations.slice(-10).map(([step, tokens, , nats, bits]) => [run.name, grouped(step), count(tokens), number(nats), number(bits)]));
    this.evaluations ??= h("div", {});
    this.plot.append(this.evaluations);
    fill(this.evaluations, rows.length > 0 && table(["run", "step", "tokens", "nats a token", "bits a byte"], rows, { label: "Held-out loss" }));
  }
}

/** "finished", "running at step 40 of 1,000". */
function standing({ state, step, steps }) {
  if (state === "finished") return state;
  return `${state === "stopped" ? "stopped by a loss spike" : state} at step ${grouped(step)} of ${grouped(steps)}`;
}

const number = (value) => (value == null ? "—" : grouped(value, 4));
const quantityOf = (value, format) => (value == null || Number.isNaN(value) ? "—" : format(value));

const MEASURES = [
  ["time", "seconds", seconds], ["tokens/s", "tokens_per_second", rate], ["share of peak", "share_of_peak", (value) => `${grouped(100 * value, 1)}%`],
  ["peak memory", "memory", bytes], ["held-out loss, nats a token", "nats_per_token", number], ["held-out loss, bits a byte", "bits_per_byte", number],
];

/** The plan beside what was measured, or beside how it stands while the run is under way. */
function predictions(run) {
  const { measured, predicted } = run;
  const now = measured ?? soFar(run);
  const rows = MEASURES.map(([name, key, format]) => {
    const known = predicted?.[key] ?? null, value = now[key] ?? null;
    const off = measured && known !== null && value ? `${known >= value ? "+" : "−"}${grouped(Math.abs(100 * (known / value - 1)), 1)}%` : "";
    const error = key === "nats_per_token" && measured?.error != null ? ` ± ${grouped(measured.error, 4)}` : "";
    return [name, quantityOf(known, format), `${quantityOf(value, format)}${error}`, off];
  });
  const { learning_rate: learning, gradient_norm: norm } = run.latest;
  return [
    table(["", "predicted", measured ? "measured" : "so far", measured ? "off by" : ""], rows, { label: "Predicted and measured" }),
    predicted && predicted.low != null && h("p", { class: "hint" }, `The loss was predicted between ${grouped(predicted.low, 2)} and ${grouped(predicted.high, 2)}${predicted.interval_is ? ` (${predicted.interval_is})` : ""}.`),
    run.forecast && h("p", { class: "hint" }, `Forecast from the curve so far: ${grouped(run.forecast.nats_per_token, 3)} nats a token (${grouped(run.forecast.low, 3)} to ${grouped(run.forecast.high, 3)}), ${grouped(run.forecast.bits_per_byte, 3)} bits a byte, after ${run.forecast.about ? "about " : ""}${grouped(run.forecast.steps)} steps.`),
    !predicted && h("p", { class: "hint" }, "There is no prediction for the run as it is now."),
    !measured && learning != null && h("p", { class: "hint" }, `Last step: learning rate ${general(learning, 3)}, gradient norm ${general(norm, 3)}.${remaining(run)}`),
  ];
}

function soFar(run) {
  const last = run.points.at(-1), evaluation = run.evaluations.at(-1);
  return {
    seconds: last?.[2], tokens_per_second: last && last[2] ? last[1] / last[2] : null, share_of_peak: run.latest.share_of_peak,
    nats_per_token: evaluation?.[3], bits_per_byte: evaluation?.[4],
  };
}

function remaining(run) {
  const last = run.points.at(-1);
  if (run.state !== "running" || !last || !last[0]) return "";
  return ` About ${seconds((last[2] / (last[0] + 1)) * Math.max(0, run.steps - last[0] - 1))} left.`;
}

function flattened(config, prefix = "") {
  return Object.assign({}, ...Object.entries(config).map(([key, value]) => (value !== null && typeof value === "object" && !Array.isArray(value)
    ? flattened(value, `${prefix}${key}.`)
    : { [prefix + key]: Array.isArray(value) ? value.join(", ") : String(value) })));
}

function settings(run) {
  const { model, train } = run.config, spec = model.spec;
  const attention = spec?.kind === "transformer" ? `, ${spec.heads} heads, MLP ${grouped(spec.mlp_width)}` : "";
  return [
    facts(
      spec && ["model", `${spec.kind}: ${spec.layers} layers, width ${grouped(spec.width)}${attention}, vocabulary ${grouped(spec.vocabulary)}`],
      run.base && ["fine-tuned from", run.base],
      ["steps", `${grouped(run.steps)} of ${grouped(train.batch_size)} × ${grouped(train.context)} tokens: ${count(run.tokens)} tokens`],
      ["learning", `${train.optimizer}, ${general(train.learning_rate, 3)} to ${general(train.final_learning_rate, 3)} ${train.schedule}, ${train.dtype}`],
      ["begun", run.created.replace("T", " ")]),
    h("details", {}, h("summary", {}, "The whole configuration"), table(["setting", { name: "value", left: true }], Object.entries(flattened(run.config)).map(([name, value]) => [name, value || "—"]), { label: "Configuration" })),
  ];
}

/** Rows for the chart, and limits of its vertical axis that leave out how high a loss begins. */
function curvesData(runs, at) {
  const along = (row) => (at === 2 ? row[2] / 3600 : row[at]);
  const points = runs.flatMap((run, number) => run.points.map((row) => ({ run: number, x: along(row), loss: row[3] })));
  const evaluations = runs.flatMap((run, number) => run.evaluations.map((row) => ({ run: number, name: run.name, step: row[0], x: along(row), loss: row[3] })));
  const later = runs.flatMap((run) => run.points.slice(Math.floor(run.points.length / 50)).map((row) => row[3]));
  const losses = [...later, ...evaluations.map((row) => row.loss)].filter((loss) => loss != null);
  const [only] = runs, { predicted: plan } = only;
  const predicted = runs.length === 1 && plan?.low != null ? [{ low: plan.low, high: plan.high, loss: plan.nats_per_token }] : [];
  let low = Infinity, high = -Infinity;
  for (const loss of [...losses, ...predicted.flatMap((row) => [row.low, row.high])]) { low = Math.min(low, loss); high = Math.max(high, loss); }
  if (!(low <= high)) { low = 0; high = 1; }
  const margin = Math.max(0.02, 0.05 * (high - low));
  const right = 1.01 * Math.max(0, ...runs.map((run) => (run.points.length ? along(run.points.at(-1)) : 0)));
  return { points, evaluations, predicted, low: low - margin, high: high + margin, right: right || 1 };
}

/** Loss over tokens, steps or hours, whose data and limits come later: `points`, `evaluations`, `predicted`. */
function curvesSpec(axis) {
  const colour = { field: "run", type: "nominal", legend: null, scale: { domain: COLOURS.map((_, n) => n), range: COLOURS.map((name) => ({ expr: name })) } };
  const labels = axis === "time" ? {} : { labelExpr: "replace(format(datum.value, '~s'), 'G', 'B')" };
  const x = { field: "x", type: "quantitative", title: AXES[axis][2], scale: { domain: { expr: "[0, right]" }, nice: false }, axis: { grid: false, tickCount: 6, ...labels } };
  const y = { type: "quantitative", title: "loss, nats a token", scale: { domain: { expr: "[low, high]" }, nice: false, zero: false } };
  const loss = (field = "loss") => ({ ...y, field });
  return {
    description: "loss curves of the chosen runs",
    height: 280,
    autosize: { type: "pad", resize: true },
    params: [{ name: "low", value: 0 }, { name: "high", value: 1 }, { name: "right", value: 1 }],
    layer: [
      { data: { name: "predicted" }, mark: { type: "rect", color: { expr: "grey" }, opacity: 0.13, clip: true }, encoding: { y: loss("low"), y2: { field: "high" } } },
      { data: { name: "predicted" }, mark: { type: "rule", color: { expr: "grey" }, strokeDash: [4, 3], clip: true }, encoding: { y: loss() } },
      { data: { name: "points" }, mark: { type: "line", opacity: 0.28, strokeWidth: 0.8, clip: true }, encoding: { x, y: loss(), color: colour } },
      {
        data: { name: "points" },
        transform: [{ window: [{ op: "mean", field: "loss", as: "mean" }], frame: [-10, 10], groupby: ["run"], sort: [{ field: "x" }] }],
        mark: { type: "line", strokeWidth: 2, clip: true }, encoding: { x, y: loss("mean"), color: colour },
      },
      {
        data: { name: "evaluations" },
        mark: { type: "point", filled: true, size: 55, opacity: 1, stroke: { expr: "background" }, strokeWidth: 0.8, clip: true },
        encoding: { x, y: loss(), color: colour, tooltip: [{ field: "name", title: "run" }, { field: "step", format: "," }, { field: "loss", format: ".4f" }] },
      },
    ],
  };
}
