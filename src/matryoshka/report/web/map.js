// The map: every living feature a point, features that fire or point alike near each other.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer, number, percent, plural, plain, numbered } = matryoshka.dom;
  const { EMPTY, address, ringOf, features: featuresOf } = matryoshka.query;
  const { source, colours } = matryoshka;
  const LAYOUTS = { geometry: "decoder directions", coactivation: "firing together" };
  const PARTITIONS = { tokens: "communities: same tokens", blocks: "communities: same passages",
    geometry: "communities: directions" };
  const ALIKE = { geometry: "geometry", coactivation: "tokens" };  // the partition of what a layout shows
  const SHADES = 12;     // of density
  const NAMED = 30;      // communities that are written on the map, where there is room
  const LETTERS = 24;    // of a name on the map
  const LISTED = 30;     // found features that are listed
  const PAUSE = 120;     // milliseconds on a point before its example is fetched

  // ── the data ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function unpack(base64, Kind) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return new Kind(bytes.buffer);
  }

  const every = (object, act) => Object.fromEntries(Object.entries(object).map(([name, value]) => [name, act(value)]));

  function unpacked(packed) {
    return {
      ...packed,
      features: unpack(packed.features, Uint32Array),
      layouts: every(packed.layouts, ({ x, y }) => ({ x: unpack(x, Uint16Array), y: unpack(y, Uint16Array) })),
      partitions: every(packed.partitions, (labels) => unpack(labels, Int16Array)),
    };
  }

  // points by a number that each has: [{value, colour, points}]
  function grouped(count, key, colour) {
    const groups = new Map();
    for (let i = 0; i < count; i += 1) {
      const value = key(i);
      if (!groups.has(value)) groups.set(value, []);
      groups.get(value).push(i);
    }
    return [...groups].sort(([a], [b]) => b - a).map(([value, points]) => ({ value, colour: colour(value), points }));
  }

  function choice(name, options, change) {
    const select = el("select", { "aria-label": name, change: () => change(select.value) },
      options.map(([value, text]) => el("option", { value }, text)));
    return el("label", { class: "choice", hidden: options.length < 2 }, el("span", {}, name), " ", select);
  }

  // ── the view ──────────────────────────────────────────────────────────────────────────────────────────────────────

  class MapView {
    constructor(overview, packed, app) {
      Object.assign(this, { overview, app, data: unpacked(packed), table: featuresOf(overview), title: "Map", wishes: {},
        open: null });
      this.names = Object.keys(this.data.layouts);
      this.heading = el("h1", { tabindex: "-1" }, "Map of features");
      this.canvas = el("canvas", { "aria-hidden": "true" });
      this.points = new matryoshka.Points(this.canvas);
      this.preview = el("div", { class: "preview", role: "status" });
      this.key = el("div", { class: "map-key" });
      this.found = el("div", { class: "map-found" });
      this.side = el("div");
      this.element = el("div", { class: "map-view" }, this.head(), this.names.length > 0 ? this.body() : this.side);
      this.keys = { "/": () => this.search.focus(), Escape: () => { location.hash = address.list(overview.key); } };
      new ResizeObserver(() => { if (this.points.resize()) this.points.fit(); }).observe(this.canvas);
    }

    head() {
      const { why, features } = this.data;
      return [el("div", { class: "view-head" }, this.heading,
        el("p", { class: "muted" }, features.length > 0 && plural(features.length, "feature", "features"))),
        why.map((line) => el("p", { class: "problem" }, plain(line)))];
    }

    body() {
      const { partitions, dense } = this.data;
      const hues = [["ring", "rings"], ...Object.keys(partitions).map((name) => [`of-${name}`, PARTITIONS[name] ?? plain(name)]),
        ["density", "density"]];
      this.layout = choice("Near is", this.names.map((name) => [name, LAYOUTS[name] ?? plain(name)]),
        (layout) => this.change({ layout }));
      this.colour = choice("Colour", hues, (colour) => this.change({ colour }));
      this.search = el("input", { type: "search", "aria-label": "Search the map", placeholder: "Search the map",
        autocomplete: "off",
        spellcheck: "false", "aria-keyshortcuts": "/", input: () => this.find() });
      const stage = el("div", { class: "stage", tabindex: "0", role: "application",
        "aria-label": "Map of features: arrow keys move it, plus and "
        + "minus zoom, 0 shows all, Enter opens the feature in the middle. The communities are listed beside it." }, this.canvas);
      const zoom = matryoshka.navigate(stage, this.points, { point: (at, byKey) => this.point(at, byKey),
        choose: (at, touch) => this.choose(at, touch) });
      return [el("div", { class: "map-bar" }, this.layout, this.colour, this.search, zoom),
        el("div", { class: "map-body" }, el("div", { class: "map-main" }, stage, this.key),
          el("aside", { "aria-label": "What is on the map" }, this.preview, this.found, this.side, this.denseList(dense)))];
    }

    denseList(dense) {
      if (!dense.length) return null;
      return el("details", { class: "dense-list" }, el("summary", {},
        `${plural(dense.length, "dense feature", "dense features")}, set apart`),
        el("p", { class: "muted" }, "They fire together with nearly all others, and would stand in the middle of everything."),
        el("ul", { class: "found" }, dense.map((index) => el("li", {}, this.link(index)))));
    }

    href(index) {
      return address.feature(this.overview.key, index);
    }

    link(index) {
      return el("a", { href: this.href(index) }, numbered(index, this.table.nameOf(index)));
    }

    change(patch) {
      const wishes = { ...this.wishes, ...patch };
      this.app.go(address.map(this.overview.key, wishes), { replace: true });
      this.show(wishes);
    }

    // ── what is drawn ───────────────────────────────────────────────────────────────────────────────────────────────

    show(wishes) {
      const { layouts, partitions, features } = this.data;
      const layout = this.names.includes(wishes.layout) ? wishes.layout : this.names[0] ?? "";
      const colour = wishes.colour || (ALIKE[layout] in partitions ? `of-${ALIKE[layout]}` : "ring");
      const placed = layout !== this.placed;
      Object.assign(this, { wishes: { ...wishes, feature: null }, partition: colour.replace(/^of-/, "") in partitions ? colour.replace(/^of-/, "") : null, hue: colour });
      this.listCommunities();
      if (!this.names.length) return;
      this.layout.querySelector("select").value = layout;
      this.colour.querySelector("select").value = colour;
      if (placed) Object.assign(this, { placed: layout, sought: layouts[layout] });
      const groups = this.coloured();
      this.points.paint({ groups, labels: this.labels(groups, layouts[layout]) });
      if (this.element.isConnected) this.arrange();
      const at = wishes.feature === null ? -1 : features.indexOf(wishes.feature);
      if (at >= 0) this.centre = at;
    }

    // The canvas has a size only in the page.
    arrange() {
      if (this.sought) this.points.place(this.sought.x, this.sought.y);
      this.sought = null;
      if (this.centre !== undefined) { this.points.show(this.centre); this.point(this.centre, true); }
      this.centre = undefined;
    }

    coloured() {
      const { features, partitions } = this.data, { widths, columns, tokens } = this.overview, count = features.length;
      if (this.partition) {
        const labels = partitions[this.partition];
        this.key.replaceChildren();
        return grouped(count, (i) => labels[i], colours.community);
      }
      if (this.hue === "density") {
        const floor = Math.log10(1 / tokens);
        const share = (i) => Math.round((SHADES - 1) * Math.max(0,
          1 - Math.log10(columns.density[features[i]] || 1 / tokens) / floor));
        this.key.replaceChildren(el("span", {}, percent(1 / tokens, 1)),
          ...Array.from({ length: SHADES }, (_, i) => colours.swatch(colours.density(i / (SHADES - 1)))),
          el("span", {}, `${percent(1)} of tokens`));
        return grouped(count, share, (value) => colours.density(value / (SHADES - 1)));
      }
      this.key.replaceChildren(...widths.map((_, ring) => el("span", {}, colours.swatch(colours.ring(ring, widths.length)),
        `Ring ${ring}`)));
      return grouped(count, (i) => ringOf(features[i], widths), (ring) => colours.ring(ring, widths.length));
    }

    // The largest communities by name, each in its middle.
    labels(groups, { x, y }) {
      if (!this.partition) return [];
      const members = new Map(groups.map(({ value, points }) => [value, points]));
      const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
      return this.data.communities[this.partition].slice(0, NAMED).filter(({ number: n }) => members.has(n)).map((community) => {
        const points = members.get(community.number), name = plain(matryoshka.communities.nameOf(community, this.table));
        return { text: name.length > LETTERS ? `${name.slice(0, LETTERS - 1)}…` : name,
          x: middle(points.map((i) => x[i])), y: middle(points.map((i) => y[i])) };
      });
    }

    listCommunities() {
      const all = this.data.communities[this.partition ?? Object.keys(this.data.communities)[0]];
      const pick = (number) => { this.open = number; this.recede(); };
      this.open = null;
      this.side.replaceChildren(...(all ? [matryoshka.communities.list(all, this.table, (index) => this.href(index), pick)] : []));
      if (this.names.length) this.recede();
    }

    // What is neither found nor of the opened community recedes.
    recede() {
      const { features, partitions } = this.data;
      const labels = partitions[this.partition ?? Object.keys(partitions)[0]];
      const of = (i) => this.open === null || labels[i] === this.open;
      const matched = this.matches ? (i) => this.matches.has(features[i]) : () => true;
      const faint = this.open === null && !this.matches ? null : Uint8Array.from(features, (_, i) => (of(i) && matched(i) ? 0 : 1));
      this.points.paint({ faint });
    }

    // ── what is sought and pointed at ───────────────────────────────────────────────────────────────────────────────

    find() {
      const q = this.search.value.trim();
      const matches = q ? [...this.table.select({ ...EMPTY, q, sort: "-density" })] : null;
      this.matches = matches && new Set(matches);
      this.recede();
      const here = new Set(this.data.features), shown = matches?.filter((index) => here.has(index)) ?? [];
      this.found.replaceChildren(...(matches ? [el("h2", {}, `${integer(shown.length)} found`),
        el("ul", { class: "found" }, shown.slice(0, LISTED).map((index) => el("li", {}, this.link(index)))),
        el("p", { class: "muted", hidden: shown.length <= LISTED }, `The densest ${LISTED} are listed.`)] : []));
    }

    point(at, byKey) {
      if (at === this.points.marked) return;
      this.points.marked = at;
      this.points.later();
      this.canvas.parentElement.classList.toggle("pointing", at !== null && !byKey);
      clearTimeout(this.waiting);
      if (at === null) return;
      const index = this.data.features[at], { columns, widths } = this.overview;
      const about = `Ring ${ringOf(index, widths)} · fires on ${percent(columns.density[index])} of the tokens · `
        + `maximum ${number(columns.max[index])}`;
      const text = el("div", {});
      this.preview.replaceChildren(el("p", {}, this.link(index)), el("p", { class: "muted" }, about), text);
      this.waiting = setTimeout(async () => {
        const card = await source.feature(this.overview.key, index).catch(() => null);
        if (this.points.marked === at && card) text.replaceChildren(matryoshka.examples.snippet(card) ?? "");
      }, PAUSE);
    }

    // A finger first sees what it has hit, and opens it in the preview.
    choose(at, touch) {
      if (touch) this.point(at, false);
      else location.hash = this.href(this.data.features[at]);
    }

    shown() {
      this.points.resize();
      this.arrange();
      this.points.later();
      if (!this.preview.hasChildNodes()) this.preview.append(el("p", { class: "muted" },
        "Point at a feature, or move the map with arrow keys, to read it here."));
    }

    themed() {
      this.points.later();
    }
  }

  const views = new Map();  // run → its map, kept so that going back finds it as it was left

  async function mapView(route, app) {
    const [overview, packed] = await Promise.all([source.overview(route.run), source.map(route.run)]);
    if (!views.has(route.run)) views.set(route.run, new MapView(overview, packed, app));
    const view = views.get(route.run);
    view.show(route.map);
    return view;
  }

  matryoshka.mapView = mapView;
})();
