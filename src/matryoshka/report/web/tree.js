// The tree: from features of the first rings down to their children, ring by ring; one feature and those below it at a time.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer, percent, plural, plain, numbered } = matryoshka.dom;
  const { address, ringOf, features: featuresOf } = matryoshka.query;
  const { source, term } = matryoshka;
  const MOST = 60;  // roots and children shown at first

  const MEANINGS = {
    covered: ["covered", "Share of the child’s tokens on which the parent fires too."],
    lift: ["lift", "How many times more often the parent fires where the child does than elsewhere, by chance 1."],
    share: ["of the parent’s firings",
      "Share of the parent’s tokens on which the child fires: small where the parent has many children."],
    gain: ["gain", "By how much the error is smaller where the child fires because the parent is part of the reconstruction, "
      + "as a share. Chance: what features as dense as the parent, of its ring, reach; an edge stands if it is above."],
  };

  // As many as MOST, and a button for the others.
  function some(all, draw, attributes) {
    const list = el("ul", attributes, all.slice(0, MOST).map(draw));
    const more = el("button", { type: "button", class: "quiet", hidden: all.length <= MOST,
      click: () => { more.hidden = true; list.append(...all.slice(MOST).map(draw)); } }, `Show all ${integer(all.length)}`);
    return [list, more];
  }

  class Tree {
    constructor(overview, tree) {
      Object.assign(this, { overview, run: overview.key, lineage: matryoshka.lineage(tree), table: featuresOf(overview) });
      this.nameOf = (index) => this.table.nameOf(index);
      this.ringOf = (index) => ringOf(index, overview.widths);
    }

    // ── all roots ───────────────────────────────────────────────────────────────────────────────────────────────────

    root(index) {
      const below = this.lineage.size(index), children = this.lineage.childrenOf(index).length;
      return el("li", {}, el("a", { href: address.tree(this.run, index) }, numbered(index, this.nameOf(index))),
        el("span", { class: "muted" },
          `ring ${this.ringOf(index)} · ${plural(children, "child", "children")}, ${integer(below)} below · `
          + `fires on ${percent(this.overview.columns.density[index])}`));
    }

    roots(heading) {
      const { edges, standing } = this.lineage, roots = this.lineage.roots();
      const about = `${plural(edges.parent.length, "pair", "pairs")} of a feature and one of a later ring that fires mostly `
        + `where it does were tested; ${integer(standing)} stand: the parent takes part in reconstructing `
        + "where the child fires, beyond chance.";
      return [el("div", { class: "view-head" }, heading), el("p", { class: "lead" }, about),
        el("h2", {}, plural(roots.length, "root", "roots")),
        el("p", { class: "muted" }, "Features with children and no parent, those with most below them first."),
        roots.length > 0 && some(roots, (index) => this.root(index), { class: "roots" })];
    }

    // ── one feature ─────────────────────────────────────────────────────────────────────────────────────────────────

    edge(pair) {
      const child = this.lineage.edges.child[pair], below = this.lineage.size(child);
      const href = below ? address.tree(this.run, child) : address.feature(this.run, child);
      const link = el("a", { href, class: "pair-name" }, numbered(child, this.nameOf(child)),
        el("small", {}, ` ring ${this.ringOf(child)}`));
      return matryoshka.pairs.edge(this.run, this.lineage, pair,
        { link, below: below ? plural(below, "feature", "features") : "" });
    }

    suspects(index) {
      const suspected = this.lineage.suspected.get(index) ?? [];
      if (!suspected.length) return null;
      const draw = (pair) => matryoshka.pairs.suspect(this.run, this.lineage, pair,
        { href: (child) => address.feature(this.run, child), nameOf: this.nameOf });
      return el("section", {}, el("h2", {}, "Where it should have fired and did not"),
        el("p", { class: "muted" },
          "Suspected absorption: these point the same way and fire in the same contexts, but where they fire it is silent."),
        some(suspected, draw, { class: "pair-list" }));
    }

    doubtful(index) {
      const doubtful = this.lineage.doubtful.get(index) ?? [];
      if (!doubtful.length) return null;
      return el("details", { class: "more" }, el("summary", {},
        `${plural(doubtful.length, "candidate", "candidates")} that chance explains`),
        some(doubtful, (pair) => this.edge(pair), { class: "pair-list" }));
    }

    feature(heading, index) {
      const children = this.lineage.childrenOf(index), snippet = el("div");
      source.feature(this.run, index).then((card) => snippet.replaceChildren(matryoshka.examples.snippet(card) ?? ""), () => {});
      const options = { href: (other) => address.tree(this.run, other), more: null, ringOf: this.ringOf, nameOf: this.nameOf };
      const terms = el("p", { class: "muted" }, "Tested by reconstruction, best first: ",
        Object.values(MEANINGS).flatMap((meaning, i) =>
        [i > 0 && ", ", term(...meaning)]), ".");
      return [
        el("nav", { class: "feature-bar", "aria-label": "In the tree" }, el("a", { href: address.tree(this.run) }, "All roots"),
          el("a", { href: address.feature(this.run, index) }, "Its page")),
        el("div", { class: "view-head" }, heading), snippet,
        matryoshka.family.ofLineage(index, this.lineage, options),
        el("section", {}, el("h2", {}, plural(children.length, "child", "children")),
          children.length > 0 ? [terms, some(children, (pair) => this.edge(pair), { class: "pair-list" })]
            : el("p", { class: "muted" }, "No feature of a later ring stands below it.")),
        this.doubtful(index),
        this.suspects(index),
      ];
    }
  }

  function title(index, name) {
    return el("h1", { tabindex: "-1" }, el("span", { class: "eyebrow" }, `Feature ${index} in the tree`), " ",
      el("bdi", {}, matryoshka.dom.reveal(name || "no label")));
  }

  async function treeView(route) {
    const [overview, tree] = await Promise.all([source.overview(route.run), source.tree(route.run)]);
    const { index, run } = route;
    const count = overview.columns.density.length;
    if (index !== null && !(index < count))
      throw new Error(`There is no feature ${index}: this run has features 0 to ${count - 1}.`);
    const heading = index === null || tree.why ? el("h1", { tabindex: "-1" }, "Tree of features")
      : title(index, featuresOf(overview).nameOf(index));
    const view = tree.why ? null : new Tree(overview, tree);
    const content = !view ? [el("div", { class: "view-head" }, heading), el("p", { class: "problem" }, plain(tree.why))]
      : index === null ? view.roots(heading) : view.feature(heading, index);
    const element = el("div", { class: "tree-view" }, content);
    matryoshka.addTooltip(element);
    return {
      element, heading, title: index === null ? "Tree" : `Tree of feature ${index}`,
      keys: { Escape: () => { location.hash = index === null ? address.list(run) : address.tree(run); } },
    };
  }

  matryoshka.treeView = treeView;
})();
