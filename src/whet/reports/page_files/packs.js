// ---- packs: which documents share a row of the first epoch ----

function showPacks() {
  const place = byId("packs");
  if (place.childElementCount) return;
  const packs = DATA.packs;
  if (!packs) {
    place.append(element("p", { class: "none" }, "sample_packing is off: every row of a batch is one sample."));
    return;
  }
  const known = new Map(DATA.rows.filter((row) => row.s === "train").map((row) => [row.i, row]));
  const intro = `The first ${plural(packs.first.length, "pack")} of ${count(packs.count)} in the first epoch, in the order they are trained. ` +
    `A pack holds up to ${plural(packs.capacity, "token")}; all packs together are ${percent(packs.fill, 1)} full. Attention never crosses from one document to the next.`;
  place.append(element("div", { class: "card" }, element("h2", {}, "Packs"), element("p", { class: "note" }, intro), packKey()));
  place.append(...packs.first.map((members, number) => packItem(number, members, known)));
}

/** Which colour is which dataset; nothing where there is one. */
function packKey() {
  if (DATA.datasets.length < 2) return "";
  return element("div", { class: "key" }, ...DATA.datasets.map((name, at) => element("span", {}, element("i", { class: `d${at % 4}` }), name)));
}

function packItem(number, members, known) {
  const { capacity, lengths: { [number]: lengths }, datasets: { [number]: datasets } } = DATA.packs;
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const strip = element("span", { class: "strip", "aria-hidden": "true", title: `${count(total)} of ${plural(capacity, "token")}` });
  members.forEach((member, at) => {
    const row = known.get(member);
    const part = element("i", { class: `d${datasets[at] % 4}`, title: `${row ? row.at : `sample ${member}`}: ${plural(lengths[at], "token")}` });
    part.style.width = percent(lengths[at] / capacity, 3);
    strip.append(part);
  });
  const title = element("span", {}, element("b", {}, `Pack ${number + 1}`), ` ${plural(members.length, "document")}, ${percent(total / capacity)} full`);
  const item = element("details", { class: "pack" }, element("summary", {}, title, strip));
  item.addEventListener("toggle", () => {
    if (item.childElementCount > 1) return;
    members.forEach((member, at) => item.append(...packDocument(at, member, lengths, known.get(member))));
  });
  return item;
}

/** A document of a pack: the border before it, then its tokens. */
function packDocument(at, member, lengths, row) {
  const begin = lengths.slice(0, at).reduce((sum, length) => sum + length, 0);
  const where = row ? row.at : `sample ${member}`;
  const border = element("div", { class: "border" }, `document ${at + 1} of ${lengths.length}: ${where}, ${plural(lengths[at], "token")} from ${count(begin)} on`);
  if (!row) return [border, element("p", { class: "border" }, "its text is not among the rows of this page; --rows shows more")];
  const body = element("div", { "data-row": row.number }, ...rowLines(row, Infinity));
  return [border, body];
}
