"use strict";
/* The map: the network on one canvas, the chosen trip and its players on another above it. Metres, north upwards. */
function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

class TripMap {
  constructor(data, colourOf) {
    this.colourOf = colourOf;
    this.pairs = data.pairs;
    const { unit, vertices, counts } = data.network;
    const steps = decode(vertices, Uint16Array), lengths = decode(counts, Uint16Array);
    this.points = Float32Array.from(steps, (v) => v * unit);
    this.offsets = new Uint32Array(lengths.length + 1);
    lengths.forEach((n, i) => { this.offsets[i + 1] = this.offsets[i] + n; });
    this.network = new Path2D();
    for (let road = 0; road < lengths.length; road++) this.trace(this.network, road, true);
    this.base = document.getElementById("base");
    this.overlay = document.getElementById("overlay");
    this.selected = null;
    this.time = Infinity;
    this.onPick = () => {};
    this.frames = [];
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.overlay);
  }

  trace(path, road, starts) {
    for (let v = this.offsets[road]; v < this.offsets[road + 1]; v++) {
      const x = this.points[2 * v], y = -this.points[2 * v + 1];
      if (starts && v === this.offsets[road]) path.moveTo(x, y); else path.lineTo(x, y);
    }
  }

  line(trip) {
    const path = new Path2D();
    trip.roads.forEach((road, i) => this.trace(path, road, i === 0));
    return path;
  }

  start(road) { return [this.points[2 * this.offsets[road]], -this.points[2 * this.offsets[road] + 1]]; }

  end(road) { const v = this.offsets[road + 1] - 1; return [this.points[2 * v], -this.points[2 * v + 1]]; }

  /* Where a trip is so many seconds after its departure: along the road entered last. */
  place(trip, seconds) {
    let low = 0, high = trip.times.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (trip.times[middle] <= seconds) low = middle; else high = middle - 1; }
    const road = trip.roads[low];
    if (low === trip.times.length - 1) return this.end(road);
    const share = (seconds - trip.times[low]) / Math.max(trip.times[low + 1] - trip.times[low], 1e-9);
    return this.along(road, Math.min(Math.max(share, 0), 1));
  }

  along(road, share) {
    const a = this.offsets[road], b = this.offsets[road + 1] - 1, at = (v) => [this.points[2 * v], -this.points[2 * v + 1]];
    const lengths = [];
    for (let v = a; v < b; v++) { const p = at(v), q = at(v + 1); lengths.push(Math.hypot(q[0] - p[0], q[1] - p[1])); }
    let left = share * lengths.reduce((s, l) => s + l, 0);
    for (let v = a; v < b; v++) {
      const length = lengths[v - a];
      if (left <= length && length > 0) { const p = at(v), q = at(v + 1), f = left / length; return [p[0] + f * (q[0] - p[0]), p[1] + f * (q[1] - p[1])]; }
      left -= length;
    }
    return at(b);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1, box = this.overlay.getBoundingClientRect();
    if (!box.width) return;
    for (const canvas of [this.base, this.overlay]) { canvas.width = Math.round(box.width * ratio); canvas.height = Math.round(box.height * ratio); }
    this.ratio = ratio; this.width = box.width; this.height = box.height;
    if (!this.view) this.fit(); else this.draw();
  }

  /* view: metres at the centre, and pixels a metre. */
  fit() {
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    const add = (x, y) => { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); };
    if (this.selected) {
      for (const trip of this.trips()) for (const road of trip.roads) for (let v = this.offsets[road]; v < this.offsets[road + 1]; v++) add(this.points[2 * v], -this.points[2 * v + 1]);
    } else for (let v = 0; v < this.points.length / 2; v++) add(this.points[2 * v], -this.points[2 * v + 1]);
    const margin = this.selected ? 0.78 : 0.95;
    this.view = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, k: margin * Math.min(this.width / Math.max(x1 - x0, 80), this.height / Math.max(y1 - y0, 80)) };
    this.draw();
  }

  trips() { return [this.selected.real, ...Object.values(this.selected.models)]; }

  select(pair) { this.selected = pair; this.time = Infinity; if (this.view) this.fit(); }

  setTime(seconds) { this.time = seconds; this.drawOverlay(); }

  transform(context) {
    const { x, y, k } = this.view, r = this.ratio;
    context.setTransform(k * r, 0, 0, k * r, r * (this.width / 2 - k * x), r * (this.height / 2 - k * y));
  }

  draw() {
    if (!this.view) return;
    const started = performance.now(), context = this.base.getContext("2d"), { k } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.base.width, this.base.height);
    this.transform(context);
    context.strokeStyle = css("--road");
    context.lineWidth = Math.min(2.2, Math.max(0.7, 6 * k)) / k;
    context.stroke(this.network);
    this.drawOverlay();
    this.drawScale();
    this.frames.push(performance.now() - started);
  }

  drawOverlay() {
    if (!this.view) return;
    const context = this.overlay.getContext("2d"), { k } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    this.transform(context);
    context.lineCap = context.lineJoin = "round";
    if (!this.selected) { this.drawOrigins(context, k); return; }
    const stroke = (trip, colour, width, alpha, dash) => {
      context.globalAlpha = alpha; context.strokeStyle = colour; context.lineWidth = width / k;
      context.setLineDash(dash.map((d) => d / k)); context.stroke(this.line(trip)); context.globalAlpha = 1; context.setLineDash([]);
    };
    stroke(this.selected.real, css("--real"), 9, 0.32, []);
    const models = Object.entries(this.selected.models);
    models.forEach(([name, trip], i) => stroke(trip, this.colourOf(name), 4 - 0.8 * Math.min(i, 3), 1, i ? [9, 7] : []));
    this.dot(context, this.start(this.selected.origin), 7, css("--card"), css("--ink"));
    this.square(context, this.end(this.selected.destination), 6.5, css("--ink"));
    if (Number.isFinite(this.time)) {
      this.dot(context, this.place(this.selected.real, this.time), 6.5, css("--real"), css("--card"));
      for (const [name, trip] of models) this.dot(context, this.place(trip, this.time), 6.5, this.colourOf(name), css("--card"));
    }
  }

  drawOrigins(context, k) {
    for (const pair of this.pairs) this.dot(context, this.start(pair.origin), 3.5, css("--accent"), css("--card"));
  }

  dot(context, [x, y], radius, fill, line) {
    const { k } = this.view;
    context.beginPath(); context.arc(x, y, radius / k, 0, 7); context.fillStyle = fill; context.fill();
    context.lineWidth = 2 / k; context.strokeStyle = line; context.stroke();
  }

  square(context, [x, y], half, fill) {
    const size = half / this.view.k;
    context.fillStyle = fill; context.fillRect(x - size, y - size, 2 * size, 2 * size);
    context.lineWidth = 2 / this.view.k; context.strokeStyle = css("--card"); context.strokeRect(x - size, y - size, 2 * size, 2 * size);
  }

  drawScale() {
    const most = 110 / this.view.k, power = 10 ** Math.floor(Math.log10(most));
    const metres = [5, 2, 1].map((m) => m * power).find((m) => m <= most);
    const bar = document.getElementById("scale");
    bar.style.width = `${metres * this.view.k}px`;
    bar.textContent = metres >= 1000 ? `${metres / 1000} km` : `${metres} m`;
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const view = this.view, k = Math.min(Math.max(view.k * factor, 0.002), 8);
    const dx = px - this.width / 2, dy = py - this.height / 2;
    view.x += dx / view.k - dx / k; view.y += dy / view.k - dy / k; view.k = k;
    this.later();
  }

  pan(dx, dy) { this.view.x -= dx / this.view.k; this.view.y -= dy / this.view.k; this.later(); }

  later() { if (!this.asked) { this.asked = true; requestAnimationFrame(() => { this.asked = false; this.draw(); }); } }

  listen() {
    const canvas = this.overlay, fingers = new Map();
    let moved = 0;
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, at(event)); moved = 0; canvas.classList.add("dragging"); });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = at(event), other = [...fingers].find(([id]) => id !== event.pointerId);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (other) {
        const distance = (p) => Math.max(Math.hypot(p[0] - other[1][0], p[1] - other[1][1]), 1);
        this.zoom(distance(now) / distance(before), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      } else this.pan(now[0] - before[0], now[1] - before[1]);
      fingers.set(event.pointerId, now);
    });
    const up = (event) => { const had = fingers.delete(event.pointerId); canvas.classList.remove("dragging"); if (had && event.type === "pointerup" && moved < 5) this.pick(...at(event)); };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...at(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 60, keys = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (keys[event.key]) this.pan(...keys[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(1.4);
      else if (event.key === "-") this.zoom(1 / 1.4);
      else if (event.key === "Escape") this.onPick(null);
      else return;
      event.preventDefault();
    });
  }

  pick(px, py) {
    const x = this.view.x + (px - this.width / 2) / this.view.k, y = this.view.y + (py - this.height / 2) / this.view.k;
    let best = null, least = 14 / this.view.k;
    for (const pair of this.pairs) {
      const [a, b] = this.start(pair.origin), distance = Math.hypot(a - x, b - y);
      if (distance < least) { least = distance; best = pair; }
    }
    if (best && !this.selected) this.onPick(best);
    else if (this.selected && !best) this.onPick(null);
  }
}
