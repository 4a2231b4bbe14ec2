// Two features side by side, of one run or of two. An empty side asks which feature, and suggests some.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, numbered } = matryoshka.dom;
  const { EMPTY, address, features: featuresOf } = matryoshka.query;
  const source = matryoshka.source;
  const MOST = 8;

  // Which feature stands on this side: a run, and a number or words to search for.
  function picker(side, name, runs, choose) {
    const select = el("select", { "aria-label": `${name} run`, hidden: runs.length < 2,
      change: () => { input.value = ""; input.focus(); } },
      runs.map((run) => el("option", { value: run.key }, run.name)));
    select.value = side.run;
    const found = el("ul", { class: "found" });
    const input = el("input", { type: "text", "aria-label": `${name} feature: number or words`, placeholder: "Number or words",
      autocomplete: "off", value: side.index ?? "", input: () => suggest() });
    const link = ({ index, name: text }) =>
      el("li", {}, el("a", { href: choose({ run: select.value, index }) }, numbered(index, text)));
    async function matching() {
      const features = featuresOf(await source.overview(select.value));
      const best = [...features.select({ ...EMPTY, q: input.value }).subarray(0, MOST)];
      return best.map((index) => ({ index, name: features.nameOf(index) }));
    }
    async function suggest() {
      const text = input.value;
      const matches = text.trim() ? await matching() : [];
      if (input.value !== text) return;
      const none = text.trim() && !matches.length ? [el("li", { class: "muted" }, "No feature matches.")] : [];
      found.replaceChildren(...matches.map(link), ...none);
    }
    async function submit(event) {
      event.preventDefault();
      const [first] = /^\d+$/.test(input.value.trim()) ? [{ index: Number(input.value) }] : await matching();
      if (first) location.hash = choose({ run: select.value, index: first.index });
    }
    return el("form", { class: "picker", submit }, select, input, el("button", { type: "submit" }, "Show"), found);
  }

  // What an empty side suggests: the nearest to the other side's feature.
  function suggestions(card, side, choose) {
    const near = [...card.cosine, ...card.coactive, ...card.parents, ...card.children];
    const unique = [...new Map(near.map((other) => [other.index, other])).values()].slice(0, 12);
    if (!unique.length) return null;
    return [el("p", { class: "muted" }, `Nearest to feature ${card.index}:`),
      el("ul", { class: "found" }, unique.map(({ index, name }) =>
        el("li", {}, el("a", { href: choose({ run: side.run, index }) }, numbered(index, name)))))];
  }

  async function load(side) {
    const overview = await source.overview(side.run);
    return { ...side, overview, card: side.index === null ? null : await source.feature(side.run, side.index) };
  }

  const failed = (side) => (error) => ({ ...side, error });

  function joined(a, b) {
    const edges = [...a.histogram.edges, ...b.histogram.edges];
    return {
      scale: Math.max(a.statistics.max ?? 0, b.statistics.max ?? 0),
      limits: edges.length ? [Math.min(...edges), Math.max(...edges)] : null,
    };
  }

  async function compareView(route, app) {
    const runs = (await source.runs()).runs;
    const wanted = [{ run: route.run, index: route.index }, route.other];
    const sides = await Promise.all(wanted.map((side) => load(side).catch(failed(side))));
    const [left, right] = sides;
    const choose = (at) => (side) => {
      const [a, b] = at === 0 ? [side, wanted[1]] : [wanted[0], side];
      return address.compare(a.run, a.index, b.run, b.index);
    };
    // One scale for both only means something within one run: activations of two coders are not in one unit.
    const comparable = Boolean(left.card && right.card && left.run === right.run);
    let shared = false;

    function column(side, at) {
      const name = at === 0 ? "Left" : "Right", other = sides[1 - at];
      const options = { href: (index) => address.feature(side.run, index),
        ...(shared && comparable ? joined(left.card, right.card) : {}) };
      return el("section", { class: "side", "aria-label": `${name} feature` }, picker(side, name, runs, choose(at)),
        side.error ? app.problem(side.error)
          : side.card ? matryoshka.card(side.card, side.overview, options)
            : el("div", { class: "empty" }, el("p", {}, "Choose a feature by its number or by words."),
              other.card && other.run === side.run && suggestions(other.card, side, choose(at))));
    }

    const columns = el("div", { class: "sides" });
    const draw = () => columns.replaceChildren(...sides.map(column));
    const toggle = el("label", { class: "check", hidden: !comparable },
      el("input", { type: "checkbox", change: (event) => { shared = event.target.checked; draw(); } }),
      " One activation scale for both");
    const heading = el("h1", { tabindex: "-1" }, "Compare features");
    const swap = el("a", { href: address.compare(right.run, right.index, left.run, left.index) }, "Swap sides");
    const back = left.card && el("a", { href: address.feature(left.run, left.index) }, `Back to feature ${left.index}`);
    function focusEmpty() {
      const open = sides.findIndex((side) => side.index === null);
      if (open >= 0) columns.querySelectorAll(".picker input")[open].focus();
    }
    draw();
    return {
      element: el("div", { class: "compare" }, el("div", { class: "view-head" }, heading, toggle, swap, back), columns),
      heading,
      title: `Compare ${left.index ?? "…"} with ${right.index ?? "…"}`,
      shown: focusEmpty,
      keys: { Escape: () => { location.hash = left.card ? address.feature(left.run, left.index) : address.list(route.run); } },
    };
  }

  matryoshka.compareView = compareView;
})();
