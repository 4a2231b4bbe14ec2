"""What matches what between two coders A and B on the same tokens, two layers, seeds, widths or recipes, or on the
same words, of two language models.

For each latent of A that fires often enough its best partner among B's, and the other way round (`matching`); where
both write into one space also by decoder rows (`directions`). By the partners each latent is

    kept         it and its partner are each other's best, by Pearson ≥ KEPT.pearson or by Jaccard ≥ KEPT.jaccard
    processed    no such partner, but one by Pearson ≥ PROCESSED.pearson or by Jaccard ≥ PROCESSED.jaccard
    vanished     of A, newborn of B: no partner at all

A Jaccard index counts only where the two fire together LIFT times as often as by chance: latents that fire on most
tokens have a large one with one another whatever they mean.

The null is the same with the tokens of the other coder exchanged within their documents, over at most NULL_LATENTS of
each side: what is left is what two latents have in common by the documents that they fire in and by how often. There
a partner need not be mutual, so that the null of `kept` is an upper bound. The ceiling is a pair that differs in its
seeds alone. Classes after Laptev et al. 2025 (arXiv:2502.03032), which tells them by decoder cosines; scores as in
Balcells et al. 2024 (arXiv:2410.08869).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.analysis.directions import (
    MOST_ASSIGNED,
    Nearest,
    nearest,
    no_common_basis,
    one_to_one,
    pair_costs,
    shuffled_dimensions,
)
from matryoshka.analysis.matching import FIRINGS, Activity, Best, Living, activity, exchanged, match
from matryoshka.analysis.observed import Observed, Pair
from matryoshka.analysis.partners import apart, of_punctuation, shared_out, stand_alike
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.reader import spread

VERSION = 3
NULL_LATENTS = 1024
"""Latents of either side that are matched by chance."""
SEED = 0
"""Of the exchanged tokens and shuffled dimensions."""
BINS = 50
LIFT = 2.0


class Cut(NamedTuple):
    """What a partner needs, by one of the two."""

    pearson: float
    jaccard: float


KEPT = Cut(0.7, 0.5)
"""Half of a latent's variance (r² ≈ ½) is its partner's; or they fire together as often as either fires alone. Of
latents that fire equally often and with one value the two say nearly the same: J = r / (2 − r)."""
PROCESSED = Cut(0.3, 0.2)
"""A tenth of its variance; or together on one in five of the tokens where either fires: the same by J = r / (2 − r)."""
CLASSES = {"A": ("kept", "processed", "vanished"), "B": ("kept", "processed", "newborn")}


def _measures(side: str, other: str, places: str) -> dict[str, Measure]:
    """Those of one side's features, by what they measure; `places`: what a row is."""
    kept, processed, alone = CLASSES[side]
    exchanged_tokens = f"{places} of {other} exchanged within documents"
    best = f"with the latent of {other} where it is largest, mean over {side}'s latents"
    share = f"Share of {side}'s latents that"
    cuts = [f"Pearson ≥ {cut.pearson} or Jaccard ≥ {cut.jaccard}" for cut in (KEPT, PROCESSED)]
    of_tokens = partial(Measure, better="neither", unit="feature", null=exchanged_tokens, paired=False)
    upper = partial(of_tokens, null=f"{exchanged_tokens}; an upper bound, as partners need not be mutual there")
    of_rows = partial(of_tokens, null=f"dimensions of {other} shuffled")
    return {
        kept: upper(f"kept of {side}", meaning=f"{share} have a mutual best partner with {cuts[0]}", percent=True),
        processed: of_tokens(f"processed of {side}", meaning=f"{share} are not kept, but have a partner with {cuts[1]}",
                             percent=True, headline=False),
        alone: of_tokens(alone, meaning=f"{share} are neither kept nor processed", percent=True),
        "Pearson": of_tokens(f"Pearson of {side}", meaning=f"cov / (σ σ) over all {places} {best}"),
        "Jaccard": of_tokens(f"Jaccard of {side}",
                             meaning=f"{places.capitalize()} where both fire / {places} where either does {best}"),
        "lift": of_tokens(f"lift of {side}", meaning="P(both fire) / (P(one fires) P(other fires)) with the partner by"
                          f" Jaccard, mean over {side}'s latents", headline=False),
        "cosine": of_rows(f"cosine of {side}", meaning=f"Of decoder rows, {best}"),
    }  # fmt: skip


