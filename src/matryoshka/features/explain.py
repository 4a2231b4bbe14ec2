"""Explanations by a chat model, and how well they tell where the features fire on text the model has not seen.

    1. features: a seeded sample of some per ring that are alive, or a list
    2. evidence of each: contexts to explain by, and contexts of other documents to test on     (features/trials.py)
    3. what it will cost, and whether to go on
    4. one explanation each, into the store beside the reader's labels                          (features/prompts.py)
    5. detection and fuzzing with it (Paulo et al. 2024), and with another feature's explanation on the same contexts
    6. balanced accuracy = (TPR + TNR) / 2 over each feature's test contexts, half for an explanation that always says
       yes, or no; its mean for every prefix

The sample has as many features of each ring; each counts for as many living features of its ring as it stands for, so
that a prefix's mean is one over its living features. Answers that never had the right form are counted, not scored.
Every answer lies in the cache (features/endpoint.py): a second call asks nothing, one after a kill asks for the rest.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matryoshka.errors import MatryoshkaError
from matryoshka.features import prompts
from matryoshka.features.chat import Choice, Messages
from matryoshka.features.endpoint import Cost, Endpoint
from matryoshka.features.store import FeatureStore
from matryoshka.features.trials import LEAST, Evidence, Trial, evidence, silence
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.hooked import HookedCoder

Test = Literal["detection", "fuzzing"]
DETECTION = Measure(
    "detection",
    better="higher",
    meaning="Mean over living features of the (TPR + TNR) / 2 with which a chat model that is given a feature's"
    " explanation tells contexts in which it fires from others, in documents that the explanation was not made of.",
    unit="feature",
    null="the explanation of another feature, judged by the same model on the same contexts",
    paired=False,
)
FUZZING = replace(
    DETECTION,
    name="fuzzing",
    meaning="Mean over living features of the (TPR + TNR) / 2 with which a chat model that is given a feature's"
    " explanation tells contexts with marks on the tokens it fires on from contexts with as many marks on others, in"
    " documents that the explanation was not made of.",
)
TESTS: dict[Test, Callable[[str, Sequence[Trial]], Messages]] = {"detection": prompts.detect, "fuzzing": prompts.fuzz}


class Judged(NamedTuple):
    """What was said of the contexts of one test."""

    right: int = 0
    right_found: int = 0
    wrong: int = 0
    wrong_found: int = 0
    failed: int = 0
    """Contexts without an answer of the right form."""

    def plus(self, truth: Sequence[bool], said: Sequence[bool] | None) -> "Judged":
        """With some more contexts."""
        if said is None:
            return self._replace(failed=self.failed + len(truth))
        counts = Counter(zip(truth, said, strict=True))
        return Judged(
            self.right + counts[True, True] + counts[True, False],
            self.right_found + counts[True, True],
            self.wrong + counts[False, False] + counts[False, True],
            self.wrong_found + counts[False, False],
            self.failed,
        )

    @property
    def balanced_accuracy(self) -> float | None:
        """(TPR + TNR) / 2; None where one of the two is not known."""
        if not self.right or not self.wrong:
            return None
        return (self.right_found / self.right + self.wrong_found / self.wrong) / 2


@dataclass(frozen=True)
class Explained:
    """A feature, its explanation, and how this and another's did."""

    index: int
    ring: int
    text: str
    own: Mapping[Test, Judged | None]
    other: Mapping[Test, Judged | None]


@dataclass(frozen=True)
class Questions:
    """What will be asked about which features."""

    store: FeatureStore
    endpoint: Endpoint
    wanted: Choice
    chosen: list[int]
    shown: list[Evidence]
    """Of those that can be explained and tested; the others have fewer contexts than LEAST of some kind."""

    @property
    def for_explanations(self) -> dict[Messages, Callable[[str], str]]:
        """The questions that are asked first."""
        return {prompts.explain(case.training): prompts.read_explanation for case in self.shown}

    def for_judgements(
        self, texts: Mapping[int, str], others: Mapping[int, str | None]
    ) -> dict[Messages, Callable[[str], list[bool]]]:
        """All tests of all explanations, the feature's own and the other's."""
        return {
            TESTS[test](text, batch): prompts.read_judgements(len(batch))
            for case in self.shown
            for test in TESTS
            for text in (texts.get(case.index), others.get(case.index))
            if text is not None
            for batch in _batches(getattr(case, test))
        }

    @property
    def cost(self) -> Cost:
        """Of what is not in the cache; judgements of explanations that are not known yet with one as long as may be."""
        texts = {}
        for case in self.shown:
            known, text = self.endpoint.known(prompts.explain(case.training), prompts.read_explanation)
            if text is not None or not known:
                texts[case.index] = text or f"{case.index}".ljust(prompts.LONGEST_EXPLANATION, "x")
        parts = self.for_explanations, self.for_judgements(texts, _others(texts, self.wanted.seed))
        return Cost(*map(sum, zip(*(self.endpoint.cost(part) for part in parts), strict=True)))


