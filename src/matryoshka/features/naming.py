"""Names for features without a reader or a chat model: the n-gram that tells best where each one fires.

The rule (evaluation/shared/rules.py) is sought over the windows of a feature's stored examples, where it is known of
each token whether the feature fires on it. These were chosen for its firing, and the rule on them, so its AUC
describes the examples and measures nothing; that is what evaluation/monosemanticity.py is for.
"""

from typing import NamedTuple

import numpy as np

from matryoshka.evaluation.shared.rules import best_rule, describe
from matryoshka.features.feature import Feature
from matryoshka.features.store import FeatureStore
from matryoshka.progress import Progress, silent

AUTHOR = "rule"
LEAST_AUC = 0.75
"""Of a rule that is worth a name: below it the top tokens say more."""


class Named(NamedTuple):
    """How many features a naming has found …"""

    by_rule: int
    without_rule: int
    """… living ones that no rule describes, …"""
    explained: int
    """… and ones that a chat model has explained, which are left alone."""


def name_by_rules(store: FeatureStore, progress: Progress = silent) -> Named:
    """Give every living feature the best rule of its examples as its explanation, if the rule's AUC is LEAST_AUC at
    least. Explanations by others stay, and so do labels; `progress(done, total)` counts features."""
    others = {index for index, (_, author) in store.explanations().items() if author != AUTHOR}
    alive = [index for index, count in enumerate(store.columns()["count"]) if count and index not in others]
    names, vocabulary = {}, store.vocabulary
    for done, index in enumerate(alive, start=1):
        names[index] = _name(store, store[index], vocabulary), AUTHOR
        progress(done, len(alive))
    store.explain(names)
    named = sum(bool(name) for name, _ in names.values())
    return Named(named, len(alive) - named, len(others))


def _name(store: FeatureStore, feature: Feature, vocabulary: list[bytes]) -> str:
    """The rule in words with its AUC; "" where none is good enough."""
    examples = {example.window: example for group in feature.groups for example in group.examples}
    text = store.windows(examples)
    tokens = np.array([text[window] for window in examples])
    firing = np.zeros(tokens.shape, bool)
    for row, example in zip(firing, examples.values(), strict=True):
        row[example.positions] = True
    counted = np.ones_like(firing)
    counted[:, 0] = False  # a window's first token never counts
    if firing[counted].all():
        return ""
    rule, auc = best_rule(tokens, firing, counted)
    return f"{describe(rule, vocabulary)} (AUC {auc:.2f})" if auc >= LEAST_AUC else ""
