function drawFits(host, content) {
  if (!content.fits.length) host.append(element("p", {}, "No law was asked for."));
  return content.fits.map((fit, i) => drawFit(host, content, fit, `fit ${i} `));
}

function drawFit(host, content, fit, key) {
  host.append(element("h3", {}, fit.law), element("p", {}, fit.sentence), element("p", {}, element("code", {}, fit.formula)));
  if (fit.why) {
    host.append(element("p", {}, `There is no fit: ${fit.why}`));
    return () => {};
  }
  const reads = fit.reads.map(({ symbol, words }) => `${symbol} is ${words}`).join("; ");
  host.append(element("p", { class: "quiet" }, `${reads}.`), numbersTable(fit));
  const way = fit.way ? `Intervals hold ${Math.round(fit.level * 100)}% of the resamples: ${fit.way}.` : "";
  host.append(element("p", { class: "quiet" }, `${way} ${fit.lack ? `Lack of fit: ${fit.lack}.` : ""}`));
  if (fit.notes.length) host.append(element("ul", {}, ...fit.notes.map((note) => element("li", {}, note))));
  for (const { title, rows } of fit.tables) host.append(element("h3", {}, title), plainTable(rows));
  return drawFitCharts(host, fit, key);
}

function numbersTable(fit) {
  const rows = [["", "", "value", `${Math.round(fit.level * 100)}% interval`, "without any one run"]];
  for (const one of fit.numbers) {
    const range = (low, high) => (low === null || low === undefined ? "-" : `${plain(low)} to ${plain(high)}`);
    rows.push([one.name, one.words, plain(one.value), range(one.low, one.high), one.without ? range(...one.without) : "-"]);
  }
  return plainTable(rows);
}

function plainTable([first, ...rows]) {
  const cells = (tag, row) => row.map((cell) => element(tag, tag === "th" ? { scope: "col" } : {}, cell));
  return element("div", { class: "scroll short" }, element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", first))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row))))));
}

function drawFitCharts(host, fit, key) {
  const x = fit.axis, y = fit.reads[fit.reads.length - 1].words;
  const left = element("div", { class: "chart" }), right = element("div", { class: "chart" });
  const again = () => { keep(key + "domain", null); draw(); };
  const logs = [tick("log x", key + "log x", true, again), tick("log y", key + "log y", false, again)];
  host.append(element("div", { class: "controls" }, ...logs), element("div", { class: "pair" }, left, right));

  function draw() {
    const logx = kept(key + "log x", true), logy = kept(key + "log y", false);
    const points = { name: "runs", names: fit.points.names, index: 0, dots: true, x: fit.points.x };
    const lines = fit.lines.map(({ label, said, ...one }, i) => ({ name: label, index: i + 1, line: true, ...one, y: said }));
    const zoomed = (domain) => { keep(key + "domain", domain); draw(); };
    const axis = { label: x, log: logx };
    drawChart(left, { series: [...lines, { ...points, y: fit.points.y }], x: axis, y: { label: y, log: logy }, domain: kept(key + "domain", null), zoomed, height: 320, share: 0.6 });
    const words = fit.relative ? "residual (ln run - ln law)" : "residual (run - law)";
    const zero = { name: "law", index: 1, line: true, x: ends(fit.points.x), y: [0, 0] };
    drawChart(right, { series: [zero, { ...points, y: fit.points.residual }], x: axis, y: { label: words, log: false }, domain: null, zoomed: () => {}, height: 320, share: 0.4 });
  }
  draw();
  return draw;
}

function ends(values) {
  return [Math.min(...values), Math.max(...values)];
}

function drawNoise(host, { noise }) {
  const kinds = Object.entries(noise.kinds);
  if (!kinds.length) {
    host.append(element("p", {}, "No finished run was repeated with another --seed or --data_seed, so nothing says how large noise is, and no difference below can be judged."));
    return;
  }
  host.append(element("p", {}, "The standard deviation of the loss of a single run, from runs that differ in their seeds alone. A difference of two runs whose 95% interval holds 0 is a tie."));
  host.append(plainTable([["", "standard deviation", "degrees of freedom", "95% interval of a difference of two runs"],
    ...[...kinds.map(([, one]) => one), ...(noise.beside ? [noise.beside] : [])].map((one) => [one.words, number(one.deviation), String(one.free), `+- ${number(one.t * one.deviation * Math.SQRT2)}`])]));
  const settings = Object.keys(noise.groups[0].settings);
  host.append(element("h3", {}, "Repeated runs"), plainTable([[...settings, "runs", "mean loss", ...kinds.map(([, one]) => one.words)],
    ...noise.groups.map((group) => [...settings.map((key) => shown(group.settings[key])), String(group.runs.length), number(group.mean, 5),
      ...kinds.map(([kind]) => (group.spreads[kind] ? `${number(group.spreads[kind].deviation)} (${group.spreads[kind].free})` : "-"))])]));
}
