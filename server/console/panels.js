/* Each panel of the page from the same view: {data, history, trace, nowS}. */

const REASONS = {
  strict: () => "strict requests always get full quality",
  eco: () => "eco requests always get the cheapest point above their floor",
  off: () => "the policy is off: full quality",
  "opt-out": () => "this class is never shaped: full quality",
  pin: () => "pinned by the operator",
  floor: (d) => `held by the accuracy floor of ${percent(Number(d))}`,
  "grid-unknown": () => "nothing is known of the grid: full quality",
  "grid-assumed": () => "the grid's figure is assumed, not measured: full quality",
  "grid-learning": (d) => `still learning this grid${d && ` (${d.replace("/", " of ")} hours)`}`,
  "budget-kept": (d) => `${d} of the budget: within its course`,
  "budget-tight": (d) => `${d} of the budget: ahead of its course`,
  "budget-spent": (d) => `${d} of the budget: spent`,
  "budget-unmeasured": () => "nothing measures what the budget is spent on",
  "switch-limit": (d) => `would switch, but ${d ? `${d} switches a day are the most` : "has switched as often as it may"}`,
};
const SIDES = { clean: ["clean", "below"], dirty: ["dirty", "above"] };

/** A reason such as grid-dirty:412>350 in words; one that waits for the dwell comes without its figures. */
function explain(reason) {
  const [code, ...rest] = reason.split(":");
  const detail = rest.join(":");
  if (code === "dwell") return `waits for the minimum dwell; then: ${explain(detail)}`;
  if (REASONS[code]) return REASONS[code](detail);
  const [, how, side] = /^(grid|static|rank)-(clean|dirty|band)$/.exec(code) ?? [];
  if (!how) return reason;
  const unit = how === "rank" ? "" : " g/kWh";
  const what = how === "rank" ? "the hour's rank in the past" : how === "static" ? "the stated intensity" : "the grid";
  if (!detail) return side === "band" ? `${what} is between the limits` : `${what} is ${side}`;
  if (side === "band") return `${what} is ${detail}${unit}, between the limits: nothing moves`;
  const [value, limit] = detail.split(/[<>]/);
  return `${what} is ${SIDES[side][0]}: ${value}${unit}, ${SIDES[side][1]} ${limit}`;
}

function tile(id, [value, unit], note) {
  const box = $(`#${id}`);
  $("[data-value]", box).textContent = value;
  $("[data-unit]", box).textContent = unit;
  if ($("[data-note]", box)) $("[data-note]", box).textContent = note;
  return $("svg", box);
}

function paintTiles({ history, trace, nowS }) {
  const over = (name) => trace.map((one) => [one.atS, one[name]]);
  const joules = ratio(history.rate("requests"), history.rate("answers"));
  const ever = ratio(history.total("requests"), history.total("answers"));
  const started = joined(si(ever, "J"));
  const shown = joules === null ? si(ever, "J") : si(joules, "J");
  sparkline(tile("tile-joules", shown, joules === null ? "mean since the counters began" : `dynamic; ${started} since the counters began`),
    over("joules"), { nowS, label: `Joules per request, now ${joined(shown)}` });

  const [watts, idle, requests] = ["metered", "idle", "requests"].map((name) => history.rate(name));
  const layers = ["requests", "overhead", "other", "idle"].map((name) => [name, trace.filter((one) => one.watts).map((one) => [one.atS, one.watts[name]])]);
  const power = si(watts, "W");
  const parts = watts === null ? "needs a few seconds" : `${joined(si(requests, "W"))} requests, ${joined(si(idle, "W"))} idle`;
  stacked(tile("tile-watts", power, parts), layers, { nowS, label: `Power of the machine: ${joined(power)}, of it ${parts}` });

  const grams = history.rate("grams");
  const perThousand = ratio(history.rate("requestGrams"), history.rate("answers"));
  const hourly = grams === null ? ["–", ""] : si(grams * 3600, "gCO2e/h");
  const note = grams === null ? "no grid intensity is known" : perThousand === null ? "the server, idling included" : `${joined(si(perThousand * 1000, "g"))} per 1,000 answers, idling left out`;
  sparkline(tile("tile-grams", hourly, note), over("grams"), { nowS, label: `Carbon, now ${joined(hourly)}`, kind: "grid" });

  const rate = history.rate("answers");
  const [p50, p99] = [0.5, 0.99].map((share) => history.latency(share));
  const times = p50 === null ? "no answers in the last minute" : `p50 ${joined(si(p50, "s"))}, p99 ${joined(si(p99, "s"))} in the server`;
  sparkline(tile("tile-rate", rate === null ? ["–", ""] : [digits(rate), "/s"], times), over("rate"), { nowS, label: `Answers a second, now ${digits(rate)}; ${times}` });
}

