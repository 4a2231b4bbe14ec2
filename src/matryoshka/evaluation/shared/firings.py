"""Where every latent fires in a text, from a recording of one or several coders, and what that is compared with.

Recorded beside the latents, in half precision: one layer's residual stream, which does not depend on where a coder
sits, and what each coder reads projected onto random directions, than which a latent should be better; standardised in
each dimension first, or the few of large variance would make all directions one. Documents fall into two halves by a
hash, the same for every coder: what is chosen or fitted on one is measured on the other.

Disk, while it is studied: 2 · (d_model + directions of each coder) bytes a token. Memory: some 40 bytes a firing while
they are sorted.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from scipy.sparse import csc_array
from torch import Tensor

from matryoshka.data.rowfilter import SAMPLE, RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Rows, batches, read, spread_windows
from matryoshka.study.recorder import ExtraColumn, record
from matryoshka.study.recording import Recording

FEATURES = 40
"""Latents that may be drawn from each ring: so many random directions stand beside it."""
RESIDUAL = "residual"
"""The column of the middle layer's residual stream."""


class TextFirings(NamedTuple):
    """A text, and where a coder's latents fire in it; a *position* is window · context + place in the window."""

    tokens: Int[np.ndarray, "windows context"]
    documents: Int[np.ndarray, "windows context"]
    counted: Bool[np.ndarray, "windows context"]
    """No BOS, no window's first token, no attention sink."""
    test: Bool[np.ndarray, "windows context"]
    """Of a document on which nothing is chosen or fitted."""
    residual: Float16[np.ndarray, "positions d_model"]
    projections: Float16[np.ndarray, "positions directions"]
    firing: csc_array
    """[positions, d_sae]: the counted positions where each latent fires."""

    def half(self, test: bool) -> Bool[np.ndarray, "windows context"]:
        """The counted positions of the test documents, or of the training documents."""
        return self.counted & (self.test if test else ~self.test)

    def firings(self, latent: int) -> Int[np.ndarray, " firings"]:
        """The positions where one latent fires, ascending."""
        start, end = self.firing.indptr[latent : latent + 2]
        return self.firing.indices[start:end]


def middle(lm: LanguageModel) -> Site:
    """The layer whose residual is kept."""
    return Site("resid_post", (lm.info.n_layers - 1) // 2)


def read_firings(
    lm: LanguageModel, windows: Windows, coders: Sequence[HookedCoder], tokens: int, progress: Progress
) -> list[TextFirings]:
    """Where the latents of each coder fire on `tokens` tokens of `windows`, from one pass of the language model for
    all; `progress` counts windows.

    Sinks of the middle layer's residual stream do not count either: they would be all that its means are of.
    """
    site = middle(lm)
    largest = RowFilter.measure(lm, windows, [site]).largest
    narrowed = [hooked._replace(keep=hooked.keep.and_at(largest)) for hooked in coders]
    # in units of the largest norm that counts half precision neither overflows nor loses anything
    column = ExtraColumn(
        RESIDUAL, lm.info.d_model, lambda rows: rows.activations[site].float() / largest[site], (site,)
    )
    [first] = read(lm, batches(windows, np.arange(min(SAMPLE, len(windows))), SAMPLE), narrowed, [site])
    columns = [column, *(_projection(hooked, first) for hooked in narrowed)]
    with tempfile.TemporaryDirectory(prefix="matryoshka-") as folder:
        path = Path(folder) / "recording"
        record(lm, windows, spread_windows(windows, tokens), narrowed, path, columns, progress=progress)
        recording = Recording(path)
        # what is mapped stays when the files' names are gone
        return [_firings(recording, hooked, windows) for hooked in narrowed]


def _firings(recording: Recording, hooked: HookedCoder, windows: Windows) -> TextFirings:
    recorded, context = recording.of(hooked), recording.context
    tokens, documents = (part.astype(np.int64).reshape(-1, context) for part in (recording.tokens, recording.documents))
    places = np.repeat(np.arange(tokens.size, dtype=np.int32), np.diff(recorded.offsets))
    where = places, recorded.indices.astype(np.int32)
    return TextFirings(
        tokens,
        documents,
        recorded.kept.reshape(-1, context),
        is_test(f"{windows.tokens.meta.source} {windows.split}", documents),
        recording.column(RESIDUAL),
        recording.column(hooked.key),
        csc_array((np.ones(len(places), bool), where), shape=(tokens.size, recorded.d_sae)),
    )


def is_test(text: str, documents: Int[np.ndarray, "windows context"]) -> Bool[np.ndarray, "windows context"]:
    """Half of the documents, by a hash of the text's identity and their number in it."""
    numbers, place = np.unique(documents, return_inverse=True)
    test = [hashlib.sha256(f"{text} {number}".encode()).digest()[0] % 2 == 1 for number in numbers]
    return np.array(test, dtype=bool)[place].reshape(documents.shape)


def _projection(hooked: HookedCoder, first: Rows) -> ExtraColumn:
    """What the coder reads onto random unit vectors, one for each latent that may be drawn; 0 where a position does not
    count. Standardised as these first rows are, where there are two of them."""
    config = hooked.coder.config
    most = sum(min(FEATURES, end - start) for start, end in pairwise((0, *config.widths)))
    x = first.x(hooked).float()
    directions = torch.randn(config.d_in, most, generator=torch.Generator().manual_seed(0)).to(x.device)
    directions = directions / directions.norm(dim=0)
    mean, deviation = x.new_zeros(config.d_in), x.new_ones(config.d_in)
    if len(x) > 1:
        mean, spread = x.mean(0), x.std(0)
        deviation = torch.where(spread > 0, spread, deviation)

    def project(rows: Rows) -> Float[Tensor, "batch position directions"]:
        x = torch.cat([rows.activations[site] for site in hooked.wiring.reads], dim=-1).float()
        return torch.where(rows.kept(hooked)[..., None], (x - mean) / deviation @ directions, 0)

    return ExtraColumn(hooked.key, most, project)
