// A feature's examples: text with its activations as shades. All of them for its card, one short line of the strongest for lists
// and
// the map, and passages on which two features are looked at together.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, number, percent, plural, token, lone, shade } = matryoshka.dom;

  const BEFORE = 25, AFTER = 12;

  // The space before a word belongs to its token but stays unshaded, so that shades do not run into each other; the tooltip
  // shows the token as it is.
  function shaded(text, { value, position, length, max, scale, peak, options }) {
    const [, space, body] = text.match(/^( *)(.*)$/s);
    const mark = shade(token(body ? body : text, "mark", { class: peak ? "token peak" : "token", tabindex: "-1" }, options),
      value / scale);
    mark.facts = () => [
      el("b", {}, number(value)),
      lone(text),
      el("span", {}, `${percent(value / max)} of its maximum`),
      el("span", {}, `position ${position} of ${length}`),
    ];
    return body && space ? [space, mark] : [mark];
  }

  function words(example, from, to, max, scale, options) {
    const values = new Map(example.positions.map((position, i) => [position, example.values[i]]));
    const length = example.tokens.length;
    const nodes = example.tokens.slice(from, to).flatMap((text, i) => {
      const position = from + i, value = values.get(position);
      if (value === undefined) return token(text, "span", {}, options);
      return shaded(text, { value, position, length, max, scale, peak: position === example.peak, options });
    });
    const marks = nodes.filter((node) => node.localName === "mark");
    const stop = marks.find((mark) => mark.matches(".peak")) ?? marks[0];
    if (stop) stop.tabIndex = 0;  // one stop for the Tab key in each example; arrow keys reach the others
    return nodes;
  }

  function exampleItem(example, max, scale) {
    const from = Math.max(0, example.peak - BEFORE), to = Math.min(example.tokens.length, example.peak + AFTER + 1);
    const before = from > 0 ? "…" : "", after = to < example.tokens.length ? "…" : "";
    const cut = before || after;
    const text = el("p", { class: "text" });
    const toggle = () => show(button.getAttribute("aria-expanded") !== "true");
    const button = el("button", { type: "button", class: "plain", click: toggle }, "whole window");
    function show(all) {
      button.setAttribute("aria-expanded", all);
      text.classList.toggle("whole", all);
      if (all) text.replaceChildren(...words(example, 0, example.tokens.length, max, scale, { breaks: true }));
      else text.replaceChildren(before, ...words(example, from, to, max, scale), after);
    }
    show(false);
    const item = el("li", { class: "example" },
      el("span", { class: "activation" }, el("span", { class: "visually-hidden" }, "activation "), number(example.activation)),
      text,
      el("span", { class: "where" }, `document ${example.document}, window ${example.window}`, cut && [" ", button]));
    item.show = cut ? show : () => {};
    return item;
  }

  function group({ name, low, high, examples }, open, max, scale, heading) {
    const strongest = name === "strongest";
    const title = strongest ? "Strongest" : `${name.replace("–", " – ").replace(" %", "\u202f%")} of its firings`;
    const count = strongest ? plural(examples.length, "example", "examples") : `${examples.length} at random`;
    return el("details", { class: "group", open },
      el("summary", {},
        el(heading, {}, title),
        el("span", { class: "range" }, `${number(low)} to ${number(high)}`),
        el("span", { class: "muted" }, count)),
      el("ol", { class: "examples" }, examples.map((example) => exampleItem(example, max, scale))));
  }

  function section(card, scale, heading, sub) {
    if (!card.groups.length) {
      const why = "It did not fire on the collected tokens, so there are no examples.";
      return el("section", { class: "reading" }, el(heading, {}, "Examples"), el("p", { class: "muted" }, why));
    }
    const max = card.statistics.max;
    const groups = card.groups.map((each) => group(each, true, max, scale ?? max, sub));
    let whole = false;
    const all = el("button", { type: "button", class: "quiet", "aria-pressed": "false", click: () => {
      whole = !whole;
      all.setAttribute("aria-pressed", whole);
      reading.querySelectorAll(".example").forEach((item) => item.show(whole));
    } }, "Whole windows");
    const head = el("div", { class: "section-head" }, el(heading, {}, "Examples"), all);
    const reading = el("section", { class: "reading" }, head, groups);
    return reading;
  }

  // arrow keys go from one shaded token to the next within an example
  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const mark = event.target.closest(".text mark");
    if (!step || !mark || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const marks = [...mark.parentElement.querySelectorAll("mark")];
    const next = marks[marks.indexOf(mark) + step];
    if (!next) return;
    mark.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  // ── elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────────────

  // The strongest example, a few tokens around its peak; null for a feature that never fired.
  function snippet(card, before = 12, after = 5) {
    const [example] = card.groups[0]?.examples ?? [];
    if (!example) return null;
    const from = Math.max(0, example.peak - before), to = Math.min(example.tokens.length, example.peak + after + 1);
    const nodes = words(example, from, to, card.statistics.max, card.statistics.max);
    for (const node of nodes) if (node.localName === "mark") node.removeAttribute("tabindex");
    return el("p", { class: "text snippet" }, from > 0 && "…", nodes, to < example.tokens.length && "…");
  }

  // Tokens around one that is looked at; the space before it is not marked.
  function passage({ tokens, at }) {
    const first = at ? [tokens[0].replace(/^ +(?=.)/s, ""), ...tokens.slice(1, at)] : [];
    const [, space, body] = tokens[at].match(/^( *)(.*)$/s);
    const plainly = (texts) => texts.map((text) => token(text));
    return el("p", { class: "text" }, plainly(first), space, token(body || tokens[at], "strong"),
      plainly(tokens.slice(at + 1)));
  }

  matryoshka.examples = { section, walk, snippet, passage };
})();
