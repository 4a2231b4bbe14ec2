"""The product's verbs, for Python and the command line alike.

results(run, name)        what an evaluation found
store(run)                its features
feature(run, index)       one of them
"""

from pathlib import Path

from matryoshka.evaluation.saved import load
from matryoshka.evaluation.scores import Result
from matryoshka.features.store import FeatureStore
from matryoshka.report.notebook import FeatureCard
from matryoshka.run import Run


def results(run: Run | str | Path, name: str = "reconstruction") -> Result:
    """What an evaluation found of a run's coder, as `matryoshka eval RUN` has saved it. Raises MatryoshkaError before
    that."""
    return load(Run.sole(run).evaluation, name).result


def store(run: Run | str | Path) -> FeatureStore:
    """The features of a run's coder, as `matryoshka features RUN` has collected them. Raises MatryoshkaError before
    that."""
    return FeatureStore(Run.sole(run).features_file)


def feature(run: Run | str | Path, index: int) -> FeatureCard:
    """One feature: its page's card in a notebook, text elsewhere."""
    return FeatureCard(store(run), index)
