// What every view is built with: elements, numbers, untrusted text, and the small drawings that several of them share.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  // ── elements ──────────────────────────────────────────────────────────────────────────────────────────────────────

  // Children that are strings become text nodes: nothing here ever parses data as HTML.
  function build(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node.addEventListener(name, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────

  const NONE = "–";
  const missing = (x) => x === null || x === undefined || Number.isNaN(x);
  const typeset = (text) => text.replace("-", "−");

  function integer(x) {
    return missing(x) ? NONE : typeset(Math.round(x).toLocaleString("en"));
  }

  // three significant digits without an exponent, as far as a reader can count the zeros
  function number(x, digits = 3) {
    if (missing(x)) return NONE;
    if (x === 0) return "0";
    if (Math.abs(x) >= 10 ** digits) return integer(x);
    if (Math.abs(x) < 1e-4) return scientific(x);
    return typeset(x.toPrecision(digits));
  }

  function scientific(x) {
    const [mantissa, exponent] = x.toExponential(1).split("e");
    const raised = [...exponent].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? (digit === "-" ? "⁻" : ""));
    return `${typeset(mantissa)}\u202f×\u202f10${raised.join("")}`;
  }

  function percent(x, digits = 2) {
    if (missing(x)) return NONE;
    if (x === 0) return "0\u202f%";
    const decimals = Math.min(8, Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(x) * 100) + 1e-9)));
    return `${typeset((x * 100).toFixed(decimals))}\u202f%`;
  }

  const plural = (n, one, many) => `${integer(n)} ${Math.round(n) === 1 ? one : many}`;

  // ── untrusted text ────────────────────────────────────────────────────────────────────────────────────────────────

  const NAMES = new Map([
    [0x09, ["⇥", "tab"]], [0x0a, ["↵", "line break"]], [0x0d, ["CR", "carriage return"]], [0x7f, ["DEL", "delete"]],
    [0xa0, ["NBSP", "no-break space"]], [0xad, ["SHY", "soft hyphen"]], [0x61c, ["ALM", "Arabic letter mark"]],
    [0x200b, ["ZWSP", "zero-width space"]], [0x200c, ["ZWNJ", "zero-width non-joiner"]], [0x200d, ["ZWJ", "zero-width joiner"]],
    [0x200e, ["LRM", "left-to-right mark"]], [0x200f, ["RLM", "right-to-left mark"]], [0x2028, ["LS", "line separator"]],
    [0x2029, ["PS", "paragraph separator"]], [0x202a, ["LRE", "left-to-right embedding"]],
      [0x202b, ["RLE", "right-to-left embedding"]],
    [0x202c, ["PDF", "pop directional formatting"]], [0x202d, ["LRO", "left-to-right override"]],
      [0x202e, ["RLO", "right-to-left override"]],
    [0x2060, ["WJ", "word joiner"]], [0x2066, ["LRI", "left-to-right isolate"]], [0x2067, ["RLI", "right-to-left isolate"]],
    [0x2068, ["FSI", "first strong isolate"]], [0x2069, ["PDI", "pop directional isolate"]],
      [0xfeff, ["BOM", "zero-width no-break space"]],
  ]);
  const CONTROLS = ("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI "
    + "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US").split(" ");
  // what shows nothing, or moves what follows; a joiner between two pictographs is part of one emoji and stays
  const UNSEEN = new RegExp(
    "(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\ufe0f])\\u200d|\\u200d(?!\\p{Extended_Pictographic})|"
    + "[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u061c\\u115f\\u1160\\u180e\\u200b\\u200c\\u200e\\u200f"
    + "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]", "gu");

  function glyph(character) {
    const code = character.codePointAt(0);
    const hex = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    const other = code < 0x20 ? [CONTROLS[code], "control character"] : [hex, "invisible character"];
    const [sign, name] = NAMES.get(code) ?? other;
    return { sign, name: `${name} (${hex})` };
  }

  // as text for attributes: every unseen character by its sign
  const plain = (text) => text.replace(UNSEEN, (character) => glyph(character).sign);

  // as nodes: unseen characters become small labelled glyphs; with `breaks`, a line break also breaks the line
  function reveal(text, { breaks = false } = {}) {
    const nodes = [];
    let last = 0;
    for (const match of text.matchAll(UNSEEN)) {
      const { sign, name } = glyph(match[0]);
      if (match.index > last) nodes.push(text.slice(last, match.index));
      nodes.push(el("span", { class: "glyph", title: name }, sign));
      if (breaks && match[0] === "\n") nodes.push("\n");
      last = match.index + match[0].length;
    }
    if (last < text.length) nodes.push(text.slice(last));
    return nodes;
  }

  const part = () => el("span", { class: "glyph", title: "part of a character" }, "▫");

  // a token in running text: spaces stay spaces
  function token(text, tag = "span", attributes = {}, options = {}) {
    return el(tag, { class: "token", ...attributes }, text === "" ? part() : reveal(text, options));
  }

  // a token by itself, in a table: its outer spaces show
  function lone(text) {
    const [, before, body, after] = text.match(/^( *)(.*?)( *)$/s);
    const spaces = (run) => [...run].map(() => el("span", { class: "space" }, "␣"));
    return el("bdi", { class: "lone" }, text === "" ? part() : [spaces(before), reveal(body), spaces(after)]);
  }

  // what the reader wrote: its lines are lines
  function prose(text) {
    return el("bdi", {}, text.split("\n").map((line, i) => [i > 0 && el("br"), reveal(line)]));
  }

  // a label or summary as it stands in lists; what has neither gets its number
  function nameOf(name, index) {
    return name ? el("bdi", {}, reveal(name)) : el("span", { class: "muted" }, `feature ${index}`);
  }

  // a feature's number and name, as in every link to one
  const numbered = (index, name) => [el("span", { class: "index" }, String(index)), " ", nameOf(name, index)];

  // ── drawings ──────────────────────────────────────────────────────────────────────────────────────────────────────

  // The Matryoshka: one circle a prefix, nested, standing on one ground. `chosen(ring)` is filled, `holding(ring)` contains it.
  function rings(widths, { size = 56, chosen = () => false, holding = () => false, pick = null } = {}) {
    const count = widths.length;
    const circles = widths.map((_, ring) => {
      const radius = (size / 2 - 1.5) * (count === 1 ? 1 : 0.3 + (0.7 * ring) / (count - 1));
      const state = chosen(ring) ? "chosen" : holding(ring) ? "holding" : "";
      const click = pick && (() => pick(ring));
      return svg("circle", { class: `ring ${state}`, cx: size / 2, cy: size - 1.5 - radius, r: radius, click });
    });
    const box = { viewBox: `0 0 ${size} ${size}`, width: size, height: size };
    return svg("svg", { class: "rings", ...box, "aria-hidden": "true" }, circles.reverse());
  }

  function bar(share) {
    const fill = el("i");
    fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    return el("span", { class: "meter", "aria-hidden": "true" }, fill);
  }

  // Shade and underline grow with the activation, so that neither colour nor a pointer is needed to read it.
  function shade(node, share) {
    node.style.setProperty("--share", Math.min(1, share).toFixed(3));
    return node;
  }

  matryoshka.dom = {
    el, svg, NONE, missing, integer, number, percent, plural, plain, reveal,
    token, lone, prose, nameOf, numbered, rings, bar, shade,
  };
})();
