"""What matches what between two coders A and B on the same tokens: two layers, seeds, widths or recipes.

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
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.analysis.directions import (
    MOST_ASSIGNED,
    Nearest,
    Paired,
    nearest,
    no_common_basis,
    one_to_one,
    shuffled_dimensions,
)
from matryoshka.analysis.matching import FIRINGS, Activity, Best, activity, exchanged, match
from matryoshka.analysis.pair import Pair, Side
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score

VERSION = 1
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


def _measures(side: str, other: str) -> dict[str, Measure]:
    """Those of one side's features, by what they measure."""
    kept, processed, alone = CLASSES[side]
    exchanged_tokens = f"tokens of {other} exchanged within documents"
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
        "Pearson": of_tokens(f"Pearson of {side}", meaning=f"cov / (σ σ) over all tokens {best}"),
        "Jaccard": of_tokens(f"Jaccard of {side}", meaning=f"Tokens where both fire / tokens where either does {best}"),
        "lift": of_tokens(f"lift of {side}", meaning="P(both fire) / (P(one fires) P(other fires)) with the partner by"
                          f" Jaccard, mean over {side}'s latents", headline=False),
        "cosine": of_rows(f"cosine of {side}", meaning=f"Of decoder rows, {best}"),
    }  # fmt: skip


MEASURES = {"A": _measures("A", "B"), "B": _measures("B", "A")}
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
    rows = pair.rows
    acts = {side: activity(member.recorded, rows) for side, member in pair.sides.items()}
    for side, act in acts.items():
        if not len(act.features):
            name = pair.sides[side].name
            raise NotMeasurable(
                f"no latent of {name} fires on {FIRINGS} of the {act.rows:,} tokens that count for both"
            )
    partners = _partners(acts, exchanged(pair.documents, SEED), progress)
    alike, why_not = _alike(pair, acts)
    scores = [*_scores(pair, acts, partners, alike)]
    return Result(tuple(scores), _details(pair, acts, partners, alike, why_not))


class Partners(NamedTuple):
    """The best partners of one side's latents, and what chance gives some of them."""

    best: Best
    classes: Int[np.ndarray, " living"]
    """0 kept, 1 processed, 2 neither."""
    null: Best
    null_classes: Int[np.ndarray, " sample"]


def _partners(acts: dict[str, Activity], order: Int[np.ndarray, " rows"], progress: Progress) -> dict[str, Partners]:
    a, b = acts.values()
    best = match(a, b, progress=progress)
    nulls = match(a.sample(NULL_LATENTS), b, order)[0], match(b.sample(NULL_LATENTS), a, order)[0]
    return {
        side: Partners(own, classes(own, other), null, classes(null))
        for side, own, other, null in zip("AB", best, best[::-1], nulls, strict=True)
    }


def classes(best: Best, other: Best | None = None) -> Int[np.ndarray, " living"]:
    """0 kept, 1 processed, 2 neither; without the `other` side's partners none need be mutual."""
    number, everywhere = np.arange(len(best.pearson)), np.ones(len(best.pearson), bool)
    mutual = everywhere if other is None else other.by_pearson[best.by_pearson] == number
    mutual_jaccard = everywhere if other is None else other.by_jaccard[best.by_jaccard] == number
    jaccard = np.where(best.lift >= LIFT, best.jaccard, 0)
    kept = (mutual & (best.pearson >= KEPT.pearson)) | (mutual_jaccard & (jaccard >= KEPT.jaccard))
    processed = (best.pearson >= PROCESSED.pearson) | (jaccard >= PROCESSED.jaccard)
    return np.where(kept, 0, np.where(processed, 1, 2))


class Alike(NamedTuple):
    """Decoder rows of the living latents."""

    nearest: dict[str, Nearest]
    """Of either side."""
    null: dict[str, float]
    """The mean cosine by chance."""
    paired: Paired | None


def _alike(pair: Pair, acts: dict[str, Activity]) -> tuple[Alike | None, str | None]:
    """What decoder rows say, or why they say nothing."""
    if (why_not := no_common_basis(pair.first.hooked, pair.second.hooked)) is not None:
        return None, why_not
    a, b = (_decoder_rows(member, acts[side]) for side, member in pair.sides.items())
    chance = nearest(a, shuffled_dimensions(b, SEED))
    null = {side: float(of_side.cosine.mean()) for side, of_side in zip("AB", chance, strict=True)}
    return Alike(dict(zip("AB", nearest(a, b), strict=True)), null, one_to_one(a, b)), None


def _decoder_rows(side: Side, act: Activity) -> Float[Tensor, "living d_out"]:
    coder = side.hooked.coder
    return coder.decoder_rows(torch.from_numpy(act.features).to(coder.device))


