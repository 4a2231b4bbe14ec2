"""What a feature does to the logits directly: past all later layers, through the final norm and the unembedding."""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import repeat

import numpy as np
import torch

from matryoshka.lm.model import LanguageModel
from matryoshka.lm.unembed import direct_logits
from matryoshka.study.hooked import HookedCoder

EFFECTS = 10
"""Tokens with the greatest direct effect, and as many with the least."""
LOGIT_BLOCK = 16_000_000
"""Logits in memory at once."""


def direct_effects(
    lm: LanguageModel, hooked: HookedCoder, scale: Callable[[], float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, effects) of each feature: the EFFECTS tokens it raises most, then those it lowers most; of all that it
    writes into the residual stream together, and empty where that is nothing.

    `scale`: what the final norm divides by, asked for where it is needed.
    """
    sites = hooked.wiring.writes
    parts = hooked.coder.decoder_rows().split([lm.info.check(site) for site in sites], dim=1)
    direct = [part for site, part in zip(sites, parts, strict=True) if site.in_residual]
    if not direct:
        yield from repeat((np.empty(0, np.int32), np.empty(0, np.float32)), hooked.coder.config.d_sae)
        return
    divisor = scale()
    for block in reduce(torch.add, direct).split(max(1, LOGIT_BLOCK // lm.info.d_vocab)):
        logits = direct_logits(lm, block, divisor)
        logits = logits[:, : len(lm.token_bytes)]  # a padded unembedding knows more than the tokenizer
        n = min(EFFECTS, logits.shape[1])
        top, bottom = logits.topk(n), logits.topk(n, largest=False)
        tokens, effects = torch.cat([top.indices, bottom.indices], 1), torch.cat([top.values, bottom.values], 1)
        yield from zip(tokens.int().cpu().numpy(), effects.float().cpu().numpy(), strict=True)
