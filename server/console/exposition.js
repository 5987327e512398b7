/* The Prometheus text format, as far as a browser needs it: samples by name, and what a page asks of them. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", '"': '"', "\\": "\\" };

class Samples {
  /** `text`: an exposition with or without comments. Lines that are no samples are passed over. */
  constructor(text) {
    this.byName = new Map();
    for (const line of text.split("\n")) {
      const parts = line.startsWith("#") ? null : SAMPLE.exec(line);
      if (!parts) continue;
      const labels = {};
      for (const [, name, value] of (parts[2] || "").matchAll(LABEL)) {
        labels[name] = value.replace(/\\(.)/g, (_, one) => ESCAPED[one] ?? one);
      }
      if (!this.byName.has(parts[1])) this.byName.set(parts[1], []);
      this.byName.get(parts[1]).push({ labels, value: Number(parts[3]) });
    }
  }

  /** The samples of that name whose labels pass. */
  of(name, passes = () => true) {
    return (this.byName.get(name) ?? []).filter((sample) => passes(sample.labels));
  }

  /** Their sum; null where there are none: what is not measured is not 0. */
  sum(name, passes) {
    const found = this.of(name, passes);
    return found.length ? found.reduce((total, one) => total + one.value, 0) : null;
  }

  /** Sums by the value of a label. */
  by(name, label, passes) {
    const sums = {};
    for (const one of this.of(name, passes)) sums[one.labels[label]] = (sums[one.labels[label]] ?? 0) + one.value;
    return sums;
  }

  /** The labels of the first sample of that name, or null. */
  labels(name) {
    return this.byName.get(name)?.[0]?.labels ?? null;
  }
}

/** The value below which `share` of a histogram's counts lie, by straight lines within its buckets (as Prometheus'
    histogram_quantile). `buckets` maps upper bounds (the last is Infinity) to cumulative counts. Null for no counts. */
function quantile(buckets, share) {
  const bounds = Object.keys(buckets).map(Number).sort((a, b) => a - b);
  const counts = bounds.map((bound) => buckets[bound]);
  const total = counts.at(-1);
  if (!total) return null;
  const wanted = share * total;
  const found = counts.findIndex((count) => count >= wanted);
  const lower = found ? bounds[found - 1] : 0;
  if (bounds[found] === Infinity) return lower;
  const before = found ? counts[found - 1] : 0;
  return lower + ((bounds[found] - lower) * (wanted - before)) / (counts[found] - before || 1);
}