MEASURES = {
    (places, side): _measures(side, other, places) for places in ("tokens", "words") for side, other in ("AB", "BA")
}
ONE_TO_ONE = Measure(
    "one-to-one cosine",
    "neither",
    "Mean cosine of decoder rows paired one to one with the largest sum (Hungarian method)",
    unit="pair of features",
    null="best cosines with the dimensions of one shuffled, above which no pairing lies",
    paired=False,
)


def analyse(pair: Pair, progress: Progress = silent) -> Result:
    """What matches what in a pair; `progress` counts latents. Raises NotMeasurable where one of the two has no latent
    that fires often enough on the tokens that count for both."""
    rows, sides = pair.rows, pair.sides
    living = {side: Living.of(member.recorded, rows) for side, member in sides.items()}
    for side, its in living.items():
        if not len(its.features):
            name = sides[side].name
            raise NotMeasurable(
                f"no latent of {name} fires on {FIRINGS} of the {its.rows:,} {pair.places} that count for both"
            )
    decoders, why_not = decoder_matches(pair, living)  # all pairs of rows, before the latents take their memory
    a, b = (activity(member.recorded, rows, living[side]) for side, member in sides.items())
    matches = _matches(a, b, exchanged(pair.documents, SEED), progress)
    scores = tuple(_scores(pair, living, matches, decoders))
    return Result(scores, _details(pair, living, matches, decoders, why_not))


class SideMatches(NamedTuple):
    """The best partners of one side's latents, and what chance gives some of them."""

    best: Best
    classes: Int[np.ndarray, " living"]
    """0 kept, 1 processed, 2 neither."""
    partners: Int[np.ndarray, " living"]
    """By which it is so."""
    null: Best
    null_classes: Int[np.ndarray, " sample"]


def _matches(a: Activity, b: Activity, order: Int[np.ndarray, " rows"], progress: Progress) -> dict[str, SideMatches]:
    best = match(a, b, progress=progress)
    nulls = match(a.sample(NULL_LATENTS), b, order)[0], match(b.sample(NULL_LATENTS), a, order)[0]
    return {
        side: SideMatches(own, classes(own, other), partners(own, other), null, classes(null))
        for side, own, other, null in zip("AB", best, best[::-1], nulls, strict=True)
    }


class Standing(NamedTuple):
    """Which latents have a partner that meets the cuts, by Pearson and by Jaccard."""

    kept: tuple[Bool[np.ndarray, " living"], Bool[np.ndarray, " living"]]
    processed: tuple[Bool[np.ndarray, " living"], Bool[np.ndarray, " living"]]

    @classmethod
    def of(cls, best: Best, other: Best | None) -> "Standing":
        """Without the `other` side's partners none need be mutual."""
        number, everywhere = np.arange(len(best.pearson)), np.ones(len(best.pearson), bool)
        mutual = everywhere if other is None else other.by_pearson[best.by_pearson] == number
        mutual_jaccard = everywhere if other is None else other.by_jaccard[best.by_jaccard] == number
        jaccard = np.where(best.lift >= LIFT, best.jaccard, 0)
        return cls(
            (mutual & (best.pearson >= KEPT.pearson), mutual_jaccard & (jaccard >= KEPT.jaccard)),
            (best.pearson >= PROCESSED.pearson, jaccard >= PROCESSED.jaccard),
        )


def classes(best: Best, other: Best | None = None) -> Int[np.ndarray, " living"]:
    """0 kept, 1 processed, 2 neither; without the `other` side's partners none need be mutual."""
    standing = Standing.of(best, other)
    return np.where(np.logical_or(*standing.kept), 0, np.where(np.logical_or(*standing.processed), 1, 2))


