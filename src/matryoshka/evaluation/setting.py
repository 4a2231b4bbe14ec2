"""Where coders are measured: a language model and a text, or samples of known features.

Either opens what it needs when that is needed first, says which evaluations there are and what a result depends on, and
makes the subjects that they are given.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matryoshka.data.synthetic import SyntheticModel
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.subject import Bench, KnownBench, KnownSubject, Subject
from matryoshka.evaluation.table import OF_SYNTHETIC, Evaluation, evaluations
from matryoshka.lm.model import LanguageModel, resolve_device
from matryoshka.study.hooked import hook, hook_all
from matryoshka.study.opening import Known, Studied
from matryoshka.study.watch import HeldOut
from matryoshka.version import __version__


@dataclass(frozen=True)
class TextSetting:
    """A language model and held-out text."""

    studied: Studied
    """One of the coders: the others have the same key."""
    tokens: int
    """How much of the text to measure on."""
    labels: tuple[LabelledText, ...] = ()
    device: str = "auto"
    ready: tuple[LanguageModel, Windows] | None = None
    """Where both are opened already."""

    refusal = "it needs features that are known, and this coder is of a language model"

    @cached_property
    def lm(self) -> LanguageModel:
        return self.ready[0] if self.ready else self.studied.open_lm(self.device)

    @cached_property
    def windows(self) -> Windows:
        if self.ready:
            return self.ready[1]
        least = self.tokens if self.studied.text.limit is None else 0  # what was trained on was read far enough
        return self.studied.open_tokens(self.studied.open_vocabulary(), least=least).windows("held_out")

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Those that there are here, by name."""
        return evaluations(self.labels)

    def identity(self, coder: str, evaluation: Evaluation) -> dict[str, Any]:
        """All that a result depends on: where it is the same, so is the result. `coder`: its fingerprint."""
        labels = self.labels if evaluation.reads_labels else ()
        device = self.ready[0].device if self.ready else resolve_device(self.device)
        return {
            "matryoshka": __version__,
            "evaluation": evaluation.version,
            "coder": coder,
            "model": self.studied.card.model.model_dump(mode="json"),
            "device": device.type,  # on two kinds of devices the last digits differ
            "text": self.windows.tokens.hash,
            "context": self.windows.context,
            "tokens": self.tokens,
            "labels": {text.name: content_hash(text.examples) for text in labels},
        }

    def subjects(self, folders: Sequence[Path]) -> list[Subject]:
        """The coders in these folders, to be measured together."""
        coders = hook_all(folders, self.lm, self.windows)
        return Bench(self.lm, self.windows, coders, self.tokens, self.labels).subjects()


@dataclass(frozen=True)
class KnownSetting:
    """Features that are known, and fresh samples of them."""

    known: Known
    """One of the coders: the others have the same key."""
    samples: int
    device: str = "auto"
    ready: SyntheticModel | None = None
    """Where it is made already."""

    refusal = "it needs a language model, and this coder is of synthetic features"

    @cached_property
    def model(self) -> SyntheticModel:
        return self.ready or SyntheticModel(self.known.synthetic, resolve_device(self.device))

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Those that there are here, by name."""
        return {name: Evaluation(module) for name, module in OF_SYNTHETIC.items()}

    def identity(self, coder: str, evaluation: Evaluation) -> dict[str, Any]:
        """All that a result depends on: where it is the same, so is the result. `coder`: its fingerprint."""
        device = self.ready.device if self.ready else resolve_device(self.device)
        return {
            "matryoshka": __version__,
            "evaluation": evaluation.version,
            "coder": coder,
            "features": self.known.synthetic.hash,
            "device": device.type,
            "samples": self.samples,
        }

    def subjects(self, folders: Sequence[Path]) -> list[KnownSubject]:
        """The coders in these folders, to be measured together."""
        return KnownBench(self.model, [hook(folder, self.model) for folder in folders], self.samples).subjects()


Setting = TextSetting | KnownSetting


def setting_of(
    subject: Studied | Known,
    tokens: int,
    labels: tuple[LabelledText, ...] = (),
    device: str = "auto",
    ready: HeldOut | None = None,
) -> Setting:
    """Where a coder is measured, on so many tokens or samples. `ready`: where that is opened already."""
    match subject:
        case Studied():
            return TextSetting(subject, tokens, labels, device, None if isinstance(ready, SyntheticModel) else ready)
        case Known():
            return KnownSetting(subject, tokens, device, ready if isinstance(ready, SyntheticModel) else None)


def content_hash(content: Any) -> str:
    """Of plain JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
