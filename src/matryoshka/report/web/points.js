// Up to some ten thousand points on a canvas: where they lie, which are drawn how, and which one is under a pointer.
// Knows places and groups of colour only; what a point is, its user knows.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const MARGIN = 36;      // pixels around everything when all is shown
  const CLOSEST = 400;    // how many times nearer than that one can go
  const REACH = 14;       // pixels from a pointer to the point that it means

  class Points {
    constructor(canvas) {
      Object.assign(this, { canvas, context: canvas.getContext("2d"), x: [], y: [], groups: [], labels: [], faint: null,
        marked: null });
      this.middle = { x: 0, y: 0 };
      this.scale = this.whole = 1;  // pixels a unit; and where everything is seen
    }

    // coordinates: two equally long lists
    place(x, y) {
      Object.assign(this, { x, y });
      this.resize();
      this.fit();
    }

    resize() {
      const { width, height } = this.canvas.getBoundingClientRect();
      const ratio = window.devicePixelRatio || 1;
      if (!width || (width === this.width && height === this.height && ratio === this.ratio)) return false;  // 0: out of the page
      Object.assign(this, { width, height, ratio });
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      return true;
    }

    fit() {
      let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
      for (let i = 0; i < this.x.length; i += 1) {
        left = Math.min(left, this.x[i]); right = Math.max(right, this.x[i]);
        top = Math.min(top, this.y[i]); bottom = Math.max(bottom, this.y[i]);
      }
      if (!this.x.length) return;
      this.middle = { x: (left + right) / 2, y: (top + bottom) / 2 };
      const room = (size) => Math.max(40, size - 2 * MARGIN);
      this.whole = Math.min(room(this.width) / Math.max(1, right - left), room(this.height) / Math.max(1, bottom - top));
      this.scale = this.whole;
      this.later();
    }

    // ── the view ────────────────────────────────────────────────────────────────────────────────────────────────────

    move(dx, dy) {
      this.middle = { x: this.middle.x - dx / this.scale, y: this.middle.y - dy / this.scale };
      this.later();
    }

    // `at`, in pixels, stays where it is
    zoom(factor, at = { x: this.width / 2, y: this.height / 2 }) {
      const scale = Math.max(this.whole / 2, Math.min(this.whole * CLOSEST, this.scale * factor));
      const [dx, dy] = [at.x - this.width / 2, at.y - this.height / 2];
      this.middle = { x: this.middle.x + dx / this.scale - dx / scale, y: this.middle.y + dy / this.scale - dy / scale };
      this.scale = scale;
      this.later();
    }

    show(point, nearer = 6) {
      this.middle = { x: this.x[point], y: this.y[point] };
      this.scale = Math.max(this.scale, nearer * this.whole);
      this.later();
    }

    on(point) {
      return [(this.x[point] - this.middle.x) * this.scale + this.width / 2,
        (this.y[point] - this.middle.y) * this.scale + this.height / 2];
    }

    nearest({ x, y }, reach = REACH) {
      const [atX, atY] = [(x - this.width / 2) / this.scale + this.middle.x, (y - this.height / 2) / this.scale + this.middle.y];
      let best = null, least = (reach / this.scale) ** 2;
      for (let i = 0; i < this.x.length; i += 1) {
        const distance = (this.x[i] - atX) ** 2 + (this.y[i] - atY) ** 2;
        if (distance < least && !this.faint?.[i]) [best, least] = [i, distance];
      }
      return best;
    }

    // ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    get radius() {
      const usual = this.x.length > 12000 ? 1.2 : this.x.length > 2500 ? 1.9 : 3.4;
      return usual * Math.min(4, Math.max(1, (this.scale / this.whole) ** 0.45));
    }

    // groups: [{colour, points}]; labels: [{text, x, y}]; faint: which points recede, or null
    paint({ groups = this.groups, labels = this.labels, faint = this.faint }) {
      Object.assign(this, { groups, labels, faint });
      this.later();
    }

    later() {
      this.frame ??= requestAnimationFrame(() => { this.frame = null; if (this.canvas.isConnected && this.width) this.draw(); });
    }

    draw() {
      const { context, width, height, ratio } = this;
      const { now, NONE } = matryoshka.colours;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      const dots = matryoshka.dots(context, ratio, this.radius);
      const place = { scale: this.scale, x: this.x, y: this.y, left: width / 2 - this.middle.x * this.scale,
        top: height / 2 - this.middle.y * this.scale };
      const faint = this.faint;
      if (faint) for (const { points } of this.groups) dots.draw(now(NONE), 0.4, points, (i) => faint[i], place);
      for (const { colour, points } of this.groups) dots.draw(now(colour), 0.85, points, faint ? (i) => !faint[i] : () => true,
        place);
      dots.end();
      this.write();
      if (this.marked !== null) this.circle(this.marked);
    }

    circle(point) {
      const { context } = this, [x, y] = this.on(point);
      context.strokeStyle = getComputedStyle(this.canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, this.radius + 4, 0, 2 * Math.PI);
      context.stroke();
    }

    // those that find room, the first ones first
    write() {
      const { context } = this, style = getComputedStyle(this.canvas), taken = [];
      context.font = `500 12px ${style.fontFamily}`;
      Object.assign(context, { textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: 4,
        strokeStyle: style.backgroundColor,
        fillStyle: style.color });
      for (const { text, x: atX, y: atY } of this.labels) {
        const x = (atX - this.middle.x) * this.scale + this.width / 2, y = (atY - this.middle.y) * this.scale + this.height / 2;
        const half = context.measureText(text).width / 2 + 4;
        const box = [x - half, y - 9, x + half, y + 9];
        if (box[0] < 0 || box[1] < 0 || box[2] > this.width || box[3] > this.height) continue;
        if (taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
        taken.push(box);
        context.strokeText(text, x, y);
        context.fillText(text, x, y);
      }
    }
  }

  matryoshka.Points = Points;
})();