def partners(best: Best, other: Best | None = None) -> Int[np.ndarray, " living"]:
    """Of each latent the partner that makes it kept or processed, the one by Pearson where both do, by its place among
    the other side's living ones; −1 where it is neither."""
    (kept, kept_jaccard), (processed, processed_jaccard) = Standing.of(best, other)
    by_pearson, by_jaccard = best.by_pearson, best.by_jaccard
    cases = [kept, kept_jaccard, processed, processed_jaccard]
    return np.select(cases, [by_pearson, by_jaccard, by_pearson, by_jaccard], -1)


class DecoderMatches(NamedTuple):
    """Decoder rows of the living latents."""

    nearest: dict[str, Nearest]
    """Of either side."""
    null: dict[str, float]
    """The mean cosine by chance."""
    paired: dict[str, Int[np.ndarray, " pairs"]]
    """Of either side those that are paired one to one, in the order of `cosine`; empty where there are too many."""
    cosine: Float[np.ndarray, " pairs"]


def decoder_matches(pair: Pair, living: dict[str, Living]) -> tuple[DecoderMatches | None, str | None]:
    """What decoder rows of the living latents say, or why they say nothing."""
    if (why_not := pair.no_cosine or no_common_basis(pair.first.hooked, pair.second.hooked)) is not None:
        return None, why_not
    fewer, more = sorted(living, key=lambda side: len(living[side].features))
    found, null, costs = _cosines(*(pair.sides[side].decoder_rows(living[side].features) for side in (fewer, more)))
    matches = DecoderMatches(
        dict(zip((fewer, more), found, strict=True)), dict(zip((fewer, more), null, strict=True)), {}, np.empty(0)
    )
    if costs is None:
        return matches, f"more than {MOST_ASSIGNED:,} latents are not paired one to one"
    paired = one_to_one(costs)
    return matches._replace(paired={fewer: paired.first, more: paired.second}, cosine=paired.cosine), None


def _cosines(
    fewer: Float[Tensor, "n d"], more: Float[Tensor, "m d"]
) -> tuple[tuple[Nearest, Nearest], tuple[float, float], Float[np.ndarray, "n m"] | None]:
    """Of both: the nearest rows, their mean cosine by chance; and the costs of all pairs."""
    costs = pair_costs(len(fewer), len(more))
    return nearest(fewer, more, costs), (_by_chance(fewer, more), _by_chance(more, fewer)), costs


