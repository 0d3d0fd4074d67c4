const MOST_NAMED = 24; // runs in the legend

function drawCurves(host, content) {
  const metrics = Object.entries(content.metrics);
  if (!metrics.length) {
    host.append(element("p", {}, "No run logged anything yet."));
    return () => {};
  }
  const curved = (key) => content.runs.some((run) => run.curves[key] && run.curves[key].x.length > 2); // not an end alone
  const first = ["metric/val_loss@1x", "metric/train_loss"].find(curved) || metrics[0][0];
  const place = element("div", { class: "chart" }), legend = element("ul", { class: "legend" });
  const metric = choice("Metric", "metric", metrics, first, () => { keep("domain", null); draw(); });
  const over = choice("over", "over", [["tokens", "tokens"], ["flops", "compute (FLOPs)"]], "tokens", () => { keep("domain", null); draw(); });
  const again = () => { keep("domain", null); draw(); };
  const logs = [tick("log x", "log x", false, again), tick("log y", "log y", false, again)];
  const by = (factor) => () => { const s = spec(); keep("domain", zoomedBy(s.domain || wholeDomain(s), factor, { x: s.x.log, y: s.y.log })); draw(); };
  const press = (words, does, id) => element("button", { type: "button", click: does, id }, words);
  host.append(
    element("div", { class: "controls" }, metric, over, ...logs, press("Zoom in", by(0.5)), press("Zoom out", by(2)), press("Show all", again, "whole")),
    element("p", { class: "quiet screen" }, "Drag over a part of the chart to zoom; a double click shows all. The filter and the boxes of the table choose the runs."),
    place, legend);

  function spec() {
    const key = metric.querySelector("select").value, x = over.querySelector("select").value;
    const runs = chosenRuns(content).filter((run) => run.curves[key]);
    const log = Object.fromEntries(["x", "y"].map((axis) => [axis, kept(`log ${axis}`, false)]));
    return {
      series: runs.map((run) => ({ name: run.name, index: run.index, line: true, x: along(run, run.curves[key].x, x), y: run.curves[key].y, dots: run.curves[key].x.length <= 20 })),
      x: { label: x === "flops" ? content.columns.flops || "compute (FLOPs)" : "training tokens", log: log.x },
      y: { label: content.metrics[key], log: log.y },
      domain: kept("domain", null),
      settled: true,
      zoomed: (domain) => { keep("domain", domain); draw(); },
    };
  }

  function draw() {
    const now = spec();
    drawChart(place, now);
    const named = now.series.slice(0, MOST_NAMED).map((one) => element("li", {}, swatch(one.index), one.name));
    const rest = now.series.length - named.length;
    legend.replaceChildren(...named, ...(rest > 0 ? [element("li", {}, `and ${rest} more`)] : []));
  }
  draw();
  return draw;
}

function chosenRuns(content) {
  const words = kept("filter", "");
  return content.runs.filter((run) => !isHidden(run) && fits(content, run, words, content.shown));
}

// Tokens, or the compute that they cost this run.
function along(run, tokens, over) {
  if (over !== "flops") return tokens;
  const each = run.numbers.flops / run.numbers.tokens;
  return tokens.map((value) => value * each);
}
