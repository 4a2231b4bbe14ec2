"""How often features fire, and how much each ring of the dictionary does: exact from the recording.

    density       tokens on which a feature fires / tokens that count
    silent, rare  it fires on none of them, or on fewer than FIRINGS; the others are living
    dense         it fires on more than DENSE of them
    L0            firings a token; of a ring those of its features
    activation    a ring's share of the sum of all activations

Rings are held against what they would be if it were of no account in which ring a feature is: as much of the firings
and of the activations as of the features, and as many living and dense ones as in the whole dictionary.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.matching import ENTRIES, FIRINGS
from matryoshka.analysis.observed import Observed
from matryoshka.defaults import DENSE
from matryoshka.progress import Progress, silent
from matryoshka.scores.intervals import ratio
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.recording import RecordedCoder

VERSION = 1

_of_features = partial(Measure, better="neither", unit="feature", paired=False, percent=True)
LIVING = _of_features("living", meaning=f"Share of the features that fire on {FIRINGS} of the tokens.")
DENSE_SHARE = _of_features("dense", meaning=f"Share of the features that fire on more than {DENSE:.0%} of the tokens.")
RARE = _of_features("rare", meaning=f"Share that fire, but on fewer than {FIRINGS} tokens.", headline=False)
SILENT = _of_features("silent", meaning="Share that fire on none of the tokens.", headline=False)
L0 = Measure("L0", "neither", "Mean number of active features a token.")


def _of_ring(number: int) -> dict[str, Measure]:
    """The measures of one ring, by what they are of."""
    besides = partial(Measure, better="neither", headline=False)
    as_large, exchanged = "as large a part of the dictionary in any other place", "rings exchanged"
    return {
        "l0": besides(f"L0 of ring {number}", meaning="Mean number of the ring's features that are active on a token.",
                      null=as_large),
        "activation": besides(f"activation of ring {number}", meaning="The ring's share of the sum of all activations.",
                              null=as_large, percent=True),
        "living": besides(f"living of ring {number}", meaning=f"Share of its features that fire on {FIRINGS} of the"
                          " tokens.", null=exchanged, unit="feature", paired=False, percent=True),
        "dense": besides(f"dense of ring {number}", meaning=f"Share of its features that fire on more than {DENSE:.0%}"
                         " of the tokens.", null=exchanged, unit="feature", paired=False, percent=True),
    }  # fmt: skip


class RingSums(NamedTuple):
    """What the features do, summed over the places that count."""

    firings: Int[np.ndarray, " d_sae"]
    documents: Int[np.ndarray, " documents"]
    """Their numbers."""
    rows: Int[np.ndarray, " documents"]
    """Places of each that count."""
    fired: Float[np.ndarray, "documents rings"]
    """Firings."""
    activation: Float[np.ndarray, "documents rings"]
    """Sum of the activations."""


def ring_sums(recorded: RecordedCoder, widths: Sequence[int], progress: Progress = silent) -> RingSums:
    """Exact sums over a recording, a block of entries at a time; `progress` counts entries."""
    kept = np.flatnonzero(recorded.kept)
    numbers, document = np.unique(np.asarray(recorded.documents)[kept], return_inverse=True)
    of_place = np.zeros(len(recorded.kept), np.int64)
    of_place[kept] = document
    rings, size = len(widths), len(numbers) * len(widths)
    firings, fired, activation = np.zeros(recorded.d_sae, np.int64), np.zeros(size), np.zeros(size)
    ring = np.searchsorted(widths, np.arange(recorded.d_sae), side="right")
    places, total = np.arange(len(of_place)), len(recorded.indices)
    for start in range(0, total, ENTRIES):
        end = min(start + ENTRIES, total)
        first, last = np.searchsorted(recorded.offsets, [start, end - 1], side="right") - 1
        lengths = np.diff(recorded.offsets[first : last + 2].clip(start, end))
        indices = recorded.indices[start:end]
        cell = of_place[np.repeat(places[first : last + 1], lengths)] * rings + ring[indices]
        firings += np.bincount(indices, minlength=recorded.d_sae)
        fired += np.bincount(cell, minlength=size)
        activation += np.bincount(cell, recorded.values[start:end], size)
        progress(end, total)
    shape = len(numbers), rings
    return RingSums(firings, numbers, np.bincount(document), fired.reshape(shape), activation.reshape(shape))


def analyse(observed: Observed, corpus: Corpus, progress: Progress = silent) -> Result:
    """How often the features of a coder fire, ring by ring; `progress` counts active entries.

    Details: `firings` of each feature on `tokens`; of each ring its counts, L0 and share of the activation.
    """
    recorded, widths = observed.recorded, observed.hooked.coder.widths
    if not recorded.rows or not len(recorded.indices):
        raise NotMeasurable(f"no feature of {observed.name} fires on {recorded.rows:,} tokens")
    sums = ring_sums(recorded, widths, progress)
    text = f"{corpus.windows.tokens.hash}/{corpus.windows.split}"
    units = [f"{text}/{number}" for number in sums.documents]  # as reconstruction calls them
    kinds = _kinds(sums.firings, recorded.rows)
    scores = [*_of_all(sums, units, kinds), *(_of_rings(sums, units, kinds, widths) if len(widths) > 1 else ())]
    return Result(tuple(scores), _details(sums, recorded.rows, kinds, widths))


def _kinds(firings: Int[np.ndarray, " d_sae"], rows: int) -> dict[Measure, np.ndarray]:
    """Which features are of each kind; those that are dense are living too."""
    living = firings >= FIRINGS
    return {LIVING: living, DENSE_SHARE: firings > DENSE * rows, RARE: (firings > 0) & ~living, SILENT: firings == 0}


def _of_all(sums: RingSums, units: Sequence[str], kinds: dict[Measure, np.ndarray]) -> Iterator[Score]:
    d_sae = len(sums.firings)
    yield score(L0, d_sae, units, sums.fired.sum(1), sums.rows)
    for measure, features in kinds.items():
        yield score(measure, d_sae, range(d_sae), features)


def _of_rings(
    sums: RingSums, units: Sequence[str], kinds: dict[Measure, np.ndarray], widths: Sequence[int]
) -> Iterator[Score]:
    d_sae, l0 = widths[-1], ratio(sums.fired.sum(), sums.rows.sum())
    for number, (start, end) in enumerate(pairwise((0, *widths))):
        measures, part = _of_ring(number), (end - start) / d_sae
        yield score(measures["l0"], end, units, sums.fired[:, number], sums.rows, null=l0 * part)
        yield score(measures["activation"], end, units, sums.activation[:, number], sums.activation.sum(1), null=part)
        for name, measure in (("living", LIVING), ("dense", DENSE_SHARE)):
            features = kinds[measure]
            yield score(measures[name], end, range(start, end), features[start:end], null=float(features.mean()))


def _details(sums: RingSums, rows: int, kinds: dict[Measure, np.ndarray], widths: Sequence[int]) -> dict[str, Any]:
    rings = []
    for number, (start, end) in enumerate(pairwise((0, *widths))):
        counts = {measure.name: int(features[start:end].sum()) for measure, features in kinds.items()}
        rings.append(
            {
                "width": end,
                "features": end - start,
                **counts,
                "l0": float(sums.fired[:, number].sum() / rows),
                "activation": float(sums.activation[:, number].sum() / sums.activation.sum()),
            }
        )
    return {
        "tokens": rows,
        "documents": len(sums.documents),
        "cuts": {"firings": FIRINGS, "dense": DENSE},
        "firings": sums.firings.tolist(),
        "rings": rings,
    }
