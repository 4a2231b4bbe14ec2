"""How well coders reconstruct held-out activations, and what their reconstructions do to the language model.

FVU, cosine, L0 of each prefix from the activations alone; cross-entropy (CE) and KL divergence by splicing each
prefix's reconstruction in at the WRITTEN site. Baselines splice zeros, and the mean activation. Positions that training
leaves out (BOS, sinks) keep their true activations and are not scored.

    CE recovered = (CE_ablated − CE_coder) / (CE_ablated − CE_clean),   KL recovered = 1 − KL_coder / KL_ablated

Everything is summed by document, by position in the window, and by how frequent the token is; coders that are measured
together share what they can of the language model's passes (shared/spliced_sums.py).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from matryoshka.evaluation.shared.spliced_sums import FREQUENCY_EDGES, POSITION_EDGES, Sums, measure_all
from matryoshka.evaluation.shared.totals import Totals, density_histogram
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score
from matryoshka.study.reader import spread_windows

ANOTHER = "the reconstruction of another token in its place"
FVU = Measure(
    "FVU",
    "lower",
    "Fraction of variance unexplained: Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean over all tokens.",
    null=ANOTHER,
    of_target=True,
)
CE_MEAN = Measure(
    "CE recovered",
    "higher",
    "(CE_mean − CE_coder) / (CE_mean − CE_clean): the next-token loss that splicing the reconstruction in keeps, of"
    " what replacing the site by its mean activation costs.",
    null=ANOTHER,
    of_target=True,
    percent=True,
)
CE_ZERO = Measure(
    "CE recovered (zero)",
    "higher",
    "The same against zeros in place of the site, the easier baseline.",
    null=ANOTHER,
    of_target=True,
    headline=False,
    percent=True,
)
KL_MEAN = Measure(
    "KL recovered",
    "higher",
    "1 − KL_coder / KL_mean, of the divergence from the model's own next-token distribution.",
    null=ANOTHER,
    of_target=True,
    percent=True,
)
KL_ZERO = Measure(
    "KL recovered (zero)",
    "higher",
    "1 − KL_coder / KL_zero.",
    null=ANOTHER,
    of_target=True,
    headline=False,
    percent=True,
)
CE = Measure(
    "CE",
    "lower",
    "Next-token loss in nats with the reconstruction spliced in.",
    null=ANOTHER,
    of_target=True,
    headline=False,
)
COSINE = Measure("cosine", "higher", "Mean cosine of y and ŷ, uncentred.", null=ANOTHER, of_target=True, headline=False)
UNCENTRED = Measure(
    "uncentred explained variance",
    "higher",
    "1 − Σ‖y − ŷ‖² / Σ‖y‖²: high wherever the mean activation is large; not 1 − FVU.",
    null=ANOTHER,
    of_target=True,
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
READS_LABELS = False


def evaluate(subject: Subject, progress: Progress = silent) -> Result:
    """All measures of one coder on held-out tokens, for each of its prefixes; `progress` counts windows.

    Details: L0's and the densities' histograms, FVU and CE by position and by frequency, and the explained variance as
    SAEBench 0.6 computes it.
    """
    lm, windows, tokens = subject.lm, subject.windows, subject.tokens
    sums = subject.own("reconstruction", lambda coders: measure_all(lm, windows, coders, tokens, progress))
    units = [f"{windows.tokens.hash}/{windows.split}/{number}" for number in sums.documents]
    scores = [*_document_scores(sums.by_document, units, subject.widths), *_latent_scores(subject, sums)]
    return Result(tuple(scores), _details(subject, sums))


def _details(subject: Subject, sums: Sums) -> dict[str, Any]:
    wiring, widths, of_all = subject.hooked.wiring, subject.widths, sums.by_document
    rows = int(of_all["rows"].sum())
    windows = spread_windows(subject.windows, subject.tokens)
    return {
        "model": subject.lm.info.name,
        "read": " + ".join(map(str, wiring.reads)),
        "write": " + ".join(map(str, wiring.writes)),
        "widths": list(widths),
        "tokens": rows,
        "tokens_left_out": len(windows) * subject.windows.context - rows,
        "ce_clean": _per_token(of_all, "ce_clean"),
        "ce_zero": _per_token(of_all, "ce_zero"),
        "ce_mean": _per_token(of_all, "ce_mean"),
        "l0_histogram": sums.l0_counts.tolist(),
        "density_histogram": density_histogram((sums.fired / max(1, rows)).cpu().numpy(), widths),
        "by_position": _breakdown(sums.by_position, "position", POSITION_EDGES),
        "by_frequency": _breakdown(sums.by_frequency, "per_million", FREQUENCY_EDGES),
        "explained_variance_saebench": _saebench(of_all, subject.hooked.coder.config.d_out),
    }


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


def _latent_scores(subject: Subject, sums: Sums) -> Iterator[Score]:
    """The share of dead latents, where it is known, and of silent ones, of each prefix."""
    dead, silent = subject.hooked.dead, (sums.fired == 0).nonzero()[:, 0].tolist()
    for measure, latents in ((DEAD, dead), (SILENT, silent)):
        if latents is not None:
            for width in subject.widths:
                yield score(measure, width, ["all"], [sum(latent < width for latent in latents)], [width])


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
