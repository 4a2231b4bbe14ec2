"""Whether a feature means one thing, as three numbers of which none stands for the others, and none is blended.

    rule AUC        how well the best n-gram rule tells where it fires: is it lexical?           (`rules`)
    TF-IDF AUC      how alike the contexts are in which it fires, by their tokens                (`contexts`)
    residual AUC    how alike is what comes before it fires, by the language model's own middle layer    (`contexts`)

A token feature has a high rule AUC and may follow anything; a topic has no rule and much alike before it; a feature of
many unrelated tokens has neither. So a low number alone is no verdict.

1. one pass of the language model over held-out text, for all coders; where each latent fires is recorded, and one
   layer's residual
2. documents fall into a training and a test half by a hash; rules and means are learnt on one, every AUC is measured on
   the other
3. of each ring FEATURES latents are drawn from those that fire often enough in both halves. The silent and the rare are
   left out, and counted in `details`
4. the null: the same of random directions at the site that is read, each of which fires at its highest projections, as
   often in each half as the drawn latent beside it. It is far above 0.5: whatever is linear in the activations follows
   tokens and topics. As many firings at random positions, which must give 0.5, are in `details` as `chance`

A prefix's score is the mean over its latents that fire often enough: each drawn latent speaks for as many as its ring
has of them to one drawn. The contexts of a random direction have much in common, the document's kind for one, which
the residual stream carries along: read the two AUCs of contexts by their distance from the null.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from matryoshka.evaluation.shared.contexts import SHORTEST, Contexts
from matryoshka.evaluation.shared.firings import FEATURES, TextFirings, middle, read_firings
from matryoshka.evaluation.shared.rules import Ngrams, Rule, describe, rule_auc
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, finite, score

T = TypeVar("T")
Aucs = Float[np.ndarray, "drawn measures"]

FIRINGS = 16
"""Positions in each half at which a latent must fire to be drawn."""
CLEAR = 0.9
"""An AUC above this counts as clear in the details."""
BINS = 20

_of_features = partial(
    Measure,
    unit="feature",
    null="random directions at the read site (standardised) that fire, where highest, as often as the latents",
    paired=False,
)
RULE = _of_features(
    "rule AUC",
    "higher",
    "(TPR + 1 − FPR) / 2 on test documents of the n-gram (up to 3 tokens, ending here or one token before) that tells"
    " best on training documents where a latent fires; mean over the latents that fire often enough",
)
TFIDF = _of_features(
    "TF-IDF AUC",
    "higher",
    "P(a test context of up to 32 tokens at whose end a latent fires scores above one of the same length and place in"
    " which it does not), score = mean TF-IDF cosine to the training contexts that fire − to those that do not",
)
RESIDUAL = _of_features(
    "residual AUC",
    "neither",  # a latent of one token is as good as one of a topic, but has nothing alike before it
    "the same with the standardised mean residual stream of the model's middle layer as the embedding, of the tokens"
    " of the context at which the latent does not fire",
)
MEASURES = (RULE, TFIDF, RESIDUAL)
READS_LABELS = False
VERSION = 1
FIRING_TOKENS = 131_072
"""Tokens, at least, where a number of firings of single latents is needed."""


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """Rule AUC, TF-IDF AUC and residual AUC of every prefix, on FIRING_TOKENS at least; `progress` counts windows that
    are read, once for all coders, and then latents.

    Raises NotMeasurable if no latent fires often enough, or the windows are too short for contexts.
    """
    bench = subject.bench
    if bench.windows.context // 2 < SHORTEST:
        context = bench.windows.context
        raise NotMeasurable(f"monosemanticity: windows of {context} tokens, it needs {2 * SHORTEST} or more")
    reading = subject.own(read_firings, max(bench.tokens, FIRING_TOKENS), progress)
    result = measure(reading, subject.widths, bench.lm.token_bytes, progress)
    return Result(result.scores, {**result.details, "residual site": str(middle(bench.lm))})


def measure(
    reading: TextFirings, widths: Sequence[int], vocabulary: Sequence[bytes], progress: Progress = silent
) -> Result:
    """The same of a text that has been read: steps 2 to 4. `progress` counts latents."""
    train, test = (reading.half(test) for test in (False, True))
    halves = [np.flatnonzero(half) for half in (train, test)]
    firings = np.stack([reading.firing.T @ half.ravel().astype(np.int64) for half in (train, test)])
    drawn = _draw(firings, widths)
    if not len(drawn.latents):
        sizes = " and ".join(f"{len(half):,}" for half in halves)
        raise NotMeasurable(
            f"monosemanticity: no latent fires at {FIRINGS} positions or more in each half of the documents"
            f" ({sizes} tokens): it needs more text, of several documents"
        )
    yardsticks = _Yardsticks(reading)
    real, null, chance = [], [], []
    for i, latent in enumerate(drawn.latents.tolist()):
        generator, falling = np.random.default_rng(latent), -reading.projections[:, i].astype(np.float32)
        highest = _in_halves(
            halves, firings[:, latent], lambda half, n, falling=falling: half[np.argpartition(falling[half], n - 1)[:n]]
        )
        real.append(yardsticks(reading.firings(latent), generator))
        null.append(yardsticks(highest, generator))
        anywhere = _in_halves(halves, firings[:, latent], partial(generator.choice, replace=False))
        chance.append(yardsticks(anywhere, generator))
        progress(i + 1, len(drawn.latents))
    aucs, null_aucs, chance_aucs = (np.stack([measured for _, measured in side]) for side in (real, null, chance))
    said = np.isfinite(aucs)
    details = {
        "tokens": int(reading.counted.sum()),
        "documents": [len(np.unique(reading.documents[half])) for half in (train, test)],
        "rings": _rings(firings, widths, drawn),
        "clear": _means(widths, drawn, np.where(said, aucs > CLEAR, np.nan)),
        "histogram": _by_name(_histogram(values, drawn) for values in aucs.T),
        "unsaid": _by_name((~said).sum(0).tolist()),
        "chance": _means(widths, drawn, chance_aucs),
        "latents": [
            {
                "latent": latent,
                "firings": int(firings[:, latent].sum()),
                "rule": describe(rule, vocabulary),
                **_by_name(map(finite, measured.tolist())),
            }
            for latent, (rule, measured) in zip(drawn.latents.tolist(), real, strict=True)
        ],
    }
    return Result(tuple(_scores(widths, drawn, aucs, null_aucs)), details)


# --- which latents are drawn


class Drawn(NamedTuple):
    """The latents that are measured, ascending."""

    latents: Int[np.ndarray, " drawn"]
    weights: Float[np.ndarray, " drawn"]
    """For how many latents of its ring, of those that fire often enough, each speaks."""


def _draw(firings: Int[np.ndarray, "halves d_sae"], widths: Sequence[int]) -> Drawn:
    """FEATURES of each ring, or all where there are fewer, of those that fire often enough."""
    generator = np.random.default_rng(0)
    latents, weights = [], []
    for start, end in pairwise((0, *widths)):
        frequent = start + np.flatnonzero(firings[:, start:end].min(0) >= FIRINGS)
        chosen = generator.choice(frequent, min(FEATURES, len(frequent)), replace=False)
        latents.append(np.sort(chosen))
        weights.append(np.full(len(chosen), len(frequent) / max(1, len(chosen))))
    return Drawn(np.concatenate(latents), np.concatenate(weights))


# --- what is measured of them


def _in_halves(
    halves: Sequence[Int[np.ndarray, " _"]],
    firings: Int[np.ndarray, " halves"],
    choose: Callable[[Int[np.ndarray, " _"], int], Int[np.ndarray, " firings"]],
) -> Int[np.ndarray, " firings"]:
    """As many positions of each half as there are firings in it, ascending."""
    return np.sort(np.concatenate([choose(half, n) for half, n in zip(halves, firings.tolist(), strict=True)]))


class _Yardsticks:
    """The three AUCs of whatever fires at some positions of a text."""

    def __init__(self, reading: TextFirings) -> None:
        self.tokens = reading.tokens
        self.train, self.test = (reading.half(test) for test in (False, True))
        self.ngrams, self.contexts = Ngrams(reading.tokens, self.train), Contexts(reading)

    def __call__(
        self, firing: Int[np.ndarray, " firings"], generator: np.random.Generator
    ) -> tuple[Rule, Float[np.ndarray, " measures"]]:
        """The rule, and the AUCs in the order of MEASURES; NaN where one says nothing."""
        rule, _ = self.ngrams.best(firing[self.train.ravel()[firing]])
        fires = np.zeros(self.tokens.size, dtype=bool)
        fires[firing] = True
        auc = rule_auc(rule, self.tokens, fires.reshape(self.tokens.shape), self.test)
        return rule, np.array([auc, *self.contexts.alike(firing, generator)])


def _scores(widths: Sequence[int], drawn: Drawn, aucs: Aucs, null: Aucs) -> Iterator[Score]:
    for width in widths:
        for measure, real, random in zip(MEASURES, aucs.T, null.T, strict=True):
            said = (drawn.latents < width) & np.isfinite(real)
            latents, weights = drawn.latents[said], drawn.weights[said]
            matched = np.where(np.isfinite(real), random, np.nan)
            yield score(measure, width, latents, weights * real[said], weights, _mean(matched, width, drawn))


def _mean(values: Float[np.ndarray, " drawn"], width: int, drawn: Drawn) -> float:
    """Over a prefix's latents that fire often enough, and of which there is a value; NaN of none."""
    said = (drawn.latents < width) & np.isfinite(values)
    return float(np.average(values[said], weights=drawn.weights[said])) if said.any() else float("nan")


