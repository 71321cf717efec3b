"use strict";

// Text from records reaches the page through textContent and setAttribute alone, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

function element(parent, name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

// Sorting: numbers by value (K, M and G are powers of a thousand), text by letters, dashes last.
function value(text) {
  const found = /^[^\w+-]*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)([KMG])?/.exec(text.trim());
  if (!found) return null;
  return parseFloat(found[1].replaceAll(",", "")) * ({ K: 1e3, M: 1e6, G: 1e9 }[found[2]] ?? 1);
}

function sort(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const index = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...body.rows].map((row) => ({ row, text: row.cells[index].textContent, number: value(row.cells[index].textContent) }));
  const empty = (text) => ["", "–", "-"].includes(text.trim());
  rows.sort((a, b) => {
    if (empty(a.text) || empty(b.text)) return empty(a.text) - empty(b.text);
    const words = (a.number === null) - (b.number === null); // numbers before words
    const order = words || (a.number === null ? a.text.localeCompare(b.text, "en") : a.number - b.number);
    return up ? order : -order;
  });
  for (const { row } of rows) {
    row.classList.remove("rule"); // lines between groups mean nothing in another order
    body.append(row);
  }
}

// Provenance.
function shape(parent, name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, setting] of Object.entries(attributes)) made.setAttribute(key, setting);
  made.textContent = text;
  parent.append(made);
  return made;
}

function curves(parent, cell) {
  const points = cell.runs.flatMap((run) => run.curve).filter(([, score]) => score !== null);
  if (!points.length) return;
  const epochs = points.map(([epoch]) => epoch);
  const scores = points.map(([, score]) => score);
  const [first, final] = [Math.min(...epochs), Math.max(...epochs)];
  let [low, high] = [Math.min(...scores), Math.max(...scores)];
  if (low === high) [low, high] = [low - 0.01, high + 0.01];
  const x = (epoch) => 60 + (final > first ? (500 * (epoch - first)) / (final - first) : 250);
  const y = (score) => 215 - (195 * (score - low)) / (high - low);
  const scroll = element(parent, "div");
  scroll.className = "scroll";
  const picture = shape(scroll, "svg", { viewBox: "0 0 640 260", role: "img", "aria-label": `${cell.metric} by epoch` });
  shape(picture, "path", { d: "M60 20V215H560", fill: "none", stroke: "#555" });
  for (const score of [low, high]) {
    shape(picture, "text", { x: 54, y: y(score) + 4, "font-size": 12, "text-anchor": "end" }, score.toFixed(3));
  }
  for (const epoch of new Set([first, final])) {
    shape(picture, "text", { x: x(epoch), y: 232, "font-size": 12, "text-anchor": "middle" }, epoch);
  }
  shape(picture, "text", { x: 310, y: 252, "font-size": 12, "text-anchor": "middle" }, `epoch (y: ${cell.metric})`);
  cell.runs.forEach((run, index) => {
    const stroke = COLOURS[index % COLOURS.length];
    const known = run.curve.filter(([, score]) => score !== null);
    const line = known.map(([epoch, score]) => `${x(epoch).toFixed(1)},${y(score).toFixed(1)}`);
    shape(picture, "polyline", { points: line.join(" "), fill: "none", stroke, "stroke-width": 1.5 });
    if (known.length < 40) {
      for (const [epoch, score] of known) shape(picture, "circle", { cx: x(epoch), cy: y(score), r: 2, fill: stroke });
    }
    if (index < 12) shape(picture, "text", { x: 570, y: 30 + 16 * index, "font-size": 12, fill: stroke }, `seed ${run.seed}`);
  });
}

// On a phone each row of a table of text is a card, whose lines need their column's name.
function label(found) {
  const names = [...found.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of found.tBodies[0].rows) [...row.cells].forEach((cell, index) => (cell.dataset.label = names[index]));
}

function table(parent, columns, rows) {
  const scroll = element(parent, "div");
  scroll.className = "scroll";
  const made = element(scroll, "table");
  made.className = "prose";
  const head = element(element(made, "thead"), "tr");
  for (const column of columns) element(head, "th", column).scope = "col";
  const body = element(made, "tbody");
  for (const row of rows) {
    const line = element(body, "tr");
    for (const text of row) element(line, "td", text);
  }
  label(made);
}

const metrics = ([epoch, found]) => `${Object.entries(found).map(([name, score]) => `${name} ${score}`).join(", ")} (epoch ${epoch})`;

function shared(parent, title, cell, key) {
  element(parent, "h3", title);
  for (const place of new Set(cell.runs.map((run) => run[key]))) {
    const seeds = cell.runs.filter((run) => run[key] === place).map((run) => run.seed);
    const lines = Object.entries(data.pool[place]).map(([name, setting]) => `${name}: ${setting ?? "–"}`);
    element(parent, "pre", [`seeds ${seeds.join(", ")}`, ...lines].join("\n"));
  }
}

function open(id) {
  const cell = data.cells[id];
  const body = document.getElementById("provenance-body");
  body.replaceChildren();
  element(body, "h2", `${cell.model}, ${cell.task}, ${cell.method}`).id = "provenance-title";
  element(body, "p", `cell ${cell.id}`);
  const counts = cell.parameters;
  element(body, "p", `trained ${counts.adapter.toLocaleString("en")} (${counts.adapter_bytes.toLocaleString("en")} bytes), head ` +
    `${counts.head.toLocaleString("en")}, whole model ${counts.total.toLocaleString("en")} parameters`);
  element(body, "h3", `${cell.metric} by epoch`);
  curves(body, cell);
  element(body, "h3", "Runs");
  const tested = cell.runs.some((run) => run.test);
  const scores = (run) => [metrics(run.best), metrics(run.last), ...(tested ? [run.test ? metrics(run.test) : "–"] : [])];
  const file = (run) => `runs/${[cell.model, cell.task, cell.method, id, `s${run.seed}`].join("--")}.json`;
  const rows = cell.runs.map((run) => [run.seed, ...scores(run), run.cost, data.pool[run.git], run.finished, file(run)]);
  table(body, ["Seed", "Best", "Last", ...(tested ? ["Test"] : []), "Cost", "Commit", "Finished", "Record"], rows);
  shared(body, "Versions", cell, "versions");
  shared(body, "Sources", cell, "sources");
  element(body, "h3", "Configuration");
  for (const [group, place] of Object.entries(cell.config)) {
    element(body, "pre", `${group}: ${JSON.stringify(data.pool[place], null, 1)}`);
  }
  document.getElementById("provenance").showModal();
  body.parentNode.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".sort")) sort(button.closest("th"));
  if (button?.matches(".source")) open(button.dataset.cell);
});

for (const found of document.querySelectorAll("table.prose")) label(found);
