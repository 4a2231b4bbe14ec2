"""The table of evaluations: name → function of a subject → its result. A new one is a file, and a line here."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.progress import Progress

if TYPE_CHECKING:
    from matryoshka.evaluation.concepts import LabelledText
    from matryoshka.evaluation.scores import Result
    from matryoshka.evaluation.subject import Subject

FIRING_TOKENS = 131_072
"""Tokens, at least, where a number of firings of single latents is needed."""


class Evaluation(NamedTuple):
    """One entry of the suite."""

    run: Callable[["Subject", Progress], "Result"]
    reads_labels: bool = False
    """Whether its result depends on the user's labelled text."""


# these import what they need when they run: the command line lists them without torch, and scikit-learn takes 100 MB,
# which training does not


def _reconstruction(subject: "Subject", progress: Progress) -> "Result":
    from matryoshka.evaluation import reconstruction

    return reconstruction.evaluate(subject.lm, subject.windows, subject.placed, subject.tokens, progress)


def _absorption(subject: "Subject", progress: Progress, text: "LabelledText | None" = None) -> "Result":
    """Of first letters, or of the concepts of `text`."""
    from matryoshka.evaluation.absorption import absorption

    return absorption(subject.rows(text or subject.letters, progress), subject.placed, progress)


def _splitting(subject: "Subject", progress: Progress) -> "Result":
    from matryoshka.evaluation.splitting import splitting

    return splitting(subject.all_rows(progress), subject.widths, progress)


def _probing(subject: "Subject", progress: Progress) -> "Result":
    from matryoshka.evaluation.probing import probing

    return probing(subject.all_rows(progress), subject.widths, progress)


def _monosemanticity(subject: "Subject", progress: Progress) -> "Result":
    from matryoshka.evaluation.monosemanticity import monosemanticity

    tokens = max(subject.tokens, FIRING_TOKENS)
    return monosemanticity(subject.lm, subject.windows, subject.placed, tokens, progress)


def _intervention(subject: "Subject", progress: Progress) -> "Result":
    from matryoshka.evaluation.intervention import intervention

    return intervention(subject.lm, subject.windows, subject.placed, subject.tokens, progress)


EVALUATIONS: dict[str, Evaluation] = {
    "reconstruction": Evaluation(_reconstruction),
    "absorption": Evaluation(_absorption),
    "splitting": Evaluation(_splitting, reads_labels=True),
    "probing": Evaluation(_probing, reads_labels=True),
    "monosemanticity": Evaluation(_monosemanticity),
    "intervention": Evaluation(_intervention),
}
"""By name, in the order in which they are run and shown."""


def evaluations(labels: "Iterable[LabelledText]") -> dict[str, Evaluation]:
    """EVALUATIONS, and absorption in each of the user's texts whose concepts have children."""
    return EVALUATIONS | {
        f"absorption-{text.name}": Evaluation(partial(_absorption, text=text), reads_labels=True)
        for text in labels
        if any(len(example.path) > 1 for example in text.examples)
    }


def chosen(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names that are asked for, in the order of `known`; "absorption" is that of the user's concepts too."""
    known = list(known)
    for name in wanted:
        if name not in known:
            raise MatryoshkaError(f"--only {name}: no such evaluation{did_you_mean(name, known)}")
    return [name for name in known if not wanted or name in wanted or name.partition("-")[0] in wanted]
