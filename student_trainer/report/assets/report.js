"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const armOf = Object.fromEntries(DATA.arms.flatMap((arm) => arm.models.map((model) => [model, arm])));
const ARMS = DATA.arms.map((arm) => arm.name), baseline = ARMS[0], first = DATA.arms[0].models[0];
const colourOf = (model) => DATA.colours[armOf[model].name];
const isReference = (name) => DATA.arms.some((arm) => arm.name === name && arm.role === "reference");
const minus = (text) => text.replace(/^-/, "−");

function label(name, colour = DATA.colours[name]) {
  const dot = el("span", { class: "dot" });
  dot.style.background = colour;
  return el("span", { class: "name" }, dot, name);
}
const modelLabel = (model) => label(model, colourOf(model));
const seeds = (arm) => arm.models.length > 1 ? el("small", {}, `${arm.models.length} seeds`) : null;

/* Three digits or more, zeros at the end kept: what stands below each other is compared. */
function precise(value) {
  const size = Math.abs(value);
  if (value === 0 || size >= 1000) return format(value);
  return size < 1e-3 ? value.toExponential(1) : value.toPrecision(size >= 10 ? 4 : 3);
}

function shown(value, unit) {
  if (value === null || value === undefined) return "–";
  return minus(unit === "share" ? `${(100 * value).toFixed(2)} %` : precise(value));
}

/* ---- theme ---- */
let map = null;
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  if (map) map.draw();
}
/* Headings that a link leads to stand below the bar, however many lines it has. */
const bar = document.querySelector(".top");
new ResizeObserver(() => { document.documentElement.style.scrollPaddingTop = `${bar.offsetHeight + 12}px`; }).observe(bar);
const media = matchMedia("(prefers-color-scheme: dark)");
setTheme(media.matches ? "dark" : "light");
media.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

/* ---- summary ---- */
byId("brand").textContent = byId("title").textContent = DATA.title;
{
  const count = DATA.names.length, runs = count > ARMS.length ? `${count} runs in ${ARMS.length} arms` : `${count} model${count > 1 ? "s" : ""}`;
  byId("lead").textContent = `${DATA.pairs.toLocaleString("en")} origin–destination pairs of the ${DATA.split} split; ${runs}, each with a trip for every pair` +
    `${ARMS.length > 1 ? `; ${DATA.baseline_choice}` : ", compared with the real one"}.${DATA.steps_note ? ` Note: ${DATA.steps_note}.` : ""}`;
}
for (const name of DATA.cards) {
  const metric = DATA.metrics[name];
  if (!metric) continue;
  const rows = DATA.arms.filter((arm) => metric.arms[arm.name]).map((arm) =>
    el("div", { class: arm.role === "reference" ? "reference" : "" }, label(arm.name), el("b", {}, shown(metric.arms[arm.name].value, metric.unit))));
  const floor = bestFloor(name);
  if (floor) rows.push(el("div", { class: "reference" }, el("span", { title: floor.label }, "best floor"), el("b", {}, shown(floor.value, metric.unit))));
  const unit = metric.unit === "share" ? "" : `, ${metric.unit}`;
  byId("cards").append(el("div", { class: "card" }, el("h3", {}, metric.label + unit), ...rows));
}
function floorsOf(name) {
  return Object.values(DATA.floors).filter((f) => f.values[name] !== undefined && f.values[name] !== null).map((f) => ({ label: f.label, value: f.values[name] }));
}
function bestFloor(name) {
  return floorsOf(name).reduce((best, f) => (best === null || f.value > best.value ? f : best), null);
}
/* The page begins with what one came for: three sentences and a picture of the first metric, with its intervals. */
const headline = { arm: null, names: [] };
if (DATA.comparison) {
  const { metrics } = DATA.comparison, compared = ARMS.filter((arm) => Object.values(metrics).some((m) => m.comparisons[arm]));
  if (compared.length) {
    headline.arm = compared[0];
    headline.names = DATA.cards.filter((name) => metrics[name] && metrics[name].comparisons[headline.arm]).slice(0, 3);
    const item = (f) => el("li", { class: `${f.direction} ${f.level}` }, f.verdict);
    byId("sentences").append(el("h3", {}, label(headline.arm), " against ", label(baseline)),
      el("ul", { class: "verdicts" }, ...headline.names.map((name) => item(metrics[name].comparisons[headline.arm]))));
    if (DATA.comparison.coverage) byId("sentences").append(el("p", {}, DATA.comparison.coverage));
  }
}
{
  const name = DATA.cards.find((card) => DATA.metrics[card] && Object.keys(DATA.metrics[card].arms).length);
  if (name) {
    const metric = DATA.metrics[name], scale = metric.unit === "share" ? 100 : 1;
    const rows = ARMS.filter((arm) => metric.arms[arm]).map((arm) => ({ name: arm, colour: DATA.colours[arm], value: metric.arms[arm].value, low: metric.arms[arm].low, high: metric.arms[arm].high }))
      .filter((row) => row.value !== null && row.value !== undefined)
      .map((row) => ({ ...row, ...Object.fromEntries(["value", "low", "high"].map((key) => [key, typeof row[key] === "number" ? scale * row[key] : null])) }));
    const lines = floorsOf(name).map((floor) => ({ name: `floor: ${floor.label}, ${shown(floor.value, metric.unit)}`, value: scale * floor.value }));
    if (rows.length) byId("picture").append(dots(metric.label, rows, lines, metric.unit === "share" ? "%" : metric.unit));
  }
}
if (DATA.comparison) {
  const box = byId("verdicts"), { metrics, order } = DATA.comparison;
  for (const arm of ARMS) {
    const found = order.filter((name) => metrics[name].comparisons[arm]).map((name) => [name, metrics[name].comparisons[arm]]);
    if (!found.length) continue;
    const item = ([, f]) => el("li", { class: `${f.direction} ${f.level}` }, f.verdict);
    const lead = found.filter(([name]) => DATA.cards.includes(name) && !(arm === headline.arm && headline.names.includes(name))), rest = found.filter(([name]) => !DATA.cards.includes(name));
    if (arm !== headline.arm) box.append(el("h3", {}, label(arm), " against ", label(baseline)));
    if (lead.length) box.append(el("ul", { class: "verdicts" }, ...lead.map(item)));
    if (rest.length) box.append(el("details", {}, el("summary", {}, `${rest.length} more metrics`), el("ul", { class: "verdicts" }, ...rest.map(item))));
  }
}

