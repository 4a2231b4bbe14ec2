"""Explanations by a chat model, and how well they tell where the features fire on text the model has not seen.

    1. features: a seeded sample of some per ring that are alive, or a list
    2. evidence of each: contexts to explain by, and contexts of other documents to test on     (features/trials.py)
    3. what it will cost, and whether to go on
    4. one explanation each, into the store beside the reader's labels                          (features/prompts.py)
    5. detection and fuzzing with it (Paulo et al. 2024), and with another feature's explanation on the same contexts
    6. balanced accuracy = (TPR + TNR) / 2 of each feature, its mean for every prefix            (features/scoring.py)

Every answer lies in the cache (features/endpoint.py): a second call asks nothing, one after a kill asks for the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from matryoshka.errors import MatryoshkaError
from matryoshka.features import prompts
from matryoshka.features.chat import Choice, Messages
from matryoshka.features.endpoint import Cost, Endpoint
from matryoshka.features.scoring import Explained, Judged, Test, failed, scores, table
from matryoshka.features.store import FeatureStore
from matryoshka.features.trials import LEAST, Evidence, Trial, evidence, silence
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.study.hooked import HookedCoder

TESTS: dict[Test, Callable[[str, Sequence[Trial]], Messages]] = {"detection": prompts.detect, "fuzzing": prompts.fuzz}


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
        "contexts without a judgement of the right form": failed(explained),
        "features": table(explained),
    }
    return Result(scores(explained, [] if plan.wanted.features is not None else living, store.about.widths), details)


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
