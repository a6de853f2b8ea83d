/**
 * The distribution of a token at any settings, from the compact form that `/v1/next` gives once: the largest logits
 * one by one, the others in bins. No DOM, no requests.
 *
 * Logits count from the largest, which is 0. At temperature T a token weighs e^(z/T), and a bin of n logits with mean m
 * and variance v weighs n · e^(m/T) · (1 + v/2T²). Cuts apply in the engine's order: temperature, top-k, top-p, min-p,
 * each on what the ones before it left. A cut among the largest logits is exact; one that falls in a bin takes a share
 * of the bin, and `approximate` says so.
 *
 * @typedef {{id: number, token: string, bytes: number[], logit: number}} Candidate
 * @typedef {{vocabulary: number, log_sum: number, top: Candidate[], rest: {count: number, mean: number, variance: number}[]}} Next
 * @typedef {{temperature: number, topK: number, topP: number, minP: number}} Settings topK 0, topP 1, minP 0: no cut
 *
 * @typedef {object} Shape
 * @property {Float64Array} shares the probability of each of `next.top`; 0 for what is cut
 * @property {number} rest the probability of all others together
 * @property {number} kept how many tokens can be drawn
 * @property {number} sum Σ e^(z/T) over them
 * @property {number} least the smallest logit that is kept, to tell a single token of the rest; -∞ without a cut
 * @property {number} bits entropy
 * @property {number} covering how many tokens carry 90% of the probability
 * @property {boolean} approximate whether a cut falls among the binned logits
 */

/** The settings that leave the model's own distribution. */
export const NEUTRAL = Object.freeze({ temperature: 1, topK: 0, topP: 1, minP: 0 });

/** @param {Next} next @param {Settings} settings @returns {Shape} */
export function shape(next, settings) {
  const { top, rest } = next;
  if (settings.temperature === 0) return greedy(top.length);
  const T = settings.temperature, cells = top.length + rest.length;
  const count = new Float64Array(cells), weight = new Float64Array(cells), moment = new Float64Array(cells);
  for (let i = 0; i < cells; i++) {
    const single = i < top.length, bin = rest[i - top.length];
    const z = single ? top[i].logit : bin.mean, v = single ? 0 : bin.variance, n = single ? 1 : bin.count;
    count[i] = n;
    weight[i] = n * Math.exp(z / T) * (1 + v / (2 * T * T));
    moment[i] = n * Math.exp(z / T) * (z + (z * v) / (2 * T * T) + v / T); // Σ z e^(z/T)
  }

  // What each cut keeps: the first `whole` cells, and a share `part` of the one after them.
  let whole = cells, part = 0, least = -Infinity;
  const keep = (cell, share) => {
    if (cell > whole || (cell === whole && share >= part)) return;
    [whole, part] = [cell, share];
    const isSingle = cell < top.length || (cell === top.length && !share);
    least = isSingle ? top[cell - 1].logit : edge(rest[cell - top.length], share);
  };
  const total = (start = 0) => sumOf(weight, whole, start) + (part ? part * weight[whole] : 0);
  if (settings.topK > 0 && settings.topK < next.vocabulary) keep(...walk(count, settings.topK));
  if (settings.topP < 1) keep(...walk(weight, settings.topP * total(), top.length));
  if (settings.minP > 0) keep(...above(next, T * Math.log(settings.minP), settings.minP, weight));

  const sum = total();
  const share = (values) => sumOf(values, whole) + (part ? part * values[whole] : 0);
  const shares = new Float64Array(top.length);
  for (let i = 0; i < Math.min(whole, top.length); i++) shares[i] = weight[i] / sum;
  const [cell, more] = walk(weight, 0.9 * sum, top.length);
  return {
    shares,
    rest: whole < top.length ? 0 : total(top.length) / sum, // added up by itself: beside the largest it may be tiny
    kept: Math.round(share(count)),
    sum,
    least,
    bits: Math.max(0, Math.log(sum) - share(moment) / T / sum) / Math.LN2,
    covering: Math.ceil(sumOf(count, cell) + (more ? more * count[cell] : 0) - 1e-9),
    approximate: whole < cells && whole >= top.length && !(whole === top.length && part === 0),
  };
}

/** The probability at these settings of a token of logit z, whether or not it is among the largest. */
export function shareOf(z, settings, shape) {
  if (settings.temperature === 0) return z === 0 ? 1 : 0;
  return z < shape.least ? 0 : Math.exp(z / settings.temperature) / shape.sum;
}

function greedy(length) {
  const shares = new Float64Array(length);
  shares[0] = 1;
  return { shares, rest: 0, kept: 1, sum: 1, least: 0, bits: 0, covering: 1, approximate: false };
}

function sumOf(values, end, start = 0) {
  let sum = 0;
  for (let i = start; i < end; i++) sum += values[i];
  return sum;
}

/** The cells and the share of the next one whose values add up to `wanted`; the first `singles` are taken whole. */
function walk(values, wanted, singles = 0) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    if (sum + values[i] >= wanted) {
      const share = (wanted - sum) / values[i];
      return i < singles || share >= 1 ? [i + 1, 0] : [i, share];
    }
    sum += values[i];
  }
  return [values.length, 0];
}

/** The cells, and the share of the next one, with logits of at least `z`. */
function above({ top, rest }, z, least, weight) {
  let cells = 0;
  while (cells < top.length && weight[cells] >= least) cells++;
  if (cells < top.length) return [cells, 0];
  for (const bin of rest) {
    const half = Math.sqrt(3 * bin.variance), share = half ? (bin.mean + half - z) / (2 * half) : Number(bin.mean >= z);
    if (share < 1) return [cells, Math.max(0, share)];
    cells++;
  }
  return [cells, 0];
}

/** The smallest logit in the upper `share` of a bin, whose logits are taken as evenly spread. */
function edge(bin, share) {
  if (!bin) return -Infinity;
  const half = Math.sqrt(3 * bin.variance);
  return bin.mean + half - 2 * half * share;
}
