"""Parents and children over the rings of a coder: figures, the strongest trees, suspects, and findings.

hierarchy-children       how many features of each ring have so many children
hierarchy-depth          of each ring the shares of features with chains of so many parents above them
hierarchy-specificity    how much more seldom children fire than their parents
hierarchy-gain           of each pair that was tested what the parent explains, against chance
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka.analysis.agreement import AGREEMENT, agreement
from matryoshka.report import drawing, markdown
from matryoshka.report.cells import cell
from matryoshka.report.compared import ComparedPair
from matryoshka.report.finding import Finding, strength
from matryoshka.scores.result import NotMeasurable, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NameOf = Callable[[int], str]
TREES, BRANCHES, LEVELS = 5, 5, 3
"""Trees that are shown, children of each of their features, and how deep."""
SUSPECTS = 10
"""That are listed."""


class Tree:
    """What stands, feature by feature."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        self.details, edges = details, details["edges"]
        self.widths, self.living = details["rings"], np.array(details["living"])
        self.columns = {name: np.array(values) for name, values in edges.items() if name != "examples"}
        self.direct = np.flatnonzero(self.columns["direct"])
        self.children: dict[int, list[int]] = {}
        """Of each parent its direct edges, those first whose gain lies farthest above its null."""
        above = self.columns["gain"] - self.columns["null"]
        for edge in self.direct[np.argsort(-above[self.direct], kind="stable")].tolist():
            self.children.setdefault(int(self.columns["parent"][edge]), []).append(edge)
        self.depth = {entry["feature"]: entry["depth"] for entry in details["depth"]}
        known = details["firings"]
        self.firings = dict(zip(known["feature"], known["firings"], strict=True))

    def of(self, name: str, edges: np.ndarray) -> np.ndarray:
        """A column of these edges."""
        return self.columns[name][edges] if len(edges) else np.empty(0)

    def ring(self, features: Any) -> np.ndarray:
        """Of each feature."""
        return np.searchsorted(self.widths, features, side="right")

    def density(self, feature: int) -> str:
        """Its share of the tokens, as people read it."""
        return _share(self.firings[feature] / self.details["tokens"])

    @cached_property
    def descendants(self) -> dict[int, int]:
        """Of each parent how many features stand below it, each counted once."""
        below: dict[int, set[int]] = {}
        for parent in sorted(self.children, reverse=True):  # whose children's are known already
            own = {int(self.columns["child"][edge]) for edge in self.children[parent]}
            below[parent] = own.union(*(below.get(child, set()) for child in own))
        return {parent: len(features) for parent, features in below.items()}

    @property
    def roots(self) -> list[int]:
        """Features with children and no parents, those with most descendants first."""
        roots = [feature for feature, depth in self.depth.items() if depth == 0]
        return sorted(roots, key=lambda feature: (-self.descendants[feature], feature))


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


# --- figures


def figures(result: Result) -> "dict[str, Figure]":
    """Children, depth, specificity and gain; of what there is none of, none."""
    tree = Tree(result.details)
    drawn = {"hierarchy-depth": depth_figure(tree)}
    if len(tree.direct):
        drawn |= {"hierarchy-children": children_figure(tree), "hierarchy-specificity": specificity_figure(tree)}
    return drawn | ({"hierarchy-gain": gain_figure(tree)} if len(tree.columns["gain"]) else {})


def children_figure(tree: Tree) -> "Figure":
    """A line for each ring but the last: how many of its features have at least so many children."""
    figure, [axes] = drawing.panels([1.3], right=0.12, top=0.3)
    numbers = Counter(tree.of("parent", tree.direct).tolist())
    rings, counts = tree.ring([*numbers]), np.array([*numbers.values()])
    shown, colours = np.unique(rings).tolist(), drawing.palette(len(tree.widths))
    for ring in shown:
        own = np.sort(counts[rings == ring])
        least = np.unique(own)
        features = len(own) - np.searchsorted(own, least)
        axes.plot(least, features, color=colours[ring], linewidth=1.2, marker=".", markersize=3, label=f"ring {ring}")
    drawing.key(axes, axes.lines, [f"ring {ring}" for ring in shown])
    axes.set(xscale="log", yscale="log", xlabel="children, at least", ylabel="features")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_minor_formatter(lambda value, _: "")
    return figure


