"""When features fire, and what fires before what: figures, tables and findings.

autocorrelation   of the features of each range, by lag
burstiness        of the gaps between firings, beside what exchanged tokens give
position          where in a passage position features fire, beside all features
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import Result, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 10
"""Features, or pairs of them, of each kind."""
BURSTINESS_BINS, PLACE_BINS = 40, 20
REACHES = {"single": "no", "local": "{local} at most", "middle": "{middle} to {long}", "long": "more than {long}"}
"""How many tokens on a firing of each range makes others more likely."""


def figures(result: Result) -> "dict[str, Figure]":
    """Autocorrelation by lag, burstiness and places."""
    details = result.details
    drawn = {"autocorrelation": autocorrelation_figure(details)}
    if any(value is not None for value in details["burstiness"]):
        own, null = (_numbers(details[name]) for name in ("burstiness", "burstiness null"))
        about = "burstiness of the gaps: −1 a clock, 1 bursts"
        names = f"features ({np.isfinite(own).sum():,})", "exchanged within documents"
        drawn["burstiness"] = _histograms((own, null), names, np.linspace(-1, 1, BURSTINESS_BINS + 1), about)
    mean, stands = _numbers(details["position"]["mean"]), np.array(details["position"]["stands"], bool)
    if stands.any():
        about = "mean place of firings: 0 first token, 1 a window's end"
        names = f"position features ({stands.sum():,})", f"all features ({len(mean):,})"
        drawn["position"] = _histograms((mean[stands], mean), names, np.linspace(0, 1, PLACE_BINS + 1), about)
    return drawn


def autocorrelation_figure(details: Mapping[str, Any]) -> "Figure":
    """A line a range: the mean autocorrelation of its features at each lag."""
    from matplotlib.ticker import NullLocator

    height = 1.5
    figure, [axes] = drawing.panels([height], right=0.95)
    lags, by_range = details["lags"], details["autocorrelation"]
    colours = dict(zip(REACHES, drawing.palette(len(REACHES)), strict=True))
    for name, r in by_range.items():
        axes.plot(lags, r, color=colours[name], marker="o", markersize=2.5, linewidth=1.1, label=name)
    axes.axhline(0, color=drawing.INK, linewidth=0.6)
    axes.set(xscale="log", xticks=lags, xlabel="lag (tokens)", ylabel="autocorrelation of firing")
    axes.xaxis.set_major_formatter(lambda lag, _: f"{lag:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    names = [f"{name} ({details['range'].count(name):,})" for name in by_range]
    ends = np.array([r[-1] for r in by_range.values()])
    drawing.label_ends(axes, ends, names, [colours[name] for name in by_range], height)
    return figure


def _histograms(
    values: tuple[np.ndarray, np.ndarray], names: tuple[str, str], edges: np.ndarray, about: str
) -> "Figure":
    """The shares of the first in each bin, and of the second as a line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, [axes] = drawing.panels([1.3], right=0.12, top=0.3)
    colour, line = drawing.palette(3)[-1], {"color": drawing.INK, "linewidth": 0.9}
    own, other = (np.histogram(some[np.isfinite(some)], edges)[0] for some in values)
    axes.stairs(own / max(1, own.sum()), edges, fill=True, color=colour, label=names[0])
    axes.stairs(other / max(1, other.sum()), edges, label=names[1], **line)
    drawing.key(axes, [Patch(color=colour), Line2D([], [], **line)], names)
    axes.set(xlim=(edges[0], edges[-1]), xlabel=about, ylabel="share of features")
    axes.yaxis.set_major_formatter(drawing.percent)
    return figure


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def section(result: Result, name_of: Callable[[int], str]) -> list[str]:
    """How far features reach, then the strongest of each kind, by name."""
    details = result.details
    cuts = details["cuts"]
    parts = [
        f"{len(details['features']):,} features fire on {cuts['firings']} or more of {details['tokens']:,} tokens, in"
        f" {details['passages']:,} passages of {details['documents']:,} documents; a passage is the part of a document"
        f" in one window, of {details['context']} tokens at most. A firing makes others of its feature more likely:",
        "",
        *_ranges(details),
        "",
    ]
    kinds = {
        "What fires before what, by P · log₂ lift:": _successions(details, name_of),
        f"Features that reach further than {cuts['long']} tokens:": _far(details, name_of),
        "Features that fire in bursts, by deviations from chance:": _bursts(details, name_of),
        "Features of a place in the passage, by bits above chance:": _positions(details, name_of),
    }
    for title, table in kinds.items():
        parts += [title, "", *(table if len(table) > 2 else ["None."]), ""]
    return parts[:-1]


