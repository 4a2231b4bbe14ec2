"""Names for features without a reader or a chat model: the n-gram that tells best where each one fires.

The rule (evaluation/shared/rules.py) is sought over half of a feature's stored examples, where it is known of each
token whether the feature fires on it, and judged on the other half. It takes the place of the top tokens only where it
tells clearly better than "one of these tokens": where CONFIDENCE of the examples, resampled, say so. The examples were
chosen for its firing, so the AUC describes them; what measures features is evaluation/monosemanticity.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from matryoshka.evaluation.shared.rules import Positions, TokenIds, best_rule, describe, matches, rule_auc
from matryoshka.features.feature import Feature, telling
from matryoshka.features.store import FeatureStore
from matryoshka.lm.vocabulary import alone
from matryoshka.progress import Progress, silent
from matryoshka.scores.intervals import percentiles, ratio, resampled_sums
from matryoshka.scores.result import Measure, Result, score
from matryoshka.scores.saved import answer, save
from matryoshka.version import __version__

VERSION = 1
AUTHOR = "rule"
LEAST_AUC = 0.75
"""Of a rule that is worth a name."""
FEWEST_EXAMPLES, FEWEST_FIRINGS = 10, 20
"""Of the half that judges a rule."""


NAMED = Measure(
    "named by a rule",
    "higher",
    f"Share of the features that fire which an n-gram rule names: AUC {LEAST_AUC} or more, and clearly more than by the"
    " top tokens.",
    unit="feature",
    paired=False,
    percent=True,
)


class Named(NamedTuple):
    """How many features a naming has found …"""

    by_rule: int
    without_rule: int
    """… living ones that no rule describes, …"""
    explained: int
    """… and ones that a chat model has explained, which are left alone."""


def name_by_rules(store: FeatureStore, progress: Progress = silent) -> Named:
    """Give every living feature whose best rule tells clearly more than its top tokens that rule as its explanation.
    Explanations by others stay, and so do labels; `progress(done, total)` counts features."""
    others = {index for index, (_, author) in store.explanations().items() if author != AUTHOR}
    alive = [index for index, count in enumerate(store.columns()["count"]) if count and index not in others]
    names, vocabulary = {}, store.vocabulary
    for done, index in enumerate(alive, start=1):
        names[index] = _name(store, store[index], vocabulary), AUTHOR
        progress(done, len(alive))
    store.explain(names)
    named = sum(bool(name) for name, _ in names.values())
    return Named(named, len(alive) - named, len(others))


def named_once(store: FeatureStore, folder: Path, progress: Progress = silent) -> Result:
    """The share of the living features that have a rule for a name, saved in `folder` as "names". Where that is saved
    of this store already nothing is named."""
    identity = {"matryoshka": __version__, "names": VERSION, "store": store.about.model_dump(mode="json")}
    if (saved := answer(folder, "names", identity)) is not None:
        return saved
    named = name_by_rules(store, progress)
    authors = {index: author for index, (_, author) in store.explanations().items()}
    alive = [index for index, count in enumerate(store.columns()["count"]) if count]
    by_rule = [authors.get(index) == AUTHOR for index in alive]
    result = Result((score(NAMED, len(store), alive, by_rule),), named._asdict())
    save(result, identity, folder, "names")
    return result


def _name(store: FeatureStore, feature: Feature, vocabulary: list[bytes]) -> str:
    examples = {example.window: example for group in feature.groups for example in group.examples}
    text = store.windows(examples)
    tokens = np.array([text[window] for window in examples])
    firing = np.zeros(tokens.shape, bool)
    for row, example in zip(firing, examples.values(), strict=True):
        row[example.positions] = True
    named = {top.token for top in telling(feature.top_tokens)}
    top = [token for token in np.unique(tokens).tolist() if alone(vocabulary[token]) in named]
    return rule_name(tokens, firing, top, vocabulary)


def rule_name(tokens: TokenIds, firing: Positions, top: Sequence[int], vocabulary: Sequence[bytes]) -> str:
    """The rule in words, with its AUC and the interval of that; "" where none is good enough.

    `tokens`: a feature's examples, windows; `firing`: where it fires in them; `top`: the tokens that name it otherwise.
    """
    counted = np.ones_like(firing)
    counted[:, 0] = False  # a window's first token never counts
    firing = firing & counted
    finds, judges = slice(0, None, 2), slice(1, None, 2)  # every group of examples is in both
    fires = firing[judges]
    if len(fires) < FEWEST_EXAMPLES or fires.sum() < FEWEST_FIRINGS or firing[finds].sum() in (0, counted[finds].sum()):
        return ""
    rule, _ = best_rule(tokens[finds], firing[finds], counted[finds])
    detectors = matches(rule, tokens[judges]), np.isin(tokens[judges], top)
    by_rule, by_tokens = (_aucs(says, fires, counted[judges]) for says in detectors)
    auc, interval = rule_auc(rule, tokens[judges], fires, counted[judges]), percentiles(by_rule)
    if auc < LEAST_AUC or percentiles(by_rule - by_tokens).low <= 0:
        return ""
    return f"{describe(rule, vocabulary)} (AUC {auc:.2f}, {interval.low:.2f} to {interval.high:.2f})"


def _aucs(says: Positions, fires: Positions, counted: Positions) -> Float[np.ndarray, " resamples"]:
    """(TPR + 1 − FPR) / 2 of a detector, over resampled windows."""
    parts = (says & fires, fires, says & counted & ~fires, counted & ~fires)
    hits, positives, false, negatives = resampled_sums(np.stack([part.sum(1) for part in parts]).astype(float))
    return (ratio(hits, positives) + 1 - ratio(false, negatives)) / 2
