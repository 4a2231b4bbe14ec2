"""Figures of pairs of coders: how well their latents match, what became of them, how often those fire.

matches    best Pearson of each side's latents, above what chance gives
classes    of each pair and side the shares that are kept, processed, and without a partner
densities  how often the latents of each class fire
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.analysis.correspondence import CLASSES
from matryoshka.report import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BESIDE: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}


def colours() -> list[str]:
    """Of kept, processed, and without a partner: the better the match, the darker."""
    return drawing.palette(3)[::-1]


def matches_figure(details: dict[str, Any]) -> "Figure":
    """Histograms of the best Pearson scores of A's latents and of B's, and of what chance gives (a line)."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, panels = drawing.panels([1.0, 1.0], right=0.95, top=0.3, sharey=True)
    for axes, (side, histograms) in zip(panels, details["histograms"].items(), strict=True):
        latents, chance = (np.array(histograms[name]) for name in ("latents", "by chance"))
        edges = np.linspace(0, 1, len(latents) + 1)
        axes.stairs(latents / max(1, latents.sum()), edges, fill=True, color=colours()[0], label=f"latents of {side}")
        axes.stairs(chance / max(1, chance.sum()), edges, color=drawing.INK, linewidth=0.9, label="by chance")
        about = details["sides"][side]
        axes.annotate(side, (1, 1), (6, -5), **BESIDE, weight="bold")
        axes.annotate(f"{about['living']:,} latents", (1, 1), (6, -15), **BESIDE, color=drawing.QUIET, fontsize=6.5)
        axes.yaxis.set_major_formatter(drawing.percent)
    keys = [Patch(color=colours()[0]), Line2D([], [], color=drawing.INK, linewidth=0.9)]
    drawing.key(panels[0], keys, ["latents", f"{details['places']} exchanged within documents"])
    panels[-1].set(xlim=(0, 1), xlabel="Pearson correlation with the best partner")
    figure.supylabel("share of latents", x=0.02, fontsize=7)
    return figure


def classes_figure(names: Sequence[str], details: Sequence[dict[str, Any]]) -> "Figure":
    """A bar for each side of each pair: the shares of its living latents that are kept, processed, and neither."""
    from matplotlib.patches import Patch

    figure, [axes] = drawing.panels([0.62 * len(names)], right=0.12, top=0.3)
    beside: dict[str, Any] = {"xycoords": "data", "va": "center", "annotation_clip": False}
    for i, (name, of_pair) in enumerate(zip(names, details, strict=True)):
        marked = f"ceiling: {name}" if of_pair["ceiling"] else name
        axes.annotate(marked, (0, -i - 0.17), **beside, fontsize=6)
        for place, (side, rings) in zip((-i - 0.47, -i - 0.77), of_pair["rings"].items(), strict=True):
            shares, left = np.array(rings).sum(0) / max(1, np.sum(rings)), 0.0
            for share, colour, of_class in zip(shares, colours(), CLASSES[side], strict=True):
                axes.barh(place, share, 0.24, left, color=colour, label=f"{of_class} of {side}")
                left += share
            axes.annotate(side, (-0.012, place), **beside, ha="right")
    drawing.key(axes, [Patch(color=colour) for colour in colours()], ["kept", "processed", "vanished, newborn"])
    axes.set(xlim=(0, 1), ylim=(-len(names), 0), yticks=[], xlabel="share of living latents")
    axes.xaxis.set_major_formatter(drawing.percent)
    axes.grid(visible=False)
    return figure


def densities_figure(details: dict[str, Any]) -> "Figure":
    """How often living latents fire, those of each class on top of those of the one before."""
    from matplotlib.patches import Patch

    columns, tokens = details["matches"], details["tokens"]
    logs = {side: np.log10(np.array(of_side["firings"]) / tokens) for side, of_side in columns.items()}
    edges = drawing.bins(np.concatenate(list(logs.values())))
    figure, panels = drawing.panels([1.0, 1.0], right=0.95, top=0.3)
    for axes, (side, log) in zip(panels, logs.items(), strict=True):
        classes, below = np.array(columns[side]["class"]), np.zeros(len(edges) - 1)
        for colour, of_class in zip(colours(), CLASSES[side], strict=True):
            counts = np.histogram(log[classes == of_class], edges)[0]
            axes.stairs(below + counts, edges, baseline=below, fill=True, color=colour, label=f"{of_class} of {side}")
            below = below + counts
        axes.annotate(side, (1, 1), (6, -5), **BESIDE, weight="bold")
        axes.annotate(f"{len(log):,} latents", (1, 1), (6, -15), **BESIDE, color=drawing.QUIET, fontsize=6.5)
        axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    drawing.key(panels[0], [Patch(color=colour) for colour in colours()], ["kept", "processed", "vanished, newborn"])
    panels[-1].set_xlabel(f"log₁₀ density (share of {details['places']} it fires on)")
    figure.supylabel("latents", x=0.02, fontsize=7)
    return figure
