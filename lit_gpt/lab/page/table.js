const OPERATORS = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b, "==": (a, b) => a === b, "!=": (a, b) => a !== b,
};

function valueOf(content, run, name) {
  if (name === "name" || name === "state") return run[name];
  return name in run.numbers ? run.numbers[name] : configured(content, run, name);
}

// What a run has for itself, or all that started have.
function configured(content, run, name) {
  if (name in run.own) return run.own[name];
  return run.started && name in content.shared ? content.shared[name] : null;
}

// Words that must all be true of a run: depth=8, loss<2.5, or text that its name, state or a shown cell has.
function fits(content, run, words, columns) {
  return words.split(/\s+/).filter(Boolean).every((word) => {
    const parts = word.match(/^([^<>=!]+)(<=|>=|!=|==|=|<|>)(.+)$/);
    if (!parts) return ["name", "state", ...columns].some((c) => shown(valueOf(content, run, c)).toLowerCase().includes(word.toLowerCase()));
    const value = valueOf(content, run, parts[1]), given = Number(parts[3]);
    if (value === null) return false;
    return OPERATORS[parts[2]](typeof value === "number" ? value : String(value), typeof value === "number" ? given : parts[3]);
  });
}

function inOrder(content, runs, { column, falling }) {
  const missing = (v) => v === null || v === undefined;
  return [...runs].sort((a, b) => {
    const x = valueOf(content, a, column), y = valueOf(content, b, column);
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const order = typeof x === "number" && typeof y === "number" ? x - y : byName(x, y);
    return falling ? -order : order;
  });
}

// Numbers inside names by their value: d2_lr0.015 is before d2_lr0.03, and d9 before d10.
function byName(x, y) {
  const [a, b] = [x, y].map((text) => String(text).split(/(\d+(?:\.\d+)?)/));
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    const order = i % 2 ? a[i] - b[i] : a[i].localeCompare(b[i], "en");
    if (order) return order;
  }
  return a.length - b.length;
}

function drawRuns(host, content, changed) {
  const search = element("input", { type: "search", id: "filter", placeholder: "such as depth=8 loss<2.5 muon", "aria-label": "Filter" });
  search.value = kept("filter", "");
  search.addEventListener("input", () => { keep("filter", search.value); draw(); changed(); });
  const names = [...Object.keys(content.columns), ...settingsOf(content)].filter((name) => !content.shown.includes(name));
  const more = choice("Add a column", "column", [["", "none"], ...names.map((name) => [name, name])], "", () => draw());
  const count = element("p", { class: "quiet", "aria-live": "polite" });
  const holder = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of runs" });
  host.append(element("div", { class: "controls" }, control("Filter", search), more), count, holder);

  function draw() {
    const extra = more.querySelector("select").value;
    const columns = extra ? [...content.shown, extra] : content.shown;
    const sort = kept("sort", { column: "name", falling: false });
    const left = content.runs.filter((run) => fits(content, run, search.value, columns));
    const runs = sort.column ? inOrder(content, left, sort) : left;
    const states = Object.keys(content.states).map((state) => [content.runs.filter((run) => run.state === state).length, state]);
    const counts = states.filter(([n]) => n).map(([n, state]) => `${n} ${state}`).join(", ");
    count.textContent = `${runs.length} of ${content.runs.length} runs are shown (${counts}).`;
    holder.replaceChildren(element("table", {}, head(content, columns, sort, draw), body(content, columns, runs, changed)));
  }
  draw();
}

function settingsOf(content) {
  return [...new Set(content.runs.flatMap((run) => Object.keys(run.own)))].sort();
}

function head(content, columns, sort, draw) {
  const cells = ["name", "state", ...columns].map((name) => {
    const now = sort.column === name;
    const press = () => { keep("sort", { column: name, falling: now && !sort.falling }); draw(); };
    const arrow = now ? (sort.falling ? " \u25bc" : " \u25b2") : "";
    const words = content.columns[name] || "";
    return element("th", { scope: "col", class: numeric(content, name) ? "number" : "", title: words, "aria-sort": now ? (sort.falling ? "descending" : "ascending") : "none" },
      element("button", { type: "button", click: press, "data-column": name }, name + arrow));
  });
  return element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "draw"), ...cells));
}

function numeric(content, name) {
  return content.runs.some((run) => typeof valueOf(content, run, name) === "number");
}

function body(content, columns, runs, changed) {
  return element("tbody", {}, ...runs.map((run) => {
    const box = element("input", { type: "checkbox", "aria-label": `draw ${run.name}`, change: () => { hide(run, !box.checked); changed(); } });
    box.checked = !isHidden(run);
    const cells = columns.map((name) => element("td", { class: numeric(content, name) ? "number" : "" }, shown(valueOf(content, run, name))));
    const state = element("span", { class: `state ${run.state}`, title: content.states[run.state] || "" }, run.state);
    return element("tr", { "data-run": run.name }, element("td", {}, box, swatch(run.index)),
      element("td", { class: "run", title: run.folder || run.name }, run.name), element("td", {}, state), ...cells);
  }));
}

function isHidden(run) {
  return kept("hidden", []).includes(run.name);
}

function hide(run, yes) {
  const others = kept("hidden", []).filter((name) => name !== run.name);
  keep("hidden", yes ? [...others, run.name] : others);
}
