// The first view: what the coder is, how its training went, what was measured of it, and the ways into everything else.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer, percent, plural, plain } = matryoshka.dom;
  const { EMPTY, address, ringOf } = matryoshka.query;
  const { about, source } = matryoshka;

  // ── ways in ───────────────────────────────────────────────────────────────────────────────────────────────────────

  function door(name, text, href, key = null) {
    return el("li", {}, el("a", { href, "aria-keyshortcuts": key }, name), el("p", {}, text));
  }

  function closed(name, text) {
    return el("li", { class: "closed" }, el("b", {}, name), el("p", {}, text));
  }

  // A view of an analysis' results, or why there is none.
  function analysed(groups, analysis, name, text, href, key) {
    const group = groups.find((each) => each.name === analysis);
    if (!group) return closed(name, ["Not looked for yet: ", el("code", {}, `matryoshka analyze RUN --only ${analysis}`)]);
    return group.why ? closed(name, plain(group.why)) : door(name, text, href, key);
  }

  function doors(overview, { groups, report }) {
    const run = overview.key, count = overview.columns.density.length;
    return el("ul", { class: "doors" },
      door("Features", `All ${integer(count)}: sort, filter, search, and open each with its examples.`, address.list(run), "l"),
      analysed(groups, "map", "Map", "Features beside those that they fire or point with.", address.map(run), "m"),
      analysed(groups, "hierarchy", "Tree", "From general features of the first rings down to special ones.", address.tree(run),
        "h"),
      door("Compare", "Two features side by side.", address.compare(run, null, run, null)),
      report ? door("Report", "Everything found, to read or print.", source.report(run))
        : closed("Report", ["None yet: ", el("code", {}, "matryoshka analyze RUN")]));
  }

  // ── rings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  function counts({ columns, widths, tokens, rare, flags }) {
    const dense = 1 << Object.keys(flags).indexOf("dense");
    const rings = widths.map((width, ring) => ({ ring, size: width - (ring ? widths[ring - 1] : 0), living: 0, rare: 0, silent: 0,
      dense: 0 }));
    columns.density.forEach((density, i) => {
      const ring = rings[ringOf(i, widths)], firings = Math.round(density * tokens);
      if (firings === 0) ring.silent += 1;
      else if (firings < rare) ring.rare += 1;
      else ring.living += 1;
      if (columns.flags[i] & dense) ring.dense += 1;
    });
    return rings;
  }

  function stack({ size, living, rare, silent }) {
    const part = (name, n) => {
      const segment = el("i", { class: name });
      segment.style.width = `${(100 * n) / size}%`;
      return segment;
    };
    return el("span", { class: "stack", "aria-hidden": "true" }, part("living", living), part("rare", rare),
      part("silent", silent));
  }

  function rings(overview) {
    const { term } = matryoshka;
    const heads = [
      [term("Living", `Fires on ${overview.rare} of the ${integer(overview.tokens)} collected tokens or more.`), "living"],
      [term("Rare", `Fires, but on fewer than ${overview.rare} tokens: too few to say much about it.`), "rare"],
      [term("Silent", "Fires on none of the collected tokens."), "silent"],
      [term("Dense", plain(`A feature that ${overview.flags.dense}; it is among the living.`)), "dense"],
    ];
    const row = (ring) => el("tr", {},
      el("th", { scope: "row" }, matryoshka.colours.swatch(matryoshka.colours.ring(ring.ring, overview.widths.length)), " ",
        el("a", { href: address.list(overview.key, { ...EMPTY, rings: [ring.ring] }) }, `Ring ${ring.ring}`)),
      el("td", {}, integer(ring.size)), heads.map(([, name]) => el("td", {}, integer(ring[name]))),
        el("td", { class: "drawn" }, stack(ring)));
    return el("section", { class: "panel" }, el("h2", {}, "Rings"),
      el("table", { class: "rings-table" }, el("caption", { class: "visually-hidden" },
        "Features of each ring by how often they fire"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Ring"), el("th", { scope: "col" }, "Features"),
          heads.map(([name]) => el("th", { scope: "col" }, name)), el("td", { class: "drawn" }))),
        el("tbody", {}, counts(overview).map(row))));
  }

  // ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────

  function training({ widths }, { why, batches, held_out: heldOut }) {
    const head = el("h2", {}, "Training");
    if (why) return el("section", { class: "panel" }, head, el("p", { class: "muted" }, plain(why)));
    const lines = widths.map((width, ring) => ({
      name: `first ${integer(width)}`, colour: matryoshka.colours.ring(ring, widths.length),
      thin: { x: batches.tokens, y: batches.fvu[ring] }, thick: { x: heldOut.tokens, y: heldOut.fvu[ring] ?? [] },
    }));
    const last = heldOut.tokens.length ? heldOut : batches;
    const ends = widths.map((width, ring) => `${percent(last.fvu[ring].at(-1), 3)} for the first ${integer(width)}`).join(", ");
    const label = `Fraction of variance unexplained over training, one curve for each prefix; at the end ${ends}.`;
    return el("section", { class: "panel" }, head, matryoshka.chart.curves(lines, { label, yName: "FVU" }),
      el("p", { class: "muted" }, `${integer(batches.tokens.at(-1))} tokens. `,
        heldOut.tokens.length ? "Thick: held-out text. Thin: batches of training. " : "Batches of training. ",
          "FVU is the fraction of variance unexplained."));
  }

  function prefixes({ widths }, groups) {
    const fvu = groups.find(({ name }) => name === "reconstruction")?.measures?.find(({ name }) => name === "FVU");
    const rows = fvu?.rows.filter(({ value }) => value !== null) ?? [];
    if (rows.length < 2) return null;
    const points = rows.map((row) => ({ ...row, x: row.width,
      colour: matryoshka.colours.ring(widths.indexOf(row.width), widths.length) }));
    const label = `Held-out FVU: ${rows.map(({ width, value }) => `${percent(value,
      3)} for the first ${integer(width)}`).join(", ")}.`;
    return el("section", { class: "panel" }, el("h2", {}, "FVU of each prefix"),
      matryoshka.chart.prefixes(points, { label, yName: "held-out FVU" }),
      el("p", { class: "muted" }, "Each prefix of the dictionary reconstructs on its own. Bars: 95 % intervals."));
  }

  // ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function scores({ groups, unmeasured, unanalysed }) {
    const lacking = (names, verb) => names.length > 0 && el("p", { class: "muted" }, `Not there yet: ${names.join(", ")}. `,
      el("code", {}, `matryoshka ${verb} RUN`));
    const filled = groups.map(matryoshka.scores.group).filter(Boolean);
    return el("section", { class: "all-scores" }, el("h2", {}, "Scores"),
      el("p", { class: "muted" }, "Of the whole dictionary. Filled: the value, with its 95 % interval; open: what chance gives."),
      el("div", { class: "score-groups" }, filled), lacking(unmeasured, "eval"), lacking(unanalysed, "analyze"));
  }

  async function overviewView(route, app) {
    const [overview, found] = await Promise.all([source.overview(route.run),
      source.results(route.run).catch((error) => ({ error }))]);
    const heading = about.heading(overview);
    const { error } = found;
    const element = el("div", { class: "overview" },
      el("header", { class: "run-head" }, el("p", { class: "eyebrow" }, plain(overview.name)), heading, about.facts(overview)),
      error ? app.problem(error) : doors(overview, found),
      el("div", { class: "panels" }, !error && training(overview, found.training), !error && prefixes(overview, found.groups),
        rings(overview)),
      !error && scores(found));
    matryoshka.addTooltip(element);
    return { element, heading, title: plural(overview.columns.density.length, "feature", "features") };
  }

  matryoshka.overviewView = overviewView;
})();
