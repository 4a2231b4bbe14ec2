"""The table of evaluations: name → module. A new one is a file, and a line here.

Every module has the same face: its docstring defines it; `MEASURES`, what it scores; `READS_LABELS`, whether its
result depends on the user's labelled text; `VERSION`, raised whenever it would find something else of the same coder,
so that no result of before is taken for one of now; `evaluate(subject, progress) → Result`, which raises NotMeasurable
where it says nothing of a coder.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.progress import Progress

if TYPE_CHECKING:
    from matryoshka.evaluation.shared.labelled import LabelledText
    from matryoshka.evaluation.subject import KnownSubject, Subject
    from matryoshka.scores.result import Result

EVALUATIONS = {
    "reconstruction": "matryoshka.evaluation.reconstruction",
    "absorption": "matryoshka.evaluation.absorption",
    "splitting": "matryoshka.evaluation.splitting",
    "probing": "matryoshka.evaluation.probing",
    "monosemanticity": "matryoshka.evaluation.monosemanticity",
    "intervention": "matryoshka.evaluation.intervention",
}
"""By name, in the order in which they are run and shown. Modules are imported when they run: the command line lists
them without torch, and scikit-learn takes 100 MB, which training does not."""

OF_SYNTHETIC = {"recovery": "matryoshka.evaluation.recovery"}
"""The same for coders of synthetic activations: of known features, and without a language model."""
EVERY_EVALUATION = EVALUATIONS | OF_SYNTHETIC


class Evaluation(NamedTuple):
    """One entry of the suite."""

    module: str
    text: "LabelledText | None" = None
    """The user's labelled text that it is of, in place of its own."""

    def run(self, subject: "Subject | KnownSubject", progress: Progress) -> "Result":
        """The result of one coder."""
        evaluate = import_module(self.module).evaluate
        return evaluate(subject, progress, self.text) if self.text else evaluate(subject, progress)

    @property
    def reads_labels(self) -> bool:
        """Whether its result depends on the user's labelled text."""
        return self.text is not None or import_module(self.module).READS_LABELS

    @property
    def version(self) -> int:
        """Of its definition."""
        return import_module(self.module).VERSION


def evaluations(labels: "Iterable[LabelledText]") -> dict[str, Evaluation]:
    """Those of the table, and absorption in each of the user's texts whose concepts have children."""
    return {name: Evaluation(module) for name, module in EVALUATIONS.items()} | {
        f"absorption-{text.name}": Evaluation(EVALUATIONS["absorption"], text)
        for text in labels
        if any(len(example.path) > 1 for example in text.examples)
    }


def first_of(synthetic: bool) -> str:
    """The evaluation that ends training: the first of its table."""
    return next(iter(OF_SYNTHETIC if synthetic else EVALUATIONS))


def chosen(wanted: Sequence[str], known: Iterable[str], what: str = "evaluation") -> list[str]:
    """The names that are asked for, in the order of `known`; "absorption" is that of the user's concepts too."""
    known = list(known)
    for name in wanted:
        if name not in known:
            raise MatryoshkaError(f"--only {name}: no such {what}{did_you_mean(name, known)}")
    return [name for name in known if not wanted or name in wanted or name.partition("-")[0] in wanted]
