"""What every evaluation is given: a coder on a text, or on samples of known features.

And what coders that are measured together share.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from matryoshka.data.synthetic import SyntheticModel
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.shared import spelling
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.shared.labelled_rows import LabelledActivations, LabelledRows, encode_labelled, read_labelled
from matryoshka.evaluation.shared.labels import shipped
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.hooked import HookedCoder

T = TypeVar("T")
MeasureAll = Callable[[LanguageModel, Windows, Sequence[HookedCoder], int, Progress], Sequence[T]]
"""What is measured of several coders together, on so many tokens."""
MeasureKnown = Callable[[SyntheticModel, Sequence[HookedCoder], int, Progress], Sequence[T]]
"""The same of coders of known features, on so many samples."""


@dataclass(frozen=True, eq=False)
class _Once:
    """What coders that are measured together share."""

    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, kw_only=True)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made when it is asked for first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@runtime_checkable
class _Coders(Protocol):
    """Of a bench: those that are measured together."""

    @property
    def coders(self) -> Sequence[HookedCoder]: ...


B = TypeVar("B", bound=_Coders)


@dataclass(frozen=True, eq=False)
class _OneOf(Generic[B]):
    """One coder of a bench."""

    bench: B
    number: int
    """Of the coder, among those of the bench."""

    @property
    def hooked(self) -> HookedCoder:
        """The coder where it belongs in the model."""
        return self.bench.coders[self.number]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.hooked.coder.widths


@dataclass(frozen=True, eq=False)
class Bench(_Once):
    """Coders of one language model that are measured together on one text, and what has been read once for all."""

    lm: LanguageModel
    windows: Windows
    """Held-out text."""
    coders: Sequence[HookedCoder]
    tokens: int
    """How much of the text to measure on."""
    labels: tuple[LabelledText, ...] = ()
    """The user's own, beside those that come with the package."""

    def subjects(self) -> list["Subject"]:
        """One for each coder, in their order."""
        return [Subject(self, i) for i in range(len(self.coders))]

    @cached_property
    def letters(self) -> LabelledText:
        """The first-letter task, in words of the model's own. Raises NotMeasurable where it has too few."""
        return spelling.first_letters(self.lm)

    def read(self, text: LabelledText, progress: Progress) -> LabelledActivations:
        """Labelled text read through the language model, once for all coders."""
        return self.once(("labelled", text.name), lambda: read_labelled(self.lm, self.coders, text, progress))


class Subject(_OneOf[Bench]):
    """One coder on one text."""

    def own(self, measure: MeasureAll[T], tokens: int, progress: Progress) -> T:
        """This coder's part of what is measured of all coders of the bench at once, on `tokens` tokens of the text."""
        bench = self.bench
        of_all = bench.once(measure, lambda: measure(bench.lm, bench.windows, bench.coders, tokens, progress))
        return of_all[self.number]

    def rows(self, text: LabelledText, progress: Progress) -> LabelledRows:
        """Labelled text through the language model and the coder."""
        return encode_labelled(self.hooked, self.bench.read(text, progress))

    def all_rows(self, progress: Progress) -> list[LabelledRows]:
        """Every labelled text: what comes with the package, the user's, the first letters where there are words."""
        texts = [*shipped(), *self.bench.labels]
        with suppress(NotMeasurable):
            texts.append(self.bench.letters)
        return [self.rows(text, progress) for text in texts]


@dataclass(frozen=True, eq=False)
class KnownBench(_Once):
    """Coders of one synthetic model that are measured together on the same fresh samples."""

    model: SyntheticModel
    coders: Sequence[HookedCoder]
    samples: int

    def subjects(self) -> list["KnownSubject"]:
        """One for each coder, in their order."""
        return [KnownSubject(self, i) for i in range(len(self.coders))]


class KnownSubject(_OneOf[KnownBench]):
    """One coder of activations whose features are known."""

    def own(self, measure: MeasureKnown[T], progress: Progress) -> T:
        """This coder's part of what is measured of all coders of the bench at once."""
        bench = self.bench
        of_all = bench.once(measure, lambda: measure(bench.model, bench.coders, bench.samples, progress))
        return of_all[self.number]
