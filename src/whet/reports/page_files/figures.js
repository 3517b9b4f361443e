// ---- figures: charts and tables ----

const NAMESPACE = "http://www.w3.org/2000/svg";

function shape(name, attributes, ...children) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function card(title, note, ...content) {
  return element("section", { class: "card" }, element("h2", {}, title), note ? element("p", { class: "note" }, note) : "", ...content);
}

/** A table; `columns` are [name, isNumber]. Cells are texts or elements. */
function table(columns, rows) {
  const cell = (name, isNumber, content) => element(name, { class: isNumber ? "n" : false }, content);
  const head = element("tr", {}, ...columns.map(([name, isNumber]) => {
    const made = cell("th", isNumber, name);
    made.setAttribute("scope", "col");
    return made;
  }));
  const body = rows.map((values) => element("tr", {}, ...values.map((value, at) => cell("td", columns[at][1], value))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

/** A histogram as SVG, drawn again when its width changes. `say(from, to)` names a bin; `pick` is called with one. */
function chart({ edges, counts, open }, { say, tick, noun, pick, mark }) {
  const names = Object.keys(counts).filter((name) => counts[name].some(Boolean));
  const place = element("div", {});
  const key = element("div", { class: "key" }, ...names.map((name, at) => element("span", {}, element("i", { class: `s${at}` }), name)));
  const totals = counts[names[0]]?.map((_, bin) => names.reduce((sum, name) => sum + counts[name][bin], 0)) ?? [];
  const draw = () => {
    const width = place.clientWidth;
    if (!width) return;
    const [height, left, bottom, top] = [210, 46, 26, 12];
    const most = Math.max(1, ...totals);
    const x = (bin) => left + ((width - left - 6) * bin) / totals.length;
    const y = (value) => height - bottom - ((height - bottom - top) * value) / most;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `Histogram: ${noun} by ${say.what}` });
    for (const value of niceTicks(most)) {
      svg.append(shape("line", { class: "axis", x1: left, x2: width - 6, y1: y(value), y2: y(value) }),
        shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, count(value)));
    }
    totals.forEach((total, bin) => {
      const name = `${say(edges[bin], edges[bin + 1], open && bin === totals.length - 1, bin === 0)}: ${plural(total, noun.slice(0, -1))}`;
      const group = shape("g", { class: "bin", ...(pick && total ? { tabindex: 0, role: "button", "aria-label": `${name}; show these rows` } : { role: "img", "aria-label": name }) }, shape("title", {}, name));
      let base = 0;
      names.forEach((series, at) => {
        const value = counts[series][bin];
        if (value) group.append(shape("rect", { class: `s${at}`, x: x(bin) + 0.75, width: Math.max(1, x(bin + 1) - x(bin) - 1.5), y: y(base + value), height: Math.max(1, y(base) - y(base + value)) }));
        base += value;
      });
      group.append(shape("rect", { class: "reach", x: x(bin), width: x(bin + 1) - x(bin), y: top, height: height - bottom - top }));
      if (pick && total) {
        const act = () => pick(edges[bin], edges[bin + 1], open && bin === totals.length - 1);
        group.addEventListener("click", act);
        group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
      }
      svg.append(group);
    });
    const every = Math.ceil(totals.length / Math.max(2, Math.floor((width - left) / 64)));
    edges.forEach((edge, bin) => {
      if (bin % every === 0) svg.append(shape("text", { x: x(bin), y: height - 8, "text-anchor": "middle" }, tick(edge)));
    });
    if (mark && mark.at <= edges.at(-1)) {
      const at = x((mark.at - edges[0]) / (edges[1] - edges[0]));
      svg.append(shape("line", { class: "mark", x1: at, x2: at, y1: top - 4, y2: height - bottom }),
        shape("text", { class: "mark-label", x: at - 5, y: top + 2, "text-anchor": "end" }, mark.text));
    }
    place.replaceChildren(svg);
  };
  new ResizeObserver(draw).observe(place);
  return names.length > 1 ? element("div", {}, place, key) : place;
}

function niceTicks(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough) ?? 1;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, at) => at * step);
}

function showFigures() {
  const place = byId("figures");
  if (place.childElementCount) return;
  place.append(...[lengthsCard(), sharesCard(), splitsCard(), fillCard(), rolesCard(), lastTokensCard(), factsCard(),
    linesCard("Encoding", "The engine that encoded each dataset, and why.", DATA.engines),
    ...DATA.findings.map(findingCard)].filter(Boolean));
}

function lengthsCard() {
  const say = (from, to, isOpen) => (isOpen ? `${count(from)} tokens or more` : `${count(from)} to ${count(to - 1)} tokens`);
  say.what = "length";
  const limit = Number((DATA.facts.find(([name]) => name === "sequence_len")?.[1] ?? "").replaceAll(",", ""));
  const pick = (from, to, isOpen) => setState({ view: "rows", min: from, max: isOpen ? "" : to - 1, row: "", token: "" });
  const note = `All ${plural(DATA.total, "sample")}, by tokens. Choose a bar to see its rows.`;
  return card("Length", note, chart(DATA.lengths, { say, tick: count, noun: "samples", pick, mark: { at: limit, text: "sequence_len" } }));
}

