/* From samples to figures: what the counters grew by in the last minute, over all nodes that were seen. */

const WINDOW_S = 60;
const KEEP_S = 600;
const GONE_S = 30;
const OVERLAPPING = new Set(["psys", "core", "uncore"]);
const ANSWERED = new Set(["ok", "cached"]);

const alone = (labels) => !OVERLAPPING.has(labels.domain);
const answered = (labels) => ANSWERED.has(labels.outcome);

/** The counters and gauges that the page shows, of one node at one moment. Null: that node does not have it. */
function distil(samples) {
  const buckets = {};
  for (const { labels, value } of samples.of("jouleserve_request_duration_seconds_bucket", (l) => l.phase === "total")) {
    buckets[labels.le === "+Inf" ? Infinity : Number(labels.le)] = value;
  }
  return {
    counters: {
      answers: samples.sum("jouleserve_requests_total", answered),
      cached: samples.sum("jouleserve_requests_total", (l) => l.outcome === "cached"),
      shed: samples.sum("jouleserve_shed_requests_total"),
      failed: samples.sum("jouleserve_requests_total", (l) => l.outcome === "error"),
      requests: samples.sum("jouleserve_attributed_joules_total"),
      metered: samples.sum("jouleserve_energy_joules_total", alone),
      idle: samples.sum("jouleserve_idle_joules_total", alone),
      overhead: samples.sum("jouleserve_unattributed_joules_total", (l) => l.reason === "overhead"),
      other: samples.sum("jouleserve_unattributed_joules_total", (l) => l.reason !== "overhead"),
      grams: samples.sum("jouleserve_carbon_grams_total", (l) => l.scope !== "other"),
      requestGrams: samples.sum("jouleserve_carbon_grams_total", (l) => l.scope === "attributed"),
      avoidedCache: samples.sum("jouleserve_energy_avoided_joules_total", (l) => l.reason === "cache"),
      avoidedFallback: samples.sum("jouleserve_energy_avoided_joules_total", (l) => l.reason === "fallback"),
      hits: samples.sum("jouleserve_cache_hits_total"),
      misses: samples.sum("jouleserve_cache_misses_total"),
      batches: samples.sum("jouleserve_batch_rows_count"),
      rows: samples.sum("jouleserve_batch_rows_sum"),
    },
    buckets,
    points: samples.by("jouleserve_requests_total", "point", answered),
    gauges: {
      queue: samples.sum("jouleserve_queue_depth"),
      inFlight: samples.sum("jouleserve_requests_in_flight"),
      cacheBytes: samples.sum("jouleserve_cache_size_bytes"),
      cacheEntries: samples.sum("jouleserve_cache_entries"),
      replicas: samples.sum("jouleserve_replicas"),
    },
    switches: samples.sum("jouleserve_dial_switches_total"),
    gridAge: samples.sum("jouleserve_grid_age_seconds"),
    gridGrams: samples.sum("jouleserve_grid_intensity_grams_per_kwh"),
    conservation: samples.sum("jouleserve_energy_conservation_error_ratio"),
    sources: [...new Set(samples.of("jouleserve_energy_joules_total").map((one) => one.labels.source))].sort(),
    uncertainty: samples.by("jouleserve_energy_relative_uncertainty_ratio", "source"),
  };
}

/** One node's recent past. */
class Past {
  constructor() {
    this.readings = [];
  }

  take(atS, figures) {
    const last = this.readings.at(-1);
    if (last && (figures.counters.metered ?? 0) < (last.figures.counters.metered ?? 0)) this.readings = []; // began anew
    this.readings.push({ atS, figures });
    while (this.readings[0].atS < atS - KEEP_S) this.readings.shift();
  }

  /** The newest reading and the oldest of the last `seconds`, at least 3 s apart; null before there are two. */
  span(seconds) {
    const last = this.readings.at(-1);
    const first = this.readings.find((one) => one.atS >= last.atS - seconds - 0.5);
    return last.atS - first.atS < 3 ? null : { first: first.figures, last: last.figures, seconds: last.atS - first.atS };
  }
}

/** All nodes. A balancer may send each question of the page to another one. */
class History {
  constructor() {
    this.nodes = new Map();
  }

  take(node, atS, figures) {
    if (!this.nodes.has(node)) this.nodes.set(node, new Past());
    this.nodes.get(node).take(atS, figures);
    for (const [name, past] of this.nodes) if (past.readings.at(-1).atS < atS - GONE_S) this.nodes.delete(name);
  }

  latest() {
    return [...this.nodes.values()].map((past) => past.readings.at(-1).figures);
  }

  /** Sum over the nodes of a gauge; null where none has it. */
  gauge(name) {
    return addUp(this.latest().map((figures) => figures.gauges[name]));
  }

  /** What nodes do not add up: the largest (or least) that one of them tells; null where none does. */
  told(name, pick = Math.max) {
    const known = this.latest().map((figures) => figures[name]).filter((value) => value !== null);
    return known.length ? pick(...known) : null;
  }

  /** What has been counted since the counters began. */
  total(name) {
    return addUp(this.latest().map((figures) => figures.counters[name]));
  }

  /** Growth a second of a counter in the last `seconds`; null before it is known. */
  rate(name, seconds = WINDOW_S) {
    return addUp(this.#spans(seconds).map(({ first, last, seconds: passed }) => {
      const to = last.counters[name];
      return to === null ? null : (to - (first.counters[name] ?? 0)) / passed;
    }));
  }

  /** Answers by point in the last `seconds`; since the counters began where there were none. */
  shares(seconds = WINDOW_S) {
    const recent = {}, ever = {};
    for (const { first, last } of this.#spans(seconds)) {
      for (const [point, count] of Object.entries(last.points)) add(recent, point, count - (first.points[point] ?? 0));
    }
    for (const figures of this.latest()) for (const [point, count] of Object.entries(figures.points)) add(ever, point, count);
    const some = Object.values(recent).some((count) => count > 0);
    return { counts: some ? recent : ever, recent: some };
  }

  /** A quantile of the time from arrival to answer, seconds. */
  latency(share, seconds = WINDOW_S) {
    const grown = {};
    for (const { first, last } of this.#spans(seconds)) {
      for (const [bound, count] of Object.entries(last.buckets)) add(grown, bound, count - (first.buckets[bound] ?? 0));
    }
    return Object.keys(grown).length ? quantile(grown, share) : null;
  }

  #spans(seconds) {
    return [...this.nodes.values()].map((past) => past.span(seconds)).filter((span) => span !== null);
  }
}

function add(sums, key, amount) {
  sums[key] = (sums[key] ?? 0) + amount;
}

function addUp(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((total, value) => total + value, 0) : null;
}

/** Of two figures that may be unknown. */
function ratio(above, below) {
  return above === null || below === null || below <= 0 ? null : above / below;
}
