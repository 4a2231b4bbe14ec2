"""Chains of features over layers: figures, the section of a comparison's report, findings, and a table for notebooks.

lengths    how far the latents of the first coder go on, beside chains by chance
falls      what removing a latent does to its successor, beside the removal of others
profiles   density, entropy, position and logit effect of the latents, a line a coder
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.analysis.chains import COMPOSED, DIED, FALL, LENGTH
from matryoshka.analysis.profiles import AXES
from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import required
from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell, shown
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import Result, Score

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 12
"""Chains that are shown."""
NAMED = 4
"""Coders whose lines are all named above a figure; of more the first and the last."""
UNITS = {
    "density": "share of tokens it fires on",
    "entropy": "bits",
    "position": "share of tokens earlier in their documents",
    "logit effect": "logits",
}


@dataclass(frozen=True)
class Chains:
    """What became of features over several coders."""

    result: Result

    def table(self) -> "pandas.DataFrame":
        """A row a chain: the coder that it is born in, its length in links, its latents, its weakest Pearson score."""
        details = self.details
        names, chains = [coder["name"] for coder in details["coders"]], details["chains"]
        columns = {
            "born": [names[i] for i in chains["born"]],
            "links": [len(latents) - 1 for latents in chains["latents"]],
            "latents": chains["latents"],
            "weakest": chains["weakest"],
        }
        return required("pandas").DataFrame(columns)

    def plot(self) -> "Figure":
        """How far the latents of the first coder go on. Raises MatryoshkaError without matplotlib."""
        with drawing.style():
            return _lengths_figure(self.details)

    @property
    def details(self) -> dict[str, Any]:
        """Of its result. Raises MatryoshkaError where nothing was measured."""
        if self.result.reason is not None:
            raise MatryoshkaError(f"chains: nothing to show: {self.result.reason}")
        return dict(self.result.details)


# --- figures


def figures(result: Result) -> dict[str, "Figure"]:
    """By the stem of its file; within `drawing.style()`."""
    details = dict(result.details)
    drawn = {"chains-lengths": _lengths_figure(details), "chains-profiles": _profiles_figure(details)}
    tried = [pair["tried"] for pair in details["pairs"] if pair["tried"] is not None]
    return drawn | ({"chains-falls": _falls_figure(tried)} if tried else {})


def _lengths_figure(details: dict[str, Any]) -> "Figure":
    """Shares of the first coder's latents by the links of their chains, and of chains by chance (a line)."""
    figure, [axes] = drawing.panels([1.3], right=0.2, top=0.3)
    most = len(details["coders"])
    lengths, chance = (_shares(details[name][0], most) for name in ("lengths", "by chance"))
    edges = np.arange(most + 1) - 0.5
    axes.stairs(lengths, edges, fill=True, color=drawing.palette(1)[0], label="latents")
    axes.stairs(chance, edges, color=drawing.INK, linewidth=0.9, label="by chance")
    _key(axes, "latents of the first coder", "by chance")
    axes.set(xlabel="links", ylabel="share of latents", xticks=range(most), xlim=(-0.5, most - 0.5))
    axes.yaxis.set_major_formatter(drawing.percent)
    return figure


def _shares(counts: Sequence[int], most: int) -> np.ndarray:
    return np.pad(np.array(counts, float), (0, most - len(counts))) / max(1, sum(counts))


def _falls_figure(tried: Sequence[dict[str, Any]]) -> "Figure":
    """Histograms over all links: what removing the latent does to its successor, and what removing others (a line)."""
    figure, panels = drawing.panels([1.0, 1.0], right=0.2, top=0.3, gap=0.45, sharex=False)
    about = {"fall": ("share of the successor's activation gone", -0.5), "died": ("share of tokens it is silent on", 0)}
    for axes, (name, (label, low)) in zip(panels, about.items(), strict=True):
        edges = np.linspace(low, 1, 31)
        styles = {"fill": True, "color": drawing.palette(1)[0]}, {"color": drawing.INK, "linewidth": 0.9}
        for column, style in zip((name, f"{name}, another removed"), styles, strict=True):
            values = np.concatenate([np.array(of[column]) for of in tried])
            counts = np.histogram(values.clip(low, 1), edges)[0]
            axes.stairs(counts, edges, label=column, **style)
        axes.set(xlabel=label, ylabel="links", xlim=(low, 1))
    _key(panels[0], "its predecessor removed", "another latent removed")
    return figure


