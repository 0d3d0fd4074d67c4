"use strict";

// Elements are made of text nodes only, so that no name of a run is ever read as HTML.
function element(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function control(words, input, kind) {
  return element("label", { class: kind || "" }, ...(kind === "tick" ? [input, words] : [words, input]));
}

function tick(words, key, fallback, changed) {
  const input = element("input", { type: "checkbox", "data-key": key, change: () => { keep(key, input.checked); changed(); } });
  input.checked = kept(key, fallback);
  return control(words, input, "tick");
}

function choice(words, key, options, fallback, changed) {
  const entries = options.map(([value, shown]) => element("option", { value }, shown));
  const select = element("select", { "data-key": key, change: () => { keep(key, select.value); changed(); } }, ...entries);
  const before = kept(key, fallback);
  select.value = options.some(([value]) => value === before) ? before : fallback;
  return control(words, select);
}

// What the reader chose outlives the reload of a live page. Some browsers have no storage for files.
const STORE = "report " + location.pathname;
const choices = (() => {
  try { return JSON.parse(sessionStorage.getItem(STORE)) || {}; } catch { return {}; }
})();

function kept(key, fallback) {
  return key in choices ? choices[key] : fallback;
}

function keep(key, value) {
  choices[key] = value;
  try { sessionStorage.setItem(STORE, JSON.stringify(choices)); } catch { /* it is kept until the page is closed */ }
}

const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e14 || size < 1e-3)) return value.toExponential(Math.min(2, digits - 1)).replace(/\.?0+e/, "e").replace("e+", "e");
  const [scale, unit] = UNITS.find(([least]) => size >= least * 0.99995) || [1, ""];
  return String(Number((value / scale).toPrecision(digits))) + unit;
}

// A number that is no count: without units.
function plain(value) {
  if (value === null || value === undefined) return "-";
  return Math.abs(value) >= 1e6 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  if (Number.isInteger(value) && Math.abs(value) < 1e5) return String(value);
  if (typeof value === "number") return number(value, 5);
  return typeof value === "string" ? value : JSON.stringify(value);
}
