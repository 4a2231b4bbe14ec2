// What the address says and which features that means: the hash ⇄ a route, and a route's query → the features' order.
// Pure functions and one small class; nothing here touches the page.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const EMPTY = { q: "", sort: "index", rings: [], only: [], hide: [], density: null };

  // ── the hash ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function decode(part) {
    try { return decodeURIComponent(part); } catch { return part; }
  }

  function whole(text) {
    return /^\d{1,9}$/.test(text ?? "") ? Number(text) : null;
  }

  function range(text) {
    const ends = (text ?? "").split("..").map((end) => (end === "" ? null : Number(end)));
    return ends.length === 2 && ends.every((end) => end === null || end >= 0) && (ends[0] ?? ends[1]) !== null ? ends : null;
  }

  const PLACES = { "": "overview", features: "list", map: "map", tree: "tree", try: "try" };

  // "#/0/123/vs/1/456?q=…" → {view, run, index, other: {run, index}, query, map, text}
  function parse(hash) {
    const [path, search = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
    const [run = "", index = "", vs, otherRun, otherIndex] = path.split("/").map(decode);
    const given = new URLSearchParams(search);
    const flags = (given.get("flags") ?? "").split(",").filter(Boolean);
    const query = {
      q: given.get("q") ?? "",
      sort: given.get("sort") || "index",
      rings: (given.get("ring") ?? "").split(",").map(whole).filter((ring) => ring !== null),
      only: flags.filter((flag) => !flag.startsWith("-")),
      hide: flags.filter((flag) => flag.startsWith("-")).map((flag) => flag.slice(1)),
      density: range(given.get("density")),
    };
    const view = vs === "vs" ? "compare" : PLACES[index] ?? "feature";
    const other = { run: otherRun || run, index: whole(otherIndex) };
    const map = { layout: given.get("layout") ?? "", colour: given.get("colour") ?? "", feature: whole(given.get("feature")) };
    return { view, run, index: whole(view === "tree" ? vs : index), other, query, map, text: given.get("text") ?? "" };
  }

  // Only what differs from the plain list, so that addresses stay short.
  function search(query) {
    const parts = [];
    const add = (name, value) => value && parts.push(`${name}=${encodeURIComponent(value).replace(/%2C/g, ",")}`);
    add("q", query.q);
    add("sort", query.sort === EMPTY.sort ? "" : query.sort);
    add("ring", query.rings.join(","));
    add("flags", [...query.only, ...query.hide.map((flag) => `-${flag}`)].join(","));
    add("density", query.density ? query.density.map((end) => (end === null ? "" : short(end))).join("..") : "");
    return parts.length ? `?${parts.join("&")}` : "";
  }

  // 0.0001 → "1e-4", the shorter of the two ways to write it, rounded to three digits
  function short(value) {
    const rounded = Number(value.toPrecision(3));
    const exponential = rounded.toExponential().replace("e+", "e");
    return String(rounded).length <= exponential.length ? String(rounded) : exponential;
  }

  const run = (key) => `#/${encodeURIComponent(key)}`;
  const address = {
    overview: (key) => run(key),
    list: (key, query = EMPTY) => `${run(key)}/features${search(query)}`,
    feature: (key, index, query = EMPTY) => `${run(key)}/${index}${search(query)}`,
    compare: (key, index, otherKey, otherIndex) =>
      `${run(key)}/${index ?? ""}/vs/${encodeURIComponent(otherKey)}/${otherIndex ?? ""}`,
    // what is empty is left out: the map's own choice
    map: (key, wishes = {}) => {
      const given = Object.entries(wishes).filter(([, value]) => value !== null && value !== "");
      return `${run(key)}/map${given.length ? `?${new URLSearchParams(given)}` : ""}`;
    },
    tree: (key, index = null) => `${run(key)}/tree${index === null ? "" : `/${index}`}`,
    try: (key, text = "") => `${run(key)}/try${text ? `?text=${encodeURIComponent(text)}` : ""}`,
  };

  // ── the features ──────────────────────────────────────────────────────────────────────────────────────────────────

  function ringOf(index, widths) {
    return widths.findIndex((width) => index < width);
  }

  // “two words” "a phrase" → what must all occur
  function terms(q) {
    return [...q.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((match) => match[1] ?? match[2]);
  }

  // One run's features as columns that sort and filter fast: 36,864 in a few milliseconds.
  class Features {
    constructor(overview) {
      this.overview = overview;
      this.count = overview.columns.density.length;
      this.sorted = new Map();
      this.texts = null;
    }

    // null (undefined, as for a silent feature) is NaN here and sorts last in both directions
    column(name) {
      const { columns, widths } = this.overview;
      if (name === "index") return Float64Array.from({ length: this.count }, (_, i) => i);
      if (name === "ring") return Float64Array.from({ length: this.count }, (_, i) => ringOf(i, widths));
      return Float64Array.from(columns[name], (value) => value ?? NaN);
    }

    order(sort) {
      if (!this.sorted.has(sort)) this.sorted.set(sort, this.sortBy(sort));
      return this.sorted.get(sort);
    }

    sortBy(sort) {
      const sign = sort.startsWith("-") ? -1 : 1;
      const name = sort.replace(/^-/, "");
      const known = SORTS.includes(name) ? name : "index";
      const values = this.column(known);
      const all = Uint32Array.from({ length: this.count }, (_, i) => i);
      const defined = all.filter((i) => !Number.isNaN(values[i]));
      const missing = all.filter((i) => Number.isNaN(values[i]));
      defined.sort((a, b) => sign * (values[a] - values[b]) || a - b);
      all.set(defined);
      all.set(missing, defined.length);
      return all;
    }

    text(i) {
      const { label, note, explanation, summary, tokens } = this.overview.columns;
      return [label, note, explanation, summary, tokens].map((column) => column[i]).join("\n").toLowerCase();
    }

    // The lower-case texts, made at the first search; `refresh` after the reader has written a label.
    searchable() {
      this.texts ??= Array.from({ length: this.count }, (_, i) => this.text(i));
      return this.texts;
    }

    refresh(i) {
      if (this.texts) this.texts[i] = this.text(i);
    }

    // The features that the query means, in its order. A search for a number also finds the feature of that index.
    select(query) {
      const { columns, widths } = this.overview, flags = Object.keys(this.overview.flags);
      const bits = (names) => names.reduce((sum, name) => sum | (flags.includes(name) ? 1 << flags.indexOf(name) : 0), 0);
      const only = bits(query.only), hide = bits(query.hide);
      const words = terms(query.q), texts = words.length ? this.searchable() : null;
      const exact = whole(query.q.trim());
      const rings = widths.map((_, ring) => !query.rings.length || query.rings.includes(ring));
      const low = query.density?.[0] ?? -Infinity, high = query.density?.[1] ?? Infinity;
      return this.order(query.sort).filter((i) => {
        if (only && !(columns.flags[i] & only)) return false;
        if (columns.flags[i] & hide) return false;
        if (query.density && !(columns.density[i] >= low && columns.density[i] <= high)) return false;
        if (query.rings.length && !rings[ringOf(i, widths)]) return false;
        return !texts || i === exact || words.every((word) => texts[i].includes(word));
      });
    }

    flagsOf(i) {
      return Object.keys(this.overview.flags).filter((_, bit) => this.overview.columns.flags[i] & (1 << bit));
    }

    nameOf(i) {
      const { label, explanation, summary } = this.overview.columns;
      return label[i] || explanation[i] || summary[i];
    }
  }

  const SORTS = ["index", "ring", "density", "max", "mean", "entropy", "first", "cosine"];
  const tables = new WeakMap();  // overview → its Features

  function features(overview) {
    if (!tables.has(overview)) tables.set(overview, new Features(overview));
    return tables.get(overview);
  }

  matryoshka.query = { EMPTY, SORTS, parse, address, ringOf, features };
})();