def depth_figure(tree: Tree) -> "Figure":
    """A bar for each ring: the shares of its living features with chains of 0, 1, … parents above them."""
    from matplotlib.patches import Patch

    rings = len(tree.widths)
    levels = 1 + max(tree.depth.values(), default=0)
    counts = np.zeros((rings, levels))
    for feature, depth in tree.depth.items():
        counts[tree.ring(feature), depth] += 1
    counts[:, 0] += tree.living - counts.sum(1)  # who stands in no edge
    shares, colours = counts / np.maximum(1, tree.living)[:, None], drawing.palette(levels)
    figure, [axes] = drawing.panels([0.22 * rings], right=0.16, top=0.3)
    left = np.zeros(rings)
    for depth in range(levels):
        axes.barh(-np.arange(rings), shares[:, depth], 0.6, left, color=colours[depth], label=f"depth {depth}")
        left += shares[:, depth]
    for ring in range(rings):
        axes.annotate(str(ring), (-0.012, -ring), ha="right", va="center", annotation_clip=False, fontsize=6)
    drawing.key(axes, [Patch(color=colour) for colour in colours], ["depth 0", *map(str, range(1, levels))])
    axes.set(xlim=(0, 1), ylim=(0.5 - rings, 0.5), yticks=[], xlabel="share of the ring's living features")
    axes.xaxis.set_major_formatter(drawing.percent)
    axes.grid(visible=False)
    figure.supylabel("ring", x=0.02, fontsize=7)
    return figure


def specificity_figure(tree: Tree) -> "Figure":
    """How often children fire over how often their parents do, those of each ring on top of those of the one before."""
    from matplotlib.patches import Patch

    share, coverage, child = (tree.of(name, tree.direct) for name in ("share", "coverage", "child"))
    ratios, rings = np.log10(share / coverage), tree.ring(child)
    edges = drawing.bins(ratios)
    figure, [axes] = drawing.panels([1.0], right=0.12, top=0.3)
    colours, below = drawing.palette(len(tree.widths)), np.zeros(len(edges) - 1)
    shown = np.unique(rings).tolist()
    for ring in shown:
        counts = np.histogram(ratios[rings == ring], edges)[0]
        axes.stairs(below + counts, edges, baseline=below, fill=True, color=colours[ring], label=f"ring {ring}")
        below = below + counts
    names = [f"children in ring {shown[0]}", *map(str, shown[1:])]
    drawing.key(axes, [Patch(color=colours[ring]) for ring in shown], names)
    axes.set(xlabel="log₁₀ (density of the child / of the parent)", ylabel="edges")
    return figure


def gain_figure(tree: Tree) -> "Figure":
    """A point for each pair that was tested: what the parent explains where the child fires, against its null."""
    figure, [axes] = drawing.panels([2.2], right=0.12, top=0.3)
    gain, null, stands = (tree.columns[name] for name in ("gain", "null", "stands"))
    colours = {True: drawing.palette(3)[-1], False: drawing.QUIET}
    low, high = min(0.0, float(gain.min())), drawing.top(np.concatenate([gain, null]))
    for which, name in ((True, "stands"), (False, "does not stand")):
        chosen = stands.astype(bool) == which
        axes.scatter(
            null[chosen], gain[chosen], s=3, color=colours[which], alpha=0.5, linewidths=0, rasterized=True, label=name
        )
    axes.plot([0, high], [0, high], color=drawing.INK, linewidth=0.6)
    drawing.key(axes, axes.collections, [f"{_number(stands)} stand", f"{_number(~stands.astype(bool))} do not"])
    axes.set(xlim=(0, high), ylim=(1.08 * low, high), xlabel="null: 95th percentile of density-matched features")
    axes.set_ylabel("gain of the parent")
    return figure


def _number(which: np.ndarray) -> str:
    return f"{int(which.sum()):,}"


# --- words


def section(result: Result, name_of: NameOf) -> list[str]:
    """Ring by ring who has parents and children, the strongest trees, and parents that may be absorbed."""
    tree, details = Tree(result.details), result.details
    cuts, left_out = details["cuts"], details["left_out"]
    said = (
        f"On {details['tokens']:,} tokens: {len(tree.columns['gain']):,} pairs of a feature and one of an earlier ring"
        f" that covers it, of which {_number(tree.columns['stands'])} stand: where the child fires the parent explains"
        f" more than all but one in {1 / (1 - cuts['quantile']):.0f} of {cuts['matched']} features of its ring that"
        " fire about as often. Children of another child are counted there alone."
    )
    if left_out:
        said += f" {left_out:,} more candidates were not tested: of each child the {cuts['parents']} best are."
    parts = [said, "", *_rings(tree), ""]
    if len(tree.direct):
        parts += ["Trees with most descendants:", "", *_trees(tree, name_of), ""]
    return [*parts, *_suspects(tree, name_of)]


def _rings(tree: Tree) -> list[str]:
    parent, child = (tree.of(name, tree.direct) for name in ("parent", "child"))
    ratio = tree.of("share", tree.direct) / tree.of("coverage", tree.direct)
    of_parent, of_child = tree.ring(parent), tree.ring(child)
    rows = []
    for ring, living in enumerate(tree.living.tolist()):
        children, depths = child[of_child == ring], [0]
        depths += [depth for feature, depth in tree.depth.items() if tree.ring(feature) == ring]
        rows.append(
            [
                str(ring),
                f"{living:,}",
                _share(len(np.unique(children)) / max(1, living)) if ring else "–",
                f"{(of_parent == ring).sum() / max(1, living):.2f}" if ring + 1 < len(tree.widths) else "–",
                str(max(depths)),
                f"1 : {1 / np.median(ratio[of_child == ring]):.3g}" if len(children) else "–",
            ]
        )
    heads = ["ring", "living", "with a parent", "children each", "longest chain above", "density, child : parent"]
    return markdown.lines(heads, rows)


