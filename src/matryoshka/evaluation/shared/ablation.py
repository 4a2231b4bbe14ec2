"""Some living features really ablated in a few windows, and what the model then predicts.

1. a seeded sample of the features that fire, as many from each ring
2. for each a few windows that it fires in, of different documents
3. y' = y − a_f W_dec[f] in them: KL(clean ‖ ablated) and ΔCE of the predictions made at the tokens that the feature
   fires on ("on"), and at the later ones of the window ("after")
4. the nulls: changes of the same size at the same positions along other directions, namely the decoder row of
   another feature that fires as often ("matched"), and a random one ("random")
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.data.tokens import Windows
from matryoshka.interventions.attribution import Attribution
from matryoshka.interventions.changes import activations, shifted
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import LOGIT_BATCH, batches, predicting, read

SAMPLE = 120
"""Features that are ablated, as many from each ring."""
WINDOWS = 3
"""Windows that each of them is ablated in, at most."""
ABLATED, MATCHED, RANDOM = range(3)
"""Kinds of change."""
ON, AFTER = range(2)
"""Places."""


class Sample(NamedTuple):
    """The features that are ablated."""

    features: Int[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    """How many living features of its ring each stands for."""
    matched: Int[np.ndarray, " n"]
    """For each, another living feature that fires about as often."""


class Effects(NamedTuple):
    """Sums over the positions of all windows that a sampled feature was ablated in, in nats."""

    kl: Float[np.ndarray, "kind n place"]
    ce: Float[np.ndarray, "kind n place"]
    positions: Int[np.ndarray, "n place"]
    predicted: Float[np.ndarray, " n"]
    """ΔCE of the ablation to first order, ON and AFTER together."""
    size: Float[np.ndarray, " n"]
    """Σ ‖a_f W_dec[f]‖."""

    @property
    def exact(self) -> Float[np.ndarray, " n"]:
        """ΔCE of the ablation, ON and AFTER together: what `predicted` foretells."""
        return self.ce[ABLATED].sum(-1)


def draw_sample(
    count: Int[np.ndarray, " d_sae"], widths: Sequence[int], generator: np.random.Generator, size: int = SAMPLE
) -> Sample:
    """`size` / rings of the features of each ring that fire, or all there are; NotMeasurable if none does.

    `count`: at how many positions each fires.
    """
    if not count.any():
        raise NotMeasurable(f"none of the {len(count):,} features fires on the text measured here")
    features, weight = [], []
    for first, end in pairwise((0, *widths)):
        living = first + np.flatnonzero(count[first:end])
        chosen = np.sort(generator.permutation(living)[: max(1, size // len(widths))])
        features.append(chosen)
        weight.append(np.full(len(chosen), len(living) / max(1, len(chosen))))
    sampled = np.concatenate(features)
    return Sample(sampled, np.concatenate(weight), _as_frequent(count, sampled, generator))


def _as_frequent(
    count: Int[np.ndarray, " d_sae"], features: Int[np.ndarray, " n"], generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """For each of `features` the one next to it among all that fire, ordered by how often they do."""
    ordered = generator.permutation(np.flatnonzero(count))  # those that fire equally often are in no order
    ordered = ordered[np.argsort(count[ordered], kind="stable")]
    place = np.empty(len(count), np.int64)
    place[ordered] = np.arange(len(ordered))
    following = place[features] + 1
    return ordered[np.where(following < len(ordered), following, len(ordered) - 2)]


def draw_trials(
    attribution: Attribution, sample: Sample, windows: Windows, generator: np.random.Generator
) -> dict[int, list[int]]:
    """Row of the attribution → which of the sampled features are ablated there: each in WINDOWS random ones of those
    that it fires in, no two of which begin in the same document."""
    document = windows.documents(attribution.windows)[:, 0]
    firing = attribution.firing.tocsc()
    trials = defaultdict[int, list[int]](list)
    for i, feature in enumerate(sample.features):
        rows = generator.permutation(firing.indices[firing.indptr[feature] : firing.indptr[feature + 1]])
        _, first = np.unique(document[rows], return_index=True)
        for row in rows[np.sort(first)][:WINDOWS]:
            trials[int(row)].append(i)
    return dict(sorted(trials.items()))


@torch.no_grad()
def ablate(
    lm: LanguageModel,
    windows: Windows,
    hooked: HookedCoder,
    attribution: Attribution,
    sample: Sample,
    trials: Mapping[int, Sequence[int]],
    generator: np.random.Generator,
    progress: Progress,
) -> Effects:
    """Run every trial, window by window: the clean pass is shared by the features that are ablated in it.

    `progress` goes on counting windows after those of the attribution.
    """
    directions = _directions(hooked, sample, generator)
    length, n = directions[ABLATED].norm(dim=1).cpu().numpy(), len(sample.features)
    effects = Effects(np.zeros((3, n, 2)), np.zeros((3, n, 2)), np.zeros((n, 2), np.int64), np.zeros(n), np.zeros(n))
    head = hooked.wiring.head
    texts = batches(windows, attribution.windows[list(trials)], size=1)
    for done, (rows, row) in enumerate(zip(read(lm, texts, [hooked], [head]), trials, strict=True), 1):
        places, kept = trials[row], predicting(rows.kept(hooked))
        features = torch.from_numpy(sample.features[places]).to(lm.device)
        a = activations(hooked.coder.encode(rows.at(hooked.wiring.reads, kept)), features)
        with lm.resumed(head.layer, rows.activations[head]):
            kl, ce = changes_along(lm, hooked.wiring.writes, rows.tokens, kept, a, directions[:, places])
        fires = a.T > 0
        for place, mask in ((ON, fires), (AFTER, ~fires & (fires.cumsum(1) > 0))):
            effects.kl[:, places, place] += (kl * mask).sum(-1).cpu().numpy()
            effects.ce[:, places, place] += (ce * mask).sum(-1).cpu().numpy()
            effects.positions[places, place] += mask.sum(-1).cpu().numpy()
        effects.predicted[places] += attribution.effect[[row]][:, sample.features[places]].toarray()[0]
        effects.size[places] += a.sum(0).cpu().numpy() * length[places]
        progress(len(attribution.windows) + done, len(attribution.windows) + len(trials))
    return effects


def _directions(hooked: HookedCoder, sample: Sample, generator: np.random.Generator) -> Float[Tensor, "kind n d_out"]:
    """What one unit of each sampled feature's activation takes off: all kinds as long as its decoder row."""
    pair = torch.from_numpy(np.stack([sample.features, sample.matched])).to(hooked.coder.device)
    own, other = map(hooked.coder.decoder_rows, pair)
    anything = torch.from_numpy(generator.standard_normal(own.shape)).to(own)
    length = own.norm(dim=1, keepdim=True)
    return torch.stack([own, *(length * F.normalize(rows, dim=1) for rows in (other, anything))])


