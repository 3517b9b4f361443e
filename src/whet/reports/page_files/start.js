// ---- start ----

const VIEWS = { rows: showRows, packs: showPacks, figures: showFigures, account: showAccount };
const THEMES = { "": "dark", dark: "light", light: "" };

/** Show what the state says. */
function show() {
  hideTip();
  const theme = state.get("theme") ?? "";
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { "": "Theme: system", dark: "Theme: dark", light: "Theme: light" }[theme] ?? "Theme";
  const view = currentView();
  document.querySelectorAll("section[data-view]").forEach((section) => { section.hidden = section.dataset.view !== view; });
  document.querySelectorAll("button[data-view]").forEach((button) => button.setAttribute("aria-current", String(button.dataset.view === view)));
  syncFilters();
  VIEWS[view]();
}

byId("name").textContent = DATA.name;
byId("summary").textContent = `${plural(DATA.total, "sample")} of ${plural(DATA.datasets.length, "dataset")}, ${count(DATA.splits.filter((line) => !line.name.startsWith(" ")).reduce((sum, line) => sum + line.tokens, 0))} tokens`;
fillFilters();
document.querySelectorAll("button[data-view]").forEach((button) => button.addEventListener("click", () => setState({ view: button.dataset.view })));
byId("theme").addEventListener("click", () => setState({ theme: THEMES[state.get("theme") ?? ""] ?? "" }));
byId("reset").addEventListener("click", () => setState(Object.fromEntries([...FILTERS, "token"].map((key) => [key, ""]))));
byId("whitespace").addEventListener("change", (event) => setState({ whitespace: event.target.checked ? "1" : "" }));
byId("more").addEventListener("click", showMore);
new IntersectionObserver((entries) => {
  if (entries.some((each) => each.isIntersecting) && !byId("more").hidden) showMore();
}, { rootMargin: "600px" }).observe(byId("more"));

const tokenAt = (event) => event.target.closest?.(".tok[data-at]");
document.addEventListener("pointerover", (event) => {
  const span = tokenAt(event);
  if (span) showTip(span);
  else hideTip();
});
document.addEventListener("click", (event) => { const span = tokenAt(event); if (span) focusToken(span); });
document.addEventListener("focusin", (event) => { const span = tokenAt(event); if (span) focusToken(span); });
document.addEventListener("keydown", moveFocus);
addEventListener("scroll", followFocus, { passive: true });
addEventListener("hashchange", () => {
  for (const key of [...state.keys()]) state.delete(key);
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) state.set(key, value);
  show();
});
show();
