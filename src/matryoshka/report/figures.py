"""A run's figures for papers, as PNG and SVG in `figures/`, each drawn from what the run has saved.

    training          metrics.jsonl: FVU of each prefix, L0 and the share of dead latents over training
    fvu-per-prefix    evaluation/reconstruction.json: held-out FVU and CE recovered against the prefix's width
    density           the features' firing shares (given), ring by ring

A coder that was not trained here has no training to draw. Each is one column of a paper wide, and no date is written:
the same numbers on the same machine give the same bytes.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matryoshka.errors import MatryoshkaError
from matryoshka.files import parse_json, write_bytes
from matryoshka.report import drawing
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
DRAWN = ("FVU", "CE recovered", "CE recovered (zero)")
"""Scores of the reconstruction that are drawn, by name: what measures them imports torch."""


def draw(run: Run, density: np.ndarray | None) -> list[Path]:
    """Draw all figures of `run` into its figures/; the files written. `density`: each feature's firing share, [d_sae];
    None leaves its figure out. Raises MatryoshkaError, before anything is written, if the run lacks what one needs."""
    members = run.members()
    if members and run not in members:
        names = ", ".join(str(member.path) for member in members)
        raise MatryoshkaError(f"{run.path}: holds several coders; draw the figures of one of: {names}")
    elsewhere = not run.config_file.is_file() and not run.metrics.is_file()
    curves = None if elsewhere else read_metrics(run)
    results = read_results(run, None if curves is None else curves.fvu.shape[1])
    about, widths = results.details, results.details["widths"]
    name = f"{run.path.resolve().name}: {about['read']} → {about['write']} of {about['model']}"
    with drawing.style():
        figures = {} if curves is None else {"training": training_figure(curves, widths)}
        figures["fvu-per-prefix"] = prefix_figure(results)
        if density is not None:
            figures["density"] = density_figure(_checked(density, widths, run), widths)
        return save_figures(figures, run.path / "figures", name)


class Curves(NamedTuple):
    """metrics.jsonl in columns: training's [n], of the batch at that point, and held-out text's [m], by the tokens that
    training had seen; m is 0 if none was measured yet. FVU is [n or m, prefix], dead a share."""

    tokens: np.ndarray
    fvu: np.ndarray
    l0: np.ndarray
    dead: np.ndarray
    held_out_tokens: np.ndarray
    held_out_fvu: np.ndarray
    held_out_l0: np.ndarray


def read_metrics(run: Run) -> Curves:
    """The run's metrics.jsonl. Raises MatryoshkaError if there is no record of training in it, or what is no record."""
    training, held_out = [], []
    lines = run.metrics.read_bytes().splitlines() if run.metrics.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, f"{run.metrics}: line {number} is damaged")
        except MatryoshkaError:
            if number == len(lines):  # half a line, as a kill leaves it
                break
            raise
        try:
            row = (float(record["step"]), float(record["l0"]), [float(value) for value in record["fvu"]])
            if record.get("held_out"):
                held_out.append(row)
            else:
                training.append((*row, float(record["tokens"]), float(record["dead"])))
        except (ValueError, TypeError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            raise MatryoshkaError(f"{run.metrics}: line {number} is no record of training ({why})") from None
    if not training:
        raise MatryoshkaError(
            f"{run.metrics}: no record of training yet; matryoshka train writes them, and goes on after a stop with:"
            f" matryoshka resume {run.path}"
        )
    if len(prefixes := {len(row[2]) for row in (*training, *held_out)}) > 1:
        raise MatryoshkaError(f"{run.metrics}: expected one number of prefixes in all lines, found {sorted(prefixes)}")
    steps, l0, fvu, tokens, dead = (np.array(column) for column in zip(*training, strict=True))
    held_out_fvu = np.array([row[2] for row in held_out]).reshape(len(held_out), fvu.shape[1])
    held_out_steps, held_out_l0 = np.array([row[:2] for row in held_out]).reshape(len(held_out), 2).T
    batch = tokens[0] / steps[0]
    return Curves(tokens, fvu, l0, dead, held_out_steps * batch, held_out_fvu, held_out_l0)


def read_results(run: Run, prefixes: int | None) -> Result:
    """The run's evaluation/reconstruction.json, with one number for each of `prefixes` (None: for each that it names).
    Raises MatryoshkaError otherwise."""
    results, file = load(run.evaluation, "reconstruction").result, run.evaluation / "reconstruction.json"
    lengths = {name: len(results.of(name)) for name in DRAWN}
    expected = len(results.details["widths"]) if prefixes is None else prefixes
    if {*lengths.values()} != {expected}:
        raise MatryoshkaError(
            f"{file}: not the results of this coder (prefixes: {lengths}, expected {expected});"
            f" run: matryoshka eval {run.path} --overwrite"
        )
    return results


def _checked(density: np.ndarray, widths: Sequence[int], run: Run) -> np.ndarray:
    """`density` in float64, if it is one share for each feature."""
    density = np.asarray(density, dtype=np.float64)
    if density.shape != (widths[-1],):
        why = f"densities of shape {list(density.shape)} for {widths[-1]:,} features"
    elif not ((density >= 0) & (density <= 1)).all():
        why = "densities that are no shares from 0 to 1"
    else:
        return density
    raise MatryoshkaError(f"{run.path}: {why}; collect them again: matryoshka features {run.path}")


def training_figure(curves: Curves, widths: Sequence[int]) -> "Figure":
    """FVU of each prefix (thin: of training's batches; thick: held out), L0, and the share of dead latents."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, (above, middle, below) = drawing.panels([1.75, 0.7, 0.7], right=0.82, top=0.24)
    unit, unit_name = drawing.unit(curves.tokens[-1])
    tokens, held_out = curves.tokens / unit, curves.held_out_tokens / unit
    colours = drawing.palette(len(widths))
    alone = len(tokens) == 1
    fine: dict[str, Any] = {"linewidth": 0.6, "marker": "." if alone else None, "markersize": 3, "clip_on": not alone}
    thick: dict[str, Any] = {
        "linewidth": 1.2, "marker": "o", "markersize": 2.2, "markevery": 1 + len(held_out) // 16, "clip_on": False,
    }  # fmt: skip
    faint = 0.45 if len(held_out) else 1.0
    for m, (width, colour) in enumerate(zip(widths, colours, strict=True)):
        above.plot(tokens, curves.fvu[:, m], color=colour, alpha=faint, label=f"training, first {width}", **fine)
        if len(held_out):
            above.plot(held_out, curves.held_out_fvu[:, m], color=colour, label=f"held out, first {width}", **thick)
    drawing.scale_fvu(above, np.concatenate([curves.fvu.ravel(), curves.held_out_fvu.ravel()]))
    last = curves.held_out_fvu[-1] if len(held_out) else curves.fvu[-1]
    drawing.label_ends(above, last, [f"first {width:,}" for width in widths], colours, height=1.75)
    above.set_ylabel("FVU")

    middle.plot(tokens, curves.l0, color=drawing.INK, alpha=faint, label="training", **fine)
    if len(held_out):
        middle.plot(held_out, curves.held_out_l0, color=drawing.INK, label="held out", **thick)
        styles = {**fine, "alpha": faint}, {**thick, "markevery": 2}
        keys = [Line2D([], [], color=drawing.INK, **style) for style in styles]
        drawing.key(above, keys, ["training batch", "held out"])
    middle.set(ylabel="L0 (latents)", ylim=(0, drawing.top(np.concatenate([curves.l0, curves.held_out_l0]))))

    below.plot(tokens, curves.dead, color=drawing.INK, label="dead", **{**fine, "linewidth": 1.2})
    below.set(ylabel="dead latents", ylim=(0, max(0.01, drawing.top(curves.dead))))
    below.yaxis.set_major_formatter(drawing.percent)
    for axes in (middle, below):
        axes.yaxis.set_major_locator(MaxNLocator(3))
    below.set(xlabel=f"training tokens{unit_name}", xlim=(0, max(tokens.max(), held_out.max(initial=0))))
    return figure


def prefix_figure(results: Result) -> "Figure":
    """Held-out FVU, and below it CE recovered against both ablations, over the prefix's width."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    right = 0.12
    figure, (above, below) = drawing.panels([1.35, 1.35], right, gap=0.3)
    widths, fvu = results.details["widths"], np.array(results.values("FVU"))
    colours = drawing.palette(len(widths))
    points: dict[str, Any] = {"s": 20, "zorder": 3, "linewidths": 1.0}
    line: dict[str, Any] = {"color": "#a8a8a8", "linewidth": 0.9}
    above.plot(widths, fvu, label="FVU", **line)
    above.scatter(widths, fvu, c=colours, **points)
    drawing.scale_fvu(above, fvu)
    above.set_ylabel("held-out FVU")

    zero, mean = (np.array(results.values(name)) for name in ("CE recovered (zero)", "CE recovered"))
    below.plot(widths, zero, label="zero", **line)
    below.plot(widths, mean, label="mean", linestyle=(0, (3, 2)), **line)
    below.scatter(widths, zero, c=colours, label="against zero ablation", **points)
    below.scatter(widths, mean, facecolors="white", edgecolors=colours, label="against mean ablation", **points)
    key: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgecolor": drawing.QUIET}
    keys = [Line2D([], [], markerfacecolor=face, **key) for face in (drawing.QUIET, "white")]
    drawing.key(below, keys, ["against zero ablation", "against mean ablation"])
    below.yaxis.set_major_locator(MaxNLocator(5))
    below.yaxis.set_major_formatter(drawing.percent)
    below.set(ylabel="CE recovered", xscale="log", xlabel="width of the prefix (latents)")
    below.xaxis.set_major_locator(FixedLocator(drawing.legible(widths, drawing.COLUMN - drawing.LEFT - right)))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(lambda width, _: f"{width:,.0f}")
    return figure


def density_figure(density: np.ndarray, widths: Sequence[int]) -> "Figure":
    """How often features fire: a histogram for each ring of the Matryoshka, all on one scale; silent ones in words."""
    from matplotlib.ticker import MaxNLocator

    rings = np.split(np.asarray(density, dtype=np.float64), widths[:-1])
    logs = [np.log10(ring[ring > 0]) for ring in rings]
    edges = drawing.bins(np.concatenate(logs))
    shares = [np.histogram(log, edges)[0] / len(ring) for log, ring in zip(logs, rings, strict=True)]
    top = 1.2 * max(share.max() for share in shares) or 1.0

    figure, panels = drawing.panels([0.5 if len(rings) > 1 else 1.35] * len(rings), right=1.0, top=0.3, sharey=True)
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    colours = drawing.palette(len(rings))
    for r, (axes, log, share) in enumerate(zip(panels, logs, shares, strict=True)):
        axes.stairs(share, edges, fill=True, color=colours[r], label=f"ring {r}")
        if len(log):
            axes.plot(np.median(log), top, marker="v", markersize=3.5, color=drawing.INK, clip_on=False, label="median")
        size = len(rings[r])
        text = f"{size:,} features\n{drawing.in_words(size - len(log), size)} silent"
        axes.annotate(f"ring {r}", (1, 1), (6, -5), **beside, weight="bold")
        axes.annotate(text, (1, 1), (6, -15), **beside, color=drawing.QUIET, fontsize=6.5)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_formatter(drawing.percent)
    panels[0].set_ylim(0, top)
    panels[-1].set_xlim(np.floor(edges[0] + 0.01), edges[-1] if edges[-1] > 0 else np.ceil(edges[-1]))
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[-1].set_xlabel("log₁₀ density (share of tokens it fires on)")
    figure.supylabel("share of the ring's features", x=0.02, fontsize=7)
    silent, size = int((density == 0).sum()), len(density)
    panels[0].annotate(f"{drawing.in_words(silent, size)} of {size:,} features silent", (0, 1), (0, 14), **beside)
    if silent < size:
        panels[0].annotate("▾ median", (1, 1), (6, 14), **beside, color=drawing.QUIET, fontsize=6.5)
    return figure


def save_figures(figures: Mapping[str, "Figure"], folder: Path, about: str) -> list[Path]:
    """Write each figure by its name as PNG and SVG into `folder`, all of them drawn before the first is written; the
    files. `about`: what their titles say they are of."""
    files = {
        folder / f"{stem}.{kind}": _encoded(figure, kind, f"{stem}, {about}")
        for stem, figure in figures.items()
        for kind in ("png", "svg")
    }
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        write_bytes(file, content)
    return list(files)


def _encoded(figure: "Figure", kind: str, title: str) -> bytes:
    """The file's bytes; the same ones every time."""
    metadata = {"Title": title, "Date" if kind == "svg" else "Software": None}
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
