/* The form: one input for each setting that can change while the server runs. Locked until a key is given. */

const FIELDS = JSON.parse($("#form-fields").textContent);
const GROUPS = { shaping: "Shaping: which point answers, and when", batching: "Batching: how requests become batches", cache: "Cache of answers" };
const RULED_BY = {
  full_share: ["percentile"], quality_debt_days: ["percentile"], max_switches_per_day: ["percentile"], rank_band: ["percentile"],
  fallback_point: ["threshold", "percentile", "budget"], swing_s: ["percentile", "budget"], budget_amount: ["budget"], budget_unit: ["budget"], budget_period: ["budget"], pin_point: ["pin"],
  dirty_above_grams_per_kwh: ["threshold", "percentile"], clean_below_grams_per_kwh: ["threshold", "percentile"], min_dwell_s: ["threshold", "percentile"],
};
const FOLLOW_MS = 6000;
const inputs = new Map();
let inForce = null;
let unlocked = false;
let adminKey = "";
let knownVersion = 0; // replicas never hear of a version that says what the last one said
let trustedUntil = 0; // what /admin said goes before what replicas hold

const valueAt = (tree, key) => key.split(".").reduce((node, name) => node?.[name], tree);
const shownAs = (value) => (value === null || value === undefined ? "" : String(value));

function choicesOf(field, points) {
  if (field.choices) return field.choices;
  return /_point$/.test(field.key) ? points : null;
}

function buildForm(points) {
  const groups = Map.groupBy ? Map.groupBy(FIELDS, (field) => field.key.split(".")[0]) : groupBy(FIELDS);
  for (const name of Object.keys(GROUPS)) {
    const box = h("div", { class: "inputs" });
    for (const field of groups.get(name) ?? []) box.append(inputOf(field, points));
    $("#fields").append(h("fieldset", {}, h("legend", {}, GROUPS[name]), box));
  }
}

function groupBy(fields) {
  const groups = new Map();
  for (const field of fields) {
    const name = field.key.split(".")[0];
    groups.set(name, [...(groups.get(name) ?? []), field]);
  }
  return groups;
}

function inputOf(field, points) {
  const id = `set-${field.key.replaceAll(".", "-")}`;
  const choices = choicesOf(field, points);
  const input = choices
    ? h("select", { id, disabled: true }, ...(field.nullable ? [h("option", { value: "" }, "none")] : []), ...choices.map((one) => h("option", { value: one }, one)))
    : h("input", { id, disabled: true, inputmode: field.kind === "text" ? "text" : "decimal", placeholder: field.nullable ? "none" : null, spellcheck: "false" });
  input.setAttribute("aria-describedby", `${id}-about`);
  input.addEventListener("input", noteChanges);
  const problem = h("p", { class: "problem", id: `${id}-problem`, hidden: true });
  const limits = [field.min ?? null, field.max ?? null];
  const range = limits.some((one) => one !== null) ? ` (${limits.map((one) => one ?? "…").join(" to ")})` : "";
  const box = h("div", { class: "input" }, h("label", { for: id }, field.key.split(".").slice(1).join(".")), input,
    h("details", {}, h("summary", {}, "what it trades"), h("p", { id: `${id}-about` }, field.about + range)), problem);
  inputs.set(field.key, { field, input, box, problem });
  return box;
}

$("#every").addEventListener("change", (event) => $("#tune").classList.toggle("every", event.target.checked));

/** What the form asks for that is not in force. */
function changesWanted() {
  const changes = {};
  for (const [key, { field, input }] of inputs) {
    if (input.value.trim() === shownAs(valueAt(inForce, key))) continue;
    const text = input.value.trim();
    changes[key] = text === "" && field.nullable ? null : field.kind === "integer" || field.kind === "number" ? numberOr(text) : text;
  }
  return changes;
}

