// Okabe and Ito's colours, which people tell apart however they see colours; dashes come after the eighth.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F5F00"];
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];
const MARGIN = { left: 62, right: 14, top: 10, bottom: 46 };

function look(index) {
  return { colour: COLOURS[index % COLOURS.length], dash: DASHES[Math.floor(index / COLOURS.length) % DASHES.length] };
}

function swatch(index) {
  const { colour, dash } = look(index);
  const line = svg("line", { x1: 0, y1: 6, x2: 22, y2: 6, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash });
  return svg("svg", { class: "swatch", width: 22, height: 12, "aria-hidden": "true" }, line);
}

// spec: series [{name, x, y, index, line, dots, low, high}], x and y {label, log}, domain {x, y} or null for all there
// is, settled: whether the steep fall at the start may leave at the top, share of the width of a page, zoomed(domain).
function drawChart(host, spec) {
  const width = drawChart.printed * (spec.share || 1) || Math.max(290, host.clientWidth || 640);
  const height = spec.height || Math.round(Math.min(430, Math.max(250, width * 0.52)));
  const frame = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const domain = spec.domain || wholeDomain(spec);
  const x = scale(domain.x, [frame.left, frame.right], spec.x.log);
  const y = scale(domain.y, [frame.bottom, frame.top], spec.y.log);
  const clip = "clip" + (drawChart.count = (drawChart.count || 0) + 1);
  const box = { x: frame.left, y: frame.top, width: frame.right - frame.left, height: frame.bottom - frame.top };
  const surface = svg("rect", { class: "surface", ...box });
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.y.label} over ${spec.x.label}` },
    svg("clipPath", { id: clip }, svg("rect", box)),
    ...axes(frame, x, y, domain, spec),
    svg("g", { "clip-path": `url(#${clip})` }, ...spec.series.flatMap((one) => drawSeries(one, x, y))),
    surface);
  const readout = element("p", { class: "readout" }, "");
  host.replaceChildren(picture, readout);
  if (!spec.series.some((one) => one.x.length)) readout.textContent = "There is nothing to draw.";
  attachZoom({ picture, surface, frame, x, y, width, readout }, spec);
}

function wholeDomain(spec) {
  const xs = [], ys = [];
  for (const one of spec.series) {
    const first = spec.settled && !spec.y.log ? Math.floor(one.x.length / 20) : 0;
    one.x.forEach((value, i) => {
      if (!usable(value, spec.x.log)) return;
      xs.push(value);
      for (const column of [i >= first ? one.y : null, one.low, one.high]) {
        if (column && usable(column[i], spec.y.log)) ys.push(column[i]);
      }
    });
  }
  return { x: padded(xs, spec.x.log, 0.02), y: padded(ys, spec.y.log, 0.06) };
}

function usable(value, log) {
  return Number.isFinite(value) && (!log || value > 0);
}

function padded(values, log, share) {
  if (!values.length) return log ? [1, 10] : [0, 1];
  const to = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, to(value)); high = Math.max(high, to(value)); }
  const room = (high - low) * share || (log ? 0.5 : Math.abs(high) * 0.05 || 1);
  return [back(low - room), back(high + room)];
}

function scale([from, to], [start, end], log) {
  const f = log ? Math.log : (v) => v, g = log ? Math.exp : (v) => v;
  const place = (value) => start + ((f(value) - f(from)) / (f(to) - f(from))) * (end - start);
  place.value = (pixel) => g(f(from) + ((pixel - start) / (end - start)) * (f(to) - f(from)));
  return place;
}

function ticks([from, to], log, count) {
  const decades = log ? Math.log10(to / from) : 0;
  if (decades < 0.8) return evenTicks(from, to, count);
  const steps = decades > 2.2 ? [1] : [1, 2, 5], every = decades > 2.2 ? Math.ceil(decades / count) : 1;
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power += every) {
    for (const step of steps) found.push(step * 10 ** power);
  }
  return found.filter((value) => value >= from && value <= to);
}

function evenTicks(from, to, count) {
  const rough = (to - from) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
  const found = [];
  for (let n = Math.ceil(from / step); n * step <= to; n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

function axes(frame, x, y, domain, spec) {
  const found = [];
  const across = Math.max(3, Math.floor((frame.right - frame.left) / 90));
  for (const value of ticks(domain.x, spec.x.log, across)) {
    found.push(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: frame.top, y2: frame.bottom }));
    found.push(svg("text", { x: x(value), y: frame.bottom + 16, "text-anchor": "middle" }, number(value)));
  }
  for (const value of ticks(domain.y, spec.y.log, 6)) {
    found.push(svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }));
    found.push(svg("text", { x: frame.left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  const middle = (frame.top + frame.bottom) / 2;
  found.push(svg("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }));
  found.push(svg("line", { class: "axis", x1: frame.left, x2: frame.left, y1: frame.top, y2: frame.bottom }));
  found.push(label(spec.x.label, (frame.left + frame.right) / 2, frame.bottom + 36, frame.right - frame.left));
  found.push(svg("g", { transform: `translate(14 ${middle}) rotate(-90)` }, label(spec.y.label, 0, 0, frame.bottom - frame.top)));
  return found;
}

// Of a label that is longer than its axis, what stands in brackets is left out.
function label(words, x, y, room) {
  const short = words.length * 6.5 > room ? words.replace(/ \(.*\)$/, "") : words;
  const size = Math.max(9, Math.min(12.5, (room / short.length) * 1.9));
  return svg("text", { x, y, "text-anchor": "middle", style: `font-size: ${size}px` }, short, svg("title", {}, words));
}

function drawSeries(one, x, y) {
  const { colour, dash } = look(one.index);
  const places = one.x.map((value, i) => [x(value), y(one.y[i])]).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  const found = [];
  if (one.low) {
    const edge = [...one.x.map((v, i) => [x(v), y(one.high[i])]), ...one.x.map((v, i) => [x(v), y(one.low[i])]).reverse()];
    const whole = edge.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
    found.push(svg("path", { d: path(whole) + "Z", fill: colour, "fill-opacity": 0.13 }));
  }
  if (one.line) found.push(svg("path", { d: path(places), fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash, "data-name": one.name }));
  if (one.dots || places.length === 1) {
    found.push(...places.map(([a, b]) => svg("circle", { cx: a, cy: b, r: one.line ? 2.5 : 4, fill: colour, "data-name": one.name })));
  }
  return found;
}

function path(places) {
  return places.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
}
