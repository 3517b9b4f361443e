// ---- tokens: a line of a row as spans, and what is said of the one that is pointed at ----

const ASCII = "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");
const SIGNS = { "\n": "↵\n", "\t": "→\t", " ": "·", "\u00a0": "⍽", "\u3000": "□" };

/** The spans of entries [from, to) of a line, in turns: an array of elements. */
function tokenBlocks(row, line, limit = Infinity) {
  const trained = expanded(row.x[line].l);
  const search = (state.get("search") ?? "").toLowerCase();
  const hits = search ? hitEntries(row.x[line], search) : new Set();
  const kept = trained.length - (row.x[line].c ?? 0);
  const focusRole = state.get("role");
  const blocks = [];
  let turn = null;
  let position = 0;
  const turns = turnsOf(row.x[line], trained.length);
  row.x[line].p.slice(0, limit).forEach((number, at) => {
    if (turn === null || position >= turn.end) {
      turn = turns.find((each) => position < each.end);
      blocks.push(turnBlock(turn, focusRole));
    }
    const token = entry(number);
    const cut = position >= kept;
    if (cut && position - token.ids.length < kept) blocks.at(-1).lastChild.append(element("span", { class: "cutmark" }, `cut here: ${plural(trained.length - kept, "token")} not kept`));
    const classes = ["tok"];
    if (at % 2) classes.push("odd");
    if (trained[position]) classes.push("sup");
    if (token.special) classes.push("spec");
    if (cut) classes.push("cut");
    if (hits.has(at)) classes.push("hit");
    const span = element("span", { class: classes.join(" "), "data-at": at, "data-line": line, "data-position": position });
    span.append(...shownText(token.text));
    blocks.at(-1).lastChild.append(span);
    position += token.ids.length;
  });
  return blocks;
}

function turnBlock(turn, focusRole) {
  const text = element("div", { class: "text" });
  if (turn.role === null) return element("div", { class: "turn plain" }, text);
  const asked = focusRole && turn.role === focusRole;
  return element("div", { class: asked ? "turn asked" : "turn" }, element("div", { class: "role" }, turn.role), text);
}

/** Turns of a line as `{role, body, end}` in tokens; one without a role where turns are not known. */
function turnsOf(line, length) {
  if (!line.t) return [{ role: null, body: 0, end: length }];
  const turns = [];
  let at = 0;
  for (let i = 0; i < line.t.length; i += 3) {
    const [role, header, body] = line.t.slice(i, i + 3);
    turns.push({ role: DATA.roles[role] || "template", body: at + header, end: at + header + body });
    at += header + body;
  }
  if (at < length) turns.push({ role: "", body: at, end: length });
  return turns;
}

/** Run lengths as a list of 0 and 1, from 0: [2, 1] -> [0, 0, 1]. */
function expanded(runs) {
  return runs.flatMap((length, number) => new Array(length).fill(number % 2));
}

/** The entries of a line in which a searched text begins, goes on or ends. */
function hitEntries(line, search) {
  const starts = [0];
  const text = line.p.map((number) => {
    const piece = DATA.tokens[number][1];
    starts.push(starts.at(-1) + piece.length);
    return piece;
  }).join("").toLowerCase();
  const found = new Set();
  let at = 0;
  for (let hit = text.indexOf(search); hit >= 0; hit = text.indexOf(search, hit + search.length)) {
    while (starts[at + 1] <= hit) at += 1;
    for (let each = at; starts[each] < hit + search.length; each += 1) found.add(each);
  }
  return found;
}

/** The text of a token as nodes. What would reorder or hide text is shown as a sign; white space too, when asked for. */
function shownText(text) {
  const asked = state.get("whitespace") === "1";
  if (!asked && !CONTROLS.test(text)) return [text];
  return Array.from(text).flatMap((character) => {
    if (CONTROLS.test(character)) return element("span", { class: "sign" }, controlSign(character));
    if (!asked || !SIGNS[character]) return character;
    const sign = element("span", { class: "sign" }, SIGNS[character]);
    return character === " " ? [sign, element("wbr")] : sign; // a sign is no space: say that the line may break there
  });
}

function controlSign(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return `‹${ASCII[code]}›`;
  return code === 0x7f ? "‹DEL›" : `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
}

// ---- the tip: id, label, position, bytes ----

function describe(span) {
  const row = DATA.rows[Number(span.closest("[data-row]").dataset.row)];
  const line = row.x[Number(span.dataset.line)];
  const position = Number(span.dataset.position);
  const token = entry(line.p[Number(span.dataset.at)]);
  const trained = span.classList.contains("sup");
  const turn = turnsOf(line, Infinity).find((each) => position < each.end);
  const facts = [
    [token.ids.length > 1 ? "ids" : "id", token.ids.join(", ")],
    ["position", token.ids.length > 1 ? `${position} to ${position + token.ids.length - 1}` : String(position)],
    ["label", label(span, token, trained, position)],
    ["bytes", token.bytes ? token.bytes.join(" | ") : hex(token.text)],
    ["code points", Array.from(token.text, codePoint).slice(0, 8).join(" ")],
  ];
  if (turn && turn.role !== null) facts.push(["role", position < turn.body ? `template, before ${turn.role || "the end"}` : turn.role]);
  if (token.special) facts.push(["kind", "special token"]);
  if (token.ids.length > 1) facts.push(["kind", `${token.ids.length} tokens of one character`]);
  return element("div", {}, element("strong", {}, JSON.stringify(token.text).replace(new RegExp(CONTROLS, "g"), controlSign)),
    element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
}

function label(span, token, trained, position) {
  if (span.classList.contains("cut")) return "none: cut away by sequence_len";
  if (trained) return `${token.ids.join(", ")} (trained)`;
  return position === 0 ? "-100 (the first token is never trained)" : "-100 (not trained)";
}

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const hex = (text) => Array.from(new TextEncoder().encode(text), (byte) => byte.toString(16).padStart(2, "0")).slice(0, 24).join(" ");

function showTip(span) {
  const tip = byId("tip");
  tip.replaceChildren(describe(span));
  tip.hidden = false;
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

/** Keep the tip at the token that has the focus while the page moves; hide it when that token leaves the window. */
function followFocus() {
  const span = document.activeElement?.closest(".tok[data-at]");
  const box = span?.getBoundingClientRect();
  if (span && !byId("tip").hidden && box.bottom > 0 && box.top < innerHeight) showTip(span);
  else hideTip();
}

function hideTip() { byId("tip").hidden = true; }

/** Arrow keys, Home and End go from token to token within a row. */
function moveFocus(event) {
  const span = event.target.closest?.(".tok[data-at]");
  if (!span) return;
  const all = [...span.closest("[data-row]").querySelectorAll(".tok[data-at]")];
  const at = all.indexOf(span);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Escape") hideTip();
  if (next === undefined || !all[next]) return;
  event.preventDefault();
  focusToken(all[next]);
}

function focusToken(span) {
  span.closest("[data-row]").querySelectorAll('.tok[tabindex="0"]').forEach((each) => each.setAttribute("tabindex", "-1"));
  span.setAttribute("tabindex", "0");
  span.setAttribute("aria-describedby", "tip");
  span.focus();
  showTip(span);
}
