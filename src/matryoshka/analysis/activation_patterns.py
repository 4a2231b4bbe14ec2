"""When features fire, and what fires before what: positions, bursts, ranges, successions.

    position features   whose firings say POSITION bits more of the place in a passage than chance does
    bursty              firings closer together than as many thrown into the same documents
    single, local,      how far a firing makes others more likely (`timing.reach`): not at all, LOCAL tokens at most,
    middle, long-range  more, more than LONG tokens
    successor           what fires after a feature more often than their documents make it, and than before it

`timing` and `lagged` define how each is measured and what chance gives. Of all features that are left to chance at
most LEVEL are found to be any of these; beside every share stands what the same tests find in tokens that were
exchanged: for successors and partners of at most NULL_LATENTS features. Features that fire on fewer than FIRINGS tokens
are left out.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.correspondence import LIFT, NULL_LATENTS, PROCESSED, SEED
from matryoshka.analysis.lagged import LEVEL, Companions, Successors, companions, successors
from matryoshka.analysis.matching import FIRINGS
from matryoshka.analysis.observed import Observed
from matryoshka.analysis.timing import (
    GAPS,
    NULLS,
    Autocorrelation,
    Chance,
    Raster,
    Timing,
    autocorrelation,
    centres,
    chance,
    reach,
    timing,
)
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, four_digits, score
from matryoshka.study.reader import spread

VERSION = 1
POSITION = 0.5
"""Bits a firing: of what fires evenly over 70 % of the places, and nowhere else."""
LOCAL, LONG = 8, 32
"""Tokens: as far as a local feature reaches at most, and a long-range one more than that."""
RANGES = ("single", "local", "middle", "long")
STEPS = NULLS + 4
"""That progress is told of."""

WITHIN, OVER = "tokens exchanged within documents", "tokens exchanged over the whole text"
SAMPLED = f"{WITHIN}, of at most {NULL_LATENTS:,} features"
_of = partial(Measure, better="neither", unit="feature", paired=False)
_share = partial(_of, percent=True)
POSITIONAL = _share(
    "position features",
    meaning=f"Share of features whose firings say {POSITION} bits more of the place in the passage than by chance"
    f" (p ≤ {LEVEL})",
    null=WITHIN,
)
BITS = _of(
    "position information",
    meaning="Σ P(bin | fires) log₂(P(bin | fires) / P(bin)): bits that a firing says of the place in its passage, mean"
    " over features",
    null=WITHIN,
    headline=False,
)
BURSTY = _share(
    "bursty",
    meaning=f"Share of features, of those with {GAPS} gaps or more, of a burstiness beyond chance (p ≤ {LEVEL})",
    null=WITHIN,
)
BURSTINESS = _of(
    "burstiness",
    meaning="(σ − μ) / (σ + μ) of the gaps between firings in a passage, mean over features",
    null=WITHIN,
    headline=False,
)
SINGLE = _share("single", meaning="Share of features no firing of which makes another more likely", null=OVER)
LOCAL_RANGE = _share(
    "local",
    meaning=f"Share of features whose autocorrelation is beyond chance, and half of its largest, up to {LOCAL} tokens"
    " and no further",
    null=OVER,
)
LONG_RANGE = _share("long-range", meaning=f"The same, further than {LONG} tokens", null=OVER)
SUCCEEDED = _share(
    "with a successor",
    meaning="Share of features after which another fires (1, 2 or 4 tokens later) more often than their documents make"
    f" it, at a lift of {LIFT:g} or more, and more often than before them",
    null=SAMPLED,
)
DOUBLINGS = _of(
    "log₂ lift of successor",
    meaning="log₂ P(b at t + lag | a at t) / P(b at t + lag) of a feature a and its strongest successor b; 0 without"
    " one; mean over features",
    null=SAMPLED,
)
PARTNERS = _of(
    "partners",
    meaning=f"How many others fire together with a feature (Jaccard ≥ {PROCESSED.jaccard} and a lift of {LIFT:g}), mean"
    " over features",
    null=SAMPLED,
)


class Seen(NamedTuple):
    """How features fire: in the coder's own firings, or in exchanged ones."""

    timing: Timing
    positional: Bool[np.ndarray, " living"]
    z: Float[np.ndarray, " living"]
    """Of burstiness; NaN of features with too few gaps."""
    bursty: Bool[np.ndarray, " living"]
    r: Float[np.ndarray, "living lags"]
    """Autocorrelation."""
    reach: Int[np.ndarray, " living"]
    """In tokens; 0 of single ones."""
    successors: Successors
    """Of all features, or of a sample."""
    companions: Companions
    """Of a sample."""


