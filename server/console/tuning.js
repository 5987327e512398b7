/* The form: one input for each setting that can change while the server runs. Locked until a key is given. */

const FIELDS = JSON.parse($("#form-fields").textContent);
const GROUPS = { shaping: "Shaping: which point answers, and when", batching: "Batching: how requests become batches", cache: "Cache of answers" };
const RULED_BY = {
  full_share: ["percentile"], quality_debt_days: ["percentile"], max_switches_per_day: ["percentile"], rank_band: ["percentile"],
  swing_s: ["percentile", "budget"], budget_amount: ["budget"], budget_unit: ["budget"], budget_period: ["budget"], pin_point: ["pin"],
  dirty_above_grams_per_kwh: ["threshold", "percentile"], clean_below_grams_per_kwh: ["threshold", "percentile"], min_dwell_s: ["threshold", "percentile"],
};
const inputs = new Map();
let inForce = null;
let unlocked = false;

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
    problem.hidden = true;
  }
  $("#pending").textContent = wanted.length ? `${wanted.length} changed: ${wanted.join(", ")}` : "";
  $("#apply").disabled = $("#undo").disabled = !unlocked || !wanted.length;
}

/** Called with every answer of the server: what others tune is seen here, what is being typed stays. */
function offerTuning(data) {
  if (!inputs.size) buildForm(data.points.map((one) => one.name));
  const before = inForce;
  inForce = data.tunables;
  for (const [key, { input }] of inputs) {
    const untouched = before === null || input.value.trim() === shownAs(valueAt(before, key));
    if (untouched && document.activeElement !== input) input.value = shownAs(valueAt(inForce, key));
    else if (untouched && input.value.trim() !== shownAs(valueAt(inForce, key))) input.value = shownAs(valueAt(inForce, key));
  }
  $("#tuning-intro").textContent = `In force: version ${inForce.version}. Everything here changes while the server runs, without a lost request, and lasts until a restart.`;
  noteChanges();
}
