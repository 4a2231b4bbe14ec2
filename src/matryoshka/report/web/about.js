// What a run is of: all of its facts for the overview, one line for the list, and the heading of both.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, integer, percent, plural, plain } = matryoshka.dom;

  function facts(overview) {
    const { widths, tokens, tokens_left_out: out } = overview;
    const total = widths[widths.length - 1];
    const prefixes = `prefixes of ${widths.map(integer).join(", ")}`;
    const documents = plural(overview.documents, "document", "documents");
    const windows = plural(overview.windows, "window", "windows");
    const rows = [
      ["Model", plain(overview.model)],
      ["Features", widths.length > 1 ? `${integer(total)} in ${widths.length} rings: ${prefixes}` : `${integer(total)}, one ring`],
      ["Activation", overview.k ? `${overview.activation}, k = ${integer(overview.k)}` : overview.activation],
      ["Text", `${plain(overview.text)}: ${integer(tokens)} tokens in ${documents}, ${windows} of ${integer(overview.context)}`],
      ["Left out", `${integer(out)} tokens (${percent(out / (out + tokens))}): ${plain(overview.left_out)}`],
    ];
    if (overview.collected) rows.push(["Collected", overview.collected]);
    return el("dl", { class: "facts" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  function heading({ read, write }) {
    const sites = read === write ? plain(read) : [plain(read), " ", el("span", { class: "arrow" }, "→"), " ", plain(write)];
    return el("h1", { tabindex: "-1" }, sites);
  }

  function line(overview) {
    const { widths } = overview;
    const features = plural(widths[widths.length - 1], "feature", "features");
    const rings = widths.length > 1 ? ` in ${widths.length} rings` : "";
    return el("p", { class: "muted" }, `${features}${rings} of ${plain(overview.model)}, on ${integer(overview.tokens)} tokens of `
      + `${plain(overview.text)}`);
  }

  matryoshka.about = { facts, heading, line };
})();
