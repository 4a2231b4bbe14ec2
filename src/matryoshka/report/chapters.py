"""The report on all that was found, as lines of Markdown: one source of report.md and of report.html.

In short       the findings that stand out most, from all that was measured
The coder      what it is of, what it was trained on, its training and its prefixes
Evaluation     every score of every prefix
…              an analysis each: what its own report shows, its headline scores, its figures
Comparison     of several coders: what matches what
…              all scores, what they mean, recipes, the commands that make all numbers
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from matryoshka.coder.io import load_card
from matryoshka.defaults import EVALUATION_TOKENS, FEATURE_TOKENS, PORT
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.table import EVALUATIONS
from matryoshka.report import compared, markdown
from matryoshka.report.analysed import AnalysedCoder, CoderAnalysis
from matryoshka.report.cells import cell, shown
from matryoshka.report.compared import Compared
from matryoshka.report.document import slug
from matryoshka.report.figures import prefix_figure, read_metrics, training_figure
from matryoshka.report.finding import Finding, score_findings
from matryoshka.report.hierarchy_report import agreements
from matryoshka.report.markdown import plain
from matryoshka.scores.comparison import Entry
from matryoshka.scores.result import Result, Score
from matryoshka.study.opening import AnotherText

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION, COMPARISON = "evaluation", "comparison"
OWN = ("training", "FVU-per-prefix")
"""Figures of a coder that are of no analysis."""
FEATURE = re.compile(r"\bfeature (\d+)\b")


class Asked(NamedTuple):
    """What the report is of, as a command would say it."""

    runs: tuple[Path, ...]
    tokens: int
    text: AnotherText | None

    def command(self, verb: str, *words: str, tokens: int = FEATURE_TOKENS) -> str:
        """The command that makes these numbers; `tokens`: what the verb reads where nothing is said."""
        parts = {"source": self.text} if isinstance(self.text, str) else self.text or {}
        text = [
            part for name, value in parts.items() for part in (f"--text{'' if name == 'source' else f'.{name}'}", value)
        ]
        of = [] if self.tokens == tokens else ["--tokens", f"{self.tokens}"]
        return f"`{shlex.join(['matryoshka', verb, *map(str, self.runs), *words, *of, *text])}`"


class Contents(NamedTuple):
    """All that the report tells of."""

    asked: Asked
    coders: Sequence[AnalysedCoder]
    evaluated: Sequence[Entry]
    """The table of the evaluations; none were asked for where it is empty."""
    compared: Compared | None
    folder: Path
    """Where it will lie, and its figures below."""

    @property
    def several(self) -> bool:
        return len(self.coders) > 1

    @property
    def analyses(self) -> list[str]:
        """Their names, in their order."""
        return list(dict.fromkeys(name for coder in self.coders for name in coder.analyses))

    @property
    def entries(self) -> list[Entry]:
        """Each coder and each pair, with all scores."""
        pairs = self.compared.pairs if self.compared else ()
        return [*(coder.entry for coder in self.coders), *(pair.entry for pair in pairs)]

    def findings(self) -> dict[str, list[Finding]]:
        """What can be said, by the evaluation or analysis that says it."""
        said: dict[str, list[Finding]] = {}
        for coder in self.coders:
            of_coder = list(score_findings(Entry(coder.name, [coder.evaluations], coder.entry.target)))
            for analysis in (found for found in coder.analyses.values() if found.result.reason is None):
                of_coder += [(analysis.name, finding) for finding in analysis.findings()]
            address = self.address(coder)
            for source, (sentence, strength) in of_coder:
                [sentence] = linked([f"{plain(coder.name)}: {sentence}" if self.several else sentence], address)
                said.setdefault(source, []).append(Finding(sentence, strength))
        for pair in self.compared.pairs if self.compared else ():
            for _, (sentence, strength) in score_findings(pair.entry):
                said.setdefault(COMPARISON, []).append(Finding(f"{plain(pair.label)}: {sentence}", strength))
        return said

    def address(self, coder: AnalysedCoder) -> str:
        """What the address of a feature of one of the coders begins with: in a page that was exported into its run, or
        else in the one that is served."""
        page = coder.run.path / "page" / "index.html"
        if page.is_file():
            return f"{quote(os.path.relpath(page, self.folder))}#/0/"
        return f"http://127.0.0.1:{PORT}/#/{coder.key}/"


def figures(contents: Contents) -> "dict[str, Figure]":
    """All that are drawn anew, by the name of their files; inside `drawing.style`."""
    drawn: dict[str, Figure] = {}
    for coder in contents.coders:
        drawn |= {_stem(coder, name): figure for name, figure in _of_coder(coder).items()}
        for analysis in coder.analyses.values():
            if analysis.result.reason is None:
                drawn |= {_stem(coder, analysis.name, name): of for name, of in analysis.figures().items()}
    return drawn


def _of_coder(coder: AnalysedCoder) -> "dict[str, Figure]":
    """Its training, where it was trained here, and what its prefixes reconstruct, where that was measured."""
    config, _ = load_card(coder.run.coder)
    drawn: dict[str, Figure] = {}
    if coder.run.metrics.is_file():
        drawn["training"] = training_figure(read_metrics(coder.run), config.widths)
    reconstruction = coder.evaluations.get("reconstruction", Result((), reason="not asked for"))
    if reconstruction.reason is None:
        drawn["FVU-per-prefix"] = prefix_figure(reconstruction)
    return drawn


def _stem(coder: AnalysedCoder, *names: str) -> str:
    return "-".join((coder.name.replace("/", "+"), *names))


def _shown(drawn: Mapping[str, "Figure"], captions: Mapping[str, str]) -> list[str]:
    """The figures of these names that are drawn, below one another, each with what it shows and what its axes are."""
    parts = []
    for stem, caption in captions.items():
        if stem in drawn:
            parts += [f"![{plain(caption)}{_axes(drawn[stem])}](<figures/{stem}.svg>)", ""]
    return parts


def report(contents: Contents, findings: Sequence[tuple[str, Finding]], drawn: Mapping[str, "Figure"]) -> list[str]:
    """All of it. `findings`: those that open it; `drawn`: the figures, by their files' names."""
    names = ", ".join(coder.name for coder in contents.coders)
    parts = [f"# Findings: {plain(names)}", "", *_in_short(contents, findings)]
    parts += [f"## {'The coders' if contents.several else 'The coder'}", ""]
    for coder in contents.coders:
        parts += [*_heading(contents, coder), *_facts(contents, coder), *_places(contents, coder)]
        parts += _shown(drawn, {_stem(coder, name): f"{name.replace('-', ' ')} of {coder.name}" for name in OWN})
    parts += _evaluation(contents)
    for name in contents.analyses:
        parts += [f"## {name.capitalize()}", "", contents.asked.command("analyze", "--only", name), ""]
        for coder in contents.coders:
            lines = _analysis(coder.analyses[name], drawn)
            parts += [*_heading(contents, coder), *linked(lines, contents.address(coder))]
    if contents.compared is not None:
        parts += _comparison(contents, contents.compared)
    return [*parts, *_appendix(contents)]


