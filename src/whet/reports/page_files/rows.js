// ---- the list of rows ----

const ROWS_AT_ONCE = 20;
const FOLDED_ENTRIES = 900;
let listed = [];
let shownRows = 0;

function showRows() {
  listed = chosenRows();
  shownRows = 0;
  byId("rows").replaceChildren();
  const all = DATA.total > DATA.rows.length ? `${plural(DATA.rows.length, "sampled row")} of ${count(DATA.total)}` : plural(DATA.rows.length, "row");
  byId("count").textContent = listed.length === DATA.rows.length ? all : `${count(listed.length)} of ${all}`;
  byId("reset").hidden = !FILTERS.some((key) => state.has(key));
  if (!listed.length) byId("rows").append(element("li", { class: "none" }, "No row passes these filters."));
  showMore();
  const token = state.get("token");
  const span = token === null ? null : document.querySelector(`#rows .tok[data-at="${CSS.escape(token)}"]`);
  if (span) focusToken(span);
}

function showMore() {
  const next = listed.slice(shownRows, shownRows + ROWS_AT_ONCE);
  byId("rows").append(...next.map((row) => element("li", {}, rowCard(row))));
  shownRows += next.length;
  byId("more").hidden = shownRows >= listed.length;
  foldTall(byId("rows"));
}

/** A row with everything that is known of it. */
function rowCard(row) {
  const card = element("article", { class: "row", "data-row": row.number, "aria-label": `${row.at}, ${plural(row.len, "token")}` });
  const share = row.sup / row.len;
  const numbers = element("span", { class: "numbers" }, plural(row.len, "token"),
    element("span", { class: "meter", "aria-hidden": "true" }, element("i")), `${percent(share)} trained`);
  numbers.querySelector("i").style.width = percent(Math.min(1, share));
  const link = element("a", { href: `#row=${row.number}` }, row.at);
  link.addEventListener("click", (event) => { event.preventDefault(); setState({ view: "rows", row: row.number }); });
  card.append(element("header", {},
    element("h2", { class: "place" }, link),
    element("span", { class: "chip" }, DATA.datasets[row.d]),
    element("span", { class: "chip" }, row.s),
    ...row.w.map((key) => element("span", { class: "chip warn", title: DATA.warnings[key][1] }, key === "near_duplicate" ? `nearly repeats ${row.like}` : DATA.warnings[key][0])),
    numbers));
  card.append(...rowLines(row, FOLDED_ENTRIES));
  return card;
}

/** The lines of tokens of a row, of which so many entries are made into spans at first. */
function rowLines(row, limit) {
  return row.x.map((line, number) => {
    const texts = element("div", { class: "texts" }, ...tokenBlocks(row, number, limit));
    if (line.p.length > limit) texts.dataset.rest = "1";
    texts.querySelector(".tok")?.setAttribute("tabindex", "0");
    const made = element("div", { class: "line" }, texts);
    if (line.n) made.prepend(element("h3", {}, line.n));
    return made;
  });
}

/** Fold what is tall, with a button that shows the rest; scroll it to the first hit of a search. */
function foldTall(list) {
  for (const texts of list.querySelectorAll(".texts:not([data-measured])")) {
    texts.dataset.measured = "1";
    const card = texts.closest("[data-row]");
    const row = DATA.rows[Number(card.dataset.row)];
    const isAlone = listed.length === 1;
    if (!texts.dataset.rest && (isAlone || texts.scrollHeight < 380)) continue;
    const number = [...card.querySelectorAll(".texts")].indexOf(texts);
    const unfold = () => {
      button.remove();
      texts.classList.remove("folded");
      if (texts.dataset.rest) texts.replaceChildren(...tokenBlocks(row, number));
      texts.querySelector(".tok")?.setAttribute("tabindex", "0");
    };
    const total = row.x[number].l.reduce((sum, run) => sum + run, 0);
    const button = element("button", { type: "button", class: "unfold" }, `Show all ${plural(total, "token")}`);
    button.addEventListener("click", unfold);
    texts.after(button);
    texts.classList.add("folded");
    const hit = texts.querySelector(".hit");
    if (isAlone || (state.get("search") && !hit)) unfold();
    else if (hit && hit.offsetTop > 260) texts.scrollTop = hit.offsetTop - 120;
  }
}

const FILTERS = ["search", "dataset", "split", "role", "warning", "min", "max", "row"];

/** The choices of the filters, from what the data has; a filter with nothing to choose is not shown. */
function fillFilters() {
  const form = byId("filters");
  const options = (name, choices, all) => {
    const select = form.elements[name];
    select.append(element("option", { value: "" }, all), ...choices.map(([value, text]) => element("option", { value }, text)));
    select.closest("label").hidden = choices.length < (name === "warning" ? 1 : 2);
  };
  const number = (of) => ` (${count(DATA.rows.filter(of).length)})`;
  options("dataset", DATA.datasets.map((name, at) => [String(at), name + number((row) => row.d === at)]), "all");
  options("split", [...new Set(DATA.rows.map((row) => row.s))].map((name) => [name, name + number((row) => row.s === name)]), "both");
  options("role", DATA.roles.filter(Boolean).map((role) => [role, role + number((row) => rolesOf(row).has(role))]), "any");
  const warnings = Object.keys(DATA.warnings).filter((key) => DATA.rows.some((row) => row.w.includes(key)));
  const any = warnings.length > 1 ? [["any", `any${number((row) => row.w.length > 0)}`]] : [];
  options("warning", [...any, ...warnings.map((key) => [key, DATA.warnings[key][0] + number((row) => row.w.includes(key))])], "with or without");
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => setState({ [event.target.name]: event.target.value, row: "", token: "" }), event.target.type === "search" ? 150 : 0);
  });
}

/** Show in the filters what the state says. */
function syncFilters() {
  for (const control of byId("filters").elements) {
    if (!control.name) continue;
    const value = state.get(control.name) ?? "";
    if (control.value !== value) control.value = value;
    control.classList.toggle("set", value !== "" && control.name !== "sort");
  }
  byId("whitespace").checked = state.get("whitespace") === "1";
}
