"""How well coders reconstruct held-out activations, and what their reconstructions do to the language model.

FVU, cosine, L0 of each prefix from the activations alone; cross-entropy (CE) and KL divergence by splicing each
prefix's reconstruction in at the WRITTEN site. Baselines splice zeros, and the mean activation. Positions that training
leaves out (BOS, sinks) keep their true activations and are not scored.

    CE recovered = (CE_ablated − CE_coder) / (CE_ablated − CE_clean),   KL recovered = 1 − KL_coder / KL_ablated

Everything is summed by document, by position in the window, and by how frequent the token is; coders that are measured
together share what they can of the language model's passes (shared/spliced_sums.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from matryoshka.evaluation.shared.spliced_sums import FREQUENCY_EDGES, POSITION_EDGES, Sums, Totals, measure_all
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.intervals import ratio
from matryoshka.scores.result import Measure, Result, Score, finite, score
from matryoshka.study.reader import spread_windows

_of_target = partial(Measure, null="the reconstruction of another token in its place", of_target=True)
FVU = _of_target("FVU", "lower", "Fraction of variance unexplained: Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean over all tokens.")
CE_MEAN = _of_target(
    "CE recovered",
    "higher",
    "(CE_mean − CE_coder) / (CE_mean − CE_clean): the next-token loss that splicing the reconstruction in keeps, of"
    " what replacing the site by its mean activation costs.",
    percent=True,
)
KL_MEAN = _of_target(
    "KL recovered",
    "higher",
    "1 − KL_coder / KL_mean, of the divergence from the model's own next-token distribution.",
    percent=True,
)
L0 = Measure("L0", "neither", "Mean number of active latents a token.")
DEAD = Measure(
    "dead",
    "lower",
    "Share of latents that did not fire in the last tokens of training (dead_after_tokens).",
    unit="dictionary",
    percent=True,
)
_besides = partial(_of_target, headline=False)
CE_ZERO = _besides(
    "CE recovered (zero)", "higher", "The same against zeros in place of the site, the easier baseline.", percent=True
)
KL_ZERO = _besides("KL recovered (zero)", "higher", "1 − KL_coder / KL_zero.", percent=True)
CE = _besides("CE", "lower", "Next-token loss in nats with the reconstruction spliced in.")
COSINE = _besides("cosine", "higher", "Mean cosine of y and ŷ, uncentred.")
UNCENTRED = _besides(
    "uncentred explained variance",
    "higher",
    "1 − Σ‖y − ŷ‖² / Σ‖y‖²: high wherever the mean activation is large; not 1 − FVU.",
)
SILENT = replace(
    DEAD, name="silent", meaning="Share of latents that never fire on the tokens measured here.", headline=False
)
MEASURES = (FVU, CE_MEAN, KL_MEAN, L0, DEAD, CE_ZERO, KL_ZERO, CE, COSINE, UNCENTRED, SILENT)
READS_LABELS = False
VERSION = 1
DENSITY_EDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Bins of firing density; a latent that never fires is below all."""


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """All measures of one coder on held-out tokens, for each of its prefixes; `progress` counts windows.

    Details: L0's and the densities' histograms, FVU and CE by position and by frequency, and the explained variance as
    SAEBench 0.6 computes it.
    """
    sums, windows = subject.own(measure_all, subject.bench.tokens, progress), subject.bench.windows
    units = [f"{windows.tokens.hash}/{windows.split}/{number}" for number in sums.documents]
    scores = [*_document_scores(sums.by_document, units, subject.widths), *_latent_scores(subject, sums)]
    return Result(tuple(scores), _details(subject, sums))


def _details(subject: Subject, sums: Sums) -> dict[str, Any]:
    bench, wiring, widths, of_all = subject.bench, subject.hooked.wiring, subject.widths, sums.by_document
    rows = int(of_all["rows"].sum())
    read = len(spread_windows(bench.windows, bench.tokens)) * bench.windows.context
    per_token = {name: ratio(of_all[name].sum(), of_all["scored"].sum()) for name in ("ce_clean", "ce_zero", "ce_mean")}
    return {
        "model": bench.lm.info.name,
        "read": " + ".join(map(str, wiring.reads)),
        "write": " + ".join(map(str, wiring.writes)),
        "widths": list(widths),
        "tokens": rows,
        "tokens_left_out": read - rows,
        **per_token,
        "l0_histogram": np.trim_zeros(sums.l0_counts, "b").tolist(),
        "density_histogram": _density_histogram((sums.fired / max(1, rows)).cpu().numpy(), widths),
        "by_position": _breakdown(sums.by_position, "position", POSITION_EDGES),
        "by_frequency": _breakdown(sums.by_frequency, "per_million", FREQUENCY_EDGES),
        "explained_variance_saebench": _saebench(of_all, subject.hooked.coder.config.d_out),
    }


