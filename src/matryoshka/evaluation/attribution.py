"""How much every feature matters for the next tokens, to first order, from one backward pass (attribution patching).

Ablating latent f at position t moves y_t by −a_{t,f} W_dec[f], and so a metric m by about

    −a_{t,f} ⟨∂m/∂y_t, W_dec[f]⟩          m = Σ CE of the window's next tokens, in nats

(Nanda 2023; Marks et al. 2024). Above zero: without the feature the model predicts worse. It is exact for small
activations; `evaluation.intervention` measures how well it ranks features that are really ablated.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.kernels import operations
from matryoshka.coder.latents import Latents
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.placed import LOGIT_BATCH, Placed, batches, predicting, spread, window_count
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent


class Attribution(NamedTuple):
    """Of every latent, on each of some windows."""

    windows: Int[np.ndarray, " windows"]
    """Their numbers within the split."""
    effect: csr_array
    """[windows, d_sae]: by how many nats ablating the latent in this window raises the CE of its tokens, summed."""
    firing: csr_array
    """[windows, d_sae]: at how many positions it fires there."""
    size: Float[np.ndarray, " d_sae"]
    """Σ |effect| of its single firings: what opposite signs take off `effect` is in here."""

    @property
    def fired(self) -> Int[np.ndarray, " d_sae"]:
        """At how many positions each latent fires."""
        return self.firing.sum(0).astype(np.int64)

    @property
    def total(self) -> Float[np.ndarray, " d_sae"]:
        """Each latent's effect, summed over the windows."""
        return self.effect.sum(0)


@torch.no_grad()
def attribute(
    lm: LanguageModel, windows: Windows, placed: Placed, tokens: int, progress: Progress = silent
) -> Attribution:
    """The attribution of every latent on windows that hold `tokens` tokens, spread evenly over the split.

    `progress` counts windows. Takes one forward and one backward pass of the language model for each.
    """
    coder, keep = placed.coder.eval(), RowFilter.measure(lm, windows, [placed.read, placed.write])
    numbers = spread(window_count(windows, tokens), len(windows))
    effect, firing, done = [], [], 0
    size = torch.zeros(coder.config.d_sae, dtype=torch.float64, device=lm.device)
    for batch, _ in batches(lm, windows, tokens, LOGIT_BATCH):
        read = lm.read(batch, [placed.read, placed.write, placed.head])
        kept = predicting(keep(batch, read))
        with lm.resumed(placed.head.layer, read[placed.head]):
            slope = lm.gradient(batch, placed.write, next_token_loss(batch, kept))
        latents, window = coder.encode(read[placed.read][kept]), kept.nonzero()[:, 0]
        of_entry = first_order(coder, latents, slope[kept])
        size.index_add_(0, latents.indices, of_entry.abs().double())
        place = window[latents.rows], latents.indices
        effect.append(_by_window(of_entry, *place, (len(batch), coder.config.d_sae)))
        firing.append(_by_window((latents.values > 0).long(), *place, (len(batch), coder.config.d_sae)))
        progress(done := done + len(batch), len(numbers))
    return Attribution(numbers, csr_array(vstack(effect)), csr_array(vstack(firing)), size.cpu().numpy())


def next_token_loss(
    tokens: Int[Tensor, "batch position"], kept: Bool[Tensor, "batch position"]
) -> Callable[[Float[Tensor, "batch position vocab"]], Float[Tensor, ""]]:
    """The metric Σ CE, in nats, of the tokens that follow the `kept` positions."""

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[kept].float(), tokens.roll(-1, 1)[kept], reduction="sum")

    return loss


@torch.no_grad()
def first_order(coder: SparseCoder, latents: Latents, slope: Float[Tensor, "rows d_out"]) -> Float[Tensor, " entries"]:
    """−a ⟨∂m/∂y, W_dec[f]⟩ of every entry of the latents: what ablating it there does to the metric."""
    slope = slope.to(coder.W_dec.dtype) / coder.scale_out
    return -latents.values * operations(slope).dots(slope, coder.W_dec, latents.rows, latents.indices)


def _by_window(values: Tensor, window: Tensor, latent: Tensor, shape: tuple[int, int]) -> csr_array:
    """Entries summed by window and latent; those that are zero are left out."""
    found = values.nonzero().squeeze(1)
    entries, rows, columns = (each[found].cpu().numpy() for each in (values, window, latent))
    return coo_array((entries, (rows, columns)), shape).tocsr()
