// One feature: its card, and the way to the next and the previous one in the order of the list.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer } = matryoshka.dom;
  const { address, ringOf, features: featuresOf } = matryoshka.query;
  const source = matryoshka.source;

  function steps(overview, index, query) {
    const order = featuresOf(overview).select(query);
    const at = order.indexOf(index);
    return { order, at, previous: order[at - 1] ?? null, next: at < 0 ? order[0] ?? null : order[at + 1] ?? null };
  }

  // The neighbours in the order are fetched ahead; whether that works out shows when one goes there.
  function fetchAhead(run, indices) {
    for (const index of indices) if (index !== null) source.feature(run, index).catch(() => {});
  }

  function bar(overview, index, query, { order, at, previous, next }, edit) {
    const run = overview.key;
    const step = (to, text, key, rel) => (to === null
      ? el("span", { class: "muted" }, text)
      : el("a", { href: address.feature(run, to, query), rel, "aria-keyshortcuts": key, title: `${text}: feature ${to} (${key})` },
        text));
    const where = at < 0 ? "not among the listed features" : `${integer(at + 1)} of ${integer(order.length)} listed`;
    return el("nav", { class: "feature-bar", "aria-label": "Features in order" },
      el("a", { href: address.list(run, query) }, "All features"),
      el("span", { class: "muted where-in-order" }, where),
      step(previous, "Previous", "p", "prev"), step(next, "Next", "n", "next"),
      el("a", { href: address.map(run, { feature: index }) }, "On the map"),
      el("a", { href: address.compare(run, index, run, null), "aria-keyshortcuts": "c" }, "Compare with…"));
  }

  // Parents → this → children: those that stood the test, or else the card's candidates.
  function family(card, overview, tree) {
    const tested = tree && !tree.why;
    const options = {
      href: (other) => address.feature(overview.key, other), more: tested ? address.tree(overview.key, card.index) : null,
      ringOf: (other) => ringOf(other, overview.widths), nameOf: (other) => featuresOf(overview).nameOf(other),
    };
    const drawn = tested ? matryoshka.family.ofLineage(card.index, matryoshka.lineage(tree), options)
      : matryoshka.family.ofCard(card, options);
    return drawn && el("section", { class: "family-section" },
      el("div", { class: "section-head" }, el("h2", {}, "Parents and children"),
        tested && el("a", { href: options.more }, "Examples of each pair")),
      el("p", { class: "muted" }, tested ? "Tested by reconstruction: they stand beyond chance."
        : "Candidates: how many of the child’s tokens the parent covers."), drawn);
  }

  async function featureView(route, app) {
    const { run, index, query } = route;
    if (index === null) throw new Error("A feature’s address ends in its number.");
    const overview = await source.overview(run);
    const [card, tree] = await Promise.all([source.feature(run, index), source.tree(run).catch(() => null)]);
    const around = steps(overview, index, query);
    const holder = el("div", { class: "feature" });
    const view = { element: holder, title: `Feature ${index}`, keys: {} };

    function draw() {
      const element = matryoshka.card(card, overview, { level: 1, href: (other) => address.feature(run, other, query) });
      const editor = source.live && matryoshka.makeEditable(element, card, save, () => { draw(); view.heading.focus(); });
      element.querySelector(".card-head").after(family(card, overview, tree) ?? "");
      holder.replaceChildren(bar(overview, index, query, around), element);
      view.heading = element.querySelector("h1");
      view.keys.e = editor ? () => editor.edit() : () => app.say("This is an export: labels cannot be edited here.");
    }
    const save = async (words) => {
      const saved = await source.save(run, index, words);
      featuresOf(overview).refresh(index);
      return saved;
    };
    const go = (to) => { if (to === null) app.say("No further feature in this order."); else location.hash =
      address.feature(run, to, query); };
    Object.assign(view.keys, {
      n: () => go(around.next), ArrowRight: () => go(around.next),
      p: () => go(around.previous), ArrowLeft: () => go(around.previous),
      c: () => { location.hash = address.compare(run, index, run, null); },
      Escape: () => { location.hash = address.list(run, query); },
    });
    draw();
    view.shown = () => setTimeout(() => fetchAhead(run, [around.next, around.previous]), 60);
    return view;
  }

  matryoshka.featureView = featureView;
})();
