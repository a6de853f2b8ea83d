// Charts: Vega-Lite specifications drawn by the bundle of /web/vega.js, which is loaded where one is shown.

import { fill, h } from "./dom.js";

const NARROW = 560; // pixels; legends go below the plot

let loading = null;

/** The bundle's globals; null where the server has none. */
function load() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/web/vega.js" });
    script.onload = () => resolve(globalThis.nextwordCharts ?? null);
    script.onerror = () => { loading = null; reject(new Error("The charts did not load.")); };
    document.head.append(script);
  });
  return loading;
}

/**
 * Show a chart in `element`, in the page's colours. Without the bundle there is a line that says so.
 * @param {HTMLElement} element @param {object} spec @param {number} beside of the element's width, which the chart
 *   fills, how many pixels axes and legends take
 * @returns {{ready: Promise<object|null>, end: () => void}} `ready` gives Vega's view, null if there is none
 */
export function showChart(element, spec, beside) {
  let view = null, ended = false;
  const observer = new ResizeObserver(() => {
    if (view && element.clientWidth) view.width(room(element, beside)).resize().runAsync();
  });
  async function draw() {
    const charts = await load();
    if (ended) return null;
    if (!charts) {
      fill(element, h("p", { class: "hint" }, "Charts need an extra package on the server: ", h("code", {}, "pip install 'nextword[plot]'")));
      return null;
    }
    const { title, ...figure } = spec; // the page has its own heading
    const narrow = element.clientWidth < NARROW ? { orient: "bottom", columns: 2, offset: 8 } : {};
    const config = { ...charts.config, legend: { ...charts.config.legend, ...narrow } };
    const inner = fill(element, h("div", {})).firstChild; // which Vega gives a role and, from `description`, a label
    const sized = { description: title?.text, ...figure, width: room(element, beside), padding: 4, config };
    const { view: made } = await globalThis.vegaEmbed(inner, sized, { ...charts.embed, patch: unlabelled });
    if (ended) { made.finalize(); return null; }
    view = made;
    observer.observe(element);
    return view;
  }
  const ready = draw().catch((error) => { fill(element, h("p", { class: "error" }, error.message)); return null; });
  return { ready, end: () => { ended = true; observer.disconnect(); view?.finalize(); } };
}

/** A Vega specification without labels for its parts: the element around it has one. */
function unlabelled(spec) {
  for (const part of [spec.marks, spec.axes, spec.legends].flat()) if (part) unlabelled(Object.assign(part, { aria: false }));
  return spec;
}

/** Pixels for the plot itself; where legends go below, only the axis is beside it. */
const room = (element, beside) => Math.max(180, element.clientWidth - (element.clientWidth < NARROW ? Math.min(beside, 110) : beside));
