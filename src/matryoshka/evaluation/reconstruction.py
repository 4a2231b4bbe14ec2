"""How well coders reconstruct held-out activations, and what their reconstructions do to the language model.

FVU, cosine, L0 of each prefix from the activations alone; cross-entropy (CE) and KL divergence by splicing each
prefix's reconstruction in at the WRITTEN site. Baselines splice zeros, and the mean activation. Positions that training
leaves out (BOS, sinks) keep their true activations and are not scored.

    CE recovered = (CE_ablated − CE_coder) / (CE_ablated − CE_clean),   KL recovered = 1 − KL_coder / KL_ablated

Everything is summed by document, by position in the window, and by how frequent the token is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import Latents
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.evaluation.placed import (
    LOGIT_BATCH,
    READ_BATCH,
    Placed,
    batches,
    predicting,
    splice,
    spread,
    window_count,
)
from matryoshka.evaluation.scores import Measure, Result, Score, score
from matryoshka.evaluation.totals import Totals, add_counts, density_histogram
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress, silent

ANOTHER = "the reconstruction of another token in its place"
FVU = Measure(
    "FVU", "lower", "Fraction of variance unexplained: Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean over all tokens.", null=ANOTHER
)
CE_MEAN = Measure(
    "CE recovered",
    "higher",
    "(CE_mean − CE_coder) / (CE_mean − CE_clean): the next-token loss that splicing the reconstruction in keeps, of"
    " what replacing the site by its mean activation costs.",
    null=ANOTHER,
    percent=True,
)
CE_ZERO = Measure(
    "CE recovered (zero)",
    "higher",
    "The same against zeros in place of the site, the easier baseline.",
    null=ANOTHER,
    headline=False,
    percent=True,
)
KL_MEAN = Measure(
    "KL recovered",
    "higher",
    "1 − KL_coder / KL_mean, of the divergence from the model's own next-token distribution.",
    null=ANOTHER,
    percent=True,
)
KL_ZERO = Measure(
    "KL recovered (zero)", "higher", "1 − KL_coder / KL_zero.", null=ANOTHER, headline=False, percent=True
)
CE = Measure("CE", "lower", "Next-token loss in nats with the reconstruction spliced in.", null=ANOTHER, headline=False)
COSINE = Measure("cosine", "higher", "Mean cosine of y and ŷ, uncentred.", null=ANOTHER, headline=False)
UNCENTRED = Measure(
    "uncentred explained variance",
    "higher",
    "1 − Σ‖y − ŷ‖² / Σ‖y‖²: high wherever the mean activation is large; not 1 − FVU.",
    null=ANOTHER,
    headline=False,
)
L0 = Measure("L0", "neither", "Mean number of active latents a token.")
DEAD = Measure(
    "dead",
    "lower",
    "Share of latents that did not fire in the last tokens of training (dead_after_tokens).",
    unit="dictionary",
    percent=True,
)
SILENT = Measure(
    "silent",
    "lower",
    "Share of latents that never fire on the tokens measured here.",
    unit="dictionary",
    headline=False,
    percent=True,
)
MEASURES = (FVU, CE_MEAN, KL_MEAN, L0, DEAD, CE_ZERO, KL_ZERO, CE, COSINE, UNCENTRED, SILENT)

POSITION_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Bins of positions in a window: 1, 2–3, 4–7, …"""
FREQUENCY_EDGES = (0.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Bins of a token's occurrences in a million tokens of the training split."""
FREQUENCY_TOKENS = 5_000_000
"""Tokens counted for that, at most."""
FREQUENCY_WINDOWS = 1024
"""Windows of them at once."""


class Rows(NamedTuple):
    """The rows of one batch that count, as the language model and the coder see them."""

    kept: Bool[Tensor, "batch position"]
    y: Float[Tensor, "rows d_out"]
    latents: Latents
    y_hat: Float[Tensor, "prefix rows d_out"]


@torch.no_grad()
def evaluate(lm: LanguageModel, windows: Windows, placed: Placed, tokens: int, progress: Progress = silent) -> Result:
    """All measures of one coder on `tokens` held-out tokens, for each of its prefixes; `progress` counts windows.

    Details: L0's and the densities' histograms, FVU and CE by position and by frequency, and the explained variance as
    SAEBench 0.6 computes it.
    """
    coder, sites = placed.coder.eval(), [placed.read, placed.write]
    keep = RowFilter.measure(lm, windows, sites)
    mean = _mean(lm, windows, placed, keep, tokens)
    total = window_count(windows, tokens)
    documents = np.unique(windows.documents(spread(total, len(windows))))
    frequencies = _frequency_bins(windows, lm.info.d_vocab)
    by_document = Totals(len(documents))
    by_position, by_frequency = Totals(len(POSITION_EDGES)), Totals(len(FREQUENCY_EDGES))
    fired = torch.zeros(coder.config.d_sae, dtype=torch.int64, device=lm.device)
    l0_counts = np.zeros(0, np.int64)
    done = 0
    for batch, numbers in batches(lm, windows, tokens, LOGIT_BATCH):
        read = lm.read(batch, [*sites, placed.head])
        rows = _rows(coder, keep(batch, read), read[placed.read], read[placed.write])
        measured = _activation_sums(rows, mean, coder.config.widths)
        with lm.resumed(placed.head.layer, read[placed.head]):
            spliced = _spliced_sums(lm, batch, rows, placed, mean)
        kept, scored = rows.kept.cpu().numpy(), predicting(rows.kept).cpu().numpy()
        position = np.broadcast_to(np.arange(windows.context), kept.shape)
        places = {
            by_document: np.searchsorted(documents, numbers),
            by_position: np.searchsorted(POSITION_EDGES, position, side="right") - 1,
            by_frequency: frequencies[batch.cpu().numpy()],
        }
        for totals, place in places.items():
            totals.add(place[kept], measured)
            totals.add(place[scored], spliced)
        fired += rows.latents.fired()
        l0_counts = add_counts(l0_counts, np.bincount(measured["l0"][-1].long().cpu().numpy()))
        progress(done := done + len(batch), total)

    units = [f"{windows.tokens.hash}/{windows.split}/{number}" for number in documents]
    rows_read = int(by_document["rows"].sum())
    density = (fired / max(1, rows_read)).cpu().numpy()
    scores = [*_document_scores(by_document, units, coder.config.widths), *_latent_scores(coder, fired)]
    details = {
        "model": lm.info.name,
        "read": str(placed.read),
        "write": str(placed.write),
        "widths": list(coder.config.widths),
        "tokens": rows_read,
        "tokens_left_out": total * windows.context - rows_read,
        "ce_clean": _per_token(by_document, "ce_clean"),
        "ce_zero": _per_token(by_document, "ce_zero"),
        "ce_mean": _per_token(by_document, "ce_mean"),
        "l0_histogram": l0_counts.tolist(),
        "density_histogram": density_histogram(density, coder.config.widths),
        "by_position": _breakdown(by_position, "position", POSITION_EDGES),
        "by_frequency": _breakdown(by_frequency, "per_million", FREQUENCY_EDGES),
        "explained_variance_saebench": _saebench(by_document, coder.config.d_out),
    }
    return Result(tuple(scores), details)


def _mean(lm: LanguageModel, windows: Windows, placed: Placed, keep: RowFilter, tokens: int) -> Float[Tensor, " d_out"]:
    """The mean activation at the written site, float64."""
    total, rows = torch.zeros(placed.coder.config.d_out, dtype=torch.float64, device=lm.device), 0
    for batch, _ in batches(lm, windows, tokens, READ_BATCH):
        read = lm.read(batch, [placed.read, placed.write])
        y = read[placed.write][keep(batch, read)]
        total += y.double().sum(0)
        rows += len(y)
    return total / rows


def _frequency_bins(windows: Windows, vocabulary: int) -> Int[np.ndarray, " vocab"]:
    """The bin of FREQUENCY_EDGES of each token."""
    train = windows.tokens.windows("train")
    numbers = spread(window_count(train, FREQUENCY_TOKENS), len(train))
    counts = np.zeros(vocabulary, np.int64)
    for start in range(0, len(numbers), FREQUENCY_WINDOWS):
        counts += np.bincount(train[numbers[start : start + FREQUENCY_WINDOWS]].reshape(-1), minlength=vocabulary)
    return np.searchsorted(FREQUENCY_EDGES, 1e6 * counts / counts.sum(), side="right") - 1


def _rows(coder: SparseCoder, kept: Tensor, x: Tensor, y: Tensor) -> Rows:
    x = x[kept]
    latents = coder.encode(x)
    return Rows(kept, y[kept].to(coder.W_dec.dtype), latents, coder.decode(latents, x))


def _activation_sums(rows: Rows, mean: Float[Tensor, " d_out"], widths: Sequence[int]) -> dict[str, Tensor]:
    """What is summed over rows of the activations themselves: [rows], or [prefix, rows]."""
    y, y_hat = rows.y.double(), rows.y_hat
    error = torch.stack([(y - prefix.double()).square().sum(-1) for prefix in y_hat])
    cosine = torch.cosine_similarity(rows.y[None], y_hat, dim=-1)
    latents, active = rows.latents, (rows.latents.values > 0).double()
    l0 = torch.stack([_sum_by_row(latents, active * (latents.indices < width)) for width in widths])
    another = y_hat[-1].roll(1, 0)
    return {
        "rows": torch.ones(len(y)),
        "scatter": (y - mean).square().sum(-1),
        "energy": y.square().sum(-1),
        "error": error,
        "error_null": (y - another.double()).square().sum(-1),
        "cosine": cosine,
        "cosine_null": torch.cosine_similarity(rows.y, another, dim=-1),
        "l0": l0,
    }


def _sum_by_row(latents: Latents, values: Float[Tensor, " entries"]) -> Float[Tensor, " rows"]:
    return values.new_zeros(latents.pattern.batch).index_add_(0, latents.rows, values)


def _spliced_sums(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch position"],
    rows: Rows,
    placed: Placed,
    mean: Float[Tensor, " d_out"],
) -> dict[str, Tensor]:
    """What is summed over scored positions: CE, and KL from the clean model, with the site ablated or reconstructed."""
    scored = predicting(rows.kept)[:, :-1]
    target = tokens[:, 1:][scored][:, None]

    def log_probabilities() -> Float[Tensor, "rows vocabulary"]:
        return lm.logits(tokens)[:, :-1][scored].float().log_softmax(-1)

    def cross_entropy(log_p: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
        return -log_p.gather(1, target)[:, 0]

    def with_spliced(value: Tensor) -> tuple[Tensor, Tensor]:
        with splice(lm, placed.write, rows.kept, value):
            log_q = log_probabilities()
        return cross_entropy(log_q), (p * (clean - log_q)).sum(-1)

    clean = log_probabilities()
    p = clean.exp()
    found = {"scored": torch.ones(len(target)), "ce_clean": cross_entropy(clean)}
    splices = {"zero": torch.zeros_like(mean), "mean": mean, "null": rows.y_hat[-1].roll(1, 0)}
    for name, value in splices.items():
        found[f"ce_{name}"], found[f"kl_{name}"] = with_spliced(value)
    ce, kl = zip(*(with_spliced(prefix) for prefix in rows.y_hat), strict=True)
    return {**found, "ce": torch.stack(ce), "kl": torch.stack(kl)}


def _document_scores(sums: Totals, units: Sequence[str], widths: Sequence[int]) -> list[Score]:
    """The scores whose units are documents."""
    rows, scored = sums["rows"][0], sums["scored"][0]
    clean, zero, mean = (sums[f"ce_{name}"][0] for name in ("clean", "zero", "mean"))
    kl_zero, kl_mean = sums["kl_zero"][0], sums["kl_mean"][0]
    ce, kl, ce_null, kl_null = sums["ce"], sums["kl"], sums["ce_null"], sums["kl_null"]
    error, energy = sums["error"], sums["energy"][0]
    # measure: (numerator of each prefix, denominator, numerator of the null)
    ratios = {
        FVU: (error, sums["scatter"][0], sums["error_null"]),
        CE_MEAN: (mean - ce, mean - clean, mean - ce_null),
        KL_MEAN: (kl_mean - kl, kl_mean, kl_mean - kl_null),
        L0: (sums["l0"], rows, None),
        CE_ZERO: (zero - ce, zero - clean, zero - ce_null),
        KL_ZERO: (kl_zero - kl, kl_zero, kl_zero - kl_null),
        CE: (ce, scored, ce_null),
        COSINE: (sums["cosine"], rows, sums["cosine_null"]),
        UNCENTRED: (energy - error, energy, energy - sums["error_null"]),
    }
    return [
        score(measure, width, units, above[m], below, null=None if null is None else null.sum() / below.sum())
        for measure, (above, below, null) in ratios.items()
        for m, width in enumerate(widths)
    ]


def _latent_scores(coder: SparseCoder, fired: Int[Tensor, " d_sae"]) -> list[Score]:
    dead, never = coder.dead(coder.metadata.get("dead_after_tokens", 1)), fired == 0
    return [
        score(measure, width, ["all"], [int(found[:width].sum())], [width])
        for measure, found in ((DEAD, dead), (SILENT, never))
        for width in coder.config.widths
    ]


def _per_token(sums: Totals, name: str) -> float:
    return float(sums[name].sum() / sums["scored"].sum())


def _breakdown(sums: Totals, name: str, edges: Sequence[int] | Sequence[float]) -> list[dict[str, Any]]:
    """FVU and CE of the whole dictionary in each bin [from, to) that has tokens; the last bin has no end."""
    ends = [*edges[1:], None]
    return [
        {
            f"{name}_from": edges[i],
            f"{name}_to": ends[i],
            "tokens": int(sums["rows"][0, i]),
            "fvu": _share(sums["error"][-1, i], sums["scatter"][0, i]),
            "ce_clean": _share(sums["ce_clean"][0, i], sums["scored"][0, i]),
            "ce": _share(sums["ce"][-1, i], sums["scored"][0, i]),
        }
        for i in range(len(edges))
        if sums["rows"][0, i] > 0
    ]


def _share(above: float, below: float) -> float | None:
    return float(above / below) if below else None


def _saebench(sums: Totals, d_out: int) -> list[float]:
    """The explained variance of each prefix as SAEBench 0.6 computes it: the squared mean that it takes off E‖y‖² is
    that of the squares, so it is all but uncentred, and changes with the unit of the activations."""
    rows = sums["rows"].sum()
    energy = sums["energy"].sum() / rows
    return (1 - sums["error"].sum(1) / rows / (energy - (energy / d_out) ** 2)).tolist()
