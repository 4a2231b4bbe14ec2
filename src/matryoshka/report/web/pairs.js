// A parent with one of its children: numbers in a line, and on request the passages that show them apart and together.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, NONE, missing, number, percent, numbered, plain, bar } = matryoshka.dom;
  const { source, examples } = matryoshka;

  // The passages of a pair, of the file that holds it.
  async function passages(run, lineage, pair) {
    const all = await source.pairs(run, Math.floor(pair / lineage.inOneFile));
    return all[pair % lineage.inOneFile];
  }

  function together(found, silent) {
    if (!found.length) return el("p", { class: "muted" }, "No passage was kept.");
    const values = ({ parent, child }) => `parent ${silent ? NONE : number(parent)}, child ${number(child)}`;
    return el("ol", { class: "passages" }, found.map((each) => el("li", {}, examples.passage(each),
      el("small", {}, values(each)))));
  }

  async function alone(run, index) {
    const card = await source.feature(run, index);
    return examples.snippet(card) ?? el("p", { class: "muted" }, "It never fired on the collected tokens.");
  }

  function part(title, content) {
    return el("section", {}, el("h4", {}, title), content);
  }

  // Fetched when it is opened for the first time.
  async function fill(place, { run, lineage, number: pair, parent, child, title, silent }) {
    try {
      const [found, ofParent, ofChild] = await Promise.all([passages(run, lineage, pair), alone(run, parent), alone(run, child)]);
      place.replaceChildren(part(title, together(found, silent)), part("The parent at its strongest", ofParent),
        part("The child at its strongest", ofChild));
    } catch (error) {
      place.replaceChildren(el("p", { class: "problem", role: "alert" }, plain(error.message)));
    }
  }

  // cells: [[name, content, class]]; pair: {run, lineage, number, parent, child, title, silent}
  function pairLine(link, cells, pair) {
    const place = el("div", { class: "pair-examples" });
    const open = ({ target }) => { if (target.open && !place.hasChildNodes()) { place.append("…"); fill(place, pair); } };
    const about = cells.map(([name, content, kind = ""]) => el("span", { class: `pair-number ${kind}` }, el("small", {}, name), " ",
      content));
    return el("li", { class: "pair-line" }, el("div", { class: "pair-head" }, link, el("span", { class: "pair-numbers" }, about)),
      el("details", { class: "more", toggle: open }, el("summary", {}, "Examples"), place));
  }

  function cellsOfEdge({ coverage, lift, share, gain, null: chance }, pair) {
    return [
      ["covered", [bar(coverage[pair]), percent(coverage[pair])]],
      ["lift", `${number(lift[pair])}×`],
      ["of the parent’s firings", percent(share[pair])],
      ["gain", [number(gain[pair], 2), missing(chance[pair]) ? "" : el("small", {}, ` chance ${number(chance[pair], 2)}`)]],
    ];
  }

  function edge(run, lineage, pair, { link, below }) {
    const { edges } = lineage, [parent, child] = [edges.parent[pair], edges.child[pair]];
    const cells = [...cellsOfEdge(edges, pair), ...(below ? [["below", below]] : [])];
    return pairLine(link, cells, { run, lineage, number: pair, parent, child, title: "Both fire" });
  }

  // Suspects are numbered after the edges.
  function suspect(run, lineage, pair, { href, nameOf }) {
    const { edges, suspects } = lineage, [parent, child] = [suspects.parent[pair], suspects.child[pair]];
    const cells = [["cosine", number(suspects.cosine[pair])],
      ["covered", [bar(suspects.coverage[pair]), percent(suspects.coverage[pair])]]];
    const link = el("a", { href: href(child) }, numbered(child, nameOf(child)));
    return pairLine(link, cells,
      { run, lineage, number: edges.parent.length + pair, parent, child, title: "The parent should have fired and did not",
        silent: true });
  }

  matryoshka.pairs = { edge, suspect };
})();
