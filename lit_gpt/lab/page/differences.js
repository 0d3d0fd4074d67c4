const PARTS = { plan: "Plan", model: "model", numerics: "numerics", ran: "what ran it" };

function drawDifferences(host, content) {
  const names = content.runs.map((run) => [String(run.index), run.name]);
  const a = choice("Run", "a", names, "0", () => draw());
  const b = choice("beside", "b", [["", "nothing: show all of it"], ...names], names.length > 1 ? "1" : "", () => draw());
  const place = element("div", { id: "compared" });
  host.append(element("div", { class: "controls" }, a, b), place);

  function draw() {
    const first = content.runs[Number(a.querySelector("select").value)], other = b.querySelector("select").value;
    place.replaceChildren(...(other === "" ? all(content, first) : between(content, first, content.runs[Number(other)])));
  }
  draw();
}

function between(content, a, b) {
  const of = (run) => (key) => shown(configured(content, run, key)), [mine, theirs] = [of(a), of(b)];
  const keys = [...new Set([...Object.keys(a.own), ...Object.keys(b.own)])].filter((key) => mine(key) !== theirs(key));
  const found = [element("p", {}, lossBetween(content, a, b))];
  const numbers = Object.keys(content.columns).filter((key) => a.numbers[key] !== b.numbers[key]);
  found.push(element("h3", {}, "numbers"), sideBySide([a.name, b.name], numbers.map((key) => [key, shown(a.numbers[key]), shown(b.numbers[key])])));
  for (const [part, words] of parts()) {
    const rows = keys.filter((key) => partOf(key) === part).map((key) => [bare(key), mine(key), theirs(key)]);
    if (rows.length) found.push(element("h3", {}, words), sideBySide([a.name, b.name], rows));
  }
  if (!keys.length) found.push(element("p", {}, "Their configurations are the same."));
  return found;
}

// A difference whose 95% interval holds 0 is a tie; the noise is that of runs that share their seeds where both do, else
// that of other weights and another order, or the kind that is known.
function lossBetween(content, a, b) {
  const x = a.numbers.loss, y = b.numbers.loss;
  if (x === undefined || y === undefined) return "One of them has no validation loss yet.";
  const said = `The loss of ${b.name} is ${number(Math.abs(y - x))} ${y > x ? "higher" : "lower"}.`;
  const paired = ["seed", "data_seed"].every((key) => a.numbers[key] !== undefined && a.numbers[key] === b.numbers[key]) && content.noise.beside;
  const noise = paired || content.noise.kinds.both || Object.values(content.noise.kinds)[0];
  if (!noise) return `${said} No run was repeated, so nothing says whether that is noise.`;
  const error = noise.deviation * Math.SQRT2, errors = y === x ? 0 : Math.abs(y - x) / error;
  const verdict = errors <= noise.t ? "a tie" : "more than noise";
  return `${said} That is ${number(errors, 2)} standard errors of ${number(error, 3)} (+- ${number(noise.t * error, 3)}, 95%; ${noise.free} degrees of freedom${paired ? ", of runs that share their seeds" : ""}): ${verdict}.`;
}

function all(content, run) {
  const values = { ...(run.started ? content.shared : {}), ...run.own };
  return parts().flatMap(([part, words]) => {
    const rows = Object.keys(values).filter((key) => partOf(key) === part).sort().map((key) => [bare(key), shown(values[key])]);
    return rows.length ? [element("details", { open: part === "" }, element("summary", {}, words), sideBySide([run.name], rows))] : [];
  });
}

function parts() {
  return [["", "options"], ...Object.entries(PARTS)];
}

function partOf(key) {
  const part = key.split(".")[0];
  return part in PARTS && key.includes(".") ? part : "";
}

function bare(key) {
  return partOf(key) ? key.slice(key.indexOf(".") + 1) : key;
}

function sideBySide(names, rows) {
  const cells = (row) => row.map((cell, i) => element("td", { class: i ? "text" : "" }, cell));
  return element("div", { class: "scroll short" }, element("table", {},
    element("thead", {}, element("tr", {}, ...["", ...names].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row))))));
}