def prepare(
    store: FeatureStore,
    lm: LanguageModel,
    hooked: HookedCoder,
    endpoint: Endpoint,
    wanted: Choice = Choice(),  # noqa: B008
    progress: Progress = silent,
) -> Questions:
    """What explaining features of `store` will ask. `hooked`: the coder that the store is of; with `lm` it says
    where a feature does not fire. `progress(done, total)` counts the windows that it reads for that.

    Raises NotMeasurable where no feature has enough contexts, MatryoshkaError where nothing could be asked.
    """
    endpoint.check()
    chosen = choose(store, wanted)
    known = silence(store, lm, hooked, chosen, wanted.seed, progress)
    shown = [case for index in chosen if _enough(case := evidence(store[index], known, wanted.seed))]
    if not shown:
        raise NotMeasurable(
            f"{store.path}: none of {len(chosen)} features has {LEAST} contexts to explain it by, and {LEAST} where it"
            " fires and where it does not in other documents; collect features from more --tokens"
        )
    return Questions(store, endpoint, wanted, chosen, shown)


def choose(store: FeatureStore, wanted: Choice) -> list[int]:
    """The features that are wanted, ascending. Raises MatryoshkaError for one that never fired."""
    if wanted.features is not None:
        brief = store.brief(wanted.features)  # refuses numbers that are none
        if never := [index for index in wanted.features if not brief[index].count]:
            raise MatryoshkaError(f"{store.path}: feature {never[0]} never fired, so nothing explains it")
        return sorted(brief)
    rng = np.random.default_rng([wanted.seed, 2])
    return sorted(int(i) for ring in _living(store) for i in rng.permutation(ring)[: wanted.per_ring])


def _living(store: FeatureStore) -> list[Int[np.ndarray, " living"]]:
    """The features that fire, ring by ring."""
    count, ring = (np.array(store.columns()[name]) for name in ("count", "ring"))
    return [np.flatnonzero((ring == number) & (count > 0)) for number in range(len(store.about.widths))]


