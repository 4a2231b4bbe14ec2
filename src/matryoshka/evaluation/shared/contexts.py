"""Whether the contexts in which a feature fires are alike, by two embeddings: of their tokens, and of the model's own.

A context is the stretch of one document that ends at a position: at most LONGEST tokens, at least SHORTEST. Contexts in
which the feature fires at the end, spread evenly over the text and so over weak and strong firings alike, each have a
partner in which it fires nowhere: at the same place of another window and with as much of its document before it. So
the two sides differ neither in length nor in position, and firing at random is told from not firing by chance only.

    TF-IDF      the tokens' counts, each weighed by how rare the token is among the training contexts
    residual    the mean of the middle layer's residual stream, standardised in each dimension, over the tokens at which
                the feature does NOT fire, of the partner over the same places: where it fires the residual holds what
                the feature is computed from, perhaps the feature itself, and would be found alike whatever it means
    score       mean cosine to the training contexts in which it fires − to those in which it does not
    AUC         of this score, over the contexts of the test documents
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfTransformer

from matryoshka.evaluation.shared.firings import TextFirings
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.reader import spread

LONGEST, SHORTEST = 32, 9
"""Tokens of a context."""
MOST_PAIRS, FEWEST_PAIRS = 100, 10
"""Of contexts, in each half of the documents; with fewer nothing is said."""
TRIES = 64
"""Windows in which a partner is sought."""
Places = Int[np.ndarray, "*shape"]
STATISTICS = 10_000
"""Training positions from which the residual's mean and standard deviation are taken."""


class Pairs(NamedTuple):
    """Contexts in which a feature fires, and their partners at the same index: where they end, [pairs], or their
    embeddings as rows of unit norm, csr_array [pairs, vocabulary] or array [pairs, d_model]."""

    firing: Any
    quiet: Any


class Alike(NamedTuple):
    """AUC of the two embeddings; NaN where there are too few pairs of contexts."""

    tfidf: float
    residual: float


class Contexts:
    """The contexts of a text and their embeddings, whatever the feature."""

    def __init__(self, reading: TextFirings) -> None:
        """Raises NotMeasurable where no training document is long enough for one whole context."""
        self.reading = reading
        self.windows, self.context = reading.tokens.shape
        self.longest = min(LONGEST, self.context // 2)
        self.room = _room(reading.documents, self.longest)
        self._halves = [reading.half(test).ravel() for test in (False, True)]
        ends = np.flatnonzero(self._halves[False] & (self.room == self.longest))
        whole = ends[ends % self.context % self.longest == 0]  # they do not overlap
        if not len(whole):
            raise NotMeasurable(f"contexts: no training document has {self.longest} tokens in one window")
        self._idf = TfidfTransformer().fit(self._counts(whole))
        train = np.flatnonzero(self._halves[False])
        sample = reading.residual[train[spread(min(STATISTICS, len(train)), len(train))]].astype(np.float32)
        self._mean, deviation = sample.mean(0), sample.std(0)
        self._deviation = np.where(deviation > 0, deviation, 1)

    def alike(self, firing: Int[np.ndarray, " firings"], generator: np.random.Generator) -> Alike:
        """Of a feature that fires at these positions, ascending. `generator` chooses the partners."""
        halves = [self.pairs(firing, half, generator) for half in (False, True)]
        if min(len(pairs.firing) for pairs in halves) < FEWEST_PAIRS:
            return Alike(float("nan"), float("nan"))
        return Alike(
            _told_apart(*map(self.tfidf, halves)), _told_apart(*(self.residual(pairs, firing) for pairs in halves))
        )

    def pairs(self, firing: Int[np.ndarray, " firings"], test: bool, generator: np.random.Generator) -> Pairs:
        """At most MOST_PAIRS of one half of the documents; a context for which no partner is found is left out, and so
        is one in which it does not fire at fewer than SHORTEST − 1 tokens."""
        half = self._halves[test]
        still = self.room[firing] - _between(firing, firing - self.room[firing], firing)
        ends = firing[half[firing] & (still >= SHORTEST - 1)]
        ends = ends[spread(min(MOST_PAIRS, len(ends)), len(ends))] if len(ends) else ends
        windows = generator.integers(0, self.windows, (len(ends), TRIES))
        partners = windows * self.context + ends[:, None] % self.context
        room = self.room[ends][:, None]
        fits = half[partners] & (self.room[partners] == room) & (_between(firing, partners - room, partners) == 0)
        matched = fits.any(1)
        return Pairs(ends[matched], partners[np.arange(len(ends)), fits.argmax(1)][matched])

    def tfidf(self, pairs: Pairs) -> Pairs:
        """Of all tokens of the contexts."""
        return Pairs(*(csr_array(self._idf.transform(self._counts(ends))) for ends in pairs))

    def residual(self, pairs: Pairs, firing: Int[np.ndarray, " firings"]) -> Pairs:
        """Of the tokens at which a feature that fires at `firing` does not fire."""
        counted = self.reading.counted.ravel().copy()
        counted[firing] = False
        totals = np.zeros((2, len(pairs.firing), self.reading.residual.shape[1]), dtype=np.float32)
        tokens = np.zeros(len(pairs.firing), dtype=np.float32)
        for back in range(1, self.longest):
            places = [ends - back for ends in pairs]
            within = (back < self.room[pairs.firing]) & counted[places[0]] & counted[places[1]]
            for total, place in zip(totals, places, strict=True):
                total[within] += self.reading.residual[place[within]]
            tokens += within
        rows = (totals / np.maximum(tokens, 1)[:, None] - self._mean) / self._deviation
        return Pairs(*rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), np.finfo(np.float32).tiny))

    def _counts(self, ends: Int[np.ndarray, " n"]) -> csr_array:
        """How often each token stands in each context, its last one included."""
        back = np.arange(self.longest)
        within = back < self.room[ends][:, None]
        tokens = self.reading.tokens.ravel()[(ends[:, None] - back)[within]]
        offsets = np.concatenate([[0], within.sum(1).cumsum()])
        shape = (len(ends), int(self.reading.tokens.max()) + 1)
        counts = csr_array((np.ones(len(tokens)), tokens, offsets), shape=shape)
        counts.sum_duplicates()
        return counts


def _room(documents: Int[np.ndarray, "windows context"], most: int) -> Int[np.ndarray, " positions"]:
    """How many tokens of its document and window end at each position, itself included, counted up to `most`.

    A window's first token is BOS or has nothing before it; no context begins with it."""
    room = np.zeros(documents.shape, dtype=np.int64)
    for place in range(1, documents.shape[1]):
        goes_on = documents[:, place] == documents[:, place - 1]
        room[:, place] = np.where(goes_on, room[:, place - 1], 0) + 1
    return np.minimum(room, most).ravel()


def _between(firing: Int[np.ndarray, " firings"], after: Places, until: Places) -> Places:
    """How many firings lie after one position and not after the other."""
    return np.searchsorted(firing, until, "right") - np.searchsorted(firing, after, "right")


def _told_apart(train: Pairs, test: Pairs) -> float:
    """AUC of the test contexts by their mean cosine to the training contexts of the two sides."""
    direction = train.firing.mean(axis=0) - train.quiet.mean(axis=0)
    firing, quiet = test.firing @ direction, np.sort(test.quiet @ direction)
    below, up_to = (np.searchsorted(quiet, firing, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(quiet)))  # equals count half
