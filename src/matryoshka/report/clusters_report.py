"""How features group, for people: communities with their names and central features, and how far they agree."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import Result, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"tokens": "fire on the same tokens", "blocks": "fire in the same blocks of text", "geometry": "write alike"}
SHOWN = 12
"""Communities of a kind that are listed."""
NAMED = 3
"""Features of a community that are named."""
WORDS = 4
"""Of a community's name."""
WORD, QUOTED = re.compile(r"[^\W\d_]{2,}"), re.compile(r"‘([^’]*)’")


def figures(result: Result) -> "dict[str, Figure]":
    """How far communities agree, and how large they are."""
    drawn = {"community-sizes": sizes_figure(result.details["communities"])}
    shared = [score for score in result.scores if score.measure.name.startswith(("agreement", "stability"))]
    return ({"agreement": agreement_figure(shared)} if shared else {}) | drawn


def agreement_figure(scores: Sequence[Score]) -> "Figure":
    """A line a score: its interval, value, and what chance gives."""
    from matplotlib.lines import Line2D

    figure, [axes] = drawing.panels([0.27 * len(scores) + 0.1], right=0.12, top=0.3)
    for place, score in enumerate(scores):
        axes.plot(score.interval, [-place] * 2, color=drawing.QUIET, linewidth=0.9, label=f"interval {place}")
        axes.plot(score.value, -place, marker="o", markersize=3.5, color=drawing.INK, label=score.measure.name)
        if score.null is not None:
            axes.plot(score.null, -place, marker="|", markersize=5, color=drawing.QUIET, label=f"null {place}")
        axes.annotate(score.measure.name, (0.015, -place + 0.3), xycoords=("axes fraction", "data"), fontsize=5.5)
    keys = [
        Line2D([], [], color=drawing.INK, marker="o", markersize=3.5, linewidth=0.9),
        Line2D([], [], color=drawing.QUIET, marker="|", markersize=6, linestyle=""),
    ]
    drawing.key(axes, keys, ["value, 95 % interval", "by chance"])
    axes.set(xlim=(min(-0.05, *(score.interval.low for score in scores)), 1), ylim=(0.6 - len(scores), 0.8), yticks=[])
    axes.set_xlabel("adjusted mutual information (1: the same)")
    axes.grid(axis="x")
    return figure


def sizes_figure(communities: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """The size of each community by its rank, a line a kind."""
    from matplotlib.lines import Line2D

    figure, [axes] = drawing.panels([1.5], right=0.12, top=0.3)
    colours = drawing.palette(len(communities))
    for colour, (kind, of_kind) in zip(colours, communities.items(), strict=True):
        sizes = [community["size"] for community in of_kind]
        axes.plot(
            np.arange(1, len(sizes) + 1), sizes, color=colour, marker=".", markersize=3, linewidth=0.9, label=kind
        )
    drawing.key(axes, [Line2D([], [], color=colour) for colour in colours], list(communities))
    axes.set(xscale="log", yscale="log", xlabel="rank of the community", ylabel="features")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    return figure


def section(result: Result, name_of: Callable[[int], str]) -> list[str]:
    """What the communities are, kind by kind, and how far they are more than chance."""
    details = result.details
    cuts, features = details["settings"], np.array(details["features"])
    parts = [
        f"{len(features):,} features fire on {cuts['firings']} tokens or more and on at most {cuts['density']:.0%} of"
        f" them. {_apart(details['dense'], name_of)} Each is joined to at most {cuts['neighbours']} others that are"
        " more alike than chance would have them; communities are where most of the edges stay within.",
        "",
        *markdown.lines(
            ["score", "value (95 % interval; null)"],
            [[score.measure.name, markdown.joined(cell([score]))] for score in result.scores],
        ),
        "",
    ]
    for kind, said in KINDS.items():
        of_kind, labels = details["communities"][kind], np.array(details["partitions"][kind])
        inside = int((labels >= 0).sum())
        parts += [
            f"**Features that {said}**: {inside:,} in {len(of_kind):,} communities, {len(labels) - inside:,} in none."
            f"{_shown(of_kind)}",
            "",
        ]
        if of_kind:
            members = [features[labels == community["number"]].tolist() for community in of_kind]
            rows = [
                [str(community["size"]), name, *_central(community, name_of)]
                for community, name in zip(of_kind[:SHOWN], names(members, name_of), strict=False)
            ]
            parts += [*markdown.lines(["features", "words that tell it from others", "most central"], rows), ""]
    return parts


def names(communities: Sequence[Sequence[int]], name_of: Callable[[int], str]) -> list[str]:
    """Of each community the words of its features' names that tell it from the others: those with the largest
    n · ln(communities / communities with the word), n of its features having it, two at least (tf-idf)."""
    counts = [Counter(word for index in members for word in _words(name_of(index))) for members in communities]
    with_word = Counter(word for of_community in counts for word in of_community)
    named = []
    for of_community in counts:
        weights = {word: n * log(len(counts) / with_word[word]) for word, n in of_community.items() if n > 1}
        best = sorted((-weight, word) for word, weight in weights.items() if weight > 0)[:WORDS]
        named.append(", ".join(word for _, word in best) or "–")
    return named


def _words(name: str) -> set[str]:
    """Those in quotes, which are of the text, if there are any."""
    return {*WORD.findall((" ".join(QUOTED.findall(name)) or name).lower())}


def findings(result: Result, name_of: Callable[[int], str]) -> list[Finding]:
    """Whether there are communities, and whether what fires together writes alike."""
    scores, communities = {score.measure.name: score for score in result.scores}, result.details["communities"]
    found = []
    if together := scores.get("modularity of tokens"):
        found.append(
            f"Features fall into {len(communities['tokens']):,} communities that fire together, the largest of"
            f" {communities['tokens'][0]['size']:,}; their modularity on documents that they were not found in is"
            f" {_said(together)}, chance being communities by documents alone."
        )
    if alike := scores.get("agreement of tokens and geometry"):
        ceiling = scores.get("stability of tokens")
        beside = f"; communities of two halves of the documents agree to {ceiling.value:.3f}" if ceiling else ""
        found.append(
            "Communities of features that fire together and of features that write alike agree to an adjusted mutual"
            f" information of {_said(alike)}{beside}."
        )
    if told := scores.get("tokens by decoder"):
        found.append(
            f"The nearest decoder rows tell the community that a feature fires with in {_said(told)} of cases."
        )
    behind = [score for score in (together, alike, told) if score]
    return [Finding(sentence, strength(score)) for sentence, score in zip(found, behind, strict=True)]


def _said(score: Score) -> str:
    value, interval, null = cell([score])
    return f"**{value}** (95 % interval {interval}; by chance {null.removeprefix('null ')})"


def _apart(dense: Sequence[int], name_of: Callable[[int], str]) -> str:
    if not dense:
        return "None is denser."
    some = ", ".join(f"{index} ({name_of(index)})" for index in dense[:NAMED])
    more = f" and {len(dense) - NAMED:,} more" if len(dense) > NAMED else ""
    are = "one is set apart, as it fires" if len(dense) == 1 else "ones are set apart, as they fire"
    return f"{len(dense):,} denser {are} together with everything: {some}{more}."


def _shown(communities: Sequence[Mapping[str, Any]]) -> str:
    return f" The {SHOWN} largest:" if len(communities) > SHOWN else ""


def _central(community: Mapping[str, Any], name_of: Callable[[int], str]) -> list[str]:
    return ["; ".join(f"{index} ({name_of(index)})" for index in community["central"][:NAMED])]
