// Two figures as SVG: curves over training's tokens, and a score of each prefix with its interval.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { svg, integer, number } = matryoshka.dom;
  const narrow = matchMedia("(max-width: 760px)");
  // As wide as it is shown, about, so that its letters are as large as the page's.
  const box = () => ({ width: narrow.matches ? 350 : 520, height: narrow.matches ? 220 : 260, left: 44, right: 88, top: 12,
    bottom: 38 });
  const UNITS = [[1e9, "billions"], [1e6, "millions"], [1e3, "thousands"]];

  // ── axes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  // Round numbers from low to high, some `wanted` of them.
  function steps(low, high, wanted = 5) {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 },
      (_, i) => Number(((first + i) * step).toPrecision(12)));
  }

  // From 0, or logarithmic where the largest value would flatten the smallest.
  function scale(values, from, to) {
    const good = values.filter((value) => value > 0);
    const low = Math.min(...good), high = Math.max(...good);
    if (!good.length) return { at: () => from, ticks: [] };
    if (high > 20 * low) {
      const at = (value) => from + ((to - from) * Math.log(value / (low / 1.15))) / Math.log((1.15 ** 2 * high) / low);
      const decades = [];
      for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade += 1)
        decades.push(...[1, 2, 5].map((step) => step * 10 ** decade));
      return { at, ticks: decades.filter((value) => value >= low / 1.15 && value <= 1.15 * high) };
    }
    const top = 1.08 * high;
    return { at: (value) => from + ((to - from) * value) / top, ticks: steps(0, top) };
  }

  function horizontal({ width, right, left }, y) {
    return y.ticks.map((value) => [
      svg("line", { class: "grid-line", x1: left, x2: width - right, y1: y.at(value), y2: y.at(value) }),
      svg("text", { x: left - 6, y: y.at(value) + 3.5, "text-anchor": "end" }, number(value, 2)),
    ]);
  }

  function vertical({ height, bottom }, marks) {
    return marks.map(([x, name]) => svg("text", { x, y: height - bottom + 16, "text-anchor": "middle" }, name));
  }

  function titles({ width, height, left, right, top, bottom }, x, y) {
    return [
      svg("text", { class: "title", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, x),
      svg("text", { class: "title", "text-anchor": "middle",
        transform: `translate(10 ${(top + height - bottom) / 2}) rotate(-90)` }, y),
    ];
  }

  // The nearest places that lie `gap` apart, in the order of `wanted`.
  function apart(wanted, gap, last) {
    const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
    const places = [...wanted];
    order.forEach((i, n) => { if (n) places[i] = Math.max(places[i], places[order[n - 1]] + gap); });
    [...order].reverse().forEach((i, n, all) => { places[i] = Math.min(places[i], n ? places[all[n - 1]] - gap : last); });
    return places;
  }

  // ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────

  const path = (xs, ys) => ys.map((y, i) => (y === null ? ""
    : `${i && ys[i - 1] !== null ? "L" : "M"}${xs[i].toFixed(1)} ${y.toFixed(1)}`))
    .join("");

  const SINGLE = 16;  // so few measurements are dots too

  // lines: [{name, colour, thin: {x, y}, thick: {x, y}}], x in tokens: thin of training's batches, thick of held-out text.
  function curves(lines, { label, yName }) {
    const frame = box(), { width, height, left, right, top, bottom } = frame;
    const parts = lines.flatMap(({ thin, thick }) => [thin, thick]);
    const most = Math.max(...parts.flatMap(({ x }) => x), 1);
    const [unit, unitName] = UNITS.find(([size]) => most >= 2 * size) ?? [1, ""];
    const x = (tokens) => left + ((width - left - right) * tokens) / most;
    const y = scale(parts.flatMap(({ y: values }) => values.filter((value) => value !== null)), height - bottom, top);
    const draw = (part, attributes) => part.x.length > 0 && svg("path", {
      d: path(part.x.map(x), part.y.map((value) => (value > 0 ? y.at(value) : null))), fill: "none", ...attributes });
    const last = lines.map(({ thin, thick }) => y.at((thick.y.length ? thick : thin).y.at(-1) || 1));
    const places = apart(last, 14, height - bottom);
    return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      horizontal(frame, y),
      svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      vertical(frame, steps(0, most / unit).map((value) => [x(value * unit), number(value, 2)])),
      titles(frame, `tokens of training${unitName && `, ${unitName}`}`, yName),
      lines.map(({ name, colour, thin, thick }, i) => [
        draw(thin, { stroke: colour, "stroke-width": 1, opacity: thick.x.length ? 0.45 : 1 }),
        draw(thick, { stroke: colour, "stroke-width": 2.2 }),
        thick.x.length <= SINGLE && thick.x.map((tokens, n) => thick.y[n] > 0
          && svg("circle", { cx: x(tokens), cy: y.at(thick.y[n]), r: 3.5, fill: colour })),
        svg("path", { d: `M${width - right + 4} ${last[i]}l6 0L${width - right + 18} ${places[i]}`, fill: "none", stroke: colour }),
        svg("text", { class: "end", x: width - right + 22, y: places[i] + 3.5 }, name),
      ]));
  }

  // points: [{x, value, low, high, colour}] on a logarithmic axis of widths.
  function prefixes(points, { label, yName }) {
    const frame = { ...box(), right: 20 }, { width, height, left, right, top, bottom } = frame;
    const [first, last] = [points[0].x, points.at(-1).x];
    const x = (value) => left + 24 + (width - left - right - 48) * (last > first ? Math.log(value / first) / Math.log(last / first)
      : 0.5);
    const y = scale(points.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]), height - bottom, top);
    const names = points.map((point) => [x(point.x), integer(point.x)]);
    const legible = names.filter(([at], i) => i === names.length - 1
      || (names.at(-1)[0] - at > 38 && (!i || at - names[i - 1][0] > 30)));
    return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      horizontal(frame, y),
      svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      vertical(frame, legible),
      titles(frame, "width of the prefix (features)", yName),
      svg("path", { class: "thread", d: path(points.map((point) => x(point.x)), points.map(({ value }) => y.at(value))),
        fill: "none" }),
      points.map((point) => [
        point.low !== null && svg("line", { x1: x(point.x), x2: x(point.x), y1: y.at(point.low), y2: y.at(point.high),
          stroke: point.colour, "stroke-width": 2 }),
        svg("circle", { cx: x(point.x), cy: y.at(point.value), r: 5, fill: point.colour },
          svg("title", {}, `first ${integer(point.x)}: ${number(point.value)}`)),
      ]));
  }

  const SPAN = { width: 132, height: 14, edge: 5 };

  // One number on a line of its own: a dot, its interval as a bar, and what chance gives as an open ring.
  function interval({ value, low, high, null: chance, percent }) {
    const known = [value, low, high, chance].filter((each) => each !== null && each !== undefined);
    const from = Math.min(0, ...known), to = Math.max(percent ? 1 : 0, ...known) || 1;
    const x = (at) => SPAN.edge + ((SPAN.width - 2 * SPAN.edge) * (at - from)) / (to - from);
    const middle = SPAN.height / 2;
    return svg("svg", { class: "interval", viewBox: `0 0 ${SPAN.width} ${SPAN.height}`, width: SPAN.width, height: SPAN.height,
      "aria-hidden": "true" },
      svg("line", { class: "grid-line", x1: x(from), x2: x(to), y1: middle, y2: middle }),
      low !== null && low !== undefined && svg("line", { class: "extent", x1: x(low), x2: x(high), y1: middle, y2: middle }),
      chance !== null && chance !== undefined && svg("circle", { class: "chance", cx: x(chance), cy: middle, r: 3.5 }),
      value !== null && svg("circle", { class: "value", cx: x(value), cy: middle, r: 3.5 }));
  }

  matryoshka.chart = { curves, prefixes, interval };
})();
