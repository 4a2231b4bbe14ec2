// The list of features as a grid of which only the rows in sight exist in the page: 36,864 rows cost what forty do.
// The page itself scrolls; rows lie at their height in a tall empty body. One row is active and is the grid's single Tab stop.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, number, percent, nameOf, plain } = matryoshka.dom;
  const narrow = matchMedia("(max-width: 760px)");
  const AHEAD = 10;  // rows above and below the sight, so that a scroll shows no gap

  const HEADS = [
    { key: "index", name: "Feature", first: "", title: "Index in the dictionary" },
    { key: "ring", name: "Ring", first: "", title: "Ring of the Matryoshka: 0 is the innermost" },
    { key: "name", name: "Label or top tokens" },
    { key: "density", name: "Density", first: "-", title: "Share of the tokens on which it fires; bar on a log scale" },
    { key: "max", name: "Max", first: "-", title: "Largest activation" },
    { key: "mean", name: "Mean", first: "-", title: "Mean activation where it fires" },
    { key: "entropy", name: "Entropy", first: "", title: "Entropy of the tokens it fires on, in bits" },
    { key: "first", name: "Start", first: "-", title: "Share of its firings at the first counted position of a document" },
    { key: "cosine", name: "Cosine", first: "-", title: "Largest decoder cosine with another feature" },
    { key: "flags", name: "Flags" },
  ];

  class List {
    // href(index) → address of a feature; sort(order) is told which order was asked for
    constructor(features, { href, sort }) {
      Object.assign(this, { features, href, active: 0, order: new Uint32Array(0), rows: new Map() });
      this.floor = Math.log10(1 / Math.max(10, features.overview.tokens));
      this.heads = new Map(HEADS.map((head) => [head.key, this.head(head, sort)]));
      this.body = el("div", { class: "rows", role: "rowgroup" });
      const handlers = { focusin: (event) => this.follow(event), click: (event) => this.click(event) };
      this.element = el("div", { class: "grid", role: "grid", "aria-label": "Features", ...handlers },
        el("div", { role: "rowgroup", class: "heads" },
          el("div", { class: "row", role: "row", "aria-rowindex": 1 }, [...this.heads.values()])),
        this.body);
      const later = () => { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.render(); }); };
      addEventListener("scroll", later, { passive: true });
      addEventListener("resize", later);
    }

    head({ key, name, first, title }, sort) {
      const cell = el("div", { role: "columnheader", class: `c-${key}` });
      const usual = `${first}${key}`, reverse = first ? key : `-${key}`;
      if (first === undefined) cell.append(name);
      else cell.append(el("button", { type: "button", title, click: () => sort(this.sorting === usual ? reverse : usual) }, name));
      return cell;
    }

    set(order, sort) {
      this.order = order;
      this.sorting = sort;
      for (const [key, cell] of this.heads) {
        const direction = sort === key ? "ascending" : sort === `-${key}` ? "descending" : null;
        direction ? cell.setAttribute("aria-sort", direction) : cell.removeAttribute("aria-sort");
      }
      this.active = Math.max(0, Math.min(this.active, order.length - 1));
      this.element.setAttribute("aria-rowcount", order.length + 1);
      this.clear();
      this.render();
    }

    clear() {
      this.rows.clear();
      this.body.replaceChildren();
    }

    get height() {
      return narrow.matches ? 60 : 36;
    }

    render() {
      if (!this.element.isConnected) return;
      const height = this.height;
      if (height !== this.drawnHeight) { this.clear(); this.drawnHeight = height; }
      this.body.style.height = `${this.order.length * height}px`;
      const top = -this.body.getBoundingClientRect().top;
      const from = Math.max(0, Math.floor(top / height) - AHEAD);
      const to = Math.min(this.order.length, Math.ceil((top + innerHeight) / height) + AHEAD);
      // the active row stays even out of sight: it may hold the focus
      const wanted = (at) => (at >= from && at < to) || at === this.active;
      for (const [at, row] of this.rows) if (!wanted(at)) { row.remove(); this.rows.delete(at); }
      for (let at = from; at < to; at += 1) this.row(at);
      if (this.order.length) this.row(this.active);
    }

    row(at) {
      if (!this.rows.has(at)) {
        const row = this.draw(at);
        this.rows.set(at, row);
        // in the order of the list also in the document, for screen readers
        const next = [...this.rows.keys()].filter((other) => other > at).reduce((least, other) => Math.min(least, other), Infinity);
        this.body.insertBefore(row, this.rows.get(next) ?? null);
      }
      return this.rows.get(at);
    }

    draw(at) {
      const i = this.order[at], { columns } = this.features.overview;
      const cell = (key, ...content) => el("div", { role: "gridcell", class: `c-${key}` }, ...content);
      const name = this.features.nameOf(i);
      const link = { href: this.href(i), tabindex: -1, class: columns.label[i] ? "label" : "", title: name ? plain(name) : null };
      const row = el("div", { class: "row", role: "row", "aria-rowindex": at + 2, tabindex: at === this.active ? 0 : -1 },
        cell("index", String(i)),
        cell("ring", String(this.ring(i))),
        cell("name", el("a", link, nameOf(name, i))),
        cell("density", this.density(columns.density[i]), percent(columns.density[i])),
        ...["max", "mean", "entropy"].map((key) => cell(key, number(columns[key][i]))),
        cell("first", percent(columns.first[i])),
        cell("cosine", number(columns.cosine[i])),
        cell("flags", this.features.flagsOf(i).join(", ")));
      row.style.transform = `translateY(${at * this.height}px)`;
      row.classList.toggle("active", at === this.active);
      row.at = at;
      return row;
    }

    ring(i) {
      return matryoshka.query.ringOf(i, this.features.overview.widths);
    }

    density(value) {
      return matryoshka.dom.bar(value ? 1 - Math.log10(value) / this.floor : 0);
    }

    // ── the active row ──────────────────────────────────────────────────────────────────────────────────────────────

    activate(at, { focus = true } = {}) {
      if (!this.order.length) return;
      const before = this.rows.get(this.active);
      before?.classList.remove("active");
      if (before) before.tabIndex = -1;
      this.active = Math.max(0, Math.min(at, this.order.length - 1));
      const row = this.row(this.active);
      row.classList.add("active");
      row.tabIndex = 0;
      this.reveal();
      if (focus) row.focus({ preventScroll: true });
    }

    move(step) {
      this.activate(this.element.contains(document.activeElement) || this.moved ? this.active + step : this.active);
      this.moved = true;
    }

    // scrolls no further than needed, clear of the heads that stick to the top
    reveal() {
      const covered = this.heads.get("index").getBoundingClientRect().height
        + parseFloat(getComputedStyle(this.element).getPropertyValue("--stuck"));
      const top = this.body.getBoundingClientRect().top + this.active * this.height;
      if (top < covered) scrollBy(0, top - covered - 2);
      else if (top + this.height > innerHeight) scrollBy(0, top + this.height - innerHeight + 2);
      this.render();
    }

    follow({ target }) {
      const row = target.closest(".row");
      if (row?.at !== undefined && row.at !== this.active) this.activate(row.at, { focus: false });
    }

    // a click anywhere on a row opens it; its link does so by itself, also in a new tab
    click(event) {
      const row = event.target.closest(".row");
      if (row?.at === undefined || event.target.closest("a, button") || String(getSelection())) return;
      this.active = row.at;
      this.open();
    }

    open() {
      if (this.order.length) location.hash = this.href(this.order[this.active]);
    }

    get index() {
      return this.order.length ? this.order[this.active] : null;
    }

    // makes a feature the active row, when it is in the list
    select(index) {
      const at = this.order.indexOf(index);
      if (at >= 0 && at !== this.active) this.activate(at, { focus: false });
    }
  }

  matryoshka.List = List;
})();
