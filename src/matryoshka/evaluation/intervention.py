"""What features do to the model's predictions: all ranked to first order, some of every ring really ablated.

    1. the attribution of every latent on all windows, one backward pass each       (interventions/attribution.py)
    2. a sample of living features ablated in a few windows, beside changes that are as large  (shared/ablation.py)
    3. the ranking of 1 against what 2 found in the same windows

Scores of a prefix are means over its living features: a sampled one stands for living / sampled of its ring.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from matryoshka.evaluation.shared import ablation
from matryoshka.evaluation.shared.ablation import ABLATED, AFTER, MATCHED, ON, RANDOM, Effects, Sample
from matryoshka.evaluation.subject import Subject
from matryoshka.interventions.attribution import Attribution, attribute
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score

_of_features = partial(
    Measure,
    unit="feature",
    null="an equal change along the decoder row of another feature that fires as often",
    paired=False,
    of_target=True,
)
KL_RATIO = _of_features(
    "ablation KL over random",
    "higher",
    "Σ_f KL(ablated) / Σ_f KL(random): how much more taking a_f W_dec[f] off where a feature fires changes the"
    " next-token distribution than a change of the same size in a random direction.",
)
RANKING = _of_features(
    "attribution ρ",
    "higher",
    "Spearman's ρ over features between Σ −a_f ⟨∂CE/∂y, W_dec[f]⟩ and the ΔCE that ablating the feature really has in"
    " the same windows.",
    null="what one in twenty permutations of the features reaches",
)
_in_mnat = partial(_of_features, better="neither", headline=False)
_ON = "of the next token in thousandths of a nat: mean over the tokens that a feature fires on, then over features."
_AFTER = "mean over the tokens behind its first firing in a window that a feature does not fire on, then over features."
KL_ON = _in_mnat("ablation KL (mnat)", meaning=f"KL(clean ‖ ablated) {_ON}")
CE_ON = _in_mnat("ablation ΔCE (mnat)", meaning=f"CE(ablated) − CE(clean) {_ON}")
KL_AFTER = _in_mnat("ablation KL after (mnat)", meaning=f"The same KL: {_AFTER}")
CE_AFTER = _in_mnat("ablation ΔCE after (mnat)", meaning=f"The same ΔCE: {_AFTER}")
MEASURES = (KL_RATIO, KL_ON, CE_ON, RANKING, KL_AFTER, CE_AFTER)
READS_LABELS = False
VERSION = 1
OfFeatures = Float[np.ndarray, " n"]
PERMUTATIONS = 1000
RANKED = 3
"""Features that a correlation needs, at least."""
SHOWN = 10
"""Features at either end of the ranking, in the details."""


def evaluate(subject: Subject, progress: Progress = silent, sample_size: int = ablation.SAMPLE) -> Result:
    """Effects of ablated features, and how well attribution foretells them; `progress` counts windows.

    Details: both ends of the ranking of all features, the numbers of every ablated one, the other nulls.
    Raises NotMeasurable if no feature fires.
    """
    bench, widths, generator = subject.bench, subject.widths, np.random.default_rng(0)
    attribution = subject.own(attribute, bench.tokens, progress)
    sample = ablation.draw_sample(attribution.fired, widths, generator, sample_size)
    trials = ablation.draw_trials(attribution, sample, bench.windows, generator)
    effects = ablation.ablate(bench.lm, bench.windows, subject.hooked, attribution, sample, trials, generator, progress)
    details = {
        "windows": len(attribution.windows),
        "windows_a_feature": ablation.WINDOWS,
        "rings": _ring_counts(attribution, sample, widths),
        **_other_nulls(sample, effects, widths),
        "attribution": _ends(attribution, widths),
        "ablated": _each_ablated(sample, effects),
    }
    return Result(tuple(_scores(sample, effects, widths)), details)


def _scores(sample: Sample, effects: Effects, widths: Sequence[int]) -> Iterator[Score]:
    kl, ce = (1000 * sums / np.maximum(1, effects.positions) for sums in (effects.kl, effects.ce))
    for width in widths:
        inside = sample.features < width
        for measure, means, place in ((KL_ON, kl, ON), (CE_ON, ce, ON), (KL_AFTER, kl, AFTER), (CE_AFTER, ce, AFTER)):
            used = inside & (effects.positions[:, place] > 0)
            ablated, matched, _ = means[:, used, place] * sample.weight[used]
            null = matched.sum() / sample.weight[used].sum() if used.any() else None
            yield score(measure, width, sample.features[used], ablated, sample.weight[used], null)
        ablated, matched, random = kl[:, inside, ON] * sample.weight[inside]
        null = matched.sum() / random.sum() if inside.any() else None
        yield score(KL_RATIO, width, sample.features[inside], ablated, random, null)
        yield _ranking(sample, effects, width)


def _ranking(sample: Sample, effects: Effects, width: int) -> Score:
    used = sample.features < width
    if used.sum() < RANKED:
        return score(RANKING, width, [], [])
    predicted, exact, weight = effects.predicted[used], effects.exact[used], sample.weight[used]
    generator = np.random.default_rng(0)
    chance = [rank_correlation(predicted, generator.permutation(exact), weight) for _ in range(PERMUTATIONS)]
    products, squares = _rank_terms(predicted, exact, weight)
    return score(RANKING, width, sample.features[used], products, squares, np.quantile(chance, 0.95))


def rank_correlation(a: OfFeatures, b: OfFeatures, weight: OfFeatures) -> float:
    """Spearman's ρ of a population in which each of n pairs stands for `weight` ones."""
    products, squares = _rank_terms(a, b, weight)
    return float(products.sum() / squares.sum())


