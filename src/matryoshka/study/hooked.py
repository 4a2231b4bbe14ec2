"""A coder where it belongs in a language model: from its folder and its card."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matryoshka.coder import io
from matryoshka.coder.card import Card
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.synthetic import SyntheticModel
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Source, Wiring
from matryoshka.study.opening import read_card

EVERY_ROW = RowFilter(None, {})
"""Of synthetic samples nothing is left out."""


class HookedCoder(NamedTuple):
    """A coder in raw units and in eval mode, the sites that it reads and writes, and which of their rows count."""

    coder: SparseCoder
    wiring: Wiring
    keep: RowFilter
    fingerprint: str = ""
    """Of the stored weights: what labels and results belong to. "" of one that is not stored."""
    dead: tuple[int, ...] | None = None
    """Latents that did not fire in the last tokens of training; None where nobody knows."""

    @property
    def key(self) -> str:
        """Tells it from other coders, and from itself at other sites or with another filter."""
        largest = {str(site): norm for site, norm in sorted(self.keep.largest.items())}
        said = [self.fingerprint or f"in memory {id(self.coder)}", str(self.wiring), self.keep.bos, largest]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def hook_all(folders: Sequence[Path], lm: LanguageModel, windows: Windows) -> list[HookedCoder]:
    """The coders in these folders, runs' or coders' own, each with the rows that count for it: as its card says, or
    where that does not, measured on the first of `windows`. Raises MatryoshkaError as `hook` does."""
    hooked_coders = []
    for folder in folders:
        card = read_card(folder)
        if card.rows is None:
            keep = RowFilter.measure(lm, windows, wiring_of(card).sites)
        else:
            keep = RowFilter(lm.bos, {Site.parse(site): norm for site, norm in card.rows.largest_norms.items()})
        hooked_coders.append(hook(folder, lm, keep))
    return hooked_coders


def hook(folder: Path, model: LanguageModel | SyntheticModel, keep: RowFilter = EVERY_ROW) -> HookedCoder:
    """The coder in a run's folder or a coder's own, on the model's device, with these rows.

    Raises MatryoshkaError for a coder without a card, or one that does not fit this model.
    """
    coder, card = SparseCoder.load(folder, model.device), read_card(folder)
    wiring = wiring_of(card)
    for sites, sizes in ((wiring.reads, coder.config.reads), (wiring.writes, coder.config.writes)):
        if len(sites) != len(sizes):
            named = " + ".join(map(str, sites))
            raise MatryoshkaError(f"{folder}: its card names {named}, but its weights are of {len(sizes)} sites")
        for site, size in zip(sites, sizes, strict=True):
            if (width := model.info.check(site)) != size:
                raise MatryoshkaError(f"{folder}: takes {size} numbers at {site}, where {model.info.name} has {width}")
    dead = None if card.trained is None else card.trained.dead
    return HookedCoder(coder, wiring, keep, io.fingerprint(folder), dead)


def wiring_of(card: Card) -> Wiring:
    """The sites that a card names. Raises MatryoshkaError for names that no model has."""
    sites = ((map(Site.parse, source.reads), map(Site.parse, source.writes)) for source in card.sources)
    return Wiring(tuple(Source(tuple(reads), tuple(writes)) for reads, writes in sites))