def _ranges(details: Mapping[str, Any]) -> list[str]:
    named, rows = {**details["cuts"], "middle": details["cuts"]["local"] + 1}, []
    for name, r in details["autocorrelation"].items():
        share = details["range"].count(name) / len(details["range"])
        rows.append([name, REACHES[name].format(**named), f"{share:.1%}", *(f"{value:.3f}" for value in r)])
    return markdown.lines(["range", "tokens on", "features", *(f"r at {lag}" for lag in details["lags"])], rows)


def _successions(details: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    columns, rows = details["successors"], []
    for i in strongest(details)[:LISTED]:
        feature, other = columns["feature"][i], columns["other"][i]
        lifts = [f"{columns[name][i]:.3g}" for name in ("lift", "lower", "backward")]
        both = [f"{feature} {name_of(feature)}", f"{other} {name_of(other)}"]
        rows.append([*both, str(columns["lag"][i]), f"{columns['share'][i]:.1%}", *lifts])
    return markdown.lines(["feature", "then", "tokens on", "P", "lift", "at least", "lift backward"], rows)


def strongest(details: Mapping[str, Any]) -> list[int]:
    """Rows of the successors by P · log₂ lift, the first one of each two features."""
    columns = details["successors"]
    worth = np.array(columns["share"]) * np.log2(np.array(columns["lift"]))
    pairs, rows = set[tuple[int, int]](), []
    for i in np.argsort(-worth, kind="stable").tolist():
        pair = columns["feature"][i], columns["other"][i]
        if pair not in pairs:
            pairs.add(pair)
            rows.append(i)
    return rows


def _far(details: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    far = np.where(np.array(details["range"]) == "long", _numbers(details["r at reach"]), np.nan)
    columns = {"reach": details["reach"], "r there": details["r at reach"], "run": details["run"]}
    return _best(details, far, columns, name_of)


def _bursts(details: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    z = np.where(details["bursty"], _numbers(details["burstiness z"]), np.nan)
    by_chance = details["burstiness null"]
    columns = {"burstiness": details["burstiness"], "by chance": by_chance, "run": details["run"]}
    return _best(details, z, columns, name_of)


def _positions(details: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    position = details["position"]
    excess = np.where(position["stands"], _numbers(position["bits"]) - _numbers(position["null"]), np.nan)
    columns = {"bits": position["bits"], "by chance": position["null"]}
    return _best(details, excess, columns | {"mean place": position["mean"], "±": position["spread"]}, name_of)


def _best(
    details: Mapping[str, Any],
    by: np.ndarray,
    columns: Mapping[str, Sequence[float]],
    name_of: Callable[[int], str],
) -> list[str]:
    """A table of the features of the largest numbers, of those that have one."""
    features, rows = details["features"], []
    for i in np.argsort(-by, kind="stable")[: min(LISTED, int(np.isfinite(by).sum()))].tolist():
        firings = f"{details['firings'][i]:,}"
        numbers = [f"{values[i]:.3g}" for values in columns.values()]
        rows.append([str(features[i]), name_of(features[i]), firings, *numbers])
    return markdown.lines(["feature", "name", "firings", *columns], rows)


def findings(result: Result, name_of: Callable[[int], str]) -> list[Finding]:
    """How many features a firing of another follows, how many reach far, fire in bursts, or know their place."""
    scores = {score.measure.name: score for score in result.scores}
    details = result.details
    said = {
        "with a successor": "of the features are followed by another: it fires 1, 2 or 4 tokens later more often than"
        " their documents make it, and more often than before." + _example(details, name_of),
        "long-range": f"of the features reach further than {details['cuts']['long']} tokens: so far on, a firing makes"
        " another still more likely, and half as much as anywhere.",
        "bursty": "of the features with gaps enough to tell fire in bursts: closer together than as many firings thrown"
        " into their documents.",
        "position features": "of the features fire at some places of a passage rather than at others.",
    }
    return [
        Finding(f"{_said(scores[name])} {rest}", strength(scores[name]))
        for name, rest in said.items()
        if name in scores
    ]


def _example(details: Mapping[str, Any], name_of: Callable[[int], str]) -> str:
    """The strongest succession, where there is one."""
    if not (rows := strongest(details)):
        return ""
    columns, i = details["successors"], rows[0]
    feature, other, lag = (columns[name][i] for name in ("feature", "other", "lag"))
    return (
        f" Of {feature} ({name_of(feature)}), {columns['share'][i]:.0%} of the firings are followed by {other}"
        f" ({name_of(other)}) {lag} token{'s' * (lag > 1)} on, {columns['lift'][i]:.3g} times as often as anywhere."
    )


def _said(score: Score) -> str:
    value, interval, null = cell([score])
    return f"**{value}** (95 % interval {interval}; by chance {null.removeprefix('null ')})"
