"""What is told apart among the matches of one side: partners that are its own and shared ones, words and punctuation.

    one-to-one     a latent and its partner, by Pearson ≥ its cut, are each other's best
    many-to-one    the partner is also that of another latent of the same side
    punctuation    at most LETTERS of the tokens where a latent fires have a letter or a digit: such latents are alike
                   in any two models (Lan et al. 2024, arXiv:2410.06981, leave them out), so the rest is counted alone

By chance a partner is any latent of the other side, and the partner's best any of this one.

    geometry       whether pairs that are one another's best stand alike to the other pairs (`directions.geometry`): all
                   that the decoders of two models say of one another
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from matryoshka.analysis.directions import geometry
from matryoshka.analysis.matching import Best, Living
from matryoshka.analysis.observed import Pair
from matryoshka.scores.result import Measure, Score, score
from matryoshka.study.reader import spread

LETTERS = 0.1


def _measures(side: str, other: str) -> dict[str, Measure]:
    share = partial(Measure, better="neither", unit="feature", paired=False, percent=True)
    partner = f"Of {side}'s latents with a partner by Pearson the share that"
    kept = f"kept of {side}, of the latents that fire on"
    return {
        "one-to-one": share(
            f"one-to-one of {side}",
            meaning=f"{partner} is the partner's best too",
            null=f"the partner's best drawn among {side}'s latents",
            headline=False,
        ),
        "many-to-one": share(
            f"many-to-one of {side}",
            meaning=f"{partner} has it in common with others of {side}",
            null=f"partners drawn among {other}'s latents",
            headline=False,
        ),
        "words": share(f"kept of {side} (words)", meaning=f"{kept} words and not on punctuation alone"),
        "punctuation": share(f"kept of {side} (punctuation)", meaning=f"{kept} punctuation alone", headline=False),
    }


GEOMETRY = Measure(
    "geometry",
    "neither",
    "Correlation of a pair's decoder cosines to all other pairs in A with those in B, mean over pairs that are one"
    " another's best by Pearson",
    unit="pair of features",
    null="pairs drawn at random",
    paired=False,
)
SEED = 0
"""Of the pairs drawn at random."""
MEASURES = {"A": _measures("A", "B"), "B": _measures("B", "A")}


def shared_out(
    side: str, width: int, features: Int[np.ndarray, " living"], best: Best, other: Best, cut: float
) -> Iterator[Score]:
    """How one side's partners are shared out, those by Pearson ≥ `cut`; nothing where there are none."""
    partnered = np.flatnonzero(best.pearson >= cut)
    if not len(partnered):
        return
    partners, measures, units = best.by_pearson[partnered], MEASURES[side], features[partnered]
    suitors = np.bincount(partners, minlength=len(other.pearson))
    mutual = other.by_pearson[partners] == partnered
    yield score(measures["one-to-one"], width, units, mutual, null=1 / len(features))
    alone = (1 - 1 / len(other.pearson)) ** (len(partnered) - 1)
    yield score(measures["many-to-one"], width, units, suitors[partners] > 1, null=1 - alone)


def of_punctuation(
    letters: Float[np.ndarray, " d_sae"], features: Int[np.ndarray, " living"]
) -> Bool[np.ndarray, " n"]:
    """Which of these latents fire on punctuation and spaces alone; `letters` as in `Pair`."""
    return letters[features] <= LETTERS


def apart(
    side: str,
    width: int,
    features: Int[np.ndarray, " living"],
    kept: Bool[np.ndarray, " living"],
    punctuation: Bool[np.ndarray, " living"],
) -> Iterator[Score]:
    """The share that is kept of the latents of words, and of those of punctuation; nothing where there are none."""
    for name, chosen in (("words", ~punctuation), ("punctuation", punctuation)):
        if chosen.any():
            yield score(MEASURES[side][name], width, features[chosen], kept[chosen])


def stand_alike(
    pair: Pair, living: dict[str, Living], best: tuple[Best, Best], cut: float, most: int
) -> Iterator[Score]:
    """How alike the decoder rows of pairs that are one another's best by Pearson ≥ `cut`, of at most so many, stand to
    one another; nothing of too few. `best`: of A and of B."""
    a, b = best
    mutual = np.flatnonzero((b.by_pearson[a.by_pearson] == np.arange(len(a.pearson))) & (a.pearson >= cut))
    some = mutual[spread(min(len(mutual), most), len(mutual))] if len(mutual) else mutual
    features = living["A"].features[some], living["B"].features[a.by_pearson[some]]
    rows = [side.decoder_rows(own) for side, own in zip(pair.sides.values(), features, strict=True)]
    if (alike := geometry(*rows, seed=SEED)) is not None:
        units = [f"{first} {second}" for first, second in zip(*features, strict=True)]
        yield score(GEOMETRY, pair.first.hooked.coder.config.d_sae, units, alike.agreement, null=alike.by_chance)