def analyse(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Result:
    """When the features of a coder fire, and what fires before what; `progress` counts steps. The recording is enough:
    the corpus is not read. Raises NotMeasurable where no feature fires on FIRINGS tokens."""
    raster = Raster(observed.recorded, observed.name)
    everyone, sample = np.arange(raster.size), spread(min(raster.size, NULL_LATENTS), raster.size)
    expected = chance(raster, lambda done, _: progress(done, STEPS))
    own = _seen(raster, expected, raster.firing, autocorrelation(raster, raster.firing), everyone)
    progress(NULLS + 3, STEPS)
    null = _seen(raster, expected, raster.exchanged(SEED), autocorrelation(raster, raster.mixed(SEED)), sample)
    progress(STEPS, STEPS)
    scores = tuple(_scores(observed.hooked.coder.config.d_sae, raster, own, null))
    return Result(scores, _details(raster, expected, own))


def _seen(
    raster: Raster,
    expected: Chance,
    firing: sp.csr_array,
    correlated: Autocorrelation,
    latents: Int[np.ndarray, " some"],
) -> Seen:
    """Of these firings: the successors of some latents, the companions of a sample, all else of all."""
    observed = timing(raster, firing)
    positional = expected.position_p(observed, len(raster.shares)) <= LEVEL
    return Seen(
        observed,
        positional & (observed.bits - expected.bits >= POSITION),
        expected.z(observed),
        expected.burst_p(observed) <= LEVEL,
        correlated.r,
        reach(correlated, raster.lags, LEVEL),
        successors(raster, firing, latents),
        companions(raster, firing, spread(min(raster.size, NULL_LATENTS), raster.size)),
    )


def _scores(width: int, raster: Raster, own: Seen, null: Seen) -> Iterator[Score]:
    """In the order of the table. What a text is too short for, or its windows, is not scored."""
    features, sample = raster.living.features, own.companions.latent
    gaps, null_gaps = np.isfinite(own.z), np.isfinite(null.z)
    lifts, null_lifts = own.successors.lifts(np.arange(raster.size)), null.successors.lifts(sample)
    rows = [
        (POSITIONAL, features, own.positional, null.positional),
        (BITS, features, own.timing.bits, null.timing.bits),
        (BURSTY, features[gaps], own.bursty[gaps], null.bursty[null_gaps]),
        (BURSTINESS, features[gaps], own.timing.burstiness[gaps], null.timing.burstiness[null_gaps]),
        (SINGLE, features, own.reach == 0, null.reach == 0),
        (LOCAL_RANGE, features, *((seen.reach > 0) & (seen.reach <= LOCAL) for seen in (own, null))),
        (LONG_RANGE, features if raster.lags[-1] > LONG else features[:0], own.reach > LONG, null.reach > LONG),
        (SUCCEEDED, features, lifts > 1, null_lifts > 1),
        (DOUBLINGS, features, np.log2(lifts), np.log2(null_lifts)),
        (PARTNERS, features[sample], own.companions.partners, null.companions.partners),
    ]
    for measure, units, values, by_chance in rows:
        if len(units) and len(by_chance):
            yield score(measure, width, units, values, null=float(by_chance.mean()))


def _details(raster: Raster, expected: Chance, own: Seen) -> dict[str, Any]:
    """Every feature's numbers, in the order of `features`, and what the report and its figures are made of."""
    mean, deviation = centres(raster)
    features, classes = raster.living.features, range_classes(own.reach)
    position = {"bits": own.timing.bits, "null": expected.bits, "mean": mean, "spread": deviation}
    beside, before = own.companions, own.successors
    return {
        "tokens": raster.rows,
        "context": raster.context,
        "passages": len(np.unique(raster.passages)),
        "documents": len(np.unique(raster.documents)),
        "cuts": {"firings": FIRINGS, "level": LEVEL, "position": POSITION, "local": LOCAL, "long": LONG, "lift": LIFT},
        "features": features.tolist(),
        "firings": raster.living.firings.tolist(),
        "position": {name: four_digits(values) for name, values in position.items()}
        | {"stands": own.positional.tolist()},
        "burstiness": four_digits(own.timing.burstiness),
        "burstiness null": four_digits(expected.burstiness),
        "burstiness z": four_digits(own.z),
        "bursty": own.bursty.tolist(),
        "run": four_digits(own.timing.run),
        "range": [RANGES[number] for number in classes],
        "reach": own.reach.tolist(),
        "r at reach": four_digits(
            np.where(own.reach > 0, own.r[np.arange(raster.size), _lag_of(raster, own.reach)], 0)
        ),
        "lags": list(raster.lags),
        "autocorrelation": {
            name: four_digits(own.r[classes == number].mean(0))
            for number, name in enumerate(RANGES)
            if number in classes
        },
        "successors": {
            "feature": features[before.latent].tolist(),
            "other": features[before.other].tolist(),
            "lag": before.lag.tolist(),
            **{name: four_digits(getattr(before, name)) for name in ("share", "lift", "lower", "backward")},
        },
        "companions": {
            "feature": features[beside.latent].tolist(),
            "partners": beside.partners.tolist(),
            "other": [
                int(features[other]) if jaccard else None
                for other, jaccard in zip(beside.other, beside.jaccard, strict=True)
            ],
            "jaccard": four_digits(beside.jaccard),
            "lift": four_digits(beside.lift),
        },
    }


def _lag_of(raster: Raster, reach: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The place of each reach among the lags; 0 of none."""
    return np.searchsorted(raster.lags, reach)


def range_classes(reach: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The place of each one's range in RANGES."""
    return np.searchsorted([0, LOCAL, LONG], reach, side="left")
