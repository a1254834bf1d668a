"use strict";
/* Line and step charts as SVG; colours that follow the theme are CSS variables. */
const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function format(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(size >= 100 ? digits : Math.max(digits - 1, 3))));
}

function ticks(low, high, count) {
  const step0 = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(step0));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= step0 * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/* series: {name, colour, x, y, step, fill, dash, points}; x holds one value more than y where step is set. */
function chart(title, series, options) {
  const width = 380, height = 240, left = 50, right = 12, top = 10, bottom = 36;
  const xs = series.flatMap((s) => s.x), ys = series.flatMap((s) => s.y);
  const [x0, x1] = options.x || [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = options.y || [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) { y0 -= 0.5; y1 += 0.5; }
  const px = (v) => left + (width - left - right) * (v - x0) / ((x1 - x0) || 1);
  const py = (v) => height - bottom - (height - top - bottom) * (v - y0) / (y1 - y0);
  const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(y0, y1, 4)) {
    svg("line", { x1: left, x2: width - right, y1: py(value), y2: py(value), stroke: "var(--line)" }, image);
    svg("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, image, format(value));
  }
  for (const value of ticks(x0, x1, 5)) svg("text", { x: px(value), y: height - bottom + 15, "text-anchor": "middle" }, image, format(value));
  svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, image, options.xlabel);
  for (const s of series) {
    let path = "";
    s.y.forEach((value, i) => {
      path += `${i ? "L" : "M"}${px(s.x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
      if (s.step) path += `L${px(s.x[i + 1]).toFixed(1)} ${py(value).toFixed(1)}`;
    });
    if (s.fill) svg("path", { d: `${path}L${px(s.x[s.x.length - 1])} ${py(y0)}L${px(s.x[0])} ${py(y0)}Z`, fill: s.colour, "fill-opacity": 0.22 }, image);
    else svg("path", { d: path, fill: "none", stroke: s.colour, "stroke-width": 1.8, "stroke-dasharray": s.dash || "none", "stroke-linejoin": "round" }, image);
    if (s.points) s.y.forEach((value, i) => svg("circle", { cx: px(s.x[i]), cy: py(value), r: 3, fill: s.colour }, image));
  }
  return el("figure", {}, el("figcaption", {}, title), image, legend(series));
}

/* A row a name: its value, and its interval as a line; `lines` are values across all rows. */
function dots(title, rows, lines, unit) {
  const width = 460, left = 130, right = 16, top = 6, row = 24, bottom = 34, height = top + row * rows.length + bottom;
  const all = [...rows.flatMap((r) => [r.value, r.low, r.high]), ...lines.map((l) => l.value)].filter((v) => v !== null);
  const margin = 0.06 * (Math.max(...all) - Math.min(...all)) || 1, low = Math.min(...all) - margin, high = Math.max(...all) + margin;
  const px = (v) => left + (width - left - right) * (v - low) / (high - low);
  const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(low, high, 5)) {
    if (value < low) continue;
    svg("line", { x1: px(value), x2: px(value), y1: top, y2: height - bottom, stroke: "var(--line)" }, image);
    svg("text", { x: px(value), y: height - bottom + 15, "text-anchor": "middle" }, image, format(value));
  }
  svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, image, unit);
  for (const line of lines) svg("line", { x1: px(line.value), x2: px(line.value), y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "5 4" }, image).append(svg("title", {}, null, line.name));
  rows.forEach((r, i) => {
    const y = top + row * (i + 0.5), short = r.name.length > 20 ? `${r.name.slice(0, 19)}…` : r.name;
    svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, image, short).append(svg("title", {}, null, r.name));
    if (r.low !== null && r.high !== null) svg("line", { x1: px(r.low), x2: px(r.high), y1: y, y2: y, stroke: r.colour, "stroke-width": 2 }, image);
    svg("circle", { cx: px(r.value), cy: y, r: 4.5, fill: r.colour }, image);
  });
  const marks = lines.map((line) => ({ name: line.name, colour: "var(--soft)", dash: "5 4" }));
  return el("figure", {}, el("figcaption", {}, title), image, legend(marks));
}

function legend(series) {
  return el("div", { class: "legend" }, ...series.filter((s) => s.name !== null).map((s) => {
    const mark = el("i");
    mark.style.borderColor = s.colour;
    if (s.dash) mark.style.borderTopStyle = "dashed";
    if (s.fill) mark.className = "area";
    return el("span", {}, mark, s.name);
  }));
}
