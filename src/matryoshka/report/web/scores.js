// Scores as people read them: grouped by what measured them, with interval and chance, and what each means at hand.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const { el, NONE, missing, integer, number, percent, plain } = matryoshka.dom;
  const { term } = matryoshka;
  const LINE = 120;  // letters
  const ARROWS = { lower: "↓", higher: "↑", neither: "" };
  const GROUPS = {
    reconstruction: ["Reconstruction",
      "How much of what the site holds the coder gives back, and what the model loses with it in place."],
    absorption: ["Absorption", "How often a general feature is silent where a more special one has taken its place."],
    splitting: ["Splitting", "Whether one concept is spread over several features."],
    probing: ["Probing", "How well a few features tell known concepts in held-out text."],
    monosemanticity: ["One meaning", "Whether what a feature fires on can be told by one rule."],
    intervention: ["Interventions", "What changes when features are taken away or held high."],
    recovery: ["Recovery", "How many of the known features were found."],
    detection: ["Explanations", "How well the explanations of features tell where they fire."],
    names: ["Names", "How many features a rule names."],
    densities: ["Densities", "How often features fire."],
    clusters: ["Communities", "Groups of features that fire together, or point the same way."],
    map: ["Map", "How faithful the two-dimensional map is."],
    patterns: ["Patterns", "What kinds of things features fire on."],
    hierarchy: ["Hierarchy", "Which general features stand above which special ones."],
  };

  const shown = (value, measure) => (measure.percent ? percent(value, 3) : number(value));

  function range({ low, high }, measure) {
    return missing(low) ? NONE : `${shown(low, measure)} – ${shown(high, measure)}`;
  }

  function named(measure) {
    const chance = measure.null && ` Chance: ${measure.null}.`;
    const better = measure.better === "neither" ? "" : ` ${measure.better === "lower" ? "Lower" : "Higher"} is better.`;
    return term(`${plain(measure.name)}${ARROWS[measure.better] && ` ${ARROWS[measure.better]}`}`,
      `${plain(measure.meaning)}${better}${plain(chance || "")}`);
  }

  // The whole dictionary's.
  const whole = ({ rows }) => rows.reduce((widest, row) => (row.width > widest.width ? row : widest));

  function line(measure) {
    const row = whole(measure);
    return el("tr", {}, el("th", { scope: "row" }, named(measure)),
      el("td", { class: "value" }, shown(row.value, measure)),
      el("td", { class: "spread" }, range(row, measure)),
      el("td", { class: "by-chance" }, shown(row.null, measure)),
      el("td", { class: "drawn" }, matryoshka.chart.interval({ ...row, percent: measure.percent })));
  }

  function table(caption, measures) {
    return el("table", { class: "scores" }, el("caption", { class: "visually-hidden" }, caption),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Score"), el("th", { scope: "col" }, "Value"),
        el("th", { scope: "col", class: "spread" }, "95 % interval"), el("th", { scope: "col", class: "by-chance" }, "By chance"),
        el("td", { class: "drawn" }))),
      el("tbody", {}, measures.map(line)));
  }

  function byPrefix(measures) {
    const widths = [...new Set(measures.flatMap(({ rows }) => rows.map(({ width }) => width)))].sort((a, b) => a - b);
    const cell = (measure, width) => {
      const row = measure.rows.find((each) => each.width === width);
      return el("td", {}, row ? shown(row.value, measure) : NONE);
    };
    return el("details", { class: "more" }, el("summary", {}, "Every prefix"),
      el("div", { class: "wide" }, el("table", {}, el("caption", { class: "visually-hidden" }, "Scores of every prefix"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Score"),
          widths.map((width) => el("th", { scope: "col" }, `first ${integer(width)}`)))),
        el("tbody", {}, measures.map((measure) => el("tr", {}, el("th", { scope: "row" }, plain(measure.name)),
          widths.map((width) => cell(measure, width))))))));
  }

  // One line; what is longer is there on request.
  function reason(why) {
    if (why.length <= LINE) return el("p", { class: "muted" }, why);
    const [first] = why.split(/[:(]/);
    return el("details", { class: "more" }, el("summary", {}, first.slice(0, LINE)), el("p", { class: "muted" }, why));
  }

  // One group of the overview; null where it has no scores.
  function group({ name, why, measures }) {
    const [known, , of = ""] = name.match(/^([a-z]+)(-(.*))?$/) ?? [];
    const [title, about] = GROUPS[known] ?? [plain(name), ""];
    const full = GROUPS[known] && of ? `${title}: ${plain(of)}` : title;
    if (why) return el("section", { class: "score-group" }, el("h3", {}, full), reason(plain(why)));
    if (!measures.length) return null;
    const first = measures.filter(({ headline }) => headline), rest = measures.filter(({ headline }) => !headline);
    const nested = measures.filter(({ rows }) => rows.length > 1);
    return el("section", { class: "score-group" }, el("h3", {}, full), about && el("p", { class: "muted" }, about),
      first.length > 0 && table(full, first),
      rest.length > 0 && el("details", { class: "more", open: !first.length }, el("summary", {}, "More scores"),
        table(`${full}, more`, rest)),
      nested.length > 0 && byPrefix(nested));
  }

  matryoshka.scores = { group };
})();
