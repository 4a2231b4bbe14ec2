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

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float16, Int

from matryoshka.data.tokens import Windows
from matryoshka.evaluation.shared.contexts import SHORTEST, Contexts
from matryoshka.evaluation.shared.firings import FEATURES, TextFirings, middle, read_firings
from matryoshka.evaluation.shared.rules import Ngrams, Rule, describe, rule_auc
from matryoshka.evaluation.subject import Subject
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, finite, score
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import spread_windows

FIRINGS = 16
"""Positions in each half at which a latent must fire to be drawn."""
CLEAR = 0.9
"""An AUC above this counts as clear in the details."""
BINS = 20

_NULL = "random directions at the read site (standardised) that fire, where highest, as often as the latents"
RULE = Measure(
    "rule AUC",
    "higher",
    "(TPR + 1 − FPR) / 2 on test documents of the n-gram (up to 3 tokens, ending here or one token before) that tells"
    " best on training documents where a latent fires; mean over the latents that fire often enough",
    unit="feature",
    null=_NULL,
    paired=False,
)
TFIDF = Measure(
    "TF-IDF AUC",
    "higher",
    "P(a test context of up to 32 tokens at whose end a latent fires scores above one of the same length and place in"
    " which it does not), score = mean TF-IDF cosine to the training contexts that fire − to those that do not",
    unit="feature",
    null=_NULL,
    paired=False,
)
RESIDUAL = Measure(
    "residual AUC",
    "neither",  # a latent of one token is as good as one of a topic, but has nothing alike before it
    "the same with the standardised mean residual stream of the model's middle layer as the embedding, of the tokens"
    " of the context at which the latent does not fire",
    unit="feature",
    null=_NULL,
    paired=False,
)
MEASURES = (RULE, TFIDF, RESIDUAL)
_NAMES = [measure.name for measure in MEASURES]


READS_LABELS = False
FIRING_TOKENS = 131_072
"""Tokens, at least, where a number of firings of single latents is needed."""


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """Rule AUC, TF-IDF AUC and residual AUC of every prefix, on FIRING_TOKENS at least.

    Raises NotMeasurable if no latent fires often enough, or the windows are too short for contexts.
    """
    lm, windows, tokens = subject.lm, subject.windows, max(subject.tokens, FIRING_TOKENS)
    result = subject.own("monosemanticity", lambda coders: monosemanticity(lm, windows, coders, tokens, progress))
    if result.reason is not None:
        raise NotMeasurable(result.reason)
    return result


