"""How often features fire, ring by ring: figures, table and findings."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell, shown
from matryoshka.report.figures import density_figure
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import Measure, Result, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSEST = 10
"""Features that are listed."""


def figures(result: Result) -> "dict[str, Figure]":
    """How often features fire, and what each ring has of features, firings and activation."""
    details = result.details
    widths = [ring["width"] for ring in details["rings"]]
    drawn = {"density": density_figure(np.array(details["firings"]) / details["tokens"], widths)}
    return drawn | ({"rings": rings_figure(details)} if len(widths) > 1 else {})


def rings_figure(details: Mapping[str, Any]) -> "Figure":
    """A bar for each of features, firings and activation: the rings' shares of it."""
    rings = details["rings"]
    shares = {
        "features": [ring["features"] for ring in rings],
        "firings": [ring["l0"] for ring in rings],
        "activation": [ring["activation"] for ring in rings],
    }
    figure, [axes] = drawing.panels([0.9], right=0.12, top=0.3)
    colours = drawing.palette(len(rings))
    for place, (name, values) in enumerate(shares.items()):
        left, parts = 0.0, np.array(values) / sum(values)
        for number, part in enumerate(parts):
            axes.barh(-place, part, 0.6, left, color=colours[number], label=f"ring {number}: {name}")
            left += part
        axes.annotate(name, (-0.01, -place), ha="right", va="center", annotation_clip=False, fontsize=6)
    from matplotlib.patches import Patch

    drawing.key(axes, [Patch(color=colour) for colour in colours], ["ring 0", *map(str, range(1, len(rings)))])
    axes.set(xlim=(0, 1), ylim=(0.5 - len(shares), 0.5), yticks=[], xlabel="share of the rings")
    axes.xaxis.set_major_formatter(drawing.percent)
    axes.grid(visible=False)
    return figure


def section(result: Result, name_of: Callable[[int], str]) -> list[str]:
    """Ring by ring what there is of features and what they do, then the features that fire most."""
    details = result.details
    rings, starts = details["rings"], [0, *(ring["width"] for ring in details["rings"])]
    rows = []
    for number, (ring, (start, end)) in enumerate(zip(rings, pairwise(starts), strict=True)):
        counts = [f"{ring[kind]:,}" for kind in ("features", "living", "rare", "silent", "dense")]
        scores = {score.measure.name: score for score in result.scores}
        of_ring = [scores.get(f"{what} of ring {number}") for what in ("L0", "activation")]
        whole = shown(ring["l0"], scores["L0"].measure), "100.0 %"
        cells = [only if of is None else markdown.joined(cell([of])) for of, only in zip(of_ring, whole, strict=True)]
        rows.append([f"{number}: {start:,} – {end - 1:,}", *counts, *cells])
    heads = ["ring: features", "all", "living", "rare", "silent", "dense", "L0", "share of the activation"]
    cuts = details["cuts"]
    return [
        f"On {details['tokens']:,} tokens of {details['documents']:,} documents. Living: fires on {cuts['firings']} or"
        f" more of them; rare: on fewer; dense: on more than {cuts['dense']:.0%}. Null: what a ring would have if it"
        " were of no account where in the dictionary a feature is.",
        "",
        *markdown.lines(heads, rows),
        "",
        *_densest(details, name_of),
    ]


def _densest(details: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    firings = np.array(details["firings"])
    most = np.argsort(-firings, kind="stable")[:DENSEST]
    share = Measure("density", "neither", "", percent=True)
    rows = [[str(index), name_of(index), shown(firings[index] / details["tokens"], share)] for index in most.tolist()]
    return ["The features that fire most:", "", *markdown.lines(["feature", "name", "density"], rows)]


def findings(result: Result, name_of: Callable[[int], str]) -> list[Finding]:
    """The ring that does most beyond its part of the dictionary, and the one whose features live least."""
    details, scores = result.details, {score.measure.name: score for score in result.scores}
    if len(details["rings"]) < 2:
        return []
    active = [scores[f"activation of ring {number}"] for number in range(len(details["rings"]))]
    living = [scores[f"living of ring {number}"] for number in range(len(details["rings"]))]
    most = max(range(len(active)), key=lambda number: active[number].value / (active[number].null or 1))
    least = min(range(len(living)), key=lambda number: living[number].value)
    part, of_all = (cell([score]).null.removeprefix("null ") for score in (active[most], living[least]))
    first = (
        f"Ring {most} has {part} of the features and {_said(active[most])} of all activation, with"
        f" {details['rings'][most]['l0']:.1f} of {scores['L0'].value:.1f} active features a token."
    )
    second = (
        f"Of ring {least} {_said(living[least])} of the features live, that is fire on {details['cuts']['firings']}"
        f" tokens or more; of the whole dictionary {of_all}."
    )
    said = zip((first, second), (active[most], living[least]), strict=True)
    return [Finding(sentence, strength(score)) for sentence, score in said]


def _said(score: Score) -> str:
    value, interval, _ = cell([score])
    return f"**{value}** (95 % interval {interval})" if interval else f"**{value}**"