def _heading(contents: Contents, coder: AnalysedCoder) -> list[str]:
    return [f"### {plain(coder.name)}", ""] if contents.several else []


def _in_short(contents: Contents, findings: Sequence[tuple[str, Finding]]) -> list[str]:
    parts = ["## In short", ""]
    for number, (source, finding) in enumerate(findings, start=1):
        chapter = source if source in (*contents.analyses, COMPARISON) else EVALUATION
        parts += [f"{number}. {finding.sentence} ([{source}](#{slug(chapter)}))"]
    if not findings:
        parts += ["Nothing stands out from what chance gives."]
    said = (
        "These stand out most: the farther a number lies from what chance gives, in half widths of its interval, the"
        " higher it stands, and no evaluation or analysis has more than two of them. All of it again:"
    )
    return [*parts, "", said, "", contents.asked.command("analyze"), ""]


def _facts(contents: Contents, coder: AnalysedCoder) -> list[str]:
    config, _ = load_card(coder.run.coder)
    card, about = coder.card, coder.store.about
    text = f"{about.text}, {about.split.replace('_', ' ')}"
    reads, writes = (
        " + ".join(site for source in card.sources for site in of(source))
        for of in (lambda s: s.reads, lambda s: s.writes)
    )
    k = "" if config.k is None else f", k {config.k}"
    rows = [
        ["language model", card.model.name],
        ["reads → writes", f"{reads} → {writes}"],
        ["dictionary", f"{config.d_sae:,} features; prefixes {', '.join(f'{width:,}' for width in config.widths)}"],
        ["activation", f"{config.activation.kind}{k}"],
    ]
    if (trained := card.trained) is not None:
        source = trained.text.get("source", "synthetic")
        rows += [
            ["trained on", f"{trained.tokens:,} tokens of {source}, in windows of {card.context}"],
            [
                "dead",
                f"{len(trained.dead):,} did not fire in the last {trained.dead_after_tokens:,} tokens of training",
            ],
        ]
    rows += [
        ["features of", f"{about.tokens:,} tokens of {about.documents:,} documents ({text})"],
        ["left out", f"{about.tokens_left_out:,} tokens: {about.left_out}"],
        ["made by", card.origin],
        ["folder", str(coder.run.path)],
    ]  # fmt: skip
    if (names := coder.found.get("names")) is not None:
        rows += [["named by a rule", markdown.joined(cell(list(names.scores)))]]
    return [*markdown.lines(["fact", plain(coder.name)], [[name, plain(value)] for name, value in rows]), ""]


def _places(contents: Contents, coder: AnalysedCoder) -> list[str]:
    address = contents.address(coder)
    served = shlex.join(["matryoshka", "serve", *(str(path) for path in contents.asked.runs)])
    where = (
        f"open while `{served}` runs"
        if address.startswith("http")
        else f"lead to [the exported page]({address.partition('#')[0]})"
    )
    return [f"Links to features {where}.", ""]