function sharesCard() {
  const say = (from, to) => `${percent(from)} to ${percent(to)} trained`;
  say.what = "share of trained tokens";
  return card("Trained share", "The share of a sample's tokens that is trained, over all samples.",
    chart(DATA.shares, { say, tick: (edge) => percent(edge), noun: "samples" }));
}

function fillCard() {
  if (!DATA.packs) return null;
  const say = (from, to, _, isFirst) => `${isFirst ? "up to" : `${percent(from)} to`} ${percent(to)} full`;
  say.what = "fill";
  const note = `${plural(DATA.packs.count, "pack")} of ${plural(DATA.packs.capacity, "token")}, ${percent(DATA.packs.fill, 1)} full on the whole.`;
  return card("Packing", note, chart(DATA.packs.fills, { say, tick: (edge) => percent(edge), noun: "packs" }));
}

function rolesCard() {
  if (!DATA.roleTokens.length) return null;
  const total = DATA.roleTokens.reduce((sum, [, tokens]) => sum + tokens, 0);
  return card("Tokens by role", "In the rows of this page. What the chat template writes around the messages counts as template.",
    table([["role"], ["tokens", true], ["share", true]], DATA.roleTokens.map(([role, tokens]) => [role, count(tokens), percent(tokens / total, 1)])));
}

function lastTokensCard() {
  const total = DATA.lastTokens.reduce((sum, [, times]) => sum + times, 0);
  return card("Where training stops", "The tokens that end trained text, in the rows of this page: what the model learns to stop with. Ends that sequence_len has made are not counted.",
    table([["token"], ["times", true], ["share", true]], DATA.lastTokens.map(([text, times]) => [element("code", {}, JSON.stringify(text)), count(times), percent(times / total, 1)])));
}

function splitsCard() {
  const rows = DATA.splits.map((line) => [line.name, count(line.samples), count(line.tokens), count(line.supervised), percent(line.tokens ? line.supervised / line.tokens : 0, 1),
    count(line.shortest), count(line.median), count(line.p95), count(line.longest)]);
  const names = ["samples", "tokens", "trained", "share", "shortest", "median", "95%", "longest"];
  const made = card("Splits and datasets", "", table([["split"], ...names.map((name) => [name, true])], rows));
  made.classList.add("full");
  made.querySelectorAll("tbody td:first-child").forEach((cell) => cell.classList.toggle("indent", cell.textContent.startsWith("  ")));
  return made;
}

function findingCard({ title, note, columns, pairs }) {
  if (!pairs.length) return card(title, note);
  return card(title, note, table(columns.map((name) => [name]), pairs.map((pair) => pair.map((place) => element("code", {}, place)))));
}

function factsCard() {
  return linesCard("Made from", "", [...DATA.facts, ["whet", DATA.whet]]);
}

function linesCard(title, note, lines) {
  if (!lines.length) return null;
  return card(title, note, table([[""], [""]], lines.map(([name, value]) => [name, element("code", {}, value)])));
}

// ---- the account: what became of every row ----

function showAccount() {
  const place = byId("account");
  if (place.childElementCount) return;
  const counts = DATA.ledgers.map((ledger) => {
    const dropped = ledger.dropped.reduce((sum, tally) => sum + tally.rows, 0);
    return [ledger.name, count(ledger.read), count(ledger.kept), count(dropped), count(ledger.samples)];
  });
  const overview = card("Rows", "Every row that was read is kept or is counted here.",
    table([["dataset"], ["read", true], ["kept", true], ["dropped", true], ["samples", true]], counts));
  overview.classList.add("full");
  place.append(overview);
  const lost = DATA.ledgers.flatMap((ledger) => [...ledger.dropped.map((tally) => [ledger, `dropped: ${tally.what}`, tally]), ...ledger.cut.map((tally) => [ledger, tally.what, tally])]);
  if (!lost.length) {
    place.append(element("p", { class: "none" }, "Nothing was dropped and nothing was cut."));
    return;
  }
  place.append(...lost.map(([ledger, what, tally]) => {
    const range = !tally.longest ? "" : tally.shortest === tally.longest ? `, ${plural(tally.longest, "token")}` : `, ${count(tally.shortest)} to ${count(tally.longest)} tokens`;
    const more = tally.rows > tally.examples.length ? ` The first ${tally.examples.length}:` : "";
    return card(what, `${plural(tally.rows, "row")} of ${ledger.name}${range}.${more}`,
      table([["row"], ["found"]], tally.examples.map(([at, detail]) => [element("code", {}, at), detail])));
  }));
}
