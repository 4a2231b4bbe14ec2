// A feature among its parents and children: three columns and the lines between them; under one another where there is no room.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, percent, number, plural, numbered } = matryoshka.dom;
  const MOST = { parents: 5, children: 8 };

  function members(name, all, { href, more, ringOf, nameOf }) {
    if (!all.length) return null;
    const shown = all.slice(0, MOST[name]), rest = all.length - shown.length;
    const item = ({ index, said }) => el("li", {}, el("a", { href: href(index) }, numbered(index, nameOf(index))),
      el("small", {}, `ring ${ringOf(index)} · ${said}`));
    return el("ul", { class: name, "aria-label": name === "parents" ? "Parents" : "Children" }, shown.map(item),
      rest > 0 && el("li", {}, more ? el("a", { href: more }, `${rest} more`) : el("small", {}, `${rest} more`)));
  }

  // parents, children: [{index, said}]. options: href(index), more (address of all of them), ringOf, nameOf. Null without either.
  function family(index, parents, children, options) {
    if (!parents.length && !children.length) return null;
    const self = el("p", { class: "self" }, numbered(index, options.nameOf(index)),
      el("small", {}, `ring ${options.ringOf(index)}`));
    return el("div", { class: "family" }, members("parents", parents, options), self, members("children", children, options));
  }

  // Of edges that passed the reconstruction test.
  function ofLineage(index, lineage, options) {
    const { edges } = lineage;
    const parents = lineage.parentsOf(index).map((pair) => ({ index: edges.parent[pair], said: said(edges, pair) }));
    const children = lineage.childrenOf(index).map((pair) => ({ index: edges.child[pair],
      said: said(edges, pair, lineage.size(edges.child[pair])) }));
    return family(index, parents, children, options);
  }

  const said = ({ coverage, gain }, pair, below = 0) => `covered ${percent(coverage[pair])}, gain ${number(gain[pair], 2)}`
    + (below ? `, ${plural(below, "feature", "features")} below` : "");

  // Of a card's candidates, where nothing was tested.
  function ofCard(card, options) {
    const parents = card.parents.map(({ index, given_this: covered }) => ({ index, said: `covered ${percent(covered)}` }));
    const children = card.children.map(({ index, given_other: covered }) => ({ index, said: `covered ${percent(covered)}` }));
    return family(card.index, parents, children, options);
  }

  matryoshka.family = { ofLineage, ofCard };
})();
