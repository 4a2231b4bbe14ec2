"""How well coders reconstruct held-out activations, and what their reconstructions do to the language model.

FVU of each prefix, L0 and silent latents from the activations alone; cross-entropy (CE) and KL divergence by
splicing each prefix's reconstruction in at the WRITTEN site. Baselines splice zeros, and the mean activation.
Positions that training leaves out (BOS, sinks) keep their true activations and are not scored.

    CE recovered = (CE_ablated − CE_coder) / (CE_ablated − CE_clean),   KL recovered = 1 − KL_coder / KL_ablated
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.metrics import Meter
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.placed import (
    LOGIT_BATCH,
    READ_BATCH,
    Placed,
    Progress,
    batches,
    silent,
    splice,
    window_count,
)
from matryoshka.lm.model import LanguageModel


def activation_metrics(
    lm: LanguageModel, windows: Windows, placed: Sequence[Placed], tokens: int
) -> list[dict[str, Any]]:
    """FVU of each prefix, L0 and the share of silent latents of several coders, from one pass of the language model."""
    return [_activation_results(meter) for meter in _meters(lm, windows, placed, tokens)]


def _activation_results(meter: Meter) -> dict[str, Any]:
    return {"fvu": meter.fvu(), "l0": meter.l0(), "silent": meter.silent()}


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


@torch.no_grad()
def evaluate(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    tokens: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """All measures of one coder on `tokens` held-out tokens; `progress(done, total)` counts windows.

    Returns plain numbers: `fvu`, `ce`, `kl` and their recovered shares as lists, one entry a prefix.
    """
    coder = placed.coder.eval()
    keep = RowFilter.measure(lm, windows, [placed.read, placed.write])
    meter = _meters(lm, windows, [placed], tokens)[0]
    rows, total = int(meter.rows), window_count(windows, tokens)

    ce, kl = torch.zeros(2, 3 + len(coder.config.widths), dtype=torch.float64)  # clean, zero, mean, each prefix
    scored = done = 0
    for batch, _ in batches(lm, windows, tokens, LOGIT_BATCH):
        read = lm.read(batch, [placed.read, placed.write])
        kept = keep(batch, read)
        scores = _spliced_scores(lm, batch, kept, placed, read[placed.read], meter.mean)
        ce += torch.tensor([c for c, _ in scores], dtype=torch.float64)
        kl += torch.tensor([k for _, k in scores], dtype=torch.float64)
        scored += int(kept[:, :-1].sum())
        done += len(batch)
        progress(done, total)
    return {
        "tokens": rows,
        "tokens_left_out": total * windows.context - rows,
        "widths": list(coder.config.widths),
        **_activation_results(meter),
        **_recovered((ce / scored).tolist(), (kl / scored).tolist()),
    }


def _spliced_scores(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch position"],
    kept: Bool[Tensor, "batch position"],
    placed: Placed,
    x: Float[Tensor, "batch position d_in"],
    mean: Float[Tensor, " d_out"],
) -> list[tuple[float, float]]:
    """(Σ CE, Σ KL from the clean model) over the scored positions: clean, zeros, mean, then each prefix."""
    rows = x[kept]
    y_hat = placed.coder.decode(placed.coder.encode(rows), rows)
    scored = kept[:, :-1]
    target = tokens[:, 1:][scored][:, None]

    def log_probabilities() -> Float[Tensor, "rows vocabulary"]:
        return lm.logits(tokens)[:, :-1][scored].float().log_softmax(-1)

    def cross_entropy(log_p: Float[Tensor, "rows vocabulary"]) -> float:
        return -log_p.gather(1, target).double().sum().item()

    clean = log_probabilities()
    scores = [(cross_entropy(clean), 0.0)]
    for value in (torch.zeros_like(mean), mean, *y_hat):
        with splice(lm, placed.write, kept, value):
            log_q = log_probabilities()
        divergence = (clean.exp() * (clean - log_q)).sum(-1).double().sum().item()
        scores.append((cross_entropy(log_q), divergence))
    return scores


def _recovered(ce: list[float], kl: list[float]) -> dict[str, Any]:
    (clean, zero, mean, *coder), (_, kl_zero, kl_mean, *kl_coder) = ce, kl
    return {
        "ce_clean": clean,
        "ce_zero": zero,
        "ce_mean": mean,
        "kl_zero": kl_zero,
        "kl_mean": kl_mean,
        "ce": coder,
        "kl": kl_coder,
        "ce_recovered_zero": [(zero - value) / (zero - clean) for value in coder],
        "ce_recovered_mean": [(mean - value) / (mean - clean) for value in coder],
        "kl_recovered_zero": [1 - value / kl_zero for value in kl_coder],
        "kl_recovered_mean": [1 - value / kl_mean for value in kl_coder],
    }
