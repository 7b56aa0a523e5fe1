"use strict";

// ---- tables: sort by a header, filter by text

function sortable(table) {
  const body = table.tBodies[0];
  for (const header of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const numbers = header.dataset.sort === "number";
      const before = header.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : numbers ? "descending" : "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const value = (row) => {
        const cell = row.cells[header.cellIndex];
        return numbers ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent;
      };
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // what is unknown stands last
        return sign * (numbers ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  }
}

function filtering(input) {
  const table = document.getElementById(input.dataset.filters);
  const said = document.querySelector(`[data-counts="${input.dataset.filters}"]`);
  const all = said.textContent;
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    said.textContent = wanted ? `${shown} of ${all}` : all;
  });
}

document.querySelectorAll("table.sorted").forEach(sortable);
document.querySelectorAll("[data-filters]").forEach(filtering);

// ---- films: all by the box, each by itself, a step by the arrow keys

const films = [...document.querySelectorAll(".film")];
const play = document.getElementById("play");

function run(film, runs) {
  film.setAttribute("aria-pressed", String(runs));
}

if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  play.checked = false;
}
films.forEach((film) => run(film, play.checked));
play.addEventListener("change", () => films.forEach((film) => run(film, play.checked)));

for (const film of films) {
  film.addEventListener("click", () => run(film, film.getAttribute("aria-pressed") !== "true"));
  film.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const [motion] = film.firstElementChild.getAnimations();
    if (!step || !motion) return;
    event.preventDefault();
    run(film, false);
    const length = motion.effect.getComputedTiming().duration;
    const frame = Math.floor(((motion.currentTime % length) / length) * 12 + 1e-6);
    motion.currentTime = (((frame + step + 12) % 12) + 0.5) * (length / 12);
  });
}

// ---- teacher time by number of students and epochs

function duration(seconds) {
  const three = (value) => String(Number(value.toPrecision(3)));
  if (seconds < 1) return `${three(1000 * seconds)}\u202fms`;
  if (seconds < 59.95) return `${three(seconds)}\u202fs`;
  if (seconds < 3599.5) {
    const whole = Math.round(seconds), rest = whole % 60;
    return `${Math.floor(whole / 60)}\u202fmin${rest ? ` ${rest}\u202fs` : ""}`;
  }
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60);
  if (hours >= 100 || minutes % 60 === 0) return `${counted(Math.round(seconds / 3600))}\u202fh`;
  return `${hours}\u202fh ${minutes % 60}\u202fmin`;
}

function counted(number, word) {
  const text = number.toLocaleString("en-US");
  return word ? `${text} ${word}${number === 1 ? "" : "s"}` : text;
}

// Round values from 0 to at least `high`, at most 8 of them.
function ticks(high) {
  const rough = (high || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((nice) => rough / power <= nice * (1 + 1e-9));
  return Array.from({ length: Math.ceil(high / step - 1e-9) + 1 }, (_, tick) => Number((tick * step).toPrecision(12)));
}

function costChart(figure) {
  const once = Number(figure.dataset.once), epoch = Number(figure.dataset.epoch);
  const chart = figure.querySelector("svg.chart");
  const part = (name) => figure.querySelector(`[data-part="${name}"]`);
  const inputs = [...figure.querySelectorAll("[data-sets]")];
  const chosen = {};
  for (const input of inputs) chosen[input.dataset.sets] = Number(input.value);
  const [left, right, top, bottom] = [46, 348, 10, 176]; // as the chart is drawn without a script

  function add(tag, attributes, text) {
    const element = document.createElementNS(chart.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    chart.append(element);
    return element;
  }

  function draw() {
    const { students, epochs } = chosen;
    const online = students * epochs * epoch, longest = Math.max(online, once);
    const [name, unit] = [["hours", 3600], ["minutes", 60], ["seconds", 1]].find(([, size]) => longest >= 2 * size || size === 1);
    const ys = ticks(longest / unit), xs = ticks(students).filter((x) => Number.isInteger(x) && x <= students);
    const across = (n) => left + (n / students) * (right - left);
    const down = (seconds) => bottom - (seconds / unit / ys.at(-1)) * (bottom - top);
    chart.replaceChildren();
    for (const y of ys) {
      add("line", { class: "rule", x1: left, x2: right, y1: down(y * unit), y2: down(y * unit) });
      add("text", { class: "tick end", x: left - 6, y: down(y * unit) + 4 }, counted(y));
    }
    for (const x of xs) add("text", { class: "tick middle", x: across(x), y: bottom + 15 }, counted(x));
    add("text", { class: "tick middle", x: (left + right) / 2, y: bottom + 30 }, "students");
    for (const [kind, begin, end] of [["baseline", 0, online], ["student", once, once]]) {
      add("polyline", { class: `line ${kind}`, points: `${left},${down(begin)} ${right},${down(end)}` });
      add("circle", { class: `dot ${kind}`, cx: right, cy: down(end), r: 3.5 });
    }
    chart.setAttribute("aria-label", `Teacher time in ${name} by number of students: online it grows to ${duration(online)}, from the cache it stays at ${duration(once)}`);
    part("unit").textContent = name;
    part("epochs").textContent = counted(epochs, "epoch");
    const ratio = online / once;
    const told = ratio >= 1 ? `${Number(ratio.toPrecision(3))} times as much` : "less: the cache has not paid for itself";
    part("says").textContent = `${counted(students, "student")} of ${counted(epochs, "epoch")}: online ${duration(online)}, from the cache ${duration(once)}; online is ${told}.`;
  }

  for (const input of inputs) {
    input.addEventListener("input", () => {
      const value = Math.round(Number(input.value));
      if (!(value >= 1 && value <= 9999)) return; // while somebody is typing
      chosen[input.dataset.sets] = value;
      for (const twin of inputs) if (twin !== input && twin.dataset.sets === input.dataset.sets) twin.value = value;
      draw();
    });
  }
  draw();
}

document.querySelectorAll("#cost").forEach(costChart);
