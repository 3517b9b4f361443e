"use strict";
// The page of `whet inspect`. Four parts, in this order in one script: this file (data and state), tokens.js (text as
// tokens), rows.js and packs.js (lists of them), figures.js (charts and tables); start.js sets it going.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SPECIAL = 1;
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff]/;

/** A new element: `element("td", {class: "n"}, "12")`. Text is always set as text, never as HTML. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const count = (number) => Math.round(number).toLocaleString("en");
const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)}%`;
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// ---- state: what the fragment of the address says, so that a view can be kept as a link ----

const state = new URLSearchParams(location.hash.slice(1));

/** Change the state and show it: `setState({search: "json"})`; an empty value takes a key out. */
function setState(changes) {
  for (const [key, value] of Object.entries(changes)) {
    if (value === "" || value === null) state.delete(key);
    else state.set(key, value);
  }
  history.replaceState(null, "", `#${state}`);
  show();
}

/** The view to be seen: one of rows, packs, figures, account. */
function currentView() {
  const view = state.get("view");
  return document.querySelector(`section[data-view="${CSS.escape(view ?? "")}"]`) ? view : "rows";
}

// ---- rows: numbers into tokens, when they are needed ----

/** The tokens of one entry of the table: `{ids, text, special, bytes}`; bytes is null where the text says them. */
function entry(number) {
  const [ids, text, flags, bytes] = DATA.tokens[number];
  return { ids: Array.isArray(ids) ? ids : [ids], text, special: Boolean(flags & SPECIAL), bytes: bytes ?? null };
}

/** The text of a row, of both answers for a preference; kept for the next search. */
function textOf(row) {
  row.text ??= row.x.map((line) => line.p.map((number) => DATA.tokens[number][1]).join("")).join("\n");
  return row.text;
}

/** The roles that a row has turns of. */
function rolesOf(row) {
  row.roles ??= new Set(row.x.flatMap((line) => (line.t ?? []).filter((_, at) => at % 3 === 0).map((role) => DATA.roles[role])));
  return row.roles;
}

DATA.rows.forEach((row, number) => { row.number = number; row.w ??= []; });

/** The numbers of the rows that pass the filters, sorted as asked. */
function chosenRows() {
  const search = (state.get("search") ?? "").toLowerCase();
  const only = state.get("row");
  const [least, most] = [Number(state.get("min") || 0), Number(state.get("max") || Infinity)];
  const wants = (key, value) => !state.get(key) || state.get(key) === String(value);
  const rows = DATA.rows.filter((row) =>
    (only === null || only === String(row.number)) &&
    wants("dataset", row.d) && wants("split", row.s) &&
    row.len >= least && row.len <= most &&
    (!state.get("role") || rolesOf(row).has(state.get("role"))) &&
    (!state.get("warning") || (state.get("warning") === "any" ? row.w.length > 0 : row.w.includes(state.get("warning")))) &&
    (!search || textOf(row).toLowerCase().includes(search) || row.at.toLowerCase().includes(search)));
  const order = {
    longest: (a, b) => b.len - a.len,
    shortest: (a, b) => a.len - b.len,
    most: (a, b) => b.sup / b.len - a.sup / a.len,
    least: (a, b) => a.sup / a.len - b.sup / b.len,
  }[state.get("sort")];
  return order ? rows.sort(order) : rows;
}
