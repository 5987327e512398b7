/* Ask, take in, draw; every two seconds while somebody looks. */

const EVERY_MS = 2000;
const PATIENCE_MS = 8000;
const history_ = new History();
let trace = [];
let shown = null;
let timer = null;

/** What the curves are made of: figures of the last ten seconds, at this moment. */
function traceOf(atS, data) {
  const rates = Object.fromEntries(["requests", "answers", "grams", "metered", "idle", "overhead", "other"].map((name) => [name, history_.rate(name, 10)]));
  const known = ["requests", "idle", "overhead", "other"].every((name) => rates[name] !== null);
  return {
    atS,
    joules: ratio(history_.rate("requests", 20), history_.rate("answers", 20)),
    watts: known ? rates : null,
    grams: rates.grams === null ? null : rates.grams * 3600,
    rate: rates.answers,
    intensity: data.grid?.grams_per_kwh ?? null,
  };
}

function take(data) {
  if (data.metrics !== null) history_.take(data.node, data.at_s, distil(new Samples(data.metrics)));
  trace.push(traceOf(data.at_s, data));
  trace = trace.filter((one) => one.atS >= data.at_s - KEEP_S);
  shown = data;
}

function draw() {
  if (shown === null || !history_.nodes.size) return;
  paint({ data: shown, history: history_, trace, nowS: shown.at_s });
}

function say(text, kind) {
  const live = $("#live");
  if (live.textContent !== text) live.textContent = text;
  live.className = `badge ${kind}`;
}

async function look() {
  clearTimeout(timer);
  try {
    const reply = await fetch("console/data", { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const data = await reply.json();
    take(data);
    say(data.metrics === null ? "no answer from the meter" : "live", data.metrics === null ? "bad" : "ok");
    draw();
    offerTuning(data);
  } catch (error) {
    say(error instanceof TypeError || error.name === "TimeoutError" ? "the server does not answer" : `no figures: ${error.message}`, "bad");
    if (!(error instanceof TypeError || error.name === "TimeoutError" || /^status/.test(error.message))) console.error(error);
  }
  if (!document.hidden) timer = setTimeout(look, EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else look();
});
let drawnWide = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === drawnWide) return; // a drawing of its own may have changed the height
  drawnWide = contentRect.width;
  requestAnimationFrame(draw);
}).observe($("main"));
look();
