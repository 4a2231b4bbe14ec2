"""How figures look, and the parts they are drawn with: one column of a paper wide, their style, fonts and ids the same
whatever the user's matplotlibrc says. pyplot is never touched: no display is needed, notebooks' figures are left alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.errors import MatryoshkaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, HAIRLINE = "#262626", "#6b6b6b", "#e4e4e4"
COLUMN, LEFT, BOTTOM = 3.375, 0.52, 0.4  # inches
LINE_HEIGHT = 0.12  # inches; of a label
PER_DECADE = 5
"""Bins of the density histogram. Counted from the rarest feature's density, 1/N in general, 2/N and 3/N get bins of
their own and none stays empty for want of a whole number."""

STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), QUIET),
    "grid.color": HAIRLINE,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],  # the first is matplotlib's own
    **dict.fromkeys(("font.size", "axes.labelsize"), 7),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 6.5),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width"), 0.6),
    "grid.linewidth": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "axes.grid.axis": "y",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "lines.solid_capstyle": "round",
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited for the paper
    "svg.hashsalt": "matryoshka",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, for building and for saving them; afterwards the user's settings are as they were.
    Raises MatryoshkaError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise MatryoshkaError("figures need matplotlib: pip install 'matryoshka-sae[figures]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def palette(prefixes: int) -> list[str]:
    """A colour for each prefix or ring, light to dark: of viridis, whose lightness tells the order to every eye."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis_r"](np.linspace(1, 0.3, prefixes)[::-1])]


def panels(
    heights: Sequence[float],
    right: float,
    top: float = 0.1,
    gap: float = 0.14,
    sharey: bool = False,
    sharex: bool = True,
) -> tuple["Figure", list["Axes"]]:
    """Panels above each other, on one x axis unless not `sharex`; their heights, the gap between them and the margins
    are in inches."""
    from matplotlib.figure import Figure

    size = COLUMN, top + sum(heights) + gap * (len(heights) - 1) + BOTTOM
    figure = Figure(figsize=size)
    grid = figure.add_gridspec(
        len(heights), height_ratios=heights, hspace=gap * len(heights) / sum(heights),
        left=LEFT / size[0], right=1 - right / size[0], top=1 - top / size[1], bottom=BOTTOM / size[1],
    )  # fmt: skip
    panels = list(grid.subplots(sharex=sharex, sharey=sharey, squeeze=False)[:, 0])
    figure.align_ylabels(panels)
    return figure, panels


def key(axes: "Axes", handles: Sequence[Any], names: Sequence[str], columns: int | None = None) -> None:
    """A legend above `axes`, where no data can lie under it: in one line, or in so many `columns`."""
    axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns or len(names), columnspacing=1.2)


def scale_fvu(axes: "Axes", fvu: np.ndarray) -> None:
    """From 0, or logarithmic where the largest FVU would flatten the smallest."""
    good = fvu[np.isfinite(fvu) & (fvu > 0)]
    if len(good) and good.max() > 20 * good.min():
        axes.set(yscale="log", ylim=(good.min() / 1.15, 1.15 * good.max()))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(0, top(fvu))


def top(values: np.ndarray) -> float:
    """The upper end of an axis that starts at 0."""
    finite = values[np.isfinite(values)]
    return 1.08 * float(finite.max(initial=0)) or 1.0


def percent(share: float, _: float) -> str:
    return f"{100 * share:.4g}%".replace("-", "−")


def unit(most: float) -> tuple[float, str]:
    """What to count tokens in, and its name on the axis."""
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= 2 * unit:
            return unit, f" ({name})"
    return 1.0, ""


def in_words(number: int, of: int) -> str:
    return {0: "none", of: "all"}.get(number, f"{number:,}")


def bins(logs: np.ndarray) -> np.ndarray:
    """Edges of the histogram's bins, from the rarest feature's log10 density on."""
    low, high = (logs.min(), logs.max()) if len(logs) else (-4.0, 0.0)
    bins = int((high - low + 1e-6) * PER_DECADE) + 1  # past the densest, as the first edge lies before the rarest
    return low - 1e-6 + np.arange(bins + 1) / PER_DECADE


def label_ends(axes: "Axes", values: np.ndarray, names: Sequence[str], colours: Sequence[str], height: float) -> None:
    """Name each curve right of its last value; where names would overlap they move apart, where there are too many some
    are left out. `height` is that of `axes` in inches."""
    shown = np.flatnonzero(np.isfinite(values))
    room = min(len(shown), int(height / LINE_HEIGHT))
    shown = shown[np.linspace(0, len(shown) - 1, room).round().astype(int)]
    points = np.column_stack([np.ones(len(shown)), values[shown]])
    ends = (axes.transScale + axes.transLimits).transform(points)[:, 1]  # in shares of the axes' height
    for i, end, place in zip(shown, ends, apart(ends, LINE_HEIGHT / height), strict=True):
        line = {"color": colours[i], "linewidth": 0.6, "transform": axes.transAxes, "clip_on": False}
        axes.plot([1.02, 1.05, 1.08], [end, place, place], scalex=False, scaley=False, **line)
        axes.text(1.1, place, names[int(i)], transform=axes.transAxes, va="center", fontsize=6.5)


def apart(values: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """The places nearest to `values` (least squares) that keep their order and lie at least `gap` apart, in 0 to 1."""
    from scipy.optimize import isotonic_regression

    values = np.asarray(values, dtype=float)
    if not len(values):
        return values
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values)) * gap
    places = np.empty(len(values))
    places[order] = isotonic_regression(values[order] - steps).x.clip(0, max(0, 1 - steps[-1])) + steps
    return places


def legible(widths: Sequence[int], inches: float) -> list[int]:
    """Those widths, the last among them, whose numbers do not touch on a log axis of so many inches."""
    kept = [widths[-1]]
    span = np.log(widths[-1] / widths[0])
    for width in reversed(widths[:-1]):
        if np.log(kept[-1] / width) > span * 0.4 / inches:
            kept.append(width)
    return kept