def _trees(tree: Tree, name_of: NameOf) -> Iterator[str]:
    for root in tree.roots[:TREES]:
        number = tree.descendants[root]
        below = f"{number:,} descendant{'s' if number > 1 else ''}"
        yield f"- **{name_of(root)}** (feature {root}, on {tree.density(root)} of tokens): {below}"
        yield from _branch(tree, root, 1, name_of)


def _branch(tree: Tree, parent: int, level: int, name_of: NameOf) -> Iterator[str]:
    edges, indent = tree.children.get(parent, []), "    " * level
    if level == LEVELS:
        return
    for edge in edges[:BRANCHES]:
        child = int(tree.columns["child"][edge])
        coverage, gain, null = (float(tree.columns[name][edge]) for name in ("coverage", "gain", "null"))
        numbers = f"covered {_share(coverage)}, gain {gain:.2f} against {null:.2f}"
        yield f"{indent}- {name_of(child)} (feature {child}, on {tree.density(child)}; {numbers})"
        yield from _branch(tree, child, level + 1, name_of)
    if len(edges) > BRANCHES:
        yield f"{indent}- … and {len(edges) - BRANCHES:,} more"


def _suspects(tree: Tree, name_of: NameOf) -> list[str]:
    suspects = tree.details["suspects"]
    number = tree.details["suspected"]
    alike, judged = tree.details["alike"], tree.details["judged"]
    if not number:
        return [
            f"No suspicion of absorption: of {alike:,} pairs that point alike, {judged:,} of which can be judged by"
            " their tokens, none has a parent that is silent just where the child fires."
        ]
    names = ("parent", "child", "cosine", "expected", "coverage")
    rows = []
    for *pair, cosine, expected, coverage in zip(*(suspects[name][:SUSPECTS] for name in names), strict=True):
        named = [f"{name_of(feature)} (feature {feature})" for feature in pair]
        rows.append([*named, f"{cosine:.2f}", _share(expected), _share(coverage)])
    said = (
        f"Of {alike:,} pairs that point alike, {judged:,} of which can be judged by their tokens, in {number:,} the"
        " parent is silent just where the child fires: the child may have absorbed it, or be of another sense of the"
        " same tokens. How often the parent fires on tokens of the child's types:"
    )
    heads = ["parent", "child", "cosine", "without the child", "with the child"]
    return [said, "", *markdown.lines(heads, rows)]


def findings(result: Result, name_of: NameOf) -> list[Finding]:
    """How many features have a parent, and how many may have absorbed one."""
    [parents], [suspects] = result.of("with a parent"), result.of("absorption suspects")
    value, interval, null = cell([parents])
    sentence = (
        f"**{value}** of the features beyond the first ring have a parent in an earlier one (95 % interval {interval};"
        f" {null.removeprefix('null ')} with density-matched features in the parents' place)"
    )
    tree = Tree(result.details)
    if roots := tree.roots:
        root, number = roots[0], tree.descendants[roots[0]]
        sentence += f"; {name_of(root)} (feature {root}) has most descendants, {number:,}"
    found = [Finding(f"{sentence}.", strength(parents))]
    value, interval, null = cell([suspects])
    sentence = (
        f"**{value}** of the features beyond the first ring may have absorbed a parent (95 % interval {interval};"
        f" {null.removeprefix('null ')} with parents of other pairs): one that points alike is silent where they fire,"
        " though it fires on the same kinds of tokens without them. A suspicion."
    )
    return [*found, Finding(sentence, strength(suspects))]


def agreements(pairs: Sequence[ComparedPair], found: Mapping[str, Result]) -> list[str]:
    """A table of how far pairs of coders have one hierarchy, through the features that are kept; `found`: hierarchies
    by the coder's name. Nothing where no pair has two."""
    rows = []
    for pair in (pair for pair in pairs if pair.result.reason is None):
        first, second = (found.get(side["name"]) for side in pair.details["sides"].values())
        if first is not None and second is not None and first.reason is second.reason is None:
            rows.append([pair.label, _agreement(first, second, pair)])
    if not rows:
        return []
    return ["### Hierarchies", "", AGREEMENT.meaning, "", *markdown.lines(["A → B", AGREEMENT.name], rows), ""]


def _agreement(first: Result, second: Result, pair: ComparedPair) -> str:
    matches = pair.details["matches"]["A"]
    columns = zip(matches["latent"], matches["partner"], matches["class"], strict=True)
    kept = {latent: partner for latent, partner, of_class in columns if of_class == "kept"}
    try:
        return markdown.joined(cell([agreement(first, second, kept)]))
    except NotMeasurable as reason:
        return str(reason)
