"""What training watches: how well coders reconstruct held-out activations, without running the model on."""

from collections.abc import Sequence
from typing import Any

import torch

from matryoshka.coder.metrics import Meter
from matryoshka.data.synthetic import HELD_OUT, SyntheticModel
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import batches, read, read_batch, spread_windows

HeldOut = tuple[LanguageModel, Windows] | SyntheticModel
"""What training never sees: a text's windows and who reads them, or who draws fresh samples."""


def held_out_metrics(held_out: HeldOut, coders: Sequence[HookedCoder], tokens: int) -> list[dict[str, Any]]:
    """FVU of each prefix, L0 and the share of silent latents of several coders, on so many held-out tokens."""
    match held_out:
        case SyntheticModel():
            return synthetic_metrics(held_out, coders, tokens)
        case (lm, windows):
            return activation_metrics(lm, windows, coders, tokens)


@torch.no_grad()
def activation_metrics(
    lm: LanguageModel, windows: Windows, coders: Sequence[HookedCoder], tokens: int
) -> list[dict[str, Any]]:
    """The same from one pass of the language model.

    Of a coder that writes several sites, `fvu` is the mean over them and `fvu_of_sites` each one's.
    """
    meters = [Meter(hooked.coder.config).to(lm.device) for hooked in coders]
    texts = batches(windows, spread_windows(windows, tokens), read_batch(lm.device, windows.context))
    for rows in read(lm, texts, coders):
        for hooked, meter in zip(coders, meters, strict=True):
            x, latents = rows.x(hooked), rows.latents(hooked)
            meter.update(rows.y(hooked).to(hooked.coder.dtype), hooked.coder.decode(latents, x), latents)
    return _records(meters)


@torch.no_grad()
def synthetic_metrics(model: SyntheticModel, coders: Sequence[HookedCoder], samples: int) -> list[dict[str, Any]]:
    """The same of coders of synthetic activations, on the first `samples` that no training ever draws."""
    meters = [Meter(hooked.coder.config).to(model.device) for hooked in coders]
    for part in model.draw(samples, HELD_OUT):
        for hooked, meter in zip(coders, meters, strict=True):
            x = part.x.to(hooked.coder.dtype)
            latents = hooked.coder.encode(x)
            meter.update(x, hooked.coder.decode(latents, x), latents)
    return _records(meters)


def _records(meters: Sequence[Meter]) -> list[dict[str, Any]]:
    records = []
    for meter in meters:
        record = {"fvu": meter.fvu(), "l0": meter.l0(), "silent": meter.silent()}
        records.append(record if len(meter.sizes) == 1 else record | {"fvu_of_sites": meter.fvu_of_sites()})
    return records