/** Where the dial stands: a point's number, or between two. */
function position({ points, dial }) {
  const at = points.findIndex((one) => one.name === dial.point_by_class.standard);
  return Math.max(0, at) + (dial.split?.share ?? 0);
}

function paintDial({ data }) {
  const { dial, points } = data;
  gauge($("#dial svg"), points.map((one) => one.name), position(data));
  const share = dial.split ? ` and ${percent(dial.split.share)} ${dial.split.point}` : "";
  $("#dial-point").textContent = dial.split ? `${percent(1 - dial.split.share)} ${dial.point_by_class.standard}${share}` : dial.point_by_class.standard;
  $("#dial-reason").textContent = `policy ${data.tunables.shaping.policy}: ${explain(data.grid?.reason ?? dial.reason_by_class.standard)}`;
  $("#classes").replaceChildren(...["strict", "standard", "eco"].map((name) =>
    h("tr", {}, h("td", {}, name), h("td", {}, name === "standard" ? dial.point_by_class.standard + (dial.split ? ` / ${dial.split.point}` : "") : dial.point_by_class[name]),
      h("td", {}, h("code", {}, dial.reason_by_class[name])))));
}

function paintFront({ data }) {
  const { points, dial } = data;
  const measured = points.every((one) => one.joules_per_1k);
  const cost = (one) => (measured ? one.joules_per_1k : one.cpu_seconds_per_1k);
  const unit = measured ? "joules per 1,000 texts" : "CPU-seconds per 1,000 texts";
  const label = points.map((one) => `${one.name}: ${percent(one.relative_accuracy)} of the teacher at ${digits(cost(one))} ${unit}`).join("; ");
  const { svg, width, height } = canvas($("#front svg"), `${label}. Standard requests: ${dial.point_by_class.standard}`);
  const floor = data.tunables.shaping.floors.standard;
  const lows = points.flatMap((one) => [one.relative_accuracy, one.relative_accuracy_lower ?? one.relative_accuracy, floor]);
  const [bottom, top] = [Math.min(...lows), Math.max(1, ...lows)];
  const pad = (top - bottom) * 0.1 || 0.02;
  const most = Math.max(...points.map(cost)) * 1.12;
  const left = 44, right = width - 14, low = height - 40, high = 12;
  const x = (value) => left + (value / most) * (right - left);
  const y = (value) => low - ((value - bottom + 3 * pad) / (top - bottom + 4 * pad)) * (low - high);
  svg.append(s("path", { class: "axis", d: `M${left} ${high}V${low}H${right}` }), s("text", { x: right, y: height - 8, "text-anchor": "end" }, unit),
    s("text", { x: left + 6, y: high + 8 }, `${data.accuracy_name}, of the teacher’s`));
  for (const share of [bottom, top]) svg.append(s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  for (const value of steps(most)) svg.append(s("path", { class: "axis", d: `M${x(value)} ${low}v4` }), s("text", { x: x(value), y: low + 17, "text-anchor": "middle" }, digits(value)));
  svg.append(s("path", { class: "floor", d: `M${left} ${y(floor)}H${right}` }), s("text", { x: right, y: y(floor) - 5, "text-anchor": "end" }, `${width > 520 ? "floor of standard requests" : "floor"} ${percent(floor)}`));
  const spots = points.map((one) => [x(cost(one)), y(one.relative_accuracy)]);
  svg.append(s("path", { class: "front-line", d: path(spots) }));
  points.forEach((one, n) => {
    const [px, py] = spots[n];
    const now = [dial.point_by_class.standard, dial.split?.point].includes(one.name);
    if (one.relative_accuracy_lower) svg.append(s("path", { class: "whisker", d: `M${px} ${py}V${y(one.relative_accuracy_lower)}m-4 0h8` }));
    if (now) svg.append(s("circle", { class: "halo", cx: px, cy: py, r: 15 }));
    svg.append(s("circle", { class: now ? "dot current" : "dot", cx: px, cy: py, r: 6.5 }));
    const classes = ["strict", "eco"].filter((name) => dial.point_by_class[name] === one.name);
    // Right below the point: the front itself runs from there to the upper right and the lower left.
    const anchor = px > right - 120 ? "end" : "start";
    const [tx, ty] = anchor === "end" ? [Math.min(px + 8, right), py + 32] : [px + 14, py + 17];
    svg.append(s("text", { x: tx, y: ty, "text-anchor": anchor, class: "strong" }, one.name + (now ? " ◂ now" : "")),
      s("text", { x: tx, y: ty + 15, "text-anchor": anchor }, `${percent(one.relative_accuracy)} · ${digits(cost(one))}${classes.length ? ` · ${classes.join(", ")}` : ""}`));
  });
  $("#front-note").textContent = `Measured when version ${data.version} was compiled${measured ? `, joules ${data.energy_source ?? "of unknown source"}` : ""}${points.some((one) => one.relative_accuracy_lower) ? "; a bar below a point reaches down to its lower 95 % bound" : ""}. Filled: what answers standard requests now.`;
}

function steps(most) {
  const rough = most / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  return Array.from({ length: Math.floor(most / step) }, (_, n) => (n + 1) * step);
}

function paintGrid({ data, history, trace, nowS }) {
  const { grid } = data;
  const grams = grid?.grams_per_kwh ?? null;
  const svg = tile("grid", grams === null ? ["–", ""] : [digits(grams), "gCO2e/kWh"]);
  const age = history.told("gridAge", Math.min) ?? grid?.age_s ?? null;
  $("#grid-note").textContent = grams === null ? "Nothing is known of the grid; requests get normal quality." :
    `${grid.kind}${grid.estimated ? ", estimated" : ""} · ${ago(age)} · ${[grid.provider, grid.zone].filter(Boolean).join(", zone ")}`;
  const { policy, clean_below_grams_per_kwh: clean, dirty_above_grams_per_kwh: dirty } = data.tunables.shaping;
  const byGrams = policy === "threshold" || (policy === "percentile" && grid?.kind === "static");
  const { y } = sparkline(svg, trace.map((one) => [one.atS, one.intensity]), { nowS, label: `Grid intensity since the page was opened, now ${digits(grams)} grams per kilowatt-hour`, kind: "grid", most: byGrams ? dirty : 0 });
  if (byGrams) for (const limit of [clean, dirty]) svg.append(s("path", { class: "floor", d: `M0 ${y(limit)}H${svg.viewBox.baseVal.width}` }));
  $("#grid-limits").textContent = byGrams ? `Dashed: clean below ${digits(clean)}, dirty above ${digits(dirty)} g/kWh.` : policy === "percentile" ? `Dirty is what is dirty for this grid: ${percent(data.tunables.shaping.full_share)} of the answers keep full quality.` : "";
}

function paintShare({ data, history }) {
  const { counts, recent } = history.shares();
  const kinds = data.points.map((one) => one.name);
  const names = [...kinds, ...Object.keys(counts).filter((name) => name && !kinds.includes(name))];
  shareBar($("#share svg"), $("#share-legend"), names.map((name, n) => [`c-p${n % 5}`, name, counts[name] ?? 0]), "Who answered");
  const switches = history.told("switches");
  $("#share-note").textContent = `${recent ? "In the last minute" : "Since the counters began"}, cached answers counted for the point that made them. The dial was turned ${whole(switches)} times since ${history.nodes.size > 1 ? "a" : "the"} server started.`;
}

function paintBooks({ history }) {
  const kinds = ["requests", "overhead", "other", "idle"];
  const rates = kinds.map((name) => history.rate(name));
  const recent = rates.every((one) => one !== null);
  const amounts = recent ? rates : kinds.map((name) => history.total(name));
  shareBar($("#books svg"), $("#books-legend"), kinds.map((name, n) => [`c-${name}`, { other: "other programs" }[name] ?? name, amounts[n] ?? 0]), "Where the joules went");
  const error = history.told("conservation");
  const saved = [["avoidedCache", "the cache"], ["avoidedFallback", "cheaper points"]].map(([name, words]) => [history.total(name), words]).filter(([joules]) => joules);
  $("#books-note").textContent = `${recent ? "In the last minute" : "Since the counters began"}.${error === null ? "" : ` The books miss the meter by ${percent(error)}.`}` +
    (saved.length ? ` Not spent, thanks to ${saved.map(([joules, words]) => `${words}: ${joined(si(joules, "J"))}`).join("; ")}.` : "");
}

function paintFacts({ data, history }) {
  const [hits, misses] = ["hits", "misses"].map((name) => history.rate(name));
  const looked = hits === null || misses === null ? null : hits + misses;
  const shed = history.rate("shed");
  const replicas = Math.max(1, history.gauge("replicas") ?? 1); // bounds are each one's
  const rows = [
    ["Waiting for a batch", `${whole(history.gauge("queue"))} of ${whole(replicas * data.tunables.batching.max_queue_requests)}`],
    ["Requests in flight", whole(history.gauge("inFlight"))],
    ["Texts in a batch", digits(ratio(history.rate("rows"), history.rate("batches")))],
    ["Refused for want of room", shed === null ? "–" : `${digits(shed)} per second`],
    ["Cache hits", percent(ratio(hits, looked))],
    ["Answers in the cache", `${whole(history.gauge("cacheEntries"))}`],
    ["Cache size", `${digits((history.gauge("cacheBytes") ?? 0) / 1048576)} of ${digits((replicas * data.tunables.cache.max_bytes) / 1048576)} MiB`],
    ["Replicas", whole(history.gauge("replicas"))],
    ["Nodes seen", whole(history.nodes.size)],
  ];
  $("#facts").replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function paintChanges({ data, nowS }) {
  const changes = [...(data.grid?.changes ?? [])].reverse();
  const rows = changes.map((one) => {
    const when = new Date(one.at_s * 1000);
    const far = nowS - one.at_s > 43200;
    return h("tr", {},
      h("td", {}, h("time", { datetime: when.toISOString() }, far ? when.toLocaleString("en-GB", { dateStyle: "short", timeStyle: "short" }) : when.toLocaleTimeString("en-GB"))),
      h("td", {}, h("strong", {}, one.point), one.split ? ` / ${percent(one.split.share)} ${one.split.point}` : ""),
      h("td", {}, one.grams_per_kwh === null ? "–" : digits(one.grams_per_kwh)),
      h("td", {}, explain(one.reason), " ", h("code", {}, one.reason)));
  });
  $("#changes").replaceChildren(...(rows.length ? rows : [h("tr", {}, h("td", { colspan: 4, class: "muted" }, "The policy’s file is not on this machine, or nothing was decided yet."))]));
}

function paintHead({ data, history }) {
  $("#model").textContent = `${data.family} · ${data.version}`;
  const sources = [...new Set(history.latest().flatMap((figures) => figures.sources))];
  const uncertain = Math.max(0, ...history.latest().flatMap((figures) => Object.values(figures.uncertainty)));
  $("#source").hidden = !sources.length;
  $("#source").textContent = `joules: ${sources.join(" + ")}, ±${percent(uncertain)}`;
}

function paint(view) {
  for (const panel of [paintHead, paintTiles, paintDial, paintFront, paintGrid, paintShare, paintBooks, paintFacts, paintChanges]) panel(view);
}
