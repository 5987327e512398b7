/* Elements and drawings. Text is set as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

function $(selector, within = document) {
  return within.querySelector(selector);
}

function make(create, tag, attributes, children) {
  const element = create(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const h = (tag, attributes = {}, ...children) => make((name) => document.createElement(name), tag, attributes, children);
const s = (tag, attributes = {}, ...children) => make((name) => document.createElementNS(SVG, name), tag, attributes, children);

/** Start a drawing of the element's own width and height in CSS pixels, so that text keeps its size. `label` says in
    words what is to be seen. */
function canvas(svg, label) {
  const style = getComputedStyle(svg);
  const width = Math.max(60, svg.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const height = Math.max(20, svg.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren();
  return { svg, width, height };
}

function path(points) {
  return points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** A figure over the last ten minutes, from 0 up: `series` is [[seconds, value or null], …]. */
function sparkline(svg, series, { nowS, label, kind = "", most = 0 }) {
  const { width, height } = canvas(svg, label);
  const known = series.filter(([, value]) => value !== null);
  const top = Math.max(most, ...known.map(([, value]) => value)) * 1.08 || 1;
  const from = Math.min(nowS - 60, known[0]?.[0] ?? nowS);
  const x = (at) => ((at - from) / (nowS - from)) * width;
  const y = (value) => height - 1 - (value / top) * (height - 3);
  svg.append(s("path", { class: "axis", d: `M0 ${height - 0.5}H${width}` }));
  if (known.length < 2) return { x, y };
  const line = known.map(([at, value]) => [x(at), y(value)]);
  svg.append(
    s("path", { class: "area", d: `${path(line)}L${line.at(-1)[0]} ${height - 1}L${line[0][0]} ${height - 1}Z` }),
    s("path", { class: `curve ${kind}`, d: path(line) }),
  );
  return { x, y };
}

/** Figures on top of one another over the last ten minutes: `layers` is [[class, [[seconds, value], …]], …], the lowest
    first; all have the same moments. */
function stacked(svg, layers, { nowS, label }) {
  const { width, height } = canvas(svg, label);
  svg.append(s("path", { class: "axis", d: `M0 ${height - 0.5}H${width}` }));
  const moments = layers[0][1].map(([at]) => at);
  if (moments.length < 2) return;
  const from = Math.min(nowS - 60, moments[0]);
  let floor = moments.map(() => 0);
  const sums = moments.map((_, n) => layers.reduce((sum, [, series]) => sum + series[n][1], 0));
  const top = Math.max(...sums) * 1.05 || 1;
  const at = (moment, value) => [((moment - from) / (nowS - from)) * width, height - 1 - (value / top) * (height - 3)];
  for (const [kind, series] of layers) {
    const ceiling = series.map(([, value], n) => floor[n] + value);
    const outline = [...moments.map((m, n) => at(m, ceiling[n])), ...moments.map((m, n) => at(m, floor[n])).reverse()];
    svg.append(s("path", { class: `c-${kind}`, d: `${path(outline)}Z` }));
    floor = ceiling;
  }
}

/** One bar in parts: `parts` is [[class, name, value], …]. The legend gets the shares. */
function shareBar(svg, legend, parts, what) {
  const total = parts.reduce((sum, [, , value]) => sum + value, 0);
  const words = parts.map(([, name, value]) => `${name} ${percent(value / total)}`);
  const { width, height } = canvas(svg, total ? `${what}: ${words.join(", ")}` : `${what}: nothing yet`);
  let x = 0;
  if (!total) svg.append(s("rect", { class: "c-idle", width, height, rx: 6, opacity: 0.25 }));
  for (const [kind, , value] of total ? parts : []) {
    const wide = (value / total) * width;
    if (wide > 0) svg.append(s("rect", { class: kind, x, y: 0, width: Math.max(1, wide - 2), height, rx: Math.min(5, wide / 2) }));
    x += wide;
  }
  legend.replaceChildren(...parts.map(([kind, name, value]) =>
    h("li", {}, s("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, s("rect", { class: kind, width: 10, height: 10, rx: 2 })),
      `${name} `, h("strong", {}, total ? percent(value / total) : "–"))));
}

/** The dial: a half circle from full quality (left) to the cheapest point (right); `position` counts points. */
function gauge(svg, names, position) {
  const label = names.length ? `The dial stands at ${position.toFixed(2)} between 0, ${names[0]}, and ${names.length - 1}, ${names.at(-1)}` : "No dial";
  const { width, height } = canvas(svg, label);
  const cx = width / 2, cy = height - 16, r = Math.min(width / 2 - 62, height - 40);
  const at = (share, radius) => [cx - radius * Math.cos(Math.PI * share), cy - radius * Math.sin(Math.PI * share)];
  const arc = (to) => `M${at(0, r).join(" ")}A${r} ${r} 0 0 1 ${at(to, r).join(" ")}`;
  const share = names.length > 1 ? position / (names.length - 1) : 0;
  svg.append(s("path", { class: "track", d: arc(1) }));
  if (share > 0.004) svg.append(s("path", { class: "sweep", d: arc(share) }));
  names.forEach((name, n) => {
    const place = names.length > 1 ? n / (names.length - 1) : 0;
    const [x, y] = at(place, r), [tx, ty] = at(place, r + 15);
    const anchor = place < 0.4 ? "end" : place > 0.6 ? "start" : "middle";
    svg.append(s("circle", { class: "tick", cx: x, cy: y, r: 4 }),
      s("text", { x: tx, y: ty + (anchor === "middle" ? 2 : 4), "text-anchor": anchor, class: Math.abs(n - position) < 0.5 ? "strong" : "" }, name));
  });
  const [nx, ny] = at(share, r - 14);
  svg.append(s("path", { class: "needle", d: `M${cx} ${cy}L${nx} ${ny}` }), s("circle", { class: "hub", cx, cy, r: 6 }));
}

/* Words for numbers. */

const PREFIXES = [[1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

/** Three digits and a unit with its prefix, as [text, unit]. */
function si(value, unit) {
  if (value === null || Number.isNaN(value)) return ["–", ""];
  if (value === 0) return ["0", unit];
  const [factor, prefix] = PREFIXES.find(([one]) => Math.abs(value) >= one * 0.9995) ?? PREFIXES.at(-1);
  return [digits(value / factor), prefix + unit];
}

const joined = (pair) => pair.join(" ").trim();
const digits = (value) => (value === null ? "–" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString());
const percent = (share) => (share === null ? "–" : `${share >= 0.995 || share < 0.0005 ? Math.round(share * 100) : Number((share * 100).toPrecision(share < 0.1 ? 2 : 3))}%`);
const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en"));

function ago(seconds) {
  if (seconds === null || seconds === undefined) return "of unknown age";
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s old`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min old` : `${digits(seconds / 3600)} h old`;
}
