// A text of one's own: which features fire on it, and where. Live only, since it needs the model.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer, number, percent, plain, token, numbered, bar, shade } = matryoshka.dom;
  const { address } = matryoshka.query;
  const source = matryoshka.source;
  const PAGE = 100;  // features shown at first

  class Result {
    constructor(run, { tokens, counted, features }) {
      Object.assign(this, { run, tokens, counted, features, chosen: null, position: null, limit: PAGE });
      this.fired = new Set(features.flatMap(({ positions }) => positions));
      this.marks = tokens.map((text, position) => this.mark(text, position));
      this.text = el("div", {
        class: "text whole own", role: "group", "aria-label": "Tokens of the text; choose one to see what fires there",
        click: (event) => this.pickToken(event), keydown: (event) => this.walk(event),
      }, this.marks);
      this.status = el("p", { class: "count", role: "status" });
      this.clear = el("button", { type: "button", class: "quiet", click: () => this.filter(null) }, "All tokens");
      this.list = el("ol", { class: "firing", click: (event) => this.pickFeature(event),
        pointerover: (event) => this.preview(event), pointerleave: () => this.paint(this.chosen),
        focusin: (event) => this.preview(event), focusout: () => this.paint(this.chosen) });
      this.more = el("button", { type: "button", class: "quiet", click: () => { this.limit = Infinity; this.drawList(); } });
      const out = counted.filter((each) => !each).length;
      this.element = el("div", { class: "result" },
        el("section", { "aria-label": "Tokens" }, el("h2", {}, "Tokens"), this.text,
          out > 0 && el("p", { class: "muted" },
            `${integer(out)} of ${integer(tokens.length)} positions left out (struck through): BOS or attention sinks.`)),
        el("section", { "aria-label": "Features that fire" },
          el("div", { class: "section-head" }, el("h2", {}, "Features that fire"), this.status, this.clear),
          this.list, this.more));
      const first = this.marks.find((mark) => mark.position !== undefined);
      if (first) first.tabIndex = 0;
      this.drawList();
    }

    mark(text, position) {
      if (!this.counted[position]) return token(text, "s", { title: "left out" });
      if (!this.fired.has(position)) return token(text);
      const mark = token(text, "span", { role: "button", tabindex: "-1", "aria-pressed": "false" });
      mark.position = position;
      if (!text.trim()) mark.setAttribute("aria-label", text === "" ? "part of a character" : plain(text).trim() || "space");
      return mark;
    }

    get shown() {
      return this.position === null ? this.features : this.features.filter(({ positions }) => positions.includes(this.position));
    }

    drawList() {
      const shown = this.shown;
      this.status.textContent = this.position === null ? `${integer(shown.length)} features, strongest first`
        : `${integer(shown.length)} features at this token`;
      this.clear.hidden = this.position === null;
      this.list.replaceChildren(...shown.slice(0, this.limit).map((feature) => this.line(feature)));
      this.more.hidden = shown.length <= this.limit;
      this.more.textContent = `Show all ${integer(shown.length)}`;
      this.paint(this.chosen);
    }

    line(feature) {
      const { index, ring, name, max, typical_max: usual } = feature;
      const button = el("button", {
        type: "button", class: "quiet small", "aria-pressed": this.chosen === feature,
        "aria-label": `Shade the tokens of feature ${index}`,
      }, "shade");
      const line = el("li", {},
        el("a", { href: address.feature(this.run, index), title: `Ring ${ring}` }, numbered(index, name)),
        bar(max / usual), el("span", { class: "figure" }, number(max)),
        el("span", { class: "figure muted" }, percent(max / usual)), button);
      line.feature = feature;
      return line;
    }

    paint(feature) {
      const values = new Map(feature?.positions.map((position, i) => [position, feature.values[i]]));
      for (const mark of this.marks) {
        const value = values.get(mark.position);
        shade(mark, value === undefined ? 0 : value / feature.typical_max);
        mark.classList.toggle("lit", value !== undefined);
        if (mark.position !== undefined) mark.title = value === undefined ? "" : `${number(value)}: feature ${feature.index}`;
      }
    }

    preview({ target }) {
      const line = target.closest("li");
      if (line) this.paint(line.feature);
    }

    pickFeature({ target }) {
      if (!target.closest("button")) return;
      const { feature } = target.closest("li");
      this.chosen = this.chosen === feature ? null : feature;
      for (const line of this.list.children) {
        line.querySelector("button").setAttribute("aria-pressed", line.feature === this.chosen);
      }
      this.paint(this.chosen ?? feature);
    }

    pickToken({ target }) {
      const mark = target.closest("[role=button]");
      if (mark) this.filter(this.position === mark.position ? null : mark.position);
    }

    filter(position) {
      this.position = position;
      for (const mark of this.marks) if (mark.position !== undefined) mark.setAttribute("aria-pressed", mark.position === position);
      this.drawList();
    }

    // the tokens are one Tab stop; arrow keys go from one to the next, Enter and Space choose
    walk(event) {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); return this.pickToken(event); }
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const stops = this.marks.filter((mark) => mark.position !== undefined);
      const next = stops[stops.indexOf(event.target.closest("[role=button]")) + step];
      event.preventDefault();
      if (!next) return;
      stops.forEach((stop) => { stop.tabIndex = -1; });
      next.tabIndex = 0;
      next.focus();
    }
  }

  async function tryView(route, app) {
    if (!source.live) throw new Error("A text of one’s own needs the model: run the server. This page is an export.");
    const overview = await source.overview(route.run);
    const heading = el("h1", { tabindex: "-1" }, "Try a text");
    const area = el("textarea", { id: "own-text", rows: 4, "aria-label": "Text", placeholder: "Type or paste a text",
      keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); } });
    area.value = route.text;
    const button = el("button", { type: "submit" }, "Show its features");
    const output = el("div", { class: "output", "aria-live": "polite" });
    const form = el("form", { class: "try-form", submit: (event) => { event.preventDefault(); run(); } },
      area, el("div", { class: "actions" }, button, el("span", { class: "muted" }, "or Ctrl + Enter")));

    async function run() {
      const text = area.value;
      if (!text.trim()) return output.replaceChildren(el("p", { class: "muted" }, "Type a text first."));
      app.go(address.try(route.run, text), { replace: true });  // so that a reload and a link show the same
      button.disabled = true;
      output.replaceChildren(el("p", { class: "muted" }, "Running the model…"));
      try {
        const answer = await source.tryText(route.run, text);
        if (answer.features.length) output.replaceChildren(new Result(route.run, answer).element);
        else output.replaceChildren(el("p", { class: "muted" }, "No feature fires on this text."));
      } catch (error) {
        output.replaceChildren(app.problem(error, run));
      } finally {
        button.disabled = false;
      }
    }

    return {
      element: el("div", { class: "try" }, el("p", { class: "eyebrow" }, plain(overview.name)), heading, form, output),
      heading, title: "Try a text",
      keys: { Escape: () => { location.hash = address.list(route.run); } },
      shown: () => { if (area.value) run(); else area.focus(); },
    };
  }

  matryoshka.tryView = tryView;
})();