# --- what the report may want besides


def _rings(firings: Int[np.ndarray, "halves d_sae"], widths: Sequence[int], drawn: Drawn) -> list[dict[str, int]]:
    """How many latents of each ring are silent, too rare, or frequent enough to be drawn from."""
    silent, enough = firings.sum(0) == 0, firings.min(0) >= FIRINGS
    return [
        {
            "width": end,
            "latents": end - start,
            "silent": int(silent[start:end].sum()),
            "rare": int((~silent & ~enough)[start:end].sum()),
            "frequent": int(enough[start:end].sum()),
            "drawn": int(((drawn.latents >= start) & (drawn.latents < end)).sum()),
        }
        for start, end in pairwise((0, *widths))
    ]


def _means(widths: Sequence[int], drawn: Drawn, values: Aucs) -> dict[str, list[float | None]]:
    """Of each measure the mean of each prefix."""
    return _by_name([finite(_mean(column, width, drawn)) for width in widths] for column in values.T)


def _histogram(aucs: Float[np.ndarray, " drawn"], drawn: Drawn) -> list[float]:
    """How many latents lie in each of BINS equal bins from 0 to 1."""
    said = np.isfinite(aucs)
    return np.histogram(aucs[said], BINS, (0, 1), weights=drawn.weights[said])[0].tolist()


def _by_name(values: Iterable[T]) -> dict[str, T]:
    return dict(zip((measure.name for measure in MEASURES), values, strict=True))
