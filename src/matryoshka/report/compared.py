"""Coders side by side, two at a time: what matches what, as tables, figures, and the report that holds both.

report.md  scores.json  scores.parquet    of all pairs
chains.json  chains.parquet               of coders one after the other
figures/                                  classes; of each pair matches and densities; of chains
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matryoshka.analysis.across import joined
from matryoshka.analysis.joint import Joint
from matryoshka.defaults import COMPARED_TOKENS
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.features.store import FeatureStore, required
from matryoshka.files import refuse_unwritable, write_text
from matryoshka.lm.sites import Site
from matryoshka.report import chains_report, drawing, markdown, match_figures
from matryoshka.report.cells import cell
from matryoshka.report.chains_report import Chains
from matryoshka.report.figures import save_figures
from matryoshka.run import Run, once, opened
from matryoshka.scores.comparison import Entry, Target
from matryoshka.scores.result import Result
from matryoshka.study.hooked import wiring_of
from matryoshka.study.opening import AnotherText, read_card

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCORES = ("Pearson", "Jaccard", "lift", "cosine")
"""Of single latents."""


def compare(
    runs: Run | str | Path | Sequence[Run | str | Path],
    tokens: int = COMPARED_TOKENS,
    text: AnotherText | None = None,
    out: str | Path | None = None,
    consecutive: bool = False,
    device: str = "auto",
) -> "Compared":
    """What matches what between the coders of these runs, every two of them, on the same `tokens` held-out tokens,
    which are read once for all. `consecutive`: each and the next, in the order in which the forward pass meets
    what they read, and the chains over all.

    report.md, scores, figures and the recording go into `out` (default: the comparison/ of the run, or of the current
    folder where there are several). What was found before of the same coders, model, text and version is taken as it
    is. Coders of different language models, or windows, are compared on the words that their tokens spell. Raises
    MatryoshkaError, before anything is written, for a single coder, for coders of different texts, and without
    matplotlib.
    """
    several = opened(runs)
    members = once(member for run in several for member in sorted(run.trained(), key=first_read))
    if len(members) < 2:
        raise MatryoshkaError(
            f"{members[0].path}: is one coder; a comparison takes two or more: give another run as well"
        )
    if consecutive:
        members.sort(key=first_read)
    folder = Path(out) if out else several[0].comparison if len(several) == 1 else Path("comparison")
    joint = joined(members, text, tokens, folder / "recording", device)
    with drawing.style():
        refuse_unwritable(folder)
    return compare_joint(joint, folder, consecutive)


def first_read(member: Run) -> Site:
    """What a coder reads that the forward pass meets first."""
    return min(wiring_of(read_card(member.coder)).reads)


def compare_joint(joint: Joint, folder: Path, consecutive: bool = False) -> "Compared":
    """The same of coders that are studied together already, into `folder`."""
    members, numbers = joint.members, range(len(joint.members))
    folder.mkdir(parents=True, exist_ok=True)
    with Run(folder).held("compare"):
        pairs = [
            ComparedPair(f"{joint.names[a]} → {joint.names[b]}", joint.stem(a, b), joint.matched(a, b, folder))
            for a, b in (pairwise(numbers) if consecutive else combinations(numbers, 2))
        ]
        chains = Chains(joint.chained([pair.result for pair in pairs], folder)) if consecutive else None
        return write(pairs, folder, chains, partial(_latent_name, _names(members)))


def _names(members: Sequence[Run]) -> list[FeatureStore | None]:
    """Where features have names, those that have been collected."""
    return [FeatureStore(member.features_file) if member.features_file.exists() else None for member in members]


def _latent_name(stores: Sequence[FeatureStore | None], coder: int, latent: int) -> str:
    """Its number, and its name where it has one, in one line."""
    store = stores[coder]
    return f"{latent}" if store is None else f"{latent} ({' '.join(store.brief([latent])[latent].name.split())})"


@dataclass(frozen=True)
class ComparedPair:
    """What matches what between two coders, A and B."""

    name: str
    stem: str
    """Of its files' names."""
    result: Result

    def table(self, side: str = "A") -> "pandas.DataFrame":
        """A row a living latent of `side`: its class, partners in the other coder, and how well they match."""
        if side not in self.details["matches"]:
            raise MatryoshkaError(f"no side {side!r} in a pair{did_you_mean(side, self.details['matches'])}")
        scores = {score.measure.name: score.numerator for score in self.result.scores}
        values = {name: scores[f"{name} of {side}"] for name in SCORES if f"{name} of {side}" in scores}
        return required("pandas").DataFrame({**self.details["matches"][side], **values}).set_index("latent")

    def plot(self) -> "Figure":
        """How well the latents of either match, beside chance. Raises MatryoshkaError without matplotlib."""
        with drawing.style():
            return match_figures.matches_figure(self.details)

    @property
    def ceiling(self) -> bool:
        """Whether the two differ in their seeds alone."""
        return bool(self.result.details.get("ceiling"))

    @property
    def label(self) -> str:
        """Its name, and whether it is the ceiling."""
        return f"{self.name} (ceiling: seeds)" if self.ceiling else self.name

    @property
    def entry(self) -> Entry:
        """As a row of a table of scores."""
        return Entry(self.label, [{"correspondence": self.result}], Target("", ()))

    @property
    def details(self) -> dict[str, Any]:
        """Of its result. Raises MatryoshkaError where nothing was measured."""
        if self.result.reason is not None:
            raise MatryoshkaError(f"{self.name}: nothing to show: {self.result.reason}")
        return dict(self.result.details)