def monosemanticity(
    lm: LanguageModel, windows: Windows, coders: Sequence[HookedCoder], tokens: int, progress: Progress = silent
) -> list[Result]:
    """Rule AUC, TF-IDF AUC and residual AUC of every prefix of each coder, on `tokens` tokens of `windows`, which the
    language model reads once; a Result that says why, where no latent of a coder fires often enough.

    `progress` counts windows, those that are read and as many for the measuring of each coder. Raises NotMeasurable if
    the windows are too short for contexts.
    """
    if windows.context // 2 < SHORTEST:
        raise NotMeasurable(f"monosemanticity: windows of {windows.context} tokens, it needs {2 * SHORTEST} or more")
    count = len(spread_windows(windows, tokens))
    whole = (1 + len(coders)) * count
    texts = read_firings(lm, windows, coders, tokens, lambda done, _: progress(done, whole))
    results = []
    for number, (hooked, text) in enumerate(zip(coders, texts, strict=True), start=1):

        def update(done: int, total: int, before: int = number * count) -> None:
            progress(before + done * count // total, whole)

        try:
            result = measure(text, hooked.coder.widths, lm.token_bytes, update)
            results.append(Result(result.scores, {**result.details, "residual site": str(middle(lm))}))
        except NotMeasurable as reason:
            results.append(Result((), reason=str(reason)))
    return results


def measure(
    reading: TextFirings, widths: Sequence[int], vocabulary: Sequence[bytes], progress: Progress = silent
) -> Result:
    """The same of a text that has been read: steps 2 to 4. `progress` counts latents."""
    firings = np.stack([reading.firing.T @ reading.half(test).ravel().astype(np.int64) for test in (False, True)])
    drawn = _draw(firings, widths)
    if not len(drawn.latents):
        sizes = " and ".join(f"{int(reading.half(test).sum()):,}" for test in (False, True))
        raise NotMeasurable(
            f"monosemanticity: no latent fires at {FIRINGS} positions or more in each half of the documents"
            f" ({sizes} tokens): it needs more text, of several documents"
        )
    yardsticks = _Yardsticks(reading)
    halves = [np.flatnonzero(reading.half(test)) for test in (False, True)]
    real, null, chance = [], [], []
    for i, latent in enumerate(drawn.latents.tolist()):
        generator = np.random.default_rng(latent)
        real.append(yardsticks(reading.firings(latent), generator))
        null.append(yardsticks(_highest(reading.projections[:, i], halves, firings[:, latent]), generator))
        chance.append(yardsticks(_anywhere(halves, firings[:, latent], generator), generator))
        progress(i + 1, len(drawn.latents))
    aucs, null_aucs, chance_aucs = (np.stack([measured.aucs for measured in side]) for side in (real, null, chance))
    details = {
        "tokens": int(reading.counted.sum()),
        "documents": [len(np.unique(reading.documents[reading.half(test)])) for test in (False, True)],
        "rings": _rings(firings, widths, drawn),
        **_distribution(widths, drawn, aucs),
        "chance": _means(widths, drawn, chance_aucs),
        "latents": [
            _row(latent, int(firings[:, latent].sum()), measured, vocabulary)
            for latent, measured in zip(drawn.latents.tolist(), real, strict=True)
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
    enough = _often_enough(firings)
    latents, weights = [], []
    for start, end in pairwise((0, *widths)):
        frequent = start + np.flatnonzero(enough[start:end])
        chosen = generator.choice(frequent, min(FEATURES, len(frequent)), replace=False)
        latents.append(np.sort(chosen))
        weights.append(np.full(len(chosen), len(frequent) / max(1, len(chosen))))
    return Drawn(np.concatenate(latents), np.concatenate(weights))


def _often_enough(firings: Int[np.ndarray, "halves d_sae"]) -> Bool[np.ndarray, " d_sae"]:
    return firings.min(0) >= FIRINGS


# --- what is measured of them


class Yardsticked(NamedTuple):
    """What the yardsticks say of one set of firings."""

    rule: Rule
    aucs: Float[np.ndarray, " measures"]
    """In the order of MEASURES; NaN where one says nothing."""


def _highest(
    projections: Float16[np.ndarray, " positions"],
    halves: Sequence[Int[np.ndarray, " _"]],
    firings: Int[np.ndarray, " halves"],
) -> Int[np.ndarray, " firings"]:
    """The positions of so many highest projections in each half, ascending."""
    falling = -projections.astype(np.float32)
    highest = [half[np.argpartition(falling[half], n - 1)[:n]] for half, n in zip(halves, firings, strict=True)]
    return np.sort(np.concatenate(highest))


def _anywhere(
    halves: Sequence[Int[np.ndarray, " _"]], firings: Int[np.ndarray, " halves"], generator: np.random.Generator
) -> Int[np.ndarray, " firings"]:
    """So many random positions of each half, ascending."""
    drawn = [generator.choice(half, n, replace=False) for half, n in zip(halves, firings, strict=True)]
    return np.sort(np.concatenate(drawn))


class _Yardsticks:
    """The three AUCs of whatever fires at some positions of a text."""

    def __init__(self, reading: TextFirings) -> None:
        self.tokens = reading.tokens
        self.train, self.test = (reading.half(test) for test in (False, True))
        self.ngrams, self.contexts = Ngrams(reading.tokens, self.train), Contexts(reading)

    def __call__(self, firing: Int[np.ndarray, " firings"], generator: np.random.Generator) -> Yardsticked:
        rule, _ = self.ngrams.best(firing[self.train.ravel()[firing]])
        fires = np.zeros(self.tokens.size, dtype=bool)
        fires[firing] = True
        auc = rule_auc(rule, self.tokens, fires.reshape(self.tokens.shape), self.test)
        return Yardsticked(rule, np.array([auc, *self.contexts.alike(firing, generator)]))


def _scores(
    widths: Sequence[int],
    drawn: Drawn,
    aucs: Float[np.ndarray, "drawn measures"],
    null: Float[np.ndarray, "drawn measures"],
) -> Iterator[Score]:
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
    enough = _often_enough(firings)
    silent = firings.sum(0) == 0
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


def _distribution(widths: Sequence[int], drawn: Drawn, aucs: Float[np.ndarray, "drawn measures"]) -> dict[str, Any]:
    """Of each measure: the share of clear latents of each prefix, how many latents lie in each of BINS equal bins from
    0 to 1, and of how many drawn ones it says nothing."""
    said = np.isfinite(aucs)
    histograms = [
        np.histogram(values[there], BINS, (0, 1), weights=drawn.weights[there])[0].tolist()
        for values, there in zip(aucs.T, said.T, strict=True)
    ]
    return {
        "clear": _means(widths, drawn, np.where(said, aucs > CLEAR, np.nan)),
        "histogram": dict(zip(_NAMES, histograms, strict=True)),
        "unsaid": dict(zip(_NAMES, (~said).sum(0).tolist(), strict=True)),
    }


def _means(
    widths: Sequence[int], drawn: Drawn, values: Float[np.ndarray, "drawn measures"]
) -> dict[str, list[float | None]]:
    """Of each measure the mean of each prefix."""
    means = [[_mean(column, width, drawn) for width in widths] for column in values.T]
    return {name: [finite(mean) for mean in row] for name, row in zip(_NAMES, means, strict=True)}


def _row(latent: int, firings: int, measured: Yardsticked, vocabulary: Sequence[bytes]) -> dict[str, Any]:
    aucs = dict(zip(_NAMES, map(finite, measured.aucs.tolist()), strict=True))
    return {"latent": latent, "firings": firings, "rule": describe(measured.rule, vocabulary), **aucs}