def _scores(
    pair: Pair, acts: dict[str, Activity], partners: dict[str, Partners], alike: Alike | None
) -> Iterator[Score]:
    for side, act in acts.items():
        width, measures, of_side = pair.sides[side].hooked.coder.config.d_sae, MEASURES[side], partners[side]
        for number, name in enumerate(CLASSES[side]):
            null = float((of_side.null_classes == number).mean())
            yield score(measures[name], width, act.features, of_side.classes == number, null=null)
        best, chance = of_side.best, of_side.null
        for name, values, null in (
            ("Pearson", best.pearson, chance.pearson),
            ("Jaccard", best.jaccard, chance.jaccard),
            ("lift", best.lift, chance.lift),
        ):
            yield score(measures[name], width, act.features, values, null=float(null.mean()))
        if alike is not None:
            yield score(measures["cosine"], width, act.features, alike.nearest[side].cosine, null=alike.null[side])
    if alike is not None and alike.paired is not None:
        paired, features = alike.paired, [act.features for act in acts.values()]
        units = [f"{a} {b}" for a, b in zip(features[0][paired.first], features[1][paired.second], strict=True)]
        smaller = min(acts, key=lambda side: len(acts[side].features))
        width = pair.sides[smaller].hooked.coder.config.d_sae
        yield score(ONE_TO_ONE, width, units, paired.cosine, null=alike.null[smaller])


def _details(
    pair: Pair, acts: dict[str, Activity], partners: dict[str, Partners], alike: Alike | None, why_not: str | None
) -> dict[str, Any]:
    """Who matches whom, and what the report and its figures are made of."""
    paired = None if alike is None else alike.paired
    if alike is not None and paired is None:
        why_not = f"cosines only: more than {MOST_ASSIGNED:,} latents are not paired one to one"
    others = {"A": acts["B"].features, "B": acts["A"].features}
    matches = {side: _matches(side, acts[side], others[side], partners[side], alike) for side in acts}
    return {
        "sides": {side: _about(member, acts[side]) for side, member in pair.sides.items()},
        "tokens": acts["A"].rows,
        "documents": len(np.unique(pair.documents)),
        "ceiling": pair.ceiling,
        "cuts": {"firings": FIRINGS, "kept": KEPT._asdict(), "processed": PROCESSED._asdict(), "lift": LIFT},
        "directions": why_not,
        "rings": {side: _rings(pair.sides[side], acts[side], partners[side]) for side in acts},
        "histograms": {side: _histograms(of_side) for side, of_side in partners.items()},
        "matches": matches,
    }


def _about(side: Side, act: Activity) -> dict[str, Any]:
    wiring, silent = side.hooked.wiring, int((act.all_firings == 0).sum())
    living, d_sae = len(act.features), len(act.all_firings)
    return {
        "name": side.name,
        "reads": list(map(str, wiring.reads)),
        "writes": list(map(str, wiring.writes)),
        "widths": list(side.hooked.coder.widths),
        "living": living,
        "rare": d_sae - living - silent,
        "silent": silent,
    }


def _rings(side: Side, act: Activity, partners: Partners) -> list[list[int]]:
    """Of each ring how many living latents are of each class."""
    widths = side.hooked.coder.widths
    rings = np.searchsorted(widths, act.features, side="right")
    return [np.bincount(partners.classes[rings == ring], minlength=3).tolist() for ring in range(len(widths))]


def _histograms(partners: Partners) -> dict[str, list[int]]:
    """Best Pearson scores in BINS bins from 0 to 1."""
    scores = {"latents": partners.best.pearson, "by chance": partners.null.pearson}
    return {name: np.histogram(of.clip(0, 1), BINS, (0, 1))[0].tolist() for name, of in scores.items()}


def _matches(
    side: str, act: Activity, others: Int[np.ndarray, " living"], partners: Partners, alike: Alike | None
) -> dict[str, Sequence[Any]]:
    """Columns, a row a living latent: its class, and its partners' numbers in the other dictionary."""
    columns: dict[str, Sequence[Any]] = {
        "latent": act.features.tolist(),
        "firings": act.firings.tolist(),
        "class": [CLASSES[side][number] for number in partners.classes],
        "by Pearson": others[partners.best.by_pearson].tolist(),
        "by Jaccard": others[partners.best.by_jaccard].tolist(),
    }
    if alike is not None:
        columns["by cosine"] = others[alike.nearest[side].other].tolist()
    if alike is not None and alike.paired is not None:
        own, other = alike.paired[:2] if side == "A" else alike.paired[1::-1]
        place = np.full(len(act.features), -1)
        place[own] = others[other]
        columns["one to one"] = [None if number < 0 else int(number) for number in place]
    return columns
