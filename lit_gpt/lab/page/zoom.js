// Dragging chooses what a chart shows: both axes with a mouse, or the horizontal one where the drag is flat, as on a
// phone. A double click shows all again. Moving tells the nearest point.
const FLAT = 12; // pixels
const TWICE = 500; // milliseconds between two clicks, or taps, that are a double one

function attachZoom(chart, spec) {
  const { surface, picture } = chart;
  let start = null, chosen = null, before = -Infinity;
  surface.addEventListener("pointerdown", (event) => {
    start = place(chart, event);
    chosen = svg("rect", { class: "chosen" });
    picture.append(chosen);
    surface.setPointerCapture(event.pointerId);
  });
  surface.addEventListener("pointermove", (event) => {
    const now = place(chart, event);
    if (start) mark(chosen, corners(chart, start, now));
    else chart.readout.textContent = nearest(chart, spec, now);
  });
  surface.addEventListener("pointerup", (event) => {
    const area = start && corners(chart, start, place(chart, event));
    if (chosen) chosen.remove();
    start = chosen = null;
    if (area && area.right - area.left > FLAT / 2) spec.zoomed(inside(chart, area));
    else if (event.timeStamp - before < TWICE) spec.zoomed(null);
    else before = event.timeStamp;
  });
  surface.addEventListener("pointercancel", () => { if (chosen) chosen.remove(); start = chosen = null; });
  surface.addEventListener("pointerleave", () => { if (!start) chart.readout.textContent = ""; });
}

function place({ picture, width, frame }, event) {
  const box = picture.getBoundingClientRect(), ratio = width / box.width;
  const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
  return { x: Math.min(frame.right, Math.max(frame.left, x)), y: Math.min(frame.bottom, Math.max(frame.top, y)) };
}

function corners({ frame }, a, b) {
  const flat = Math.abs(a.y - b.y) < FLAT;
  return {
    left: Math.min(a.x, b.x), right: Math.max(a.x, b.x),
    top: flat ? frame.top : Math.min(a.y, b.y), bottom: flat ? frame.bottom : Math.max(a.y, b.y),
  };
}

function mark(node, { left, right, top, bottom }) {
  for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) node.setAttribute(name, value);
}

function inside({ x, y }, { left, right, top, bottom }) {
  return { x: [x.value(left), x.value(right)], y: [y.value(bottom), y.value(top)] };
}

// Half or twice of what is shown, around its middle.
function zoomedBy(domain, factor, logs) {
  const about = ([from, to], log) => {
    const f = log ? Math.log : (v) => v, g = log ? Math.exp : (v) => v;
    const middle = (f(from) + f(to)) / 2, half = ((f(to) - f(from)) / 2) * factor;
    return [g(middle - half), g(middle + half)];
  };
  return { x: about(domain.x, logs.x), y: about(domain.y, logs.y) };
}

function nearest({ x, y }, spec, at) {
  let best = null, least = 40 ** 2;
  for (const one of spec.series) {
    one.x.forEach((value, i) => {
      const distance = (x(value) - at.x) ** 2 + (y(one.y[i]) - at.y) ** 2;
      if (distance < least) { least = distance; best = { one, i }; }
    });
  }
  if (!best) return "";
  const { one, i } = best;
  const name = one.names ? one.names[i] : one.name;
  return `${name}: ${number(one.y[i], 5)} at ${number(one.x[i])}`;
}
