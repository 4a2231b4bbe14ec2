// Parents and children as the tree's columns have them: who stands above and below whom, and how many in all.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  // feature → the numbers of its pairs, in the order of `rank`
  function byFeature(features, wanted, rank) {
    const pairs = new Map();
    features.forEach((feature, pair) => {
      if (!wanted(pair)) return;
      if (!pairs.has(feature)) pairs.set(feature, []);
      pairs.get(feature).push(pair);
    });
    for (const list of pairs.values()) list.sort((a, b) => rank(b) - rank(a));
    return pairs;
  }

  class Lineage {
    constructor({ edges, suspects, pairs }) {
      Object.assign(this, { edges, suspects, inOneFile: pairs });
      const stands = (pair) => edges.stands[pair], gain = (pair) => edges.gain[pair] ?? -Infinity;
      this.below = byFeature(edges.parent, stands, gain);
      this.above = byFeature(edges.child, stands, gain);
      this.doubtful = byFeature(edges.parent, (pair) => !stands(pair), gain);
      this.suspected = byFeature(suspects.parent, () => true, (pair) => suspects.cosine[pair]);
      this.descendants = new Map();
    }

    parentsOf(feature) {
      return this.above.get(feature) ?? [];
    }

    childrenOf(feature) {
      return this.below.get(feature) ?? [];
    }

    // How many features stand anywhere below this one.
    size(feature) {
      if (!this.descendants.has(feature)) {
        const seen = new Set(), ahead = [feature];
        while (ahead.length) for (const pair of this.childrenOf(ahead.pop())) {
          const child = this.edges.child[pair];
          if (!seen.has(child)) { seen.add(child); ahead.push(child); }
        }
        this.descendants.set(feature, seen.size);
      }
      return this.descendants.get(feature);
    }

    // Features with children and without a parent, those with the most below them first.
    roots() {
      this.tops ??= [...this.below.keys()].filter((feature) => !this.above.has(feature))
        .sort((a, b) => this.size(b) - this.size(a) || a - b);
      return this.tops;
    }

    get standing() {
      return this.edges.stands.reduce((sum, stands) => sum + stands, 0);
    }
  }

  const known = new WeakMap();

  // Of the tree that `source.tree` gives, made once.
  function lineage(tree) {
    if (!known.has(tree)) known.set(tree, new Lineage(tree));
    return known.get(tree);
  }

  matryoshka.lineage = lineage;
})();
