"""Where every latent fires in a held-out text, from one pass of the language model, and what that is compared with.

Kept beside the firings, in half precision: one layer's residual stream, which does not depend on where the coder sits,
and what the coder reads projected onto random directions, than which a latent should be better; standardised in each
dimension first, or the few of large variance would make all directions one. Documents fall into two halves by a hash,
the same for every coder: what is chosen or fitted on one is measured on the other.

Memory: 2 · (d_model + directions) bytes a token, and some 40 a firing while they are sorted.
"""

import hashlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from scipy.sparse import csc_array
from torch import Tensor

from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.placed import READ_BATCH, Placed, batches, window_count
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress

FEATURES = 40
"""Latents that may be drawn from each ring: so many random directions stand beside it."""


class Reading(NamedTuple):
    """What the pass leaves; a *position* is window · context + place in the window."""

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


@torch.no_grad()
def read(lm: LanguageModel, windows: Windows, placed: Placed, tokens: int, progress: Progress) -> Reading:
    """`tokens` tokens of `windows` read once; `progress` counts windows."""
    coder, mode, residual = placed.coder, placed.coder.training, middle(lm)
    coder.eval()
    sites = [placed.read, placed.write, residual]
    keep = RowFilter.measure(lm, windows, sites)
    project = _Projection.measure(lm, windows, placed, keep)
    found = _empty(window_count(windows, tokens), windows.context, lm.info.d_model, project.directions.shape[1])
    positions, latents, done = [], [], 0
    for text in batches(lm, windows, tokens, READ_BATCH):
        activations = lm.read(text.tokens, sites)
        kept = keep(text.tokens, activations)
        x = activations[placed.read]
        active = coder.encode(x[kept])
        fires = active.values > 0
        rows = kept.flatten().nonzero().squeeze(1)[active.rows[fires]]
        positions.append((rows + done * windows.context).int().cpu().numpy())
        latents.append(active.indices[fires].int().cpu().numpy())

        these = slice(done, done + len(kept))
        found.tokens[these], found.documents[these] = text.tokens.cpu().numpy(), text.documents
        found.counted[these] = kept.cpu().numpy()
        # in units of the largest norm that counts, half precision neither overflows nor loses anything
        found.residual[these] = (activations[residual].float() / keep.largest[residual]).cpu().numpy()
        found.projections[these] = (project(x) * kept[..., None]).cpu().numpy()
        done = these.stop
        progress(done, len(found.tokens))
    coder.train(mode)
    test = is_test(f"{windows.tokens.meta.source} {windows.split}", found.documents)
    where = np.concatenate(positions), np.concatenate(latents)
    firing = csc_array((np.ones(len(where[0]), bool), where), shape=(found.tokens.size, coder.config.d_sae))
    flat = found.tokens.size, -1
    return Reading(
        found.tokens,
        found.documents,
        found.counted,
        test,
        found.residual.reshape(flat),
        found.projections.reshape(flat),
        firing,
    )


def is_test(text: str, documents: Int[np.ndarray, "windows context"]) -> Bool[np.ndarray, "windows context"]:
    """Half of the documents, by a hash of the text's identity and their number in it."""
    numbers, place = np.unique(documents, return_inverse=True)
    test = [hashlib.sha256(f"{text} {number}".encode()).digest()[0] % 2 == 1 for number in numbers]
    return np.array(test, dtype=bool)[place].reshape(documents.shape)


class _Found(NamedTuple):
    """Filled batch by batch."""

    tokens: Int[np.ndarray, "windows context"]
    documents: Int[np.ndarray, "windows context"]
    counted: Bool[np.ndarray, "windows context"]
    residual: Float16[np.ndarray, "windows context d_model"]
    projections: Float16[np.ndarray, "windows context directions"]


def _empty(windows: int, context: int, d_model: int, directions: int) -> _Found:
    shape = (windows, context)
    return _Found(
        np.empty(shape, np.int64),
        np.empty(shape, np.int64),
        np.empty(shape, bool),
        np.empty((*shape, d_model), np.float16),
        np.empty((*shape, directions), np.float16),
    )


class _Projection(NamedTuple):
    """Standardised activations onto random unit vectors, one for each latent that may be drawn."""

    mean: Float[Tensor, " d_in"]
    deviation: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in directions"]

    @classmethod
    def measure(cls, lm: LanguageModel, windows: Windows, placed: Placed, keep: RowFilter) -> "_Projection":
        """Standardised as the first windows are."""
        config = placed.coder.config
        most = sum(min(FEATURES, end - start) for start, end in pairwise((0, *config.widths)))
        directions = torch.randn(config.d_in, most, generator=torch.Generator().manual_seed(0)).to(lm.device)
        tokens = torch.from_numpy(windows[:READ_BATCH]).to(lm.device)
        activations = lm.read(tokens, list(keep.largest))
        x = activations[placed.read][keep(tokens, activations)].float()
        deviation = x.std(0)
        return cls(x.mean(0), torch.where(deviation > 0, deviation, 1), directions / directions.norm(dim=0))

    def __call__(self, x: Float[Tensor, "batch position d_in"]) -> Float[Tensor, "batch position directions"]:
        return (x.float() - self.mean) / self.deviation @ self.directions
