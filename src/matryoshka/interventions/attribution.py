"""How much every feature matters for the next tokens, to first order, from one backward pass (attribution patching).

Ablating latent f at position t moves y_t by −a_{t,f} W_dec[f], and so a metric m by about

    −a_{t,f} ⟨∂m/∂y_t, W_dec[f]⟩          m = Σ CE of the window's next tokens, in nats

(Nanda 2023; Marks et al. 2024). Above zero: without the feature the model predicts worse. It is exact for small
activations; `evaluation.intervention` measures how well it ranks features that are really ablated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from matryoshka.data.tokens import Windows
from matryoshka.interventions.changes import Kept
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import LOGIT_BATCH, Rows, batches, predicting, read, spread_windows
from matryoshka.study.splice import of_one_target


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
    lm: LanguageModel, windows: Windows, coders: Sequence[HookedCoder], tokens: int, progress: Progress = silent
) -> list[Attribution]:
    """The attribution of every latent of each coder on windows that hold `tokens` tokens, spread evenly over the split.

    `progress` counts windows. Each is read once for all coders; coders that write the same sites at the same positions
    share one forward and one backward pass.
    """
    numbers, groups, done = spread_windows(windows, tokens), of_one_target(coders), 0
    entries = {id(hooked): _Entries(hooked, lm) for hooked in coders}
    for rows in read(lm, batches(windows, numbers, LOGIT_BATCH), coders, [group[0].wiring.head for group in groups]):
        for group in groups:
            kept, wiring = predicting(rows.kept(group[0])), group[0].wiring
            with lm.resumed(wiring.head.layer, rows.activations[wiring.head]):
                slopes = lm.gradient(rows.tokens, wiring.writes, next_token_loss(rows.tokens, kept))
            slope = torch.cat([slopes[site][kept] for site in wiring.writes], dim=-1)
            for hooked in group:
                entries[id(hooked)].add(rows, kept, slope)
        progress(done := done + len(rows.tokens), len(numbers))
    return [entries[id(hooked)].attribution(numbers) for hooked in coders]


class _Entries:
    """One coder's attribution, filled batch by batch."""

    def __init__(self, hooked: HookedCoder, lm: LanguageModel) -> None:
        self.hooked, self.d_sae = hooked, hooked.coder.widths[-1]
        self.effect, self.firing = [], []
        self.size = torch.zeros(self.d_sae, dtype=torch.float64, device=lm.device)

    def add(self, rows: Rows, kept: Kept, slope: Float[Tensor, "kept d_out"]) -> None:
        coder = self.hooked.coder
        latents, window = coder.encode(rows.at(self.hooked.wiring.reads, kept)), kept.nonzero()[:, 0]
        of_entry = -coder.contribution(latents, slope)
        self.size.index_add_(0, latents.indices, of_entry.abs().double())
        place, shape = (window[latents.rows], latents.indices), (len(kept), self.d_sae)
        self.effect.append(_by_window(of_entry, *place, shape))
        self.firing.append(_by_window((latents.values > 0).long(), *place, shape))

    def attribution(self, numbers: Int[np.ndarray, " windows"]) -> Attribution:
        effect, firing = (csr_array(vstack(parts)) for parts in (self.effect, self.firing))
        return Attribution(numbers, effect, firing, self.size.cpu().numpy())


def next_token_loss(tokens: Int[Tensor, "batch position"], kept: Kept) -> Callable[[Tensor], Float[Tensor, ""]]:
    """The metric Σ CE, in nats, of the tokens that follow the `kept` positions."""

    def loss(logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits[kept].float(), tokens.roll(-1, 1)[kept], reduction="sum")

    return loss


def _by_window(values: Tensor, window: Tensor, latent: Tensor, shape: tuple[int, int]) -> csr_array:
    """Entries summed by window and latent; those that are zero are left out."""
    present = values.nonzero().squeeze(1)
    entries, rows, columns = (part[present].cpu().numpy() for part in (values, window, latent))
    return coo_array((entries, (rows, columns)), shape).tocsr()
