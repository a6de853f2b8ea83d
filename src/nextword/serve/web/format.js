// Numbers with units, in about three digits, as `nextword` prints them (base/units.py).

const TIMES = [["years", 365.25 * 86400, 2], ["days", 86400, 2], ["h", 3600, 2], ["min", 60, 2], ["s", 1, 1],
  ["ms", 1e-3, 1], ["µs", 1e-6, 0]];
const BYTES = [["PB", 1e15], ["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];
const COUNTS = [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]];
const FLOPS = [["TFLOPs", 1e12], ["GFLOPs", 1e9], ["MFLOPs", 1e6], ["kFLOPs", 1e3]];

const GROUPED = [0, 1, 2, 3, 4].map((digits) =>
  new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

/** 49,152 or 1,234.50. @param {number} value @param {number} [digits] after the point, up to 4 */
export const grouped = (value, digits = 0) => GROUPED[digits].format(value);

/** "1 token", "1,057 tokens". */
export const tokensOf = (count) => `${grouped(count)} token${count === 1 ? "" : "s"}`;

/** 7.24 B, 135 M, 65.0 k, 1,234, 97. */
export function count(value) {
  if (Math.abs(value) >= 1000 && Math.abs(value) < 9999.5) return grouped(value);
  return scaled(value, COUNTS, "", 1e3);
}

/** 16.06 GB, 98.36 MB, 4.00 kB, 12 bytes. */
export const bytes = (value) => scaled(value, BYTES, "bytes", 1);

/** 850 µs, 12.5 s, 31 min, 5.2 h, 3.5 days, 12 years. */
export function seconds(value) {
  if (!Number.isFinite(value)) return "never";
  if (value === 0) return "0 s";
  const [unit, size] = TIMES.find(([, length, least]) => value >= least * length) ?? [];
  return unit ? `${three(value / size)} ${unit}` : `${value.toExponential(1)} s`;
}

/** $1,234 or $0.42. */
export function money(value) {
  if (value >= 1e7) return `$${count(value)}`;
  return `$${value >= 100 ? grouped(value) : grouped(value, 2)}`;
}

export function flops(value) {
  if (value >= 1e15 || value < 1e3) return `${general(value, 3)} FLOPs`;
  return scaled(value, FLOPS, "", 1);
}

/** Tokens a second: 0.42, 64.8, 1,234, 30.7 k. */
export const rate = (value) => (value >= 1000 ? count(value) : general(value, 3));

/** A value with its unit. */
export function quantity(value, unit) {
  if (value == null || Number.isNaN(value)) return "—";
  const own = { bytes, FLOPs: flops, s: seconds, $: money, parameters: count, tokens: count }[unit];
  if (own) return own(value);
  if (unit === "tokens/s") return `${rate(value)} tokens/s`;
  const shown = general(value, 4);
  return `${/^-?\d{4}$/.test(shown) ? grouped(Number(shown)) : shown} ${unit}`.trim();
}

/** Like Python's `:.{digits}g`. */
export function general(value, digits) {
  if (value == null || Number.isNaN(value)) return "—";
  if (value === 0) return "0";
  const exponent = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(digits)))));
  if (exponent >= -4 && exponent < digits) return String(Number(value.toPrecision(digits)));
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}

function scaled(value, steps, unit, least) {
  const sign = value < 0 ? "-" : "";
  const size = Math.abs(value);
  const step = steps.find(([, length]) => size >= length * 0.9995);
  if (step) return `${sign}${three(size / step[1])} ${step[0]}`;
  const shown = size >= least || Number.isInteger(size) ? grouped(size) : general(size, 3);
  return `${sign}${shown} ${unit}`.trim();
}

function three(value) {
  return value < 9.995 ? grouped(value, 2) : value < 99.95 ? grouped(value, 1) : grouped(value);
}
