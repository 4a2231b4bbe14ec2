// The filters beside the list: rings, density, flags. Each is {element, sync(query)} and tells `change` what should differ in the
// query; what is shown follows from the query alone.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, svg, integer, percent, rings: drawRings } = matryoshka.dom;

  // ── rings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  function ringFacet({ overview: { widths } }, change) {
    let chosen = [];
    const pick = (ring) => {
      const others = chosen.filter((other) => other !== ring);
      change({ rings: chosen.includes(ring) ? others : [...others, ring].sort((a, b) => a - b) });
    };
    const figure = el("div", { class: "figure" });
    const boxes = widths.map((_, ring) => el("input", { type: "checkbox", change: () => pick(ring) }));
    const lines = widths.map((width, ring) => {
      const start = ring ? widths[ring - 1] : 0;
      const title = `Features ${start} to ${width - 1}; together with the rings inside, the prefix of ${integer(width)}`;
      return el("label", { title },
        boxes[ring], el("span", {}, `Ring ${ring}`), el("span", { class: "count" }, integer(width - start)));
    });
    const sync = (query) => {
      chosen = query.rings;
      boxes.forEach((box, ring) => { box.checked = chosen.includes(ring); });
      figure.replaceChildren(drawRings(widths, { size: 84, chosen: (ring) => chosen.includes(ring), pick }));
    };
    const element = el("fieldset", { class: "facet ring-facet", hidden: widths.length < 2 }, el("legend", {}, "Rings"),
      el("div", { class: "doll" }, figure, el("div", { class: "choices" }, lines)));
    return { element, sync };
  }

  // ── density ───────────────────────────────────────────────────────────────────────────────────────────────────────

  const WIDTH = 224, HEIGHT = 64, GROUND = 46, BINS = 36;

  function logBins(densities, low) {
    const counts = new Array(BINS).fill(0);
    for (const density of densities) {
      if (density > 0) counts[Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (1 - Math.log10(density) / low))))] += 1;
    }
    return counts;
  }

  // A histogram to brush, and two inputs that say and do the same.
  function densityFacet({ overview }, change) {
    const low = Math.floor(Math.log10(1 / Math.max(10, overview.tokens)));  // the axis goes from 10^low to 1
    const counts = logBins(overview.columns.density, low), most = Math.max(...counts, 1);
    const at = (density) => Math.max(0, Math.min(WIDTH, WIDTH * (1 - Math.log10(density) / low)));
    const densityAt = (x) => 10 ** (low * (1 - x / WIDTH));
    const bars = counts.map((count, bin) => {
      const height = (GROUND - 2) * (count / most);
      return svg("rect", { class: "bar", x: (bin * WIDTH) / BINS + 0.5, width: WIDTH / BINS - 1, y: GROUND - height, height });
    });
    const decades = Array.from({ length: -low + 1 }, (_, i) => low + i).filter((decade) => decade % 2 === 0);
    const anchor = (decade) => (decade === low ? "start" : decade === 0 ? "end" : "middle");
    const labels = decades.map((decade) =>
      svg("text", { x: at(10 ** decade), y: HEIGHT - 4, "text-anchor": anchor(decade) }, percent(10 ** decade, 1)));
    const brush = svg("rect", { class: "brush", y: 0, height: GROUND, x: 0, width: 0 });
    const picture = svg("svg", { class: "brushable", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" },
      svg("rect", { class: "ground", x: 0, y: 0, width: WIDTH, height: GROUND }), bars, brush,
        svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: GROUND + 0.5, y2: GROUND + 0.5 }), labels);
    const input = (name, end) =>
      el("input", { type: "text", inputmode: "decimal", "aria-label": name, change: (event) => type(end, event.target) });
    const from = input("Lowest density in percent", 0), to = input("Highest density in percent", 1);
    let range = null;

    function type(end, field) {
      const typed = field.value.trim().replace(/\s*%$/, "").replace(",", ".");
      const value = typed === "" ? null : Number(typed) / 100;
      field.setAttribute("aria-invalid", Number.isNaN(value) || value < 0);
      if (Number.isNaN(value) || value < 0) return;
      const next = [...(range ?? [null, null])];
      next[end] = value;
      change({ density: next[0] === null && next[1] === null ? null : next });
    }

    function sync(query) {
      range = query.density;
      [from, to].forEach((field, end) => {
        const value = range?.[end] ?? null;
        field.value = value === null ? "" : String(Number((value * 100).toPrecision(3)));
        field.removeAttribute("aria-invalid");
      });
      const left = range?.[0] ? at(range[0]) : 0, right = range?.[1] !== null && range ? at(range[1] || 10 ** low) : WIDTH;
      frame(range ? left : 0, range ? right : 0);
      bars.forEach((bar, bin) => {
        const middle = ((bin + 0.5) * WIDTH) / BINS;
        bar.classList.toggle("out", Boolean(range) && (middle < left || middle > right));
      });
    }

    function frame(left, right) {
      brush.setAttribute("x", Math.min(left, right));
      brush.setAttribute("width", Math.abs(right - left));
    }

    brushing(picture, WIDTH, frame,
      (left, right) => change({ density: right - left < 3 ? null : [densityAt(left), densityAt(right)] }));
    const element = el("fieldset", { class: "facet density-facet" }, el("legend", {}, "Density"), picture,
      el("div", { class: "inputs" }, from, el("span", {}, "to"), to, el("span", {}, "%")));
    return { element, sync };
  }

  // drag(left, right) while the pointer moves, done(left, right) when it is let go; in the picture's own units
  function brushing(picture, width, drag, done) {
    let start = null;
    const x = (event) => {
      const box = picture.getBoundingClientRect();
      return Math.max(0, Math.min(width, ((event.clientX - box.left) / box.width) * width));
    };
    picture.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      start = x(event);
      picture.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    picture.addEventListener("pointermove", (event) => { if (start !== null) drag(start, x(event)); });
    picture.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const ends = [start, x(event)].sort((a, b) => a - b);
      start = null;
      done(...ends);
    });
    picture.addEventListener("pointercancel", () => { start = null; drag(0, 0); });
  }

  // ── flags ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  function flagFacet({ overview: { flags: meaning, columns } }, change) {
    const flags = Object.keys(meaning);
    const counts = flags.map((_, bit) => columns.flags.reduce((sum, bits) => sum + ((bits >> bit) & 1), 0));
    let now = { only: [], hide: [] };
    const press = (list, flag) => {
      const without = { only: now.only.filter((other) => other !== flag), hide: now.hide.filter((other) => other !== flag) };
      change(now[list].includes(flag) ? without : { ...without, [list]: [...without[list], flag] });
    };
    const buttons = flags.map((flag) => ({
      only: el("button", { type: "button", "aria-label": `Show only ${flag} features`, click: () => press("only", flag) }, "only"),
      hide: el("button", { type: "button", "aria-label": `Hide ${flag} features`, click: () => press("hide", flag) }, "hide"),
    }));
    const lines = flags.map((flag, i) => el("div", { class: "flag-line", title: meaning[flag] },
      el("span", {}, flag), el("span", { class: "count" }, integer(counts[i])),
      el("span", { class: "switch" }, buttons[i].only, buttons[i].hide)));
    const sync = (query) => {
      now = query;
      flags.forEach((flag, i) => {
        for (const list of ["only", "hide"]) buttons[i][list].setAttribute("aria-pressed", query[list].includes(flag));
      });
    };
    return { element: el("fieldset", { class: "facet flag-facet" }, el("legend", {}, "Flags"), lines), sync };
  }

  matryoshka.facets = (features, change) => [ringFacet, densityFacet, flagFacet].map((facet) => facet(features, change));
})();
