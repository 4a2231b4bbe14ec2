"""A text of one's own: which features fire where."""

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import torch

from matryoshka.data.activations import RowFilter
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.placed import Placed
from matryoshka.features.collection import collected
from matryoshka.features.schema import About
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.vocabulary import pieces
from matryoshka.run import Run
from matryoshka.training.config import Config


class Reading(NamedTuple):
    """A text's tokens, and each feature that fires on any."""

    tokens: list[str]
    counted: list[bool]
    """False where a position is left out, as it is in training: BOS, the first token, sinks."""
    firings: dict[int, tuple[list[int], list[float]]]
    """(positions, activations) by feature."""


@torch.no_grad()
def read_text(lm: LanguageModel, placed: Placed, about: About, text: str) -> Reading:
    """Run `text` through the language model and the (folded) coder whose features `about` describes.

    Raises MatryoshkaError for an empty text, or one longer than the model can read.
    """
    tokens = lm.tokens(text)
    if tokens.shape[1] < 2:
        raise MatryoshkaError("the text is too short: its first token is left out, and there is no other")
    if tokens.shape[1] > lm.info.context:
        raise MatryoshkaError(f"the text has {tokens.shape[1]:,} tokens; {lm.info.name} reads {lm.info.context:,}")
    sites = [placed.read, placed.write]
    read = lm.read(tokens, sites)
    keep = RowFilter(lm.bos, {Site.parse(site): norm for site, norm in about.largest_norms.items()})
    kept = keep(tokens, read)
    latents = placed.coder.encode(read[placed.read][kept])
    places = kept[0].nonzero()[:, 0][latents.rows]
    firings: dict[int, tuple[list[int], list[float]]] = {}
    for feature, place, value in zip(latents.indices.tolist(), places.tolist(), latents.values.tolist(), strict=True):
        if value > 0:
            positions, values = firings.setdefault(feature, ([], []))
            positions.append(place)
            values.append(value)
    return Reading(pieces(tokens[0].tolist(), lm.token_bytes), kept[0].tolist(), firings)


def reader(member: Run, about: About, models: Callable[[Any], LanguageModel]) -> Callable[[str], Reading]:
    """Reads texts; the language model, from its section of the configuration, and the coder are loaded at the first
    one."""
    lock = Lock()

    @cache
    def parts() -> tuple[LanguageModel, Placed]:
        lm = models(Config.load(member.config_file).model)
        return lm, collected(member, about, lm)

    def read(text: str) -> Reading:
        with lock:
            return read_text(*parts(), about, text)

    return read
