// The list of a run's features, and its filters.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { about } = matryoshka;
  const { el, integer, plain } = matryoshka.dom;
  const { EMPTY, SORTS, address, features: featuresOf } = matryoshka.query;
  const SORT_NAMES = {
    index: "index", ring: "ring", density: "density", max: "maximum", mean: "mean", entropy: "entropy",
    first: "share at document start", cosine: "decoder cosine",
  };
  const SEARCH = "Search tokens, labels, notes and explanations";

  function debounce(wait, act) {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(act, wait); };
  }

  class Browse {
    constructor(overview, app) {
      Object.assign(this, { overview, app, query: EMPTY, features: featuresOf(overview) });
      this.title = `Features of ${overview.read} → ${overview.write}`;
      this.heading = about.heading(overview);
      this.list = new matryoshka.List(this.features, {
        href: (i) => address.feature(overview.key, i, this.query),
        sort: (sort) => this.change({ sort }),
      });
      this.facets = matryoshka.facets(this.features, (patch) => this.change(patch));
      this.search = el("input", {
        type: "search", id: "search", placeholder: SEARCH, "aria-label": SEARCH, "aria-keyshortcuts": "/", autocomplete: "off",
          spellcheck: "false",
        input: debounce(80, () => this.change({ q: this.search.value }, { typing: true })),
        keydown: (event) => this.leaveSearch(event),
      });
      const orders = SORTS.flatMap((sort) => [[sort, `${SORT_NAMES[sort]} ↑`], [`-${sort}`, `${SORT_NAMES[sort]} ↓`]]);
      this.sort = el("select", { "aria-label": "Sort by", change: () => this.change({ sort: this.sort.value }) },
        orders.map(([value, name]) => el("option", { value }, name)));
      this.count = el("p", { class: "count", role: "status", id: "count" });
      const all = () => this.change({ ...EMPTY, sort: this.query.sort });
      this.reset = el("button", { type: "button", class: "quiet", click: all }, "Clear filters");
      this.empty = el("div", { class: "empty", hidden: true }, el("p", {}, "No feature matches this search and these filters."),
        el("button", { type: "button", class: "quiet", click: all }, "Show all features"));
      this.filters = el("details", { class: "filters" }, el("summary", {}, "Filters"),
        el("div", { class: "facets" }, this.facets.map(({ element }) => element)));
      this.filters.open = !matchMedia("(max-width: 1000px)").matches;
      this.element = el("div", { class: "browse" },
        el("header", { class: "run-head" }, el("p", { class: "eyebrow" }, plain(overview.name)), this.heading,
          about.line(overview)),
        el("div", { class: "browser" }, el("aside", { "aria-label": "Filters" }, this.filters),
          el("section", { class: "results", "aria-label": "Features" },
            el("search", { class: "toolbar" }, this.search, el("label", { class: "sort" }, el("span", {}, "Sort by"), " ",
              this.sort), this.count, this.reset),
            this.list.element, this.empty)));
      this.keys = {
        "/": () => this.search.focus(),
        j: () => this.list.move(1), k: () => this.list.move(-1),
        ArrowDown: (event) => this.arrow(event, 1), ArrowUp: (event) => this.arrow(event, -1),
        Home: (event) => this.jump(event, 0), End: (event) => this.jump(event, Infinity),
        Enter: (event) => (this.pointing(event) ? this.list.open() : false),
        c: () => { if (this.list.index !== null) location.hash = address.compare(overview.key, this.list.index, overview.key,
          null); },
      };
    }

    // Enter and arrows mean the list unless a control has the focus.
    pointing({ target }) {
      return !target.closest("a, button, summary, input, select");
    }

    arrow(event, step) {
      if (!this.pointing(event)) return false;
      this.list.move(step);
      return true;
    }

    jump(event, to) {
      if (!event.target.closest(".rows")) return false;
      this.list.activate(to);
      return true;
    }

    leaveSearch(event) {
      if (event.isComposing) return;
      if (event.key === "Enter") { this.change({ q: this.search.value }, { typing: true }); this.list.activate(0); }
      if (event.key === "Escape" && !this.search.value) this.list.order.length ? this.list.activate(this.list.active)
        : this.search.blur();
    }

    // Typing replaces the address, so that Back does not lead through every letter; a choice makes a new one.
    change(patch, { typing = false } = {}) {
      const query = { ...this.query, ...patch };
      const next = address.list(this.overview.key, query);
      if (next === address.list(this.overview.key, this.query)) return;
      this.app.go(next, { replace: typing });
      this.show(query);
    }

    show(query) {
      const anew = query.q !== this.query.q || query.sort !== this.query.sort;
      this.query = query;
      const order = this.features.select(query);
      if (anew) this.list.active = 0;
      this.list.set(order, query.sort);
      this.facets.forEach((facet) => facet.sync(query));
      if (document.activeElement !== this.search) this.search.value = query.q;
      this.sort.value = query.sort;
      const { count } = this.features;
      this.count.textContent = order.length === count ? `${integer(count)} features`
        : `${integer(order.length)} of ${integer(count)} features`;
      this.reset.hidden = address.list("", { ...query, sort: "index" }) === address.list("");
      this.empty.hidden = order.length > 0;
      this.list.element.hidden = order.length === 0;
    }

    // Called when the view has come (back) into the page.
    shown() {
      this.list.render();
    }
  }

  matryoshka.Browse = Browse;
})();