def _rank_terms(a: OfFeatures, b: OfFeatures, weight: OfFeatures) -> tuple[OfFeatures, OfFeatures]:
    """ρ as a ratio of sums over pairs: Σ w r s / Σ w (r² + s²) / 2 of their standard ranks r and s."""
    r, s = _standard_ranks(a, weight), _standard_ranks(b, weight)
    return weight * r * s, weight * (r**2 + s**2) / 2


def _standard_ranks(values: OfFeatures, weight: OfFeatures) -> OfFeatures:
    """Ranks, each in the middle of its value's weight, of weighted mean 0 and variance 1."""
    order, rank = np.argsort(values, kind="stable"), np.empty(len(values))
    rank[order] = np.cumsum(weight[order]) - weight[order] / 2
    rank -= np.average(rank, weights=weight)
    return rank / np.sqrt(np.average(rank**2, weights=weight))


# --- details


def _ring_counts(attribution: Attribution, sample: Sample, widths: Sequence[int]) -> list[dict[str, int]]:
    silent = attribution.fired == 0
    ablated = np.isin(np.arange(len(silent)), sample.features)
    return [
        {"latents": end - first, "silent": int(silent[first:end].sum()), "ablated": int(ablated[first:end].sum())}
        for first, end in pairwise((0, *widths))
    ]


def _other_nulls(sample: Sample, effects: Effects, widths: Sequence[int]) -> dict[str, list[float | None]]:
    """By prefix: KL of random directions, and the correlations that the ranking is to be compared with."""
    random = 1000 * effects.kl[RANDOM, :, ON] / effects.positions[:, ON]

    def by_width(value: Callable[[Bool[np.ndarray, " n"]], float]) -> list[float | None]:
        prefixes = [sample.features < width for width in widths]
        return [float(value(used)) if used.sum() >= RANKED else None for used in prefixes]

    return {
        "kl_random_mnat": by_width(lambda used: np.average(random[used], weights=sample.weight[used])),
        "pearson": by_width(lambda used: np.corrcoef(effects.predicted[used], effects.exact[used])[0, 1]),
        "rank_correlation_of_size": by_width(
            lambda used: rank_correlation(effects.size[used], effects.exact[used], sample.weight[used])
        ),
    }


def _ends(attribution: Attribution, widths: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """The features without which the model would predict worst, and best, to first order on all windows; in nats."""
    fired, total = attribution.fired, attribution.total
    order = np.argsort(total, kind="stable")
    order = order[fired[order] > 0]
    number = np.arange(len(fired))
    ring = np.searchsorted(widths, number, side="right")
    columns = {"feature": number, "ring": ring, "effect": total, "size": attribution.size, "firing": fired}
    return {"top": _rows(columns, order[::-1][:SHOWN]), "bottom": _rows(columns, order[:SHOWN])}


def _each_ablated(sample: Sample, effects: Effects) -> list[dict[str, Any]]:
    """The numbers of each feature of the sample, over the windows that it was ablated in."""
    kl = 1000 * effects.kl[:, :, ON] / effects.positions[:, ON]
    columns = {
        "feature": sample.features,
        "firing": effects.positions[:, ON],
        "kl_mnat": kl[ABLATED],
        "kl_matched_mnat": kl[MATCHED],
        "kl_random_mnat": kl[RANDOM],
        "ce": effects.exact,
        "ce_to_first_order": effects.predicted,
    }
    return _rows(columns, np.arange(len(sample.features)))


def _rows(columns: dict[str, np.ndarray], numbers: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    return [{name: column[i].item() for name, column in columns.items()} for i in numbers]
