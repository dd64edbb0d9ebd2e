
"use strict";
// Shows a sheet line by line and keeps what is said to each. Texts are only ever put in as text.
const FORMAT = 1;
const sheet = JSON.parse(document.getElementById("sheet").textContent);
const lines = sheet.lines;
const place = `wizard ratings ${sheet.export} ${sheet.rater}`;
const byId = (id) => document.getElementById(id);

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// --- what is kept: where the rater is, and what was said; it survives a reload

let kept = { format: FORMAT, at: 0, ratings: {} };
let helping = true;

function warn(text) {
  byId("warning").textContent = text;
  byId("warning").hidden = false;
}

function load() {
  let text = null;
  try {
    text = localStorage.getItem(place);
    if (text === null) return;
    const found = JSON.parse(text);
    if (found.format !== FORMAT || !(found.at >= 0 && found.at <= lines.length) || typeof found.ratings !== "object") {
      throw new Error("of another form");
    }
    kept = found;
    helping = false;
  } catch (error) {
    warn(text === null ? "This browser keeps nothing for this page: download before you close it."
      : "What this browser had kept could not be read; it was put aside, and this starts anew.");
    if (text !== null) localStorage.setItem(`${place} damaged`, text);
  }
}

function save() {
  try {
    localStorage.setItem(place, JSON.stringify(kept));
  } catch (error) {
    warn("This browser keeps nothing for this page: download before you close it.");
  }
}

// --- the time that a line was before the rater's eyes

let since = null;

function line() {
  return helping ? undefined : lines[kept.at];
}

function ratingOf(one) {
  kept.ratings[one.id] ??= { seconds: 0, aspects: {} };
  return kept.ratings[one.id];
}

function countTime() {
  const now = performance.now();
  if (since !== null && line()) ratingOf(line()).seconds += (now - since) / 1000;
  since = document.visibilityState === "visible" ? now : null;
}

// --- the rows of a line: what is to be said about it, one after another

function rowsOf(one) {
  const form = sheet.forms[one.form];
  const said = (name, label, choices) => ({
    name, label, choices, get: (rating) => rating[name], set: (rating, value) => { rating[name] = value; },
  });
  const rows = [
    said("verdict", "Verdict", form.verdicts.map(([value, label], n) => ({ value, label, key: String(n + 1) }))),
    said("confidence", "How sure?",
      sheet.confidences.map((label, n) => ({ value: n + 1, label, key: String(n + 1) }))),
  ];
  if (one.form !== "answers") return rows;
  for (const aspect of sheet.aspects) {
    for (const side of ["a", "b"]) {
      rows.push({
        name: "aspect", aspect, side, label: `${aspect} of ${side.toUpperCase()}`,
        choices: sheet.grades.map((value) => ({ value, label: value ? String(value) : "–", key: String(value) })),
        get: (rating) => rating.aspects[aspect]?.[side],
        set: (rating, value) => { (rating.aspects[aspect] ??= {})[side] = value; },
      });
    }
  }
  return rows;
}

const missing = (one) => rowsOf(one).filter((row) => row.get(kept.ratings[one.id] ?? { aspects: {} }) === undefined);
const ratedCount = () => lines.filter((one) => missing(one).length === 0).length;

let rows = [];
let active = 0;

function say(row, value) {
  countTime();
  row.set(ratingOf(line()), value);
  active = Math.min(rows.indexOf(row) + 1, rows.length - 1);
  save();
  paint();
}

// --- moving

function go(to) {
  countTime();
  helping = false;
  kept.at = Math.max(0, Math.min(to, lines.length));
  save();
  show();
}

function next() {
  if (helping) return go(kept.at);
  if (!line()) return undefined;
  const left = missing(line());
  if (!left.length) return go(kept.at + 1);
  active = rows.findIndex((row) => row.label === left[0].label);
  paint();
  byId("told").textContent = `Still to say: ${left[0].label}`;
  bring();
  return undefined;
}

function help() {
  countTime();
  helping = true;
  show();
}

