"""A first look at what latents stand for: the tokens on which they fire most strongly."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.reconstruction import READ_BATCH, Placed, batches
from matryoshka.lm.model import LanguageModel


class Example(NamedTuple):
    """One latent: its ring (0 = first prefix), the share of tokens on which it fires, its tokens by total
    activation."""

    latent: int
    ring: int
    density: float
    tokens: list[tuple[str, float]]
    """(token, its share of all the latent's activation), the largest first."""


@torch.no_grad()
def top_tokens(
    lm: LanguageModel, windows: Windows, placed: Placed, tokens: int, per_ring: int = 1, top: int = 6
) -> list[Example]:
    """For each ring the `per_ring` latents most concentrated on their top tokens, among those that fire often enough.

    One pass over `tokens` tokens; what is summed is sparse: (latent, token) pairs that occur.
    """
    coder = placed.coder.eval()
    sites = [placed.read, placed.write]
    keep = RowFilter(lm, windows, sites)
    pairs, values, rows = [], [], 0
    for batch in batches(lm, windows, tokens, READ_BATCH):
        read = lm.read(batch, sites)
        kept = keep(batch, read)
        latents = coder.encode(read[placed.read][kept])
        pairs.append(latents.indices * lm.info.d_vocab + batch[kept][latents.rows])
        values.append(latents.values)
        rows += int(kept.sum())
    pair, inverse = torch.cat(pairs).unique(return_inverse=True)
    sums = torch.zeros(len(pair), device=pair.device).index_add_(0, inverse, torch.cat(values).float())
    latent, token = pair // lm.info.d_vocab, pair % lm.info.d_vocab
    counts = torch.bincount(torch.cat(pairs) // lm.info.d_vocab, minlength=coder.config.d_sae)
    examples = []
    for ring, (first, end) in enumerate(_rings(coder.config.widths)):
        described = [
            _describe(lm, i, ring, counts[i].item() / rows, token[latent == i], sums[latent == i], top)
            for i in range(first, end)
            if counts[i] >= 20
        ]
        described.sort(key=lambda example: -sum(share for _, share in example.tokens))
        examples += described[:per_ring]
    return examples


def _rings(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip((0, *widths), widths, strict=False))


def _describe(
    lm: LanguageModel, latent: int, ring: int, density: float, token: Tensor, sums: Tensor, top: int
) -> Example:
    best = sums.topk(min(top, len(sums)))
    shares = (best.values / sums.sum()).tolist()
    words = [lm.tokenizer.decode([number]) for number in token[best.indices].tolist()]
    return Example(latent, ring, density, list(zip(words, shares, strict=True)))