const numberOr = (text) => (text !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

function noteChanges() {
  const wanted = Object.keys(changesWanted());
  const policy = inputs.get("shaping.policy").input.value;
  for (const [key, { box, problem }] of inputs) {
    box.classList.toggle("changed", wanted.includes(key));
    const rulers = RULED_BY[key.split(".").at(-1)];
    box.classList.toggle("idle", Boolean(rulers && !rulers.includes(policy)));
    if (!wanted.includes(key)) problem.hidden = true;
  }
  $("#pending").textContent = wanted.length ? `${wanted.length} changed: ${wanted.join(", ")}` : "";
  $("#apply").disabled = $("#discard").disabled = !unlocked || !wanted.length;
  $("#undo").disabled = !unlocked;
}

/** Show `settings` as those in force; what is being typed stays. */
function takeForce(settings) {
  const before = inForce;
  inForce = settings;
  for (const [key, { input }] of inputs) {
    const untouched = before === null || input.value.trim() === shownAs(valueAt(before, key));
    if (untouched) input.value = shownAs(valueAt(inForce, key));
  }
  noteChanges();
}

/** Called with every answer of the server. Replicas are a moment behind what was just changed. */
function offerTuning(data) {
  knownVersion = Math.max(knownVersion, data.tunables.version);
  if (!inputs.size) buildForm(data.points.map((one) => one.name));
  if (inForce === null || data.tunables.version >= inForce.version || Date.now() > trustedUntil) takeForce(data.tunables);
  $("#lock").hidden = !data.tunable || unlocked;
  $("#tuning-intro").textContent = `In force: version ${inForce.version}. ${data.tunable
    ? "Everything here changes while the server runs, without a lost request, and lasts until a restart."
    : "To look at only: server.admin_keys_file names no keys. On the machine, jouleserve tune changes settings."}`;
}

/** Ask /admin. Gives the answer, or throws an Error with `problems`. */
async function admin(method, path, body) {
  const reply = await fetch(`admin/${path}`, {
    method,
    headers: { authorization: `Bearer ${adminKey}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(PATIENCE_MS),
    cache: "no-store",
  });
  const told = await reply.json().catch(() => ({}));
  if (reply.ok) return told;
  throw Object.assign(new Error(told.error ?? `status ${reply.status}`), { problems: told.problems ?? [] });
}

function tell(kind, ...lines) {
  $("#tuned").replaceChildren(h("div", { class: `told ${kind}` }, ...lines.map((line) => h("p", {}, line))));
}

/** Each problem at its field as well. */
function tellFailure(error) {
  for (const line of error.problems ?? []) {
    const found = inputs.get(line.split(":")[0]);
    if (!found) continue;
    found.problem.textContent = line.slice(line.indexOf(":") + 1).trim();
    found.problem.hidden = false;
    found.input.setAttribute("aria-invalid", "true");
  }
  tell("bad", ...(error.problems?.length ? ["Nothing was changed.", ...error.problems] : [`Nothing was changed: ${error.message}`]));
}

async function showAudit() {
  const { entries } = await admin("GET", "audit?limit=12");
  const what = ({ changes, via }) => Object.entries(changes ?? {}).map(([key, [from, to]]) => `${key}: ${shownAs(from) || "none"} → ${shownAs(to) || "none"}`).join("; ") || (via === "start" ? "the server started" : "nothing");
  $("#entries").replaceChildren(...entries.map((one) => h("tr", {},
    h("td", {}, h("time", { datetime: one.time }, new Date(one.time).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "medium" }))),
    h("td", {}, one.who, h("span", { class: "muted" }, one.via)),
    h("td", {}, `version ${one.version}${one.restored === null || one.restored === undefined ? "" : `, back to ${one.restored}`}: `, what(one)))));
  $("#audit").hidden = false;
}

/** Do something as the administrator, then show what is in force; `done` says what to tell. */
async function asAdmin(act, done) {
  try {
    const told = await act();
    for (const { input, problem } of inputs.values()) {
      problem.hidden = true;
      input.removeAttribute("aria-invalid");
    }
    knownVersion = told.version;
    trustedUntil = Date.now() + FOLLOW_MS;
    takeForce({ ...told.settings, version: told.version });
    tell("good", done(told));
    await showAudit();
    return true;
  } catch (error) {
    tellFailure(error);
    return false;
  }
}

async function unlock() {
  adminKey = $("#key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(adminKey)) return tell("bad", "A key is one word of plain characters.");
  unlocked = true;
  if (!(await asAdmin(() => admin("GET", "tuning"), () => "Unlocked: settings can be changed here."))) {
    unlocked = false;
    adminKey = "";
    return;
  }
  $("#key").value = "";
  $("#lock").hidden = true;
  for (const { input } of inputs.values()) input.disabled = false;
  noteChanges();
  inputs.get("shaping.policy").input.focus();
}

$("#unlock").addEventListener("click", unlock);
$("#key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  unlock();
});
$("#tune").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!unlocked) return;
  const wanted = { changes: changesWanted(), expected_version: knownVersion };
  asAdmin(() => admin("PATCH", "tuning", wanted), (told) => `Taken as version ${told.version}; replicas follow within about two seconds.`);
});
$("#tune").addEventListener("reset", (event) => {
  event.preventDefault();
  for (const [key, { input }] of inputs) input.value = shownAs(valueAt(inForce, key));
  $("#tuned").replaceChildren();
  noteChanges();
});
$("#undo").addEventListener("click", () => asAdmin(() => admin("POST", "tuning/undo", {}), (told) => `Back: the settings of before, as version ${told.version}.`));
