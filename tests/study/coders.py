"""Coders at some sites of the bundled model, and what evaluations are given of them."""

import torch

from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.scaling import Scaling
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.subject import Bench, Subject
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import HookedCoder


def random_coder(
    lm: LanguageModel, windows: Windows, read: str, write: str, seed: int = 0, largest: float | None = None
) -> HookedCoder:
    """64 latents, the 8 largest active; `largest`: norm that still counts, where it is not measured."""
    d = lm.info.d_model
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=64, widths=(16, 64), activation=TopKConfig(k=8))
    coder = SparseCoder(config).initialise(seed, tied=False).eval()
    coder.requires_grad_(False)
    wiring = Wiring.of([Site.parse(read)], [Site.parse(write)])
    keep = RowFilter.measure(lm, windows, wiring.sites)
    if largest is not None:
        keep = RowFilter(lm.bos, dict.fromkeys(wiring.sites, largest))
    return HookedCoder(coder, wiring, keep, f"{read} {write} {seed}")


def raw_coder(coder: SparseCoder, x: torch.Tensor, y: torch.Tensor) -> SparseCoder:
    """`coder` calibrated on these raw activations and folded into their units, as training saves it."""
    scaling = Scaling(coder.config).measure(x, y)
    return scaling.fold(coder.calibrate(scaling.x(x), scaling.y(y).mean(0)))


def plain(
    lm: LanguageModel, hooked: HookedCoder, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(kept positions, x of them, their dense latents) by hand."""
    activations = lm.read(tokens, hooked.wiring.sites)
    kept = hooked.keep(tokens, activations)
    x = activations[hooked.wiring.reads[0]][kept]
    return kept, x, hooked.coder.encode(x).dense()


def hooked_at(coder: SparseCoder, lm: LanguageModel, windows: Windows, read: Site, write: Site) -> HookedCoder:
    """A coder in raw units that reads and writes there, its rows measured on the first windows."""
    wiring = Wiring.of([read], [write])
    return HookedCoder(coder, wiring, RowFilter.measure(lm, windows, wiring.sites))


def subject(lm: LanguageModel, windows: Windows, hooked: HookedCoder, tokens: int) -> Subject:
    """A coder that is measured alone."""
    return Bench(lm, windows, [hooked], tokens).subjects()[0]