@torch.no_grad()
def changes_along(
    lm: LanguageModel,
    sites: Sequence[Site],
    tokens: Int[Tensor, "1 position"],
    kept: Bool[Tensor, "1 position"],
    a: Float[Tensor, "rows n"],
    directions: Float[Tensor, "kind n d_out"],
) -> Float[Tensor, "2 kind n rows"]:
    """KL from the clean prediction and ΔCE, in nats, at each kept position of a window once a · direction is taken off
    there.

    The rows of a batch are the same window, each with its own feature's change.
    """
    target = tokens.roll(-1, 1)[kept][:, None]

    def log_probabilities(copies: int) -> Float[Tensor, "copies rows vocab"]:
        return lm.logits(tokens.expand(copies, -1))[:, kept[0]].float().log_softmax(-1)

    clean = log_probabilities(1)[0]
    p = clean.exp()
    effects = []
    amounts = a.T.repeat(len(directions), 1)
    for amount, direction in zip(amounts.split(LOGIT_BATCH), directions.flatten(0, 1).split(LOGIT_BATCH), strict=True):
        by = a.new_zeros(len(amount), tokens.shape[1], direction.shape[1])
        by[:, kept[0]] = -amount[:, :, None] * direction[:, None]
        with shifted(lm, sites, by):
            fall = clean - log_probabilities(len(by))
        effects.append(torch.stack([(p * fall).sum(-1), fall.gather(2, target.expand(len(by), -1, 1))[:, :, 0]]))
    return torch.cat(effects, 1).double().unflatten(1, directions.shape[:2])
