// One feature's card as DOM: matryoshka.card(card, overview, options). Needs no more than dom.js, tip.js, examples.js and
// style.css,
// so that notebooks can show it alone; there, links to other features are plain words. In order: drawings, evidence, neighbours,
// the card.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, svg, NONE, missing, integer, number, percent, plural, plain, reveal, lone, prose, numbered, rings, bar }
    = matryoshka.dom;

  // ── drawings ──────────────────────────────────────────────────────────────────────────────────────────────────────

  // A ruler with one segment a ring, all of one length: where in its ring the feature lies, and which prefixes hold it.
  function place(card, widths) {
    const start = card.ring ? widths[card.ring - 1] : 0;
    const size = widths[card.ring] - start;
    const prefixes = widths.slice(card.ring).map(integer).join(", ");
    const tick = el("i", { class: "tick" });
    tick.style.left = `${((card.index - start + 0.5) / size) * 100}%`;
    const segments = widths.map((width, ring) =>
      el("span", { class: ring < card.ring ? "" : ring === card.ring ? "chosen" : "holding" },
        el("b", {}, integer(width)), ring === card.ring && tick));
    return el("div", { class: "place" },
      el("div", { class: "ruler", "aria-hidden": "true" }, segments),
      el("p", {}, `Ring ${card.ring}, no. ${integer(card.index - start + 1)} of ${integer(size)} in it; part of the `
        + (widths.length - card.ring === 1 ? `whole dictionary of ${prefixes} only.` : `prefixes of ${prefixes}.`)));
  }

  function ticks(low, high) {
    const all = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade += 1)
      all.push(...[1, 2, 5].map((step) => step * 10 ** decade));
    const inside = all.filter((x) => x >= low && x <= high);
    if (inside.length < 2) return [low, high];
    return inside.length > 7 ? inside.filter((x) => /^1/.test(x.toExponential())) : inside;
  }

  const BOX = { width: 300, height: 145, left: 46, right: 16, top: 10, bottom: 36 };

  // One value has no extent: then its bin gets some.
  const extended = (low, high) => (high > low ? [low, high] : [low / 1.1, high * 1.1]);

  function total(counts) {
    return counts.reduce((sum, count) => sum + count, 0);
  }

  // How its activations are distributed: log-spaced bins, so on a log axis all bars are equally wide.
  function histogram(binned, limits) {
    const { width, height, left, right, top, bottom } = BOX;
    const [first, last] = [binned.edges[0], binned.edges[binned.edges.length - 1]];
    const { edges, counts } = last > first ? binned : { edges: extended(first, last), counts: [total(binned.counts)] };
    const [low, high] = extended(...(limits ?? [first, last]));
    const x = (value) => left + ((width - left - right) * Math.log(value / low)) / Math.log(high / low);
    const most = Math.max(...counts), ground = height - bottom;
    const y = (count) => ground - (ground - top) * (count / most);
    const bars = counts.map((count, i) => svg("rect", {
      class: "bar", x: x(edges[i]) + 0.4, width: Math.max(0.6, x(edges[i + 1]) - x(edges[i]) - 0.8),
      y: Math.min(y(count), count ? ground - 0.8 : ground), height: Math.max(ground - y(count), count ? 0.8 : 0),
    }, svg("title", {}, `${number(edges[i])} to ${number(edges[i + 1])}: ${plural(count, "token", "tokens")}`)));
    const text = (at, content) => svg("text", at, content);
    const inWords = `Histogram of activations from ${number(first)} to ${number(last)}, log scale; `
      + `the fullest bin has ${plural(most, "token", "tokens")}.`;
    return svg("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords },
      bars,
      svg("line", { class: "axis", x1: left, x2: width - right, y1: ground + 0.5, y2: ground + 0.5 }),
      [0, most].map((count) => text({ x: left - 6, y: y(count) + 4, "text-anchor": "end" }, integer(count))),
      ticks(low, high).map((value) => [
        svg("line", { class: "axis", x1: x(value), x2: x(value), y1: ground, y2: ground + 4 }),
        text({ x: Math.min(x(value), width - 14), y: ground + 16, "text-anchor": "middle" },
          number(value, value === low || value === high ? 3 : 1))]),
      text({ class: "title", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "activation, log scale"),
      text({ class: "title", "text-anchor": "middle", transform: `translate(10 ${(top + ground) / 2}) rotate(-90)` }, "tokens"));
  }

  // ── evidence ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function statistics({ density, count, mean, max, mean_square: square, entropy, first }) {
    const silent = missing(entropy);
    const rows = [
      ["Density", percent(density), density ? `one token in ${integer(1 / density)}` : ""],
      ["Firings", integer(count), ""],
      ["Maximum", number(max), ""],
      ["Mean where it fires", number(mean), ""],
      ["Mean square", number(square), ""],
      ["Entropy of its tokens", silent ? NONE : `${number(entropy)} bits`,
        silent ? "" : `≈ ${plural(2 ** entropy, "token", "tokens")}`],
      ["First in its window", percent(first), silent ? "" : "of its firings"],
    ];
    return el("dl", { class: "statistics" }, rows.map(([name, value, remark]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value, remark && el("small", {}, ` ${remark}`)))));
  }

  // A table whose first column is text and whose others are numbers.
  function table(caption, heads, rows) {
    return el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map(([first, ...cells]) =>
        el("tr", {}, el("th", { scope: "row" }, first), cells.map((cell) => el("td", {}, cell))))));
  }

  function topTokens(tokens) {
    const most = Math.max(...tokens.map(({ share }) => share));
    return table("Top tokens, by their share of its activation", ["Token", "Share", "Firings"],
      tokens.map(({ token: text, share, count }) => [lone(text), [bar(share / most), percent(share)], integer(count)]));
  }

  function logits(card, heading) {
    const side = (caption, entries) =>
      table(caption, ["Token", "Effect"], entries.map(({ token: text, effect }) => [lone(text), number(effect)]));
    return el("section", {}, el(heading, {}, "Direct logit effect"),
      card.logits
        ? el("div", { class: "pair" }, side("Raises most", card.logits.top), side("Lowers most", card.logits.bottom))
        : el("p", { class: "muted" }, card.logits_why || "It has none: the written site is not added to the residual stream."));
  }

  function neighbourLink({ index, ring, name }, href) {
    const to = href?.(index);
    const content = numbered(index, name);
    const title = `Feature ${index}, ring ${ring}: ${plain(name || "no label")}`;
    return to ? el("a", { href: to, title }, content) : el("span", { title }, content);
  }

  function neighbours(card, href, heading) {
    const link = (other) => neighbourLink(other, href);
    const near = (other) => [link(other), other.ring, number(other.value)];
    const together = (other) => [link(other), percent(other.given_this), percent(other.given_other), `${number(other.lift)}×`];
    const WITH = ["Feature", "P(it | this)", "P(this | it)", "Lift"];
    const parents = "Parents: candidates by coverage, in earlier rings; with the share of this feature’s tokens on which each fires";
    const children = "Children: candidates by coverage, in later rings; with the share of their tokens on which this feature fires";
    const tables = [
      card.cosine.length > 0 && table("Decoder cosine", ["Feature", "Ring", "Cosine"], card.cosine.map(near)),
      card.coactive.length > 0 && table("Fire together", WITH, card.coactive.map(together)),
      card.parents.length > 0 && table(parents, WITH, card.parents.map(together)),
      card.children.length > 0 && table(children, WITH, card.children.map(together)),
    ].filter(Boolean);
    const none = tables.length === 0 && el("p", { class: "muted" }, "It has none.");
    return el("section", { class: "neighbours" }, el(heading, {}, "Neighbours"), tables, none);
  }

  // ── the card ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function head(card, overview, heading) {
    const { widths } = overview;
    const nested = widths.length > 1;
    const name = card.label || card.explanation || card.summary;
    const flag = (each) => el("li", {}, el("b", {}, each), ` ${overview.flags[each]}`);
    const from = card.summary && (name !== card.summary ? ["Top tokens ", el("bdi", {}, reveal(card.summary))]
      : "No label yet: named by its top tokens");
    const by = card.explained_by === "rule" ? "the rule that tells best where it fires" : card.explained_by;
    const explained = card.explanation && (card.label ? [el("bdi", {}, reveal(card.explanation)), ` (${by})`] : `Named by ${by}`);
    return el("header", { class: "card-head" },
      nested && rings(widths, { size: 64, chosen: (ring) => ring === card.ring, holding: (ring) => ring > card.ring }),
      el("div", { class: "naming" },
        el(heading, { class: "card-title", tabindex: "-1" },
          el("span", { class: "eyebrow" }, `Feature ${card.index}`), " ",
          el("span", { class: "name" }, name ? el("bdi", {}, reveal(name)) : "no label")),
        el("p", { class: "from" }, from),
        explained && el("p", { class: "explained" }, explained),
        card.flags.length > 0 && el("ul", { class: "flags", "aria-label": "Flags" }, card.flags.map(flag)),
        card.note && el("p", { class: "note" }, prose(card.note))),
      nested && place(card, widths));
  }

  // options: href(index) → the address of another feature; level of the card's heading (2); scale: what is shaded fully (the
  // feature's own maximum); limits of the histogram's axis, so that two cards can share theirs.
  function card(data, overview, { href = null, level = 2, scale = null, limits = null } = {}) {
    const [title, section, sub] = [level, level + 1, level + 2].map((n) => `h${n}`);
    const root = el("article", { class: "card", "aria-label": `Feature ${data.index}` },
      head(data, overview, title),
      el("div", { class: "card-body" },
        el("div", { class: "evidence" },
          el("section", {}, el(section, {}, "Activations"),
            data.histogram.counts.length > 0 && histogram(data.histogram, limits), statistics(data.statistics)),
          data.top_tokens.length > 0 && el("section", {}, el(section, {}, "Tokens"), topTokens(data.top_tokens)),
          logits(data, section)),
        matryoshka.examples.section(data, scale, section, sub),
        neighbours(data, href, section)));
    root.addEventListener("keydown", matryoshka.examples.walk);
    matryoshka.addTooltip(root);
    return root;
  }

  matryoshka.card = card;
})();
