"""How what coders leave unexplained scales with their width, k and tokens: runs, the laws fitted to them, a figure.

Coders are taken together that are of one language model and write the same sites, in up to two series: `alone`, coders
of a single prefix, and `prefixes`, the prefixes of coders that have several. Where both are there, a prefix can be held
against a coder of its own width. What has been measured is read (`RUN/evaluation`); nothing is measured anew.

*Live distinct* latents are those that were not dead at the end of training, less those whose decoder row has a cosine
of DUPLICATE with the row of an earlier one: what more latents buy (Michaud et al. 2025, arXiv:2509.02565).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from matryoshka.analysis.directions import distinct
from matryoshka.analysis.scaling_laws import Fit, Trained, fit
from matryoshka.coder import io
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import required
from matryoshka.report import drawing
from matryoshka.report.figures import read_results
from matryoshka.run import Run, names, once, opened
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.opening import read_card

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DUPLICATE = 0.9


@dataclass(frozen=True)
class Series:
    """Runs that one law is fitted to."""

    name: str
    coders: tuple[str, ...]
    """The coder that each of `runs` is, or is a prefix of."""
    runs: tuple[Trained, ...]
    live: tuple[int, ...]
    distinct: tuple[int, ...]
    """Live latents, and those of them that are distinct."""
    law: Fit | None
    reason: str
    """Why there is no law; "" where there is one."""


@dataclass(frozen=True)
class ScalingLaws:
    """Series of runs, and their laws."""

    series: tuple[Series, ...]

    def table(self) -> "pandas.DataFrame":
        """A row a parameter of a series' law: its value, interval, and interval by chance."""
        rows = [
            {
                "series": series.name,
                "parameter": parameter.name,
                "value": parameter.value,
                **dict(zip(("low", "high"), parameter.interval, strict=True)),
                **dict(zip(("chance low", "chance high"), parameter.by_chance, strict=True)),
                "condition": series.law.condition,
                "residual": series.law.residual,
                "runs": len(series.runs),
            }
            for series in self.series
            if series.law is not None
            for parameter in series.law.parameters
        ]
        return required("pandas").DataFrame(rows)

    def runs(self) -> "pandas.DataFrame":
        """A row a coder, or a prefix of one: what it was made with, what it leaves, and its live distinct latents."""
        rows = [
            {"series": series.name, "coder": coder, **run._asdict(), "live": live, "distinct": own}
            for series in self.series
            for coder, run, live, own in zip(series.coders, series.runs, series.live, series.distinct, strict=True)
        ]
        return required("pandas").DataFrame(rows)

    def plot(self) -> "Figure":
        """FVU against width, a panel a series; lines are its law. Raises MatryoshkaError without matplotlib."""
        with drawing.style():
            figure, panels = drawing.panels([1.4] * len(self.series), right=0.9, top=0.3, gap=0.3)
            for axes, series in zip(panels, self.series, strict=True):
                _draw(axes, series)
            panels[-1].set_xlabel("latents")
            figure.supylabel("fraction of variance unexplained", x=0.02, fontsize=7)
            return figure

    def __str__(self) -> str:
        return "\n".join(map(_said, self.series))


def scaling(runs: Run | str | Path | Sequence[Run | str | Path]) -> ScalingLaws:
    """The laws of the coders of these runs, from what was measured when they were trained.

    Raises MatryoshkaError for a coder that was not measured, or does not know its tokens.
    """
    members = once(member for run in opened(runs) for member in run.trained())
    gathered: dict[str, list[tuple[str, Trained, int, int]]] = {}
    for member, name in zip(members, names(members), strict=True):
        for series, run, live, own in _measured(member):
            gathered.setdefault(series, []).append((name, run, live, own))
    return ScalingLaws(tuple(_fitted(name, rows) for name, rows in gathered.items()))


def _measured(member: Run) -> list[tuple[str, Trained, int, int]]:
    """(series, what it was made with and leaves, live, distinct) of a coder, or of each of its prefixes."""
    card, config = read_card(member.coder), io.load_card(member.coder)[0]
    if card.trained is None or config.k is None:
        raise MatryoshkaError(
            f"{member.path}: does not say how many tokens it was trained on, or how many latents it uses"
        )
    of = f"{card.model.name} {' + '.join(site for source in card.sources for site in source.writes)}"
    series = f"{of}, {'alone' if len(config.widths) == 1 else 'prefixes'}"
    rows = SparseCoder.load(member.coder).decoder_rows(torch.arange(config.d_sae))
    alive = np.ones(config.d_sae, bool)
    alive[list(card.trained.dead)] = False
    first = distinct(rows[torch.from_numpy(alive)], DUPLICATE)
    places = np.flatnonzero(alive)[first]
    scores = read_results(member, len(config.widths)).of("FVU")
    return [
        (series, Trained(score.width, config.k, card.trained.tokens, score.value), *_counts(alive, places, score.width))
        for score in scores
    ]


def _counts(alive: np.ndarray, places: np.ndarray, width: int) -> tuple[int, int]:
    return int(alive[:width].sum()), int((places < width).sum())


def _fitted(name: str, rows: Sequence[tuple[str, Trained, int, int]]) -> Series:
    coders, runs, live, own = zip(*rows, strict=True)
    try:
        law, reason = fit(runs), ""
    except NotMeasurable as why:
        law, reason = None, str(why)
    return Series(name, coders, runs, live, own, law, reason)


def _said(series: Series) -> str:
    """In words: the law, how sure its exponents are, and whether they can be told apart."""
    if (law := series.law) is None:
        return f"{series.name}: no law: {series.reason}"
    numbers = [
        f"{name} {value:.3g} ({low:.3g} to {high:.3g}; by chance {chance.low:.3g} to {chance.high:.3g})"
        for name, value, (low, high), chance in law.parameters
    ]
    told = "" if law.identified else "; these runs do not tell the parameters apart"
    fits = f"residual {law.residual:.2%}, as little by chance in {law.as_well:.0%}, condition {law.condition:.2g}{told}"
    return "\n  ".join([f"{series.name}: {law.formula}", *numbers, fits])


def _draw(axes: "Axes", series: Series) -> None:
    """Runs as dots and the law as lines, a colour for each k and number of tokens."""
    groups = sorted({(run.k, run.T) for run in series.runs})
    for (k, tokens), colour in zip(groups, drawing.palette(len(groups)), strict=True):
        of_group = [run for run in series.runs if (run.k, run.T) == (k, tokens)]
        axes.plot([run.n for run in of_group], [run.fvu for run in of_group], ".", color=colour, markersize=4)
        widths = np.geomspace(min(run.n for run in of_group), max(run.n for run in of_group), 50)
        if series.law is not None:
            line = series.law.predicted([Trained(n, k, tokens, 0) for n in widths])
            axes.plot(widths, line, color=colour, linewidth=0.9)
        last = max(of_group, key=lambda run: run.n)
        axes.annotate(
            f"k {k:g}, {tokens:,}", (last.n, last.fvu), (4, 0), textcoords="offset points", va="center", fontsize=6
        )
    shown = drawing.legible(sorted({run.n for run in series.runs}), 2)
    axes.set(xscale="log", title=series.name)
    axes.set_xticks(shown, [f"{width:,}" for width in shown])
    axes.set_xticks([], minor=True)
    axes.title.set_fontsize(7)
    drawing.scale_fvu(axes, np.array([run.fvu for run in series.runs]))