/* ---- metrics ---- */
const GROUPS = { arrival: "Arrival", local: "Distance from the real trip", time: "Length and duration", global: "Distributions", next_road: "Next road" };
function metricsTable() {
  const head = el("tr", {}, el("th", {}, "Metric"), ...DATA.arms.map((arm) => el("th", {}, label(arm.name), seeds(arm))), el("th", {}, "n"));
  const body = el("tbody");
  const groups = [...new Set(Object.values(DATA.metrics).map((metric) => metric.group))];
  for (const group of groups) {
    body.append(el("tr", { class: "group" }, el("td", { colspan: ARMS.length + 2 }, GROUPS[group] || group)));
    for (const [name, metric] of Object.entries(DATA.metrics).filter(([, m]) => m.group === group)) {
      const arrow = metric.better === "higher" ? "↑" : "↓", unit = metric.unit === "share" ? "" : metric.unit;
      const row = el("tr", { "data-metric": name }, el("td", {}, el("abbr", { title: metric.description }, metric.label), " ", el("span", { class: "unit" }, `${unit} ${arrow}`),
        ...floorsOf(name).map((floor) => el("small", {}, `floor: ${floor.label}, ${shown(floor.value, metric.unit)}`))));
      for (const arm of ARMS) row.append(metricCell(name, metric, arm));
      const known = metric.arms[baseline];
      row.append(el("td", {}, known ? format(known.n) : "–"));
      body.append(row);
    }
  }
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body));
}