def _enough(shown: Evidence) -> bool:
    return min(len(shown.training), len(shown.detection) // 2, len(shown.fuzzing) // 2) >= LEAST


def explain(plan: Questions, progress: Progress = silent) -> Result:
    """Ask for the explanations, put them into the store, and have them tested; `progress(done, total)` counts answers,
    first the explanations, then the judgements.

    Returns the scores `detection` and `fuzzing` of every prefix; their units are features. Raises NotMeasurable where
    no answer was an explanation, MatryoshkaError as `Endpoint.ask` does.
    """
    store, endpoint, seed = plan.store, plan.endpoint, plan.wanted.seed
    answers = endpoint.converse_all(plan.for_explanations, progress)
    explanations = {case.index: answers[prompts.explain(case.training)] for case in plan.shown}
    texts = {index: text for index, text in explanations.items() if text is not None}
    if not texts:
        raise NotMeasurable(f"{endpoint.model.name}: none of its answers was an explanation in the form asked for")
    store.explain({index: (text, endpoint.model.name) for index, text in texts.items()})
    others = _others(texts, seed)
    judgements = endpoint.converse_all(plan.for_judgements(texts, others), progress)
    explained = []
    for case in (case for case in plan.shown if case.index in texts):
        own, other = (_judged(case, text[case.index], judgements) for text in (texts, others))
        explained.append(Explained(case.index, case.ring, texts[case.index], own, other))
    living = [len(ring) for ring in _living(store)]
    details = {
        "chat model": endpoint.model.name,
        "address": endpoint.model.base_url,
        "seed": seed,
        "living features by ring": living,
        "features chosen": len(plan.chosen),
        "too few contexts": sorted(set(plan.chosen) - {case.index for case in plan.shown}),
        "no explanation of the right form": sorted(explanations.keys() - texts.keys()),
        "contexts without a judgement of the right form": sum(
            judged.failed
            for feature in explained
            for judged in (*feature.own.values(), *feature.other.values())
            if judged is not None
        ),
        "features": table(explained),
    }
    return Result(scores(explained, [] if plan.wanted.features is not None else living, store.about.widths), details)


def scores(explained: Sequence[Explained], living: Sequence[int], widths: Sequence[int]) -> tuple[Score, ...]:
    """Both measures for every prefix in which a feature was tested.

    `living`: features that fire, ring by ring, for which the explained ones stand; empty if they stand for themselves.
    """
    tests: tuple[tuple[Test, Measure], ...] = (("detection", DETECTION), ("fuzzing", FUZZING))
    results = []
    for test, measure in tests:
        own = _weighted([(feature, feature.own[test]) for feature in explained], living)
        other = _weighted([(feature, feature.other[test]) for feature in explained], living)
        for width in widths:
            inside, null = (rows[rows[:, 0] < width] for rows in (own, other))
            by_other = float(np.average(null[:, 1], weights=null[:, 2])) if len(null) else None
            if len(inside):
                units, accuracy, weight = inside.T
                results.append(score(measure, width, units.astype(int), accuracy * weight, weight, by_other))
    return tuple(results)


def _weighted(judged: Sequence[tuple[Explained, Judged | None]], living: Sequence[int]) -> Float[np.ndarray, "n 3"]:
    """(feature, balanced accuracy, weight) where there is one: a ring's weights sum to its living features."""
    accuracies = ((feature, None if of is None else of.balanced_accuracy) for feature, of in judged)
    tested = [(feature, accuracy) for feature, accuracy in accuracies if accuracy is not None]
    in_ring = Counter(feature.ring for feature, _ in tested)
    weights = (living[feature.ring] / in_ring[feature.ring] if living else 1.0 for feature, _ in tested)
    rows = [(feature.index, accuracy, weight) for (feature, accuracy), weight in zip(tested, weights, strict=True)]
    return np.array(rows, np.float64).reshape(-1, 3)


def table(explained: Sequence[Explained]) -> list[dict[str, Any]]:
    """A row a feature: its explanation, and how it and another one did."""
    return [
        {
            "feature": feature.index,
            "ring": feature.ring,
            "explanation": feature.text,
            **{test: _row(judged) for test, judged in feature.own.items()},
            **{f"{test} by another explanation": _row(judged) for test, judged in feature.other.items()},
        }
        for feature in explained
    ]


def _row(judged: Judged | None) -> dict[str, Any] | None:
    return None if judged is None else {"balanced accuracy": judged.balanced_accuracy, **judged._asdict()}


def _others(texts: Mapping[int, str], seed: int) -> dict[int, str | None]:
    """For each feature the explanation of another, the next in a random order that has another text; None if there is
    none."""
    order = np.random.default_rng([seed, 3]).permutation(list(texts)).tolist()
    others: dict[int, str | None] = {}
    for i, index in enumerate(order):
        following = [texts[other] for other in order[i + 1 :] + order[:i]]
        others[index] = next((text for text in following if text != texts[index]), None)
    return others


def _batches(trials: Sequence[Trial]) -> list[Sequence[Trial]]:
    return [trials[start : start + prompts.BATCH] for start in range(0, len(trials), prompts.BATCH)]


def _judged(
    shown: Evidence, text: str | None, judgements: Mapping[Messages, list[bool] | None]
) -> Mapping[Test, Judged | None]:
    """How an explanation did in each test; None without one."""
    if text is None:
        return dict.fromkeys(TESTS)
    judged: dict[Test, Judged] = {test: Judged() for test in TESTS}
    for test, question in TESTS.items():
        for batch in _batches(getattr(shown, test)):
            judged[test] = judged[test].plus([trial.right for trial in batch], judgements[question(text, batch)])
    return judged
