"""What training watches: how well coders reconstruct held-out activations, without running the model on."""

from collections.abc import Sequence
from typing import Any

import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.metrics import Meter
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.placed import READ_BATCH, Placed, batches
from matryoshka.lm.model import LanguageModel


def activation_metrics(
    lm: LanguageModel, windows: Windows, placed: Sequence[Placed], tokens: int
) -> list[dict[str, Any]]:
    """FVU of each prefix, L0 and the share of silent latents of several coders, from one pass of the language model.

    Coders are left in the mode in which they came.
    """
    return [{"fvu": m.fvu(), "l0": m.l0(), "silent": m.silent()} for m in _meters(lm, windows, placed, tokens)]


@torch.no_grad()
def _meters(lm: LanguageModel, windows: Windows, placed: Sequence[Placed], tokens: int) -> list[Meter]:
    """A meter of each coder at inference, filled with the same held-out rows."""
    sites = [site for each in placed for site in (each.read, each.write)]
    keep = RowFilter.measure(lm, windows, sites)
    meters = [_meter(each.coder) for each in placed]
    modes = [each.coder.training for each in placed]
    for batch, _ in batches(lm, windows, tokens, READ_BATCH):
        read = lm.read(batch, sites)
        kept = keep(batch, read)
        for each, meter in zip(placed, meters, strict=True):
            coder = each.coder.eval()
            x, y = read[each.read][kept], read[each.write][kept].to(coder.W_dec.dtype)
            latents = coder.encode(x)
            meter.update(y, coder.decode(latents, x), latents)
    for each, mode in zip(placed, modes, strict=True):
        each.coder.train(mode)
    return meters


def _meter(coder: SparseCoder) -> Meter:
    config = coder.config
    return Meter(len(config.widths), config.d_out, config.d_sae).to(coder.W_dec.device)