const MARKS = { seeds: { better: "▲", worse: "▼" }, trips: { better: "△", worse: "▽" } };
function metricCell(name, metric, arm) {
  const found = metric.arms[arm], kind = isReference(arm) ? "reference" : "";
  if (!found) return el("td", { class: kind }, "–");
  const runs = Object.entries(found.runs).map(([model, value]) => `${model}: ${shown(value, metric.unit)}`);
  const cell = el("td", { class: kind }, el("span", runs.length > 1 ? { title: runs.join("\n") } : {}, shown(found.value, metric.unit)));
  const compared = DATA.comparison && DATA.comparison.metrics[name].comparisons[arm];
  if (compared && compared.level !== "none")
    cell.append(" ", el("span", { class: compared.direction, title: compared.verdict }, MARKS[compared.level][compared.direction]));
  if (found.sd_over_runs !== null) cell.append(el("small", {}, `± ${shown(found.sd_over_runs, metric.unit)} over seeds`));
  if (found.low !== null && found.low !== undefined) cell.append(el("small", {}, `${shown(found.low, metric.unit)} to ${shown(found.high, metric.unit)}`));
  return cell;
}
byId("fold").textContent = `All ${Object.keys(DATA.metrics).length} metrics`;
byId("table").append(metricsTable());
/* Who follows the link to the table, or prints the page, wants to see it. */
const unfold = () => { byId("folded").open = true; };
document.querySelector('a[href="#metrics"]').addEventListener("click", unfold);
addEventListener("beforeprint", unfold);

/* ---- charts ---- */
/* Runs of an arm share a colour and one entry of the legend. */
function ofArm(arm, runs, draw) {
  const text = runs.length > 1 ? `${arm} (${runs.length} seeds)` : arm;
  return runs.map((run, i) => ({ name: i ? null : text, colour: DATA.colours[arm], ...draw(run) }));
}
for (const [quantity, words] of Object.entries(DATA.histograms[baseline])) {
  const steps = words.edges, series = [{ name: "real", colour: "var(--real)", x: steps, y: words.real.slice(0, -1), step: true, fill: true }];
  for (const arm of ARMS) series.push({ name: arm, colour: DATA.colours[arm], x: steps, y: DATA.histograms[arm][quantity].generated.slice(0, -1), step: true, dash: isReference(arm) ? "5 4" : undefined });
  const most = Math.max(...series.flatMap((s) => s.y)), total = words.real.reduce((s, v) => s + v, 0);
  let sum = 0;
  const last = words.real.findIndex((v) => (sum += v) >= 0.995 * total);
  const end = steps[Math.min(Math.max(last + 1, 5), steps.length - 1)];
  const cut = series.map((s) => { const kept = s.y.filter((_, i) => steps[i] < end); return { ...s, y: kept, x: s.x.slice(0, kept.length + 1) }; });
  byId("histograms").append(chart(`${words.label}, ${words.unit}`, cut, { x: [0, end], y: [0, most * 1.05], xlabel: `${words.unit} (99.5 % of the real values are shown)` }));
}
if (Object.keys(DATA.reliability).length) {
  const series = [{ name: "calibrated", colour: "var(--soft)", x: [0, 1], y: [0, 1], dash: "3 4" }];
  for (const arm of DATA.arms) series.push(...ofArm(arm.name, arm.models.filter((model) => DATA.reliability[model]), (model) => ({ x: DATA.reliability[model].confidence, y: DATA.reliability[model].accuracy, points: true })));
  byId("calibration").append(el("h3", {}, "Are the next-road probabilities right?"), el("div", { class: "charts" }, chart("Share right, by confidence", series, { x: [0, 1], y: [0, 1], xlabel: "confidence" })));
}
for (const [record, words] of Object.entries(DATA.curve_labels)) {
  const runs = Object.keys(DATA.curves).filter((run) => DATA.curves[run][record]);
  if (!runs.length) continue;
  const series = [...new Set(runs.map((run) => DATA.curve_arms[run]))].flatMap((arm) => ofArm(arm, runs.filter((run) => DATA.curve_arms[run] === arm), (run) => {
    const [x, y] = DATA.curves[run][record];
    return { x, y, points: x.length < 30 };
  }));
  const floor = DATA.curve_floors[record], steps = series.flatMap((s) => s.x);
  if (floor) series.push({ name: floor.label, colour: "var(--soft)", x: [Math.min(...steps), Math.max(...steps)], y: [floor.value, floor.value], dash: "5 4" });
  for (const line of DATA.curve_ceilings[record] || []) series.push({ name: line.label, colour: DATA.colours[line.arm], x: [Math.min(...steps), Math.max(...steps)], y: [line.value, line.value], dash: "2 3" });
  byId("curves").append(chart(words.unit === "share" ? words.label : `${words.label}, ${words.unit}`, series, { xlabel: "step" }));
}
if (!byId("curves").children.length) byId("training").remove();