def _key(axes: Any, filled: str, line: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [Patch(color=drawing.palette(1)[0]), Line2D([], [], color=drawing.INK, linewidth=0.9)]
    drawing.key(axes, keys, [filled, line])


def _profiles_figure(details: dict[str, Any]) -> "Figure":
    """Of each property the shares of latents along its axis, a line a coder, the later the darker."""
    from matplotlib.lines import Line2D

    profiles, names = details["profiles"], [coder["name"] for coder in details["coders"]]
    colours, keys = drawing.palette(len(names)), range(len(names)) if len(names) <= NAMED else (0, len(names) - 1)
    properties = [name for name in AXES if any(name in profile for profile in profiles)]
    heights, top = [0.9] * len(properties), 0.1 + drawing.LINE_HEIGHT * len(keys)
    figure, panels = drawing.panels(heights, right=0.2, top=top, gap=0.45, sharex=False)
    for axes, name in zip(panels, properties, strict=True):
        _profile_lines(axes, name, [profile.get(name) for profile in profiles], colours, names)
    handles = [Line2D([], [], color=colours[i], linewidth=0.9) for i in keys]
    drawing.key(panels[0], handles, [names[i] for i in keys], columns=1)
    figure.supylabel("share of latents", x=0.02, fontsize=7)
    return figure


def _profile_lines(
    axes: "Axes", name: str, of_coders: Sequence[dict[str, Any] | None], colours: Sequence[str], names: Sequence[str]
) -> None:
    """One property, over the bins that any coder has latents in."""
    counts = [np.array(of["counts"]) for of in of_coders if of is not None]
    edges = np.linspace(*AXES[name][:2], len(counts[0]) + 1)
    taken = np.flatnonzero(np.sum(counts, 0))
    for of, colour, coder in zip(of_coders, colours, names, strict=True):
        if of is not None:
            shares = np.array(of["counts"]) / max(1, of["latents"])
            axes.stairs(shares, edges, color=colour, linewidth=0.9, label=f"{name} of {coder}")
    if len(taken):
        axes.set_xlim(float(edges[taken[0]]), float(edges[taken[-1] + 1]))
    axes.set_xlabel(f"{'log₁₀ ' if AXES[name].logarithmic else ''}{name} ({UNITS[name]})")
    axes.yaxis.set_major_formatter(drawing.percent)


# --- the section


def section(result: Result, name_of: Callable[[int, int], str]) -> list[str]:
    """Markdown below a heading. `name_of(coder, latent)`: what a latent is called."""
    if result.reason is not None:
        return [f"Not measured: {result.reason}."]
    details = dict(result.details)
    parts = [*_pairs(result, details), "", *_lengths(result, details), ""]
    parts += ["![Lengths of chains](figures/chains-lengths.svg)", ""]
    if any(score.measure.name == FALL.name for score in result.scores):
        parts += ["![What a removed predecessor takes of its successor](figures/chains-falls.svg)", ""]
    parts += [*_longest(details, name_of), "", *_composed(result, details), "", *_profiles(details), ""]
    return [*parts, "![Profiles of the coders](figures/chains-profiles.svg)", "", *_legend(result)]


def _pairs(result: Result, details: dict[str, Any]) -> list[str]:
    scores = {score.measure.name: score for score in result.scores}
    rows = []
    for pair in details["pairs"]:
        (kept, processed, vanished), (*_, newborn) = pair["classes"]["A"], pair["classes"]["B"]
        counts = [f"{count:,}" for count in (kept, processed, vanished, newborn)]
        joints = [f"{pair[of]:,} (of {pair[latents]:,})" for of, latents in (("merges", "merged"), ("splits", "split"))]
        causal = [_cell(scores.get(f"{measure.name}: {pair['name']}")) for measure in (FALL, DIED)]
        name = f"{pair['name']} (ceiling: seeds)" if pair["ceiling"] else pair["name"]
        rows.append([name, *counts, *joints, *causal])
    heads = ["A → B", "kept", "processed", "vanished", "newborn", "merges (of A)", "splits (into B)", "fall", "died"]
    said = [*markdown.lines(heads, rows), ""]
    if not any(pair["ceiling"] for pair in details["pairs"]):
        said += ["No two of these coders differ in their seeds alone: there is no ceiling here.", ""]
    if all(pair["tried"] is None for pair in details["pairs"]):
        said += ["No coder writes before the next one reads: nothing was tried causally.", ""]
    return said[:-1]


def _lengths(result: Result, details: dict[str, Any]) -> list[str]:
    """Mean lengths, and where chains are born and end."""
    names = [coder["name"] for coder in details["coders"]]
    lengths = {score.measure.name: score for score in result.scores if score.measure.name.startswith(LENGTH.name)}
    rows = []
    for name, coder, spans in zip(names, details["coders"], details["spans"], strict=True):
        length = _cell(lengths.get(f"{LENGTH.name} from {name}"))
        rows.append([f"{name} ({coder['living']:,} living)", length, *(f"{count:,}" for count in spans)])
    return markdown.lines(["born in", "mean links", *(f"last in {name}" for name in names)], rows)


def _longest(details: dict[str, Any], name_of: Callable[[int, int], str]) -> list[str]:
    """The longest chains, among equally long ones the strongest, each last latent once."""
    chains, ends, rows = details["chains"], set(), []
    order = sorted(range(len(chains["born"])), key=lambda i: (-len(chains["latents"][i]), -chains["weakest"][i]))
    for i in order:
        first, latents = chains["born"][i], chains["latents"][i]
        if (end := (first + len(latents), latents[-1])) not in ends and len(rows) < LONGEST:
            ends.add(end)
            path = " → ".join(name_of(first + step, latent) for step, latent in enumerate(latents))
            rows.append([details["coders"][first]["name"], f"{len(latents) - 1}", f"{chains['weakest'][i]:.3f}", path])
    return markdown.lines(["longest chains, born in", "links", "weakest Pearson", "latents"], rows)


def _composed(result: Result, details: dict[str, Any]) -> list[str]:
    scores = [score for score in result.scores if score.measure.name == COMPOSED.name]
    if not scores:
        return [f"No pairing one to one was composed: {details['one to one']}."]
    first, last = details["coders"][0]["name"], details["coders"][-1]["name"]
    return [f"Pairings one to one of decoder rows, composed from {first} to {last}: {_cell(scores[0])} agree with the"
            " direct one."]  # fmt: skip


def _profiles(details: dict[str, Any]) -> list[str]:
    """Medians and quartiles of each property."""
    rows = [
        [coder["name"], *(_quartiles(profile.get(name)) for name in AXES)]
        for coder, profile in zip(details["coders"], details["profiles"], strict=True)
    ]
    return markdown.lines(["median (quartiles) of latents", *(f"{name}, {UNITS[name]}" for name in AXES)], rows)


def _quartiles(of: dict[str, Any] | None) -> str:
    if of is None or None in of["quartiles"]:
        return "–"
    low, median, high = (f"{value:.3g}" for value in of["quartiles"])
    return f"{median} ({low} – {high})"


def _legend(result: Result) -> list[str]:
    """What the scores mean, once for all pairs."""
    names = {score.measure.name for score in result.scores}
    items = [
        f"- **{measure.name}** (units: {measure.unit}). {measure.meaning}. Null: {measure.null}."
        for measure in (FALL, DIED, LENGTH, COMPOSED)
        if any(name.startswith(measure.name) for name in names)
    ]
    return [*items, "- **merges**: latents of B that are the partner of several of A; **splits**: latents of A that"
            " several of B have as theirs."]  # fmt: skip


def _cell(score: Score | None) -> str:
    return "–" if score is None else markdown.joined(cell([score]))


# --- findings


def findings(result: Result, name_of: Callable[[int, int], str]) -> list[Finding]:
    """Whether links are causal, and how far features go on."""
    del name_of
    return [_finding(score) for score in result.scores if score.measure.headline and score.measure != COMPOSED]


def _finding(score: Score) -> Finding:
    value, (low, high) = shown(score.value, score.measure), (shown(end, score.measure) for end in score.interval)
    null = "–" if score.null is None or math.isnan(score.null) else shown(score.null, score.measure)
    known = f"**{value}** ({low} – {high})"
    match score.measure.name:
        case FALL.name:
            said = f"Removing a latent takes {known} of its successor's activation in the next coder; removing another"
            said += f" that fires on the same tokens about as often takes {null}."
        case DIED.name:
            said = f"Without its predecessor a latent is silent on {known} of its tokens; without another on {null}."
        case _:
            said = f"A latent of the first coder goes on for {known} coders in the mean; by chance {null}."
    return Finding(said, strength(score))