@dataclass(frozen=True)
class Compared:
    """Every pair that was compared, and where the report lies."""

    pairs: tuple[ComparedPair, ...]
    report: Path
    chains: Chains | None = None
    """Over all of them, where each is compared with the next."""
    name_of: Callable[[int, int], str] = lambda coder, latent: str(latent)
    """What a latent of a coder is called."""

    def table(self) -> "pandas.DataFrame":
        """A row a pair, a column a score."""
        rows = [{score.measure.name: score.value for score in pair.result.scores} for pair in self.pairs]
        about = [{"pair": pair.name, "ceiling": pair.ceiling} for pair in self.pairs]
        rows = [named | scores for named, scores in zip(about, rows, strict=True)]
        return required("pandas").DataFrame(rows).set_index("pair")

    def plot(self) -> "Figure":
        """What became of the latents of each pair. Raises MatryoshkaError without matplotlib."""
        measured = [pair for pair in self.pairs if pair.result.reason is None]
        with drawing.style():
            return match_figures.classes_figure([pair.name for pair in measured], [pair.details for pair in measured])


def write(
    pairs: Sequence[ComparedPair], folder: Path, chains: Chains | None, name_of: Callable[[int, int], str]
) -> Compared:
    """Write figures, scores and report of all pairs and of their chains into `folder`."""
    compared = Compared(tuple(pairs), folder / "report.md", chains, name_of)
    measured = [pair for pair in pairs if pair.result.reason is None]
    with drawing.style():
        figures = {"classes": compared.plot()} if measured else {}
        for pair in measured:
            figures[f"{pair.stem}-matches"] = pair.plot()
            figures[f"{pair.stem}-densities"] = match_figures.densities_figure(pair.details)
        if chains is not None and chains.result.reason is None:
            figures |= chains_report.figures(chains.result)
        save_figures(figures, folder / "figures", "comparison")
    entries = [pair.entry for pair in pairs]
    markdown.write_scores(entries, folder)
    write_text(compared.report, report(compared))
    return compared


def report(compared: Compared) -> str:
    """All pairs in one table, then their chains, then each with its scores, rings and figures; what the scores mean."""
    pairs, chains = compared.pairs, compared.chains
    entries = [pair.entry for pair in pairs]
    parts = ["# Comparison", "", *markdown.table(entries, "A → B"), ""]
    if any(pair.result.reason is None for pair in pairs):
        parts += ["![What became of the latents of each pair](figures/classes.svg)", ""]
    if any(pair.ceiling for pair in pairs):
        parts += [
            "A pair that differs in its seeds alone is the ceiling: no other can be expected to match better.",
            "",
        ]
    else:
        parts += ["No pair differs in its seeds alone, so there is no ceiling here: how well two seeds match.", ""]
    if chains is not None:
        parts += ["## Chains", "", *chains_report.section(chains.result, compared.name_of), ""]
    for pair in pairs:
        parts += [f"## {pair.label}", "", *_of_pair(pair), ""]
    return "\n".join([*parts, "## What the scores mean", "", *markdown.legend(entries), ""])


def _of_pair(pair: ComparedPair) -> list[str]:
    if pair.result.reason is not None:
        return [f"Not measured: {pair.result.reason}."]
    details = pair.details
    rows = []
    for side, about in details["sides"].items():
        counts = [f"{about[name]:,}" for name in ("living", "rare", "silent")]
        rows.append([side, about["name"], " + ".join(about["reads"]), " + ".join(about["writes"]), *counts])
    said = f"{details['tokens']:,} {details['places']} of {details['documents']:,} documents count for both."
    if details["directions"] is not None:
        said += f" No cosine of decoder rows: {details['directions']}."
    parts = [said, "", *markdown.lines(["", "coder", "reads", "writes", "living", "rare", "silent"], rows), ""]
    scores = [[score.measure.name, markdown.joined(cell([score]))] for score in pair.result.scores]
    parts += [*markdown.lines(["score", ""], scores), ""]
    parts += [*markdown.lines(["ring", "latents", "kept", "processed", "vanished, newborn"], _rings(details)), ""]
    parts += [
        f"![Matches](<figures/{pair.stem}-matches.svg>)",
        "",
        f"![Densities](<figures/{pair.stem}-densities.svg>)",
    ]
    return parts


def _rings(details: dict[str, Any]) -> list[list[str]]:
    rows = []
    for side, rings in details["rings"].items():
        for number, counts in enumerate(rings):
            shares = [f"{100 * count / max(1, sum(counts)):.1f} %" for count in counts]
            rows.append([f"{number} of {side}", f"{sum(counts):,}", *shares])
    return rows
