"""What a chat model is shown of a feature: some contexts to explain it by, others to test the explanation on.

    1. the documents of a feature's examples are dealt to training and to tests, so that each side has as many firings
    2. training: examples in documents of the first kind, spread over the quantile groups
    3. tests: random firings from the quantile groups in documents of the second kind, no window of which is in training
    4. against them for detection: stretches of the same length around other features' firings, in no document of
       training, where running the coder shows that this feature does not fire
    5. for fuzzing: pairs of firing contexts, one with its marks, one with marks at the same places, or the nearest
       where the feature is silent

The firing token lies at a random place of a test context, after LEAD others where its window has them. So neither the
number of marks nor their places tell right from wrong.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from matryoshka.features.feature import Example, Feature
from matryoshka.features.store import FeatureStore
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import read, read_batch, sequences

LENGTH = 32
"""Tokens of a context."""
LEAD = 8
"""Tokens before the firing one, at least, where the window has them."""
TRAINING, TESTS = 20, 10
"""Contexts at most: for explaining; of each kind in each test."""
LEAST = 3
"""Contexts of each kind without which a feature is not tested."""
POOL_WINDOWS = 256
"""With random firings of all kinds of features, of which others' silent contexts are taken; at most."""


class Context(NamedTuple):
    """A stretch of a window."""

    window: int
    document: int
    start: int
    tokens: tuple[str, ...]
    marks: tuple[int, ...]
    """Places in `tokens`, ascending: those where the feature fires, or for fuzzing where it is said to."""
    strength: float
    """Of the strongest firing in it, as a share of the feature's maximum; 0 if silent."""


class Trial(NamedTuple):
    """A context and the right answer: whether the feature fires in it, or whether its marks are right."""

    context: Context
    right: bool


@dataclass(frozen=True)
class Evidence:
    """All that is shown of a feature."""

    index: int
    ring: int
    training: list[Context]
    detection: list[Trial]
    """In random order, half of them right; so is `fuzzing`."""
    fuzzing: list[Trial]


class Silence(NamedTuple):
    """Windows in which it is known of some features where they fire."""

    examples: list[Example]
    """At most one a window."""
    fires: Mapping[int, Bool[np.ndarray, "examples context"]]
    """By feature."""


def silence(
    store: FeatureStore,
    lm: LanguageModel,
    hooked: HookedCoder,
    features: Sequence[int],
    seed: int,
    progress: Progress = silent,
) -> Silence:
    """Some windows of all kinds of features, and where `features` fire in them."""
    examples = _pool(store, seed)
    tokens = store.windows({example.window for example in examples})
    shown = np.array([tokens[example.window] for example in examples], np.int64).reshape(-1, store.about.context)
    return Silence(examples, firing(lm, hooked, shown, features, progress))


