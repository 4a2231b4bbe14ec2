"""Maps of features, for people: each layout twice, by ring and by community, and how far it can be believed."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"geometry": "decoder rows that point alike", "coactivation": "features that fire on the same tokens"}
COLOURED = 10
"""Communities that have a colour, the largest; all others share one."""
NAMED = 3
"""Features that are named where there are many."""
SIDE = 2.73
"""Inches; of a map as high as wide."""


def figures(result: Result) -> "dict[str, Figure]":
    """A figure a layout."""
    return {f"map-{kind}": map_figure(result.details, kind) for kind in result.details["layouts"]}


def map_figure(details: Mapping[str, Any], kind: str) -> "Figure":
    """A point a feature: above coloured by its ring, below by its community of the same kind."""
    layout = details["layouts"][kind]
    places = np.column_stack([layout["x"], layout["y"]])
    wide, tall = np.ptp(places, axis=0)
    height = SIDE * float(np.clip(tall / max(wide, 1e-9), 0.4, 1.4))
    figure, (above, below) = drawing.panels([height, height], right=0.12, top=0.3, gap=0.4)
    rings, communities = np.array(details["rings"]), np.array(details["communities"][kind])
    _scatter(above, places, rings, drawing.palette(len(details["widths"])))
    keys = [_key(colour) for colour in drawing.palette(len(details["widths"]))]
    drawing.key(above, keys, ["ring 0", *map(str, range(1, len(keys)))])
    count = min(COLOURED, int(communities.max(initial=-1)) + 1)
    coloured = np.where((communities >= 0) & (communities < count), communities, count)
    _scatter(below, places, coloured, [*_distinct(count), drawing.HAIRLINE])
    for number in range(count):
        x, y = np.median(places[communities == number], axis=0)
        below.annotate(str(number), (x, y), ha="center", va="center", fontsize=6, weight="bold")
    drawing.key(below, [_key(drawing.QUIET), _key(drawing.HAIRLINE)], [f"the {count} largest communities", "others"])
    for axes in (above, below):
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    return figure


def _scatter(axes: "Axes", places: np.ndarray, classes: np.ndarray, colours: Sequence[str]) -> None:
    """The last class first: its points lie under the others."""
    size = float(np.clip(4000 / max(1, len(places)), 0.4, 8))
    for number in reversed(range(len(colours))):
        x, y = places[classes == number].T
        axes.scatter(x, y, s=size, color=colours[number], linewidths=0, rasterized=True)


def _key(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", markersize=2.5, linestyle="")


def _distinct(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["tab10"](np.arange(count))]


def section(result: Result, name_of: Callable[[int], str]) -> list[str]:
    """How far each map can be believed, and what is not on it."""
    details = result.details
    parts = [
        f"{len(details['features']):,} features in the plane (UMAP), twice. Islands and the way between them are partly"
        " the layout's doing, and another seed's are others: what is to be believed is who lies next to whom, as far as"
        " the scores say.",
        "",
        *markdown.lines(
            ["score", "value (95 % interval; null)"],
            [[score.measure.name, markdown.joined(cell([score]))] for score in result.scores],
        ),
        "",
    ]
    for kind, of in KINDS.items():
        if apart := details["apart"][kind]:
            some = ", ".join(f"{index} ({name_of(index)})" for index in apart[:NAMED])
            parts += [f"Of {of}: {len(apart):,} are like no other and stand in the row below, such as {some}.", ""]
    if dense := details["dense"]:
        parts += [f"On no map: {len(dense):,} of the features, which fire nearly everywhere.", ""]
    return parts


def findings(result: Result, name_of: Callable[[int], str]) -> list[Finding]:
    """How far the map of decoder rows can be believed."""
    scores = {score.measure.name: score for score in result.scores}
    found = []
    for kind, of in KINDS.items():
        if (trust := scores.get(f"trustworthiness of {kind}")) is not None:
            value, interval, null = cell([trust])
            found.append(
                Finding(
                    f"Near neighbours on the map of {of} are near ones indeed to a trustworthiness of **{value}** (95 %"
                    f" interval {interval}; at random places {null.removeprefix('null ')}).",
                    strength(trust),
                )
            )
    return found