def _by_chance(rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> float:
    """The mean best cosine of NULL_LATENTS rows with others whose dimensions are shuffled."""
    some = torch.from_numpy(spread(min(len(rows), NULL_LATENTS), len(rows))).to(rows.device)
    return float(nearest(rows[some], shuffled_dimensions(others, SEED))[0].cosine.mean())


def _scores(
    pair: Pair, living: dict[str, Living], matches: dict[str, SideMatches], decoders: DecoderMatches | None
) -> Iterator[Score]:
    sizes = {side: member.hooked.coder.config.d_sae for side, member in pair.sides.items()}
    for side, of_side in matches.items():
        width, measures, features = sizes[side], MEASURES[pair.places, side], living[side].features
        for number, name in enumerate(CLASSES[side]):
            null = float((of_side.null_classes == number).mean())
            yield score(measures[name], width, features, of_side.classes == number, null=null)
        best, chance = of_side.best, of_side.null
        for name, values, null in (
            ("Pearson", best.pearson, chance.pearson),
            ("Jaccard", best.jaccard, chance.jaccard),
            ("lift", best.lift, chance.lift),
        ):
            yield score(measures[name], width, features, values, null=float(null.mean()))
        if decoders is not None:
            yield score(measures["cosine"], width, features, decoders.nearest[side].cosine, null=decoders.null[side])
        other = matches["B" if side == "A" else "A"].best
        yield from shared_out(side, width, features, best, other, PROCESSED.pearson)
        if pair.letters is not None:
            punctuation = of_punctuation(pair.letters[side], features)
            yield from apart(side, width, features, of_side.classes == 0, punctuation)
    if decoders is not None and decoders.paired:
        a, b = (living[side].features[decoders.paired[side]] for side in "AB")
        units = [f"{first} {second}" for first, second in zip(a, b, strict=True)]
        fewer = min(living, key=lambda side: len(living[side].features))
        yield score(ONE_TO_ONE, sizes[fewer], units, decoders.cosine, null=decoders.null[fewer])
    if pair.places == "words":
        best = matches["A"].best, matches["B"].best
        yield from stand_alike(pair, living, best, PROCESSED.pearson, NULL_LATENTS)


def _details(
    pair: Pair,
    living: dict[str, Living],
    matches: dict[str, SideMatches],
    decoders: DecoderMatches | None,
    why_not: str | None,
) -> dict[str, Any]:
    """Who matches whom, and what the report and its figures are made of."""
    others = {"A": living["B"].features, "B": living["A"].features}
    return {
        "sides": {side: _about(member, living[side]) for side, member in pair.sides.items()},
        "places": pair.places,
        "tokens": living["A"].rows,
        "documents": len(np.unique(pair.documents)),
        "ceiling": pair.ceiling,
        "cuts": {"firings": FIRINGS, "kept": KEPT._asdict(), "processed": PROCESSED._asdict(), "lift": LIFT},
        "directions": why_not,
        "rings": {side: _rings(pair.sides[side], living[side], matches[side]) for side in living},
        "histograms": {side: _histograms(of_side) for side, of_side in matches.items()},
        "matches": {
            side: _columns(side, living[side], others[side], matches[side], decoders)
            | ({} if pair.letters is None else {"letters": pair.letters[side][living[side].features].tolist()})
            for side in living
        },
    }


def _about(side: Observed, living: Living) -> dict[str, Any]:
    wiring = side.hooked.wiring
    return {
        "name": side.name,
        "reads": list(map(str, wiring.reads)),
        "writes": list(map(str, wiring.writes)),
        "widths": list(side.hooked.coder.widths),
        "living": len(living.features),
        "rare": living.rare,
        "silent": living.silent,
    }


def _rings(side: Observed, living: Living, matches: SideMatches) -> list[list[int]]:
    """Of each ring how many living latents are of each class."""
    widths = side.hooked.coder.widths
    rings = np.searchsorted(widths, living.features, side="right")
    return [np.bincount(matches.classes[rings == ring], minlength=3).tolist() for ring in range(len(widths))]


def _histograms(matches: SideMatches) -> dict[str, list[int]]:
    """Best Pearson scores in BINS bins from 0 to 1."""
    scores = {"latents": matches.best.pearson, "by chance": matches.null.pearson}
    return {name: np.histogram(of.clip(0, 1), BINS, (0, 1))[0].tolist() for name, of in scores.items()}


def _columns(
    side: str,
    living: Living,
    others: Int[np.ndarray, " others"],
    matches: SideMatches,
    decoders: DecoderMatches | None,
) -> dict[str, Sequence[Any]]:
    """A row a living latent: its class, and its partners' numbers in the other dictionary."""
    columns: dict[str, Sequence[Any]] = {
        "latent": living.features.tolist(),
        "firings": living.firings.tolist(),
        "class": [CLASSES[side][number] for number in matches.classes],
        "partner": [None if place < 0 else int(others[place]) for place in matches.partners],
        "by Pearson": others[matches.best.by_pearson].tolist(),
        "by Jaccard": others[matches.best.by_jaccard].tolist(),
    }
    if decoders is not None:
        columns["by cosine"] = others[decoders.nearest[side].other].tolist()
    if decoders is not None and decoders.paired:
        own, other = decoders.paired[side], decoders.paired["B" if side == "A" else "A"]
        partner: list[int | None] = [None] * len(living.features)
        for place, number in zip(own.tolist(), others[other].tolist(), strict=True):
            partner[place] = number
        columns["one to one"] = partner
    return columns