/* ---- search ---- */
{
  const kinds = Object.keys(DATA.search[first].statuses);
  const head = el("tr", {}, ...["Model", "Method", ...kinds.map((kind) => kind.replace(/_/g, " ")), "roads expanded a trip", "rows through the model", "trips/s"].map((text) => el("th", {}, text[0].toUpperCase() + text.slice(1))));
  const rows = DATA.names.map((name) => {
    const found = DATA.search[name], each = found.search.expanded / found.pairs;
    return el("tr", {}, el("td", {}, modelLabel(name)), el("td", {}, found.method.replace(/_/g, " ")), ...kinds.map((kind) => el("td", {}, format(found.statuses[kind] || 0))),
      el("td", {}, format(each)), el("td", {}, format(found.search.forward_rows)), el("td", {}, format(found.trips_per_s)));
  });
  byId("search-table").append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

/* ---- about ---- */
const notes = ["Trips that did not arrive count in every metric, but for those named after arrived trips or shared OD cells.",
  `The map shows ${DATA.map.pairs.length} of the ${DATA.pairs} pairs: failures and the worst are more frequent there than among all.`,
  ...(DATA.left_out ? [DATA.left_out] : []),
  ...(DATA.comparison ? DATA.comparison.notes : ["Nothing was compared: differences between the models may be chance."])];
byId("notes").append(el("ul", {}, ...notes.map((note) => el("li", {}, note))));
byId("commands").append(el("pre", {}, DATA.commands.join("\n\n")));
{
  /* Each environment once, under all that it is of. */
  const found = new Map();
  for (const [name, value] of [["report", DATA.environment], ...Object.entries(DATA.environments)])
    found.set(JSON.stringify(value), [...(found.get(JSON.stringify(value)) || []), name]);
  const shownOnce = Object.fromEntries([...found].map(([text, names]) => [names.join(", "), JSON.parse(text)]));
  byId("environment").append(el("pre", {}, JSON.stringify({ store: DATA.store, ...shownOnce }, null, 2)));
}

/* ---- map ---- */
map = new TripMap(DATA.map, colourOf);
const ORDERS = { "number": (p) => p.pair };
for (const { column, order } of DATA.map.metrics.filter((m) => m.order))
  ORDERS[order] = (p) => -Math.max(...Object.values(p.models).map((m) => m.metrics[column] ?? 0));
const BESIDE = DATA.map.metrics.filter((m) => m.heading);
const FILTERS = { "all": () => true, "not arrived": (p) => Object.values(p.models).some((m) => !m.arrived), "arrived": (p) => Object.values(p.models).every((m) => m.arrived) };
if (DATA.names.length > 1) FILTERS["models differ"] = (p) => new Set(Object.values(p.models).map((m) => m.roads.join())).size > 1;
for (const [id, options] of [["order", ORDERS], ["filter", FILTERS]]) {
  byId(id).append(...Object.keys(options).map((text) => el("option", { value: text }, text)));
  byId(id).addEventListener("change", listTrips);
}

function minutes(seconds) { return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`; }
function duration(trip) { return trip.times[trip.times.length - 1]; }

let listed = [];
function listTrips() {
  const order = ORDERS[byId("order").value];
  listed = DATA.map.pairs.filter(FILTERS[byId("filter").value]).sort((a, b) => order(a) - order(b));
  byId("trips").replaceChildren(...listed.map((pair) => {
    const worst = Math.max(...Object.values(pair.models).map((m) => m.metrics.hausdorff_km ?? 0));
    const failed = Object.values(pair.models).filter((m) => !m.arrived).length;
    const button = el("button", { type: "button", role: "option", "data-pair": pair.pair, "aria-selected": String(map.selected === pair), tabindex: "-1" },
      `Pair ${pair.pair}`, el("small", {}, `${pair.real.roads.length} roads, ${minutes(duration(pair.real))} · up to ${format(worst, 3)} km off${failed ? ` · ${failed} not arrived` : ""}`));
    button.addEventListener("click", () => select(pair));
    return button;
  }));
  if (!listed.length) byId("trips").append(el("p", { class: "hint" }, " No such trip among those of the map."));
}

let playing = null;
function select(pair) {
  stop();
  map.select(pair);
  for (const button of byId("trips").querySelectorAll("button")) {
    const chosen = pair !== null && button.dataset.pair === String(pair.pair);
    button.setAttribute("aria-selected", String(chosen));
    if (chosen) button.scrollIntoView({ block: "nearest" });
  }
  byId("details").replaceChildren(pair ? details(pair) : el("p", { class: "hint" }, "Pick a trip from the list, or a dot on the map: each is the origin of one."));
  byId("legend").replaceChildren(...(pair ? legend([{ name: "real trip", colour: "var(--real)", fill: true }, ...DATA.names.map((name, i) => ({ name, colour: colourOf(name), dash: i > 0 }))]).childNodes : []));
  byId("clock").disabled = byId("play").disabled = !pair;
  byId("clock").value = 1000;
  byId("now").textContent = pair ? minutes(longest()) : "";
}

function details(pair) {
  const measured = BESIDE.map((m) => m.unit === "share" ? m.heading : `${m.heading} ${m.unit}`);
  const head = el("tr", {}, ...["", "ended", "roads", "km", "duration", ...measured].map((text) => el("th", {}, text)));
  const when = new Date(1000 * pair.departure).toISOString().slice(0, 16).replace("T", " ");
  const real = el("tr", {}, el("td", {}, "real trip"), el("td", {}, ""), ...[pair.real.roads.length, format(pair.real.distance_km, 3), minutes(duration(pair.real))].map((v) => el("td", {}, String(v))), ...BESIDE.map(() => el("td")));
  const rows = DATA.names.map((name) => {
    const m = pair.models[name];
    return el("tr", {}, el("td", {}, modelLabel(name)), el("td", {}, m.status.replace(/_/g, " ")), el("td", {}, String(m.roads.length)), el("td", {}, format(m.metrics.distance_km, 3)), el("td", {}, minutes(duration(m))),
      ...BESIDE.map(({ column }) => el("td", {}, format(m.metrics[column], 3))));
  });
  return el("div", {}, el("p", { class: "hint" }, `Pair ${pair.pair}: road ${pair.origin} → ${pair.destination}, departure ${when}.`), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, real, ...rows))));
}

function longest() { return Math.max(...map.trips().map(duration), 1); }
function seek(seconds) { map.setTime(seconds); byId("now").textContent = minutes(seconds); byId("clock").value = 1000 * seconds / longest(); }
/* Drawn: not every font has these signs. */
function showPlaying(is) {
  const image = svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" });
  for (const path of is ? ["M2 1h3v10h-3z", "M7 1h3v10h-3z"] : ["M2 1l9 5l-9 5z"]) svg("path", { d: path, fill: "currentColor" }, image);
  byId("play").replaceChildren(image);
  byId("play").setAttribute("aria-label", is ? "Pause" : "Play");
}
function stop() { if (playing) cancelAnimationFrame(playing.frame); playing = null; showPlaying(false); }
function play() {
  const from = map.time >= longest() ? 0 : map.time;
  playing = { since: performance.now(), from, frame: 0 };
  showPlaying(true);
  const step = (now) => {
    const seconds = playing.from + Number(byId("speed").value) * (now - playing.since) / 1000;
    if (seconds >= longest()) { seek(longest()); stop(); return; }
    seek(Math.max(seconds, 0));
    playing.frame = requestAnimationFrame(step);
  };
  playing.frame = requestAnimationFrame(step);
}
byId("play").addEventListener("click", () => (playing ? stop() : play()));
byId("speed").addEventListener("change", () => { if (playing) { stop(); play(); } });
byId("clock").addEventListener("input", () => { stop(); seek(longest() * byId("clock").value / 1000); });
byId("zoom-in").addEventListener("click", () => map.zoom(1.5));
byId("zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
byId("fit").addEventListener("click", () => map.fit());
byId("trips").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !listed.length) return;
  event.preventDefault();
  const at = listed.indexOf(map.selected);
  select(listed[Math.min(Math.max(at + step, 0), listed.length - 1)]);
});
map.onPick = select;
listTrips();
select(null);
