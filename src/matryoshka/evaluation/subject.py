"""What every evaluation is given: a coder in its place in a language model, and text."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from matryoshka.data.tokens import Windows
from matryoshka.evaluation import concepts, spelling
from matryoshka.evaluation.concepts import Activations, LabelledText, Rows
from matryoshka.evaluation.labels import shipped
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.scores import NotMeasurable
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress


@dataclass(frozen=True)
class Subject:
    """What an evaluation is given: a coder in its place in a language model, and text."""

    lm: LanguageModel
    windows: Windows
    """Held-out text."""
    placed: Placed
    tokens: int
    """How much of it to measure on."""
    labels: tuple[LabelledText, ...] = ()
    """The user's own, beside those that come with the package."""
    read: dict[tuple[str, Site, Site], Activations] = field(default_factory=dict)
    """What the language model has read of labelled text, by its name and the sites."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The coder's prefixes."""
        return self.placed.coder.config.widths

    def rows(self, text: LabelledText, progress: Progress) -> Rows:
        """Labelled text read through the language model and the coder: by the model once for all coders of its
        sites."""
        key = (text.name, self.placed.read, self.placed.write)
        if key not in self.read:
            self.read[key] = concepts.activations(self.lm, self.placed.read, self.placed.write, text, progress)
        return concepts.encode(self.placed.coder, self.read[key])

    @cached_property
    def letters(self) -> LabelledText:
        """The first-letter task, in words of the model's own. Raises NotMeasurable where it has too few."""
        return spelling.first_letters(self.lm)

    def all_rows(self, progress: Progress) -> list[Rows]:
        """Every labelled text: what comes with the package, the first letters where there are words, the user's."""
        texts = [*shipped(), *self.labels]
        with suppress(NotMeasurable):
            texts.append(self.letters)
        return [self.rows(text, progress) for text in texts]