def _pool(store: FeatureStore, seed: int) -> list[Example]:
    """Random firings of many living features, as many of each, no two in one window."""
    alive = np.flatnonzero(store.columns()["count"])
    rng = np.random.default_rng([seed, 0])
    chosen, drawn = rng.permutation(alive)[:POOL_WINDOWS].tolist(), []
    for index in chosen:
        examples = _members(store[index])
        drawn += [examples[i] for i in rng.permutation(len(examples))[: -(-POOL_WINDOWS // len(chosen))].tolist()]
    return _one_a_window(drawn)[:POOL_WINDOWS]


def firing(
    lm: LanguageModel,
    hooked: HookedCoder,
    tokens: Int[np.ndarray, "windows context"],
    features: Sequence[int],
    progress: Progress = silent,
) -> dict[int, Bool[np.ndarray, "windows context"]]:
    """Where each of `features` fires in these windows; `progress(done, total)` counts windows."""
    row_of = np.full(hooked.coder.config.d_sae, -1)
    row_of[list(features)] = np.arange(len(features))
    fires = np.zeros((len(features), *tokens.shape), bool)
    for rows in read(lm, sequences(tokens, read_batch(lm.device, tokens.shape[1])), [hooked]):
        latents = rows.latents(hooked)
        feature = row_of[latents.indices.cpu().numpy()]
        chosen = (latents.values > 0).cpu().numpy() & (feature >= 0)
        row = latents.rows.cpu().numpy()[chosen]
        window, position = (part.cpu().numpy()[row] for part in rows.kept(hooked).nonzero().T)
        fires[feature[chosen], rows.text.numbers[window], position] = True
        progress(int(rows.text.numbers[-1]) + 1, len(tokens))
    return {index: fires[i] for i, index in enumerate(features)}


def evidence(feature: Feature, known: Silence, seed: int) -> Evidence:
    """What is shown of `feature`; fewer contexts than LEAST where there are not enough."""
    rng = np.random.default_rng([seed, 1, feature.index])
    held = _held_documents(feature, seed)
    tests = _one_a_window(example for example in _members(feature) if example.document in held)
    windows = {example.window for example in tests}
    training = _one_a_window(
        example
        for example in _alternating([group.examples for group in feature.groups])
        if example.document not in held and example.window not in windows
    )
    return Evidence(
        feature.index,
        feature.ring,
        [_cut(feature, example, (3 * LENGTH) // 4) for example in training[:TRAINING]],
        _shuffled(_detection(feature, tests, training, known, rng), rng),
        _shuffled(_fuzzing(feature, tests, rng), rng),
    )


def _held_documents(feature: Feature, seed: int) -> set[int]:
    """The documents for tests: those with the most random firings first, each goes to the side that has fewer."""
    firings = Counter(example.document for example in _members(feature))
    held, ahead = set(), 0
    luck = {document: hashlib.sha256(f"{seed}:{document}".encode()).digest() for document in firings}
    for document in sorted(firings, key=lambda document: (-firings[document], luck[document])):
        if ahead <= 0:
            held.add(document)
        ahead += firings[document] if document in held else -firings[document]
    return held


def _detection(
    feature: Feature, tests: list[Example], training: list[Example], known: Silence, rng: np.random.Generator
) -> list[Trial]:
    documents, windows = ({getattr(e, of) for e in training} for of in ("document", "window"))
    quiet = []
    for i in rng.permutation(len(known.examples)).tolist():
        context = _stretch(known.examples[i], _place(rng))
        fires = known.fires[feature.index][i, context.start : context.start + LENGTH]
        if context.document not in documents and context.window not in windows and not fires.any():
            quiet.append(context)
    n = min(TESTS, len(tests), len(quiet))
    right = [Trial(_cut(feature, example, _place(rng)), True) for example in tests[:n]]
    return right + [Trial(context, False) for context in quiet[:n]]


def _fuzzing(feature: Feature, tests: list[Example], rng: np.random.Generator) -> list[Trial]:
    """Of two neighbours in the order of quantile groups one is marked rightly, the other like the first."""
    contexts = [_cut(feature, example, _place(rng)) for example in tests]
    trials = []
    for right, other in zip(contexts[::2], contexts[1::2], strict=False):
        if (wrong := _marked_like(right, other)) is not None:
            trials += [Trial(right, True), Trial(wrong, False)]
    return trials[: 2 * TESTS]


def _marked_like(right: Context, context: Context) -> Context | None:
    """`context` with marks at the places of those of `right`, or the nearest tokens where the feature is silent; None
    where too few tokens are left."""
    free = [i for i, token in enumerate(context.tokens) if token and i not in context.marks]
    if len(free) < len(right.marks):
        return None
    marks = []
    for place in right.marks:
        marks.append(min(free, key=lambda i: abs(i - place)))
        free.remove(marks[-1])
    return context._replace(marks=tuple(sorted(marks)))


def _members(feature: Feature) -> list[Example]:
    """Random firings, of each quantile group in turn: without the strongest, which are no random ones."""
    return _alternating([group.examples for group in feature.groups if group.name != "strongest"])


def _alternating(groups: Sequence[Sequence[Example]]) -> list[Example]:
    """The first of each group, then the second of each …"""
    return [example for rank in zip_longest(*groups) for example in rank if example is not None]


def _one_a_window(examples: Iterable[Example]) -> list[Example]:
    by_window: dict[int, Example] = {}
    for example in examples:
        by_window.setdefault(example.window, example)
    return list(by_window.values())


def _place(rng: np.random.Generator) -> int:
    """Of the firing token in its context."""
    return int(rng.integers(LEAD, LENGTH))


def _stretch(example: Example, place: int) -> Context:
    """LENGTH tokens without marks, the peak at `place`, or as near as its window allows: a window's first token, which
    never counts and may be BOS, is not shown."""
    start = max(1, min(example.peak - place, len(example.tokens) - LENGTH))
    return Context(example.window, example.document, start, tuple(example.tokens[start : start + LENGTH]), (), 0.0)


def _cut(feature: Feature, example: Example, place: int) -> Context:
    """The same with marks where the feature fires."""
    context = _stretch(example, place)
    fired = [(p - context.start, value) for p, value in zip(example.positions, example.values, strict=True)]
    inside = [(p, value) for p, value in fired if 0 <= p < len(context.tokens)]
    marks = sorted({_shown(context.tokens, p) for p, _ in inside})
    strength = max(value for _, value in inside) / (feature.statistics.max or 1.0)
    return context._replace(marks=tuple(marks), strength=strength)


def _shown(tokens: Sequence[str], place: int) -> int:
    """Where a token shows: a part of a character on the token that ends it."""
    return next((i for i in range(place, len(tokens)) if tokens[i]), place)


def _shuffled(trials: list[Trial], rng: np.random.Generator) -> list[Trial]:
    return [trials[i] for i in rng.permutation(len(trials)).tolist()]
