"""How well coders of synthetic activations recover the features that these are made of, which are known exactly.

As SynthSAEBench scores them (arXiv:2602.14687), for each prefix of the dictionary, on fresh samples:

    F1                   each latent as a detector of the feature that its decoder row is most along (|cosine|), mean
    MCC                  the mean |cosine| of decoder rows and directions, matched one to one so that it is largest
    uniqueness           different features that latents are most along, over latents
    variance explained   1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²
    L0, silent           active latents a sample; latents that never are

and, what an absorbed feature lacks: *parents' recall*. Of each feature that has children and a latent of its own (each
is what the other is most along), how often that latent is active where the feature and one of its children are on, and
where the feature is on alone. The difference is absorption, with nothing to guess: no probe, no threshold.

Intervals resample latents, parents or blocks of samples; latents are independent only as far as their forest lets them.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from matryoshka.data.stream import seeded
from matryoshka.evaluation.shared.known_counts import Blocks, KnownCounts, count_all
from matryoshka.evaluation.subject import KnownSubject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, Result, Score, score

_of_latents = partial(Measure, better="higher", unit="latent", paired=False, of_target=True)
F1 = _of_latents(
    "F1",
    meaning="2 · both / (active + on) of each latent and the feature that its decoder row is most along, mean.",
    null="the feature of another latent",
)
MCC = _of_latents(
    "MCC",
    meaning="|cosine| of decoder rows and true directions, matched one to one so that the sum is largest, mean.",
    null="random directions in place of the decoder's rows",
)
UNIQUENESS = Measure(
    "uniqueness",
    "higher",
    "Different features that latents are most along, over latents.",
    unit="dictionary",
    of_target=True,
)
EXPLAINED = Measure(
    "variance explained",
    "higher",
    "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean over all samples; that is 1 − FVU.",
    unit="block of samples",
    of_target=True,
)
ABSORBED = Measure(
    "absorbed",
    "lower",
    "Recall of parents by their own latents where no child is on, less that where one is, mean over parents.",
    unit="feature",
    percent=True,
    of_target=True,
)
_recall = partial(
    Measure,
    better="higher",
    unit="feature",
    null="how often those latents are active at all",
    headline=False,
    of_target=True,
)
WITH_CHILD = _recall(
    "parents' recall, child on",
    meaning="How often a parent's own latent is active where the parent and a child of it are on, mean over parents.",
)
WITHOUT_CHILD = _recall(
    "parents' recall, no child on",
    meaning="How often a parent's own latent is active where the parent is on and no child of it, mean over parents.",
)
TRACKED = Measure(
    "features tracked",
    "higher",
    "Features with a latent of their own (each is what the other is most along), over latents.",
    unit="dictionary",
    headline=False,
    of_target=True,
)
L0 = Measure("L0", "neither", "Mean number of active latents a sample.", unit="block of samples")
SILENT = Measure(
    "silent", "lower", "Share of latents that are active on no sample here.", unit="dictionary", percent=True
)
DEAD = replace(
    SILENT,
    name="dead",
    meaning="Share of latents that did not fire in the last samples of training (dead_after_tokens).",
    headline=False,
)
MEASURES = (F1, MCC, UNIQUENESS, EXPLAINED, ABSORBED, L0, SILENT, WITH_CHILD, WITHOUT_CHILD, TRACKED, DEAD)
READS_LABELS = False
VERSION = 1


def evaluate(subject: KnownSubject, progress: Progress = silent) -> Result:
    """All measures of one coder on fresh samples, for each of its prefixes; `progress` counts samples.

    Details: precision, recall and accuracy, mean over latents, and how many features are truly on.
    """
    counts = subject.own(count_all, progress)
    blocks = counts.blocks()
    scores = [
        score
        for width in subject.widths
        for score in (*_of_dictionary(subject, counts, width), *_of_parents(counts, width))
    ]
    return Result((*scores, *_of_samples(counts, blocks)), _details(subject, counts, blocks))


def _of_dictionary(subject: KnownSubject, counts: KnownCounts, width: int) -> Iterator[Score]:
    """Of the first `width` latents."""
    names, detection, dead = range(width), counts.detection(), subject.hooked.dead
    f1, chance = (of.f1()[:width].cpu().numpy() for of in (detection, counts.shuffled()))
    yield score(F1, width, names, f1, null=chance.mean())
    cosines = counts.matches.cosines[:width].numpy()
    latents, matched = matched_cosines(cosines)
    random = matched_cosines(_random_cosines(counts, width))[1]
    yield score(MCC, width, latents, matched, null=float(random.mean()))
    different = len(counts.matches.feature_of[:width].unique())
    tracked = int((counts.matches.latent_of[counts.matches.tracked] < width).sum())
    never = int((detection.active[:width] == 0).sum())
    for measure, number in ((UNIQUENESS, different), (TRACKED, tracked), (SILENT, never)):
        yield score(measure, width, ["all"], [number], [width])
    if dead is not None:
        yield score(DEAD, width, ["all"], [sum(latent < width for latent in dead)], [width])


def matched_cosines(
    cosines: Float[np.ndarray, "latents features"],
) -> tuple[np.ndarray, Float[np.ndarray, " pairs"]]:
    """(latents, their |cosines|) of the one-to-one matching whose sum is largest; of all, or of as many as there are
    features."""
    latents, features = linear_sum_assignment(cosines, maximize=True)
    return latents, cosines[latents, features]


def _random_cosines(counts: KnownCounts, width: int) -> Float[np.ndarray, "latents features"]:
    directions = counts.model.forest.directions.cpu()
    rows = torch.randn(width, directions.shape[1], generator=seeded(torch.device("cpu"), width))
    return ((rows / rows.norm(dim=1, keepdim=True)) @ directions.T).abs().numpy()


def _of_parents(counts: KnownCounts, width: int) -> Iterator[Score]:
    """Of the features with children and a latent of their own below `width`, seen both with and without a child."""
    (with_child, hits_with), (alone, hits_alone) = counts.parents[True], counts.parents[False]
    own = counts.matches.tracked & (counts.matches.latent_of < width)
    parents = (own & (with_child > 0) & (alone > 0)).nonzero()[:, 0]
    if len(parents) == 0:
        return
    recall_with, recall_alone = (
        (hits[parents] / seen[parents]).double().cpu().numpy()
        for hits, seen in ((hits_with, with_child), (hits_alone, alone))
    )
    names = [f"{counts.model.config.hash}/{parent}" for parent in parents.tolist()]
    yield score(ABSORBED, width, names, recall_alone - recall_with)
    chance = float(counts.detection().active[counts.matches.latent_of[parents]].double().mean()) / counts.samples
    yield score(WITH_CHILD, width, names, recall_with, null=chance)
    yield score(WITHOUT_CHILD, width, names, recall_alone, null=chance)


def _of_samples(counts: KnownCounts, blocks: Blocks) -> Iterator[Score]:
    names = [f"{counts.model.config.hash}/{i}" for i in range(len(blocks.rows))]
    rows, scatter = blocks.rows.numpy(), blocks.scatter.numpy()
    for prefix, width in enumerate(counts.hooked.coder.widths):
        yield score(EXPLAINED, width, names, scatter - blocks.errors[prefix].numpy(), scatter)
        yield score(L0, width, names, blocks.active[prefix].numpy(), rows)


def _details(subject: KnownSubject, counts: KnownCounts, blocks: Blocks) -> dict[str, object]:
    of, samples = counts.detection(), counts.samples
    active, on, both = (values.double() for values in of)
    wrong = active + on - 2 * both
    return {
        "model": counts.model.info.name,
        "widths": list(subject.widths),
        "samples": samples,
        "true_l0": int(blocks.on.sum()) / samples,
        "precision": float((both / active.clamp(min=1)).mean()),
        "recall": float((both / on.clamp(min=1)).mean()),
        "accuracy": float((1 - wrong / samples).mean()),
    }
