"""A text of one's own: which features fire where."""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from matryoshka.errors import MatryoshkaError
from matryoshka.features.collection import collected
from matryoshka.features.schema import About
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.vocabulary import pieces
from matryoshka.run import Run
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.opening import Models, read_card
from matryoshka.study.reader import read, sequences


class Reading(NamedTuple):
    """A text's tokens, and each feature that fires on any."""

    tokens: list[str]
    counted: list[bool]
    """False where a position is left out, as it is in training: BOS, the first token, sinks."""
    firings: dict[int, tuple[list[int], list[float]]]
    """(positions, activations) by feature."""


def read_text(lm: LanguageModel, hooked: HookedCoder, text: str) -> Reading:
    """Run `text` through the language model and the coder, in windows of the model's context where it is longer.

    Raises MatryoshkaError for an empty text.
    """
    tokens = lm.tokens(text).cpu().numpy()
    if tokens.shape[1] < 2:
        raise MatryoshkaError("the text is too short: its first token is left out, and there is no other")
    counted: list[bool] = []
    firings: dict[int, tuple[list[int], list[float]]] = {}
    for window in np.split(tokens, range(lm.info.context, tokens.shape[1], lm.info.context), axis=1):
        [rows] = read(lm, sequences(window, 1), [hooked])
        kept, latents = rows.kept(hooked)[0], rows.latents(hooked)
        places = kept.nonzero()[:, 0][latents.rows] + len(counted)
        counted += kept.tolist()
        entries = zip(latents.indices.tolist(), places.tolist(), latents.values.tolist(), strict=True)
        for feature, place, value in entries:
            if value > 0:
                positions, values = firings.setdefault(feature, ([], []))
                positions.append(place)
                values.append(value)
    return Reading(pieces(tokens[0].tolist(), lm.token_bytes), counted, firings)


def reader(member: Run, about: About, models: Models) -> Callable[[str], Reading]:
    """Reads texts; the language model and the coder are loaded at the first one."""
    lock = Lock()

    @cache
    def parts() -> tuple[LanguageModel, HookedCoder]:
        lm = models.of(read_card(member.coder))
        return lm, collected(member, about, lm)

    def read_one(text: str) -> Reading:
        with lock:
            return read_text(*parts(), text)

    return read_one