def _axes(figure: "Figure") -> str:
    """What a figure's axes are, in words: its description for those who do not see it."""
    across = [label for axes in figure.axes if (label := axes.get_xlabel())]
    labels = [figure.get_supylabel(), *(axes.get_ylabel() for axes in figure.axes)]
    up = list(dict.fromkeys(label for label in labels if label))
    said = f"{', '.join(up)} against {across[-1]}" if up and across else "".join([*across[-1:], *up])
    return f": {plain(' '.join(said.split()))}" if said else ""


def _analysis(analysis: CoderAnalysis, drawn: Mapping[str, "Figure"]) -> list[str]:
    if analysis.result.reason is not None:
        return [f"Not measured: {analysis.result.reason}.", ""]
    prefix, coder = _stem(analysis.coder, analysis.name, ""), analysis.coder.name
    captions = {stem: f"{stem.removeprefix(prefix)} of {coder}" for stem in drawn if stem.startswith(prefix)}
    headlines = [score for score in analysis.result.scores if score.measure.headline]
    return [*analysis.section(), "", *_scores({"": headlines}), *_shown(drawn, captions)]


def _evaluation(contents: Contents) -> list[str]:
    if not contents.evaluated:
        return []
    names = {name for entry in contents.evaluated for results in entry.seeds for name in results}
    some = ["--only", *(name for name in EVALUATIONS if name in names)] if names < EVALUATIONS.keys() else []
    asked = contents.asked._replace(tokens=min(contents.asked.tokens, EVALUATION_TOKENS))
    command = asked.command("eval", *some, tokens=EVALUATION_TOKENS)
    table = [*markdown.table(contents.evaluated), ""] if contents.several else []
    return ["## Evaluation", "", command, "", *table, *markdown.body(contents.evaluated, "###")]


def _scores(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """A row a score, by the analysis that they are of; "" where that is clear."""
    rows = []
    for name, of_analysis in scores.items():
        for score in of_analysis:
            value, interval, _ = cell([score])
            null = "" if score.null is None else shown(score.null, score.measure)
            units = f"{len(score.units):,} {score.measure.unit}s"
            rows.append([name, score.measure.name, f"{score.width:,}", value, interval, null, units])
    heads, first = ["analysis", "score", "prefix", "value", "95 % interval", "null", "units"], int("" in scores)
    return [*markdown.lines(heads[first:], [row[first:] for row in rows]), ""] if rows else []


def _comparison(contents: Contents, found: Compared) -> list[str]:
    """The report of the comparison, whose figures lie in a folder of its own."""
    lines = compared.report(found).splitlines()[1:]
    ends = lines.index("## What the scores mean")
    moved = [re.sub(r"\]\((<?)figures/", rf"](\1{COMPARISON}/figures/", line) for line in lines[:ends]]
    demoted = [f"#{line}" if line.startswith("#") else line for line in moved]
    found_in = {coder.name: coder.found["hierarchy"] for coder in contents.coders if "hierarchy" in coder.found}
    hierarchies = agreements(found.pairs, found_in)
    return ["## Comparison", "", contents.asked.command("analyze", "--only", COMPARISON), *demoted, "", *hierarchies]


def linked(lines: Sequence[str], address: str) -> list[str]:
    """The same with every `feature N`, and the numbers of columns headed `feature`, as links to the feature."""
    made, columns = [], []
    for line in lines:
        cells = line.split(" | ") if line.startswith("| ") else []
        if not cells:
            columns = []
        elif not columns:
            columns = [i for i, head in enumerate(cells) if head.strip("| ") == "feature"] or [-1]
        for i in columns:
            if i >= 0 and (number := cells[i].strip("| ")).isdigit():
                cells[i] = cells[i].replace(number, f"[{number}]({address}{number})")
        line = " | ".join(cells) or line
        made.append(FEATURE.sub(rf"[feature \1]({address}\1)", line))
    return made


def _appendix(contents: Contents) -> list[str]:
    parts = ["## All scores of the analyses", ""]
    for coder in contents.coders:
        scores = {name: result.scores for name, result in coder.found.items()}
        parts += [*_heading(contents, coder), *_scores(scores)]
    parts += ["## What the scores mean", "", *markdown.legend(contents.entries), ""]
    parts += ["## Recipes", ""]
    for coder in contents.coders:
        parts += [*_heading(contents, coder), *_recipe(coder)]
    return parts


def _recipe(coder: AnalysedCoder) -> list[str]:
    if not coder.run.config_file.is_file():
        return [f"Not trained here: {plain(coder.card.origin)}.", ""]
    try:
        recipe = coder.run.config_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MatryoshkaError(f"{coder.run.config_file}: cannot be read ({error})") from None
    fence = "`" * (max(map(len, re.findall("`+", recipe)), default=2) + 1)
    return [
        f"`matryoshka train {shlex.quote(str(coder.run.config_file))}`",
        "",
        f"{fence}yaml",
        *recipe.splitlines(),
        fence,
        "",
    ]