def _document_scores(sums: Totals, units: Sequence[str], widths: Sequence[int]) -> list[Score]:
    """The scores whose units are documents."""
    rows, ce_clean = sums["rows"][0], sums["ce_clean"][0]

    def recovered(
        ablated: Float[np.ndarray, " units"], name: str, clean: Float[np.ndarray, " units"] | int = 0
    ) -> tuple:
        """(ablated − coder) / (ablated − clean)"""
        return ablated - sums[name], ablated - clean, ablated - sums[f"{name}_null"]

    # measure: (numerator of each prefix, denominator, numerator of the null)
    ratios = {
        FVU: (sums["error"], sums["scatter"][0], sums["error_null"]),
        CE_MEAN: recovered(sums["ce_mean"][0], "ce", ce_clean),
        KL_MEAN: recovered(sums["kl_mean"][0], "kl"),
        L0: (sums["l0"], rows, None),
        CE_ZERO: recovered(sums["ce_zero"][0], "ce", ce_clean),
        KL_ZERO: recovered(sums["kl_zero"][0], "kl"),
        CE: (sums["ce"], sums["scored"][0], sums["ce_null"]),
        COSINE: (sums["cosine"], rows, sums["cosine_null"]),
        UNCENTRED: recovered(sums["energy"][0], "error"),
    }
    return [
        score(measure, width, units, above[m], below, null=None if null is None else null.sum() / below.sum())
        for measure, (above, below, null) in ratios.items()
        for m, width in enumerate(widths)
    ]


def _latent_scores(subject: Subject, sums: Sums) -> Iterator[Score]:
    """The share of dead latents, where it is known, and of silent ones, of each prefix."""
    dead, silent = subject.hooked.dead, (sums.fired == 0).nonzero()[:, 0].tolist()
    for measure, latents in ((DEAD, dead), (SILENT, silent)):
        if latents is not None:
            for width in subject.widths:
                yield score(measure, width, ["all"], [sum(latent < width for latent in latents)], [width])


def _density_histogram(density: Float[np.ndarray, " d_sae"], widths: Sequence[int]) -> dict[str, Any]:
    """Latents of each ring by their density: those that never fire, then one count for each bin."""
    rings = np.split(np.searchsorted(DENSITY_EDGES, density, side="left"), widths[:-1])
    return {"edges": list(DENSITY_EDGES), "rings": [np.bincount(r, minlength=8)[:8].tolist() for r in rings]}


def _breakdown(sums: Totals, name: str, edges: Sequence[int] | Sequence[float]) -> list[dict[str, Any]]:
    """FVU and CE of the whole dictionary in each bin [from, to) that has tokens; the last bin has no end."""
    return [
        {
            f"{name}_from": start,
            f"{name}_to": end,
            "tokens": int(sums["rows"][0, i]),
            "fvu": finite(ratio(sums["error"][-1, i], sums["scatter"][0, i])),
            "ce_clean": finite(ratio(sums["ce_clean"][0, i], sums["scored"][0, i])),
            "ce": finite(ratio(sums["ce"][-1, i], sums["scored"][0, i])),
        }
        for i, (start, end) in enumerate(pairwise((*edges, None)))
        if sums["rows"][0, i] > 0
    ]


def _saebench(sums: Totals, d_out: int) -> list[float]:
    """The explained variance of each prefix as SAEBench 0.6 computes it: the squared mean that it takes off E‖y‖² is
    that of the squares, so it is all but uncentred, and changes with the unit of the activations."""
    rows = sums["rows"].sum()
    energy = sums["energy"].sum() / rows
    return (1 - sums["error"].sum(1) / rows / (energy - (energy / d_out) ** 2)).tolist()