function download() {
  countTime();
  save();
  const ratings = lines.filter((one) => missing(one).length === 0).map((one) => {
    const { verdict, confidence, aspects, seconds } = kept.ratings[one.id];
    return { id: one.id, verdict, confidence, aspects, seconds: Math.round(seconds * 10) / 10 };
  });
  const text = JSON.stringify({ format: FORMAT, export: sheet.export, rater: sheet.rater, ratings }, null, 1);
  const href = URL.createObjectURL(new Blob([`${text}\n`], { type: "application/json" }));
  const link = make("a", { href, download: `ratings-${sheet.rater}-${sheet.export.slice(0, 9)}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}

// --- showing

function text(content) {
  const shown = content.trim() ? content : "(nothing)";
  return make("div", { className: content.trim() ? "text" : "text none", dir: "auto" }, shown);
}

function rowElement(row) {
  const made = make("div", { className: `row ${row.name}` });
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", row.label);
  made.append(make("span", { className: "name" }, row.side ? row.side.toUpperCase() : row.label));
  row.buttons = row.choices.map((choice) => {
    const button = make("button", { type: "button", onclick: () => say(row, choice.value) });
    if (row.name !== "aspect") button.append(make("kbd", {}, choice.key));
    button.append(choice.label);
    if (choice.value === 0) button.title = "does not apply";
    if (choice.value === 0) button.setAttribute("aria-label", "does not apply");
    return button;
  });
  made.append(...row.buttons);
  row.element = made;
  return made;
}

function showLine(one) {
  const main = byId("main");
  main.append(make("h1", {}, sheet.forms[one.form].asked));
  const count = Math.max(...one.sides.map((side) => side.length));
  for (let turn = 0; turn < count; turn += 1) {
    if (one.turns.length) {
      const label = one.turns.length > 1 ? `Instruction ${turn + 1} of ${one.turns.length}` : "Instruction";
      main.append(make("div", { className: "turn" }, make("p", { className: "label" }, label), text(one.turns[turn])));
    }
    const kind = one.turns.length ? "Answer" : "Instruction";
    main.append(make("div", { className: "sides" }, ...one.sides.map((side, n) => make("section", {},
      make("p", { className: "label" }, one.sides.length > 1 ? `${kind} ${"AB"[n]}` : kind), text(side[turn])))));
  }
  rows = rowsOf(one);
  active = Math.max(0, rows.findIndex((row) => row.get(ratingOf(one)) === undefined));
  const aspects = rows.filter((row) => row.name === "aspect");
  if (aspects.length) {
    const grid = make("div", { className: "aspects" },
      make("h2", {}, "Grades: 1 (bad) to 5 (excellent), 0 or – where it does not apply"));
    for (const row of aspects) {
      if (row.side === "a") grid.append(make("span", { className: "aspect" }, row.aspect));
      grid.append(rowElement(row));
    }
    main.append(grid);
  }
  byId("footer").append(rowElement(rows[0]), rowElement(rows[1]), make("div", { className: "moves" },
    make("button", { type: "button", onclick: () => go(kept.at - 1), disabled: kept.at === 0 }, "Back"),
    make("output", { id: "told" }),
    make("button", { type: "button", id: "next", onclick: next }, "Next")));
}

function showHelp() {
  const keys = [
    ["1 2 3 4", "your verdict; ← and → also choose A and B"],
    ["1 2 3", "then, how sure you are"],
    ...(sheet.aspects.length ? [["0 … 5", "then the grades, row by row; the marked row is the one that a key goes to"]] : []),
    ["Enter", "next"],
    ["Backspace", "one row back; from the first row, to the question before"],
  ];
  const forms = [...new Set(lines.map((one) => sheet.forms[one.form].asked))];
  byId("main").append(make("div", { className: "prose" },
    make("h1", {}, "How to rate"),
    make("p", {}, `You will be asked ${lines.length} times: ${forms.join(" ")}`),
    make("p", {}, "Read everything before you judge. Go by what is right and of use to whoever asked, not by length, "
      + "looks or which stands first. Say “equally good” or “both bad” when that is so. Texts may be wrong, broken "
      + "or rude; programs wrote them. Follow no request that stands in an answer."),
    make("p", {}, "Whatever you say is kept in this browser, so you can close the page and go on later, with the same "
      + "file on the same device. Nothing is sent anywhere: at the end, download your ratings and send the file back."),
    make("div", { className: "keys" }, make("h2", {}, "Keys"),
      make("table", {}, ...keys.map(([key, what]) =>
        make("tr", {}, make("td", {}, make("kbd", {}, key)), make("td", {}, what))))),
    make("button", { type: "button", id: "next", className: "first", onclick: next },
      Object.keys(kept.ratings).length ? "Go on" : "Start")));
}

function showEnd() {
  byId("main").append(make("div", { className: "prose" },
    make("h1", {}, "That was all. Thank you!"),
    make("p", {}, "Download your ratings and send the file back to whoever gave you this page."),
    make("p", {}, make("button", { type: "button", className: "first", onclick: download }, "Download your ratings"), " ",
      make("button", { type: "button", onclick: () => go(kept.at - 1) }, "Back"))));
}

function show() {
  byId("main").replaceChildren();
  byId("footer").replaceChildren();
  rows = [];
  if (helping) showHelp();
  else if (line()) showLine(line());
  else showEnd();
  paint();
  scrollTo(0, 0);
  byId("main").focus({ preventScroll: true });
}

function paint() {
  const rated = ratedCount();
  byId("count").textContent = `${rated} of ${lines.length} rated`;
  byId("progress").max = lines.length;
  byId("progress").value = rated;
  byId("help").hidden = helping;
  if (!line()) return;
  rows.forEach((row, n) => {
    row.element.classList.toggle("active", n === active);
    const value = row.get(ratingOf(line()));
    row.buttons.forEach((button, m) => button.setAttribute("aria-pressed", row.choices[m].value === value));
  });
  byId("told").textContent = "";
  byId("next").classList.toggle("first", missing(line()).length === 0);
}

// --- keys

function bring() {
  // The other rows stand at the bottom of the window: a rater who reads on meanwhile stays where that is.
  if (rows[active]?.name === "aspect") rows[active].element.scrollIntoView({ block: "nearest" });
}

function back() {
  if (active > 0) {
    active -= 1;
    paint();
  } else go(kept.at - 1);
}

addEventListener("keydown", (event) => {
  // A key that is held down would rate row after row.
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const sided = line() && line().sides.length > 1 ? { ArrowLeft: "a", ArrowRight: "b" }[event.key] : undefined;
  const choice = line() ? rows[active].choices.find((one) => one.key === event.key) : undefined;
  if (event.key === "Enter" && !event.target.closest?.("header")) next();
  else if (event.key === "Backspace" && !helping) back();
  else if (sided) say(rows[0], sided);
  else if (choice) say(rows[active], choice.value);
  else return;
  event.preventDefault();
  bring();
});

byId("help").onclick = help;
byId("download").onclick = download;
document.addEventListener("visibilitychange", () => { countTime(); save(); });
addEventListener("pagehide", () => { countTime(); save(); });
// The same sheet in another tab: what was said there holds here too.
addEventListener("storage", (event) => {
  if (event.key !== place || event.newValue === null) return;
  since = null;
  load();
  show();
  countTime();
});

load();
show();
countTime();
