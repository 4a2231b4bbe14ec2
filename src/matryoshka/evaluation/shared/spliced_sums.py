"""What reconstruction sums over the rows of several coders, from the same passes of the language model.

batch by batch:
    read        once for all coders, up to the last site
    clean       once for all coders, on from the last of the first blocks that are written into
    zero, mean  once for coders that write the same sites at the same positions (`of_one_target`)
    spliced     each coder's prefixes, and as the null the reconstruction of another token

The mean activations, which the sums need first, take one more read of the text, for all coders too. Everything is
summed by document, by position in the window, and by how frequent the token is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.tokens import Windows
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import Progress
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import LOGIT_BATCH, Rows, batches, predicting, read, read_batch, spread_windows
from matryoshka.study.splice import by_site, of_one_target, spliced

POSITION_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Bins of positions in a window: 1, 2–3, 4–7, …"""
FREQUENCY_EDGES = (0.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Bins of a token's occurrences in a million tokens of the training split."""
FREQUENCY_TOKENS = 5_000_000
"""Tokens counted for that, at most."""
FREQUENCY_WINDOWS = 1024
"""Windows of them at once."""
Groups = tuple[Int[np.ndarray, "batch position"], ...]
"""Of each position its document's, its place's and its token's group."""
Values = Mapping[str, Tensor]
"""Named, [rows] or [k, rows] each."""


class Totals:
    """Named sums over rows, apart for each of `count` groups (documents, positions, frequencies)."""

    def __init__(self, count: int) -> None:
        self.count, self._sums = count, dict[str, np.ndarray]()

    def add(self, groups: Int[np.ndarray, " rows"], values: Values) -> None:
        """Add `values` to the sums of each row's group."""
        for name, value in values.items():
            table = np.atleast_2d(value.double().cpu().numpy())
            sums = np.stack([np.bincount(groups, row, self.count) for row in table])
            self._sums[name] = self._sums.get(name, 0) + sums

    def __getitem__(self, name: str) -> Float[np.ndarray, "k groups"]:
        return self._sums[name]


class Sums:
    """One coder's, filled batch by batch."""

    def __init__(self, hooked: HookedCoder, documents: Int[np.ndarray, " documents"], device: torch.device) -> None:
        self.hooked, self.documents = hooked, documents
        self.by_document = Totals(len(documents))
        self.by_position, self.by_frequency = Totals(len(POSITION_EDGES)), Totals(len(FREQUENCY_EDGES))
        d_sae = hooked.coder.widths[-1]
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        """At how many rows each latent fires."""
        self.l0_counts = np.zeros(d_sae + 1, np.int64)
        """How many rows have 0, 1, 2 … active latents."""

    def add(self, rows: Rows, groups: Groups, mean: Float[Tensor, " d_out"], clean: "_Clean", ablated: Values) -> None:
        """One batch: sums over the positions that are kept, and over those of them that predict a token."""
        coder, latents = self.hooked.coder, rows.latents(self.hooked)
        own = Reconstructed(rows.y(self.hooked).to(coder.dtype), latents, coder.decode(latents, rows.x(self.hooked)))
        of_rows, of_scored = _of_rows(own, mean, coder.widths), {**ablated, **clean.reconstructed(own)}
        kept, scored = clean.kept.cpu().numpy(), predicting(clean.kept).cpu().numpy()
        for totals, group in zip((self.by_document, self.by_position, self.by_frequency), groups, strict=True):
            totals.add(group[kept], of_rows)
            totals.add(group[scored], of_scored)
        self.fired += latents.fired()
        self.l0_counts += np.bincount(of_rows["l0"][-1].long().cpu().numpy(), minlength=len(self.l0_counts))


@torch.no_grad()
def measure_all(
    lm: LanguageModel, windows: Windows, coders: Sequence[HookedCoder], tokens: int, progress: Progress
) -> list[Sums]:
    """The sums of each coder on windows that hold `tokens` tokens, spread over the split; `progress` counts windows."""
    numbers, targets = spread_windows(windows, tokens), of_one_target(coders)
    means = _means(lm, windows, numbers, [target[0] for target in targets])
    documents, frequencies = np.unique(windows.documents(numbers)), _frequency_bins(windows, lm.info.d_vocab)
    positions = np.searchsorted(POSITION_EDGES, np.arange(windows.context), side="right") - 1
    sums = {id(hooked): Sums(hooked, documents, lm.device) for hooked in coders}
    heads, done = [target[0].wiring.head for target in targets], 0
    for rows in read(lm, batches(windows, numbers, LOGIT_BATCH), coders, heads):
        with lm.resumed(max(heads).layer, rows.activations[max(heads)]):
            logits = lm.logits(rows.tokens)
        in_batch = np.broadcast_to(positions, rows.text.tokens.shape)
        groups = np.searchsorted(documents, rows.text.documents), in_batch, frequencies[rows.text.tokens]
        for target, head, mean in zip(targets, heads, means, strict=True):
            clean = _Clean(lm, rows, target[0], logits)
            with lm.resumed(head.layer, rows.activations[head]):
                ablated = clean.ablated(mean)
                for hooked in target:
                    sums[id(hooked)].add(rows, groups, mean, clean, ablated)
        progress(done := done + len(rows.tokens), len(numbers))
    return [sums[id(hooked)] for hooked in coders]


def _means(
    lm: LanguageModel, windows: Windows, numbers: Int[np.ndarray, " n"], coders: Sequence[HookedCoder]
) -> list[Float[Tensor, " d_out"]]:
    """The mean activation where each of these coders writes, float64."""
    totals = [torch.zeros(hooked.coder.config.d_out, dtype=torch.float64, device=lm.device) for hooked in coders]
    counts = [0] * len(coders)
    for rows in read(lm, batches(windows, numbers, read_batch(lm.device, windows.context)), coders):
        for i, hooked in enumerate(coders):
            y = rows.y(hooked)
            totals[i] += y.double().sum(0)
            counts[i] += len(y)
    return [total / count for total, count in zip(totals, counts, strict=True)]


def _frequency_bins(windows: Windows, vocabulary: int) -> Int[np.ndarray, " vocab"]:
    """The bin of FREQUENCY_EDGES of each token."""
    train, counts = windows.tokens.windows("train"), np.zeros(vocabulary, np.int64)
    numbers = spread_windows(train, FREQUENCY_TOKENS)
    for start in range(0, len(numbers), FREQUENCY_WINDOWS):
        counts += np.bincount(train[numbers[start : start + FREQUENCY_WINDOWS]].reshape(-1), minlength=vocabulary)
    return np.searchsorted(FREQUENCY_EDGES, 1e6 * counts / counts.sum(), side="right") - 1


class Reconstructed(NamedTuple):
    """A coder's rows of one batch."""

    y: Float[Tensor, "rows d_out"]
    latents: Latents
    y_hat: Float[Tensor, "prefix rows d_out"]

    @property
    def another(self) -> Float[Tensor, "rows d_out"]:
        """The reconstruction of another token in each one's place: the null."""
        return self.y_hat[-1].roll(1, 0)


def _of_rows(own: Reconstructed, mean: Float[Tensor, " d_out"], widths: Sequence[int]) -> dict[str, Tensor]:
    """What is summed over rows of the activations themselves: [rows], or [prefix, rows]."""
    y, latents = own.y.double(), own.latents
    active = (latents.values > 0).double()
    return {
        "rows": torch.ones(len(y)),
        "scatter": (y - mean).square().sum(-1),
        "energy": y.square().sum(-1),
        "error": torch.stack([(y - prefix.double()).square().sum(-1) for prefix in own.y_hat]),
        "error_null": (y - own.another.double()).square().sum(-1),
        "cosine": torch.cosine_similarity(own.y[None], own.y_hat, dim=-1),
        "cosine_null": torch.cosine_similarity(own.y, own.another, dim=-1),
        "l0": torch.stack(
            [torch.bincount(latents.rows, active * (latents.indices < width), len(y)) for width in widths]
        ),
    }


class _Clean:
    """The model's own predictions at the scored positions of one target, and what splicing there does to them."""

    def __init__(
        self, lm: LanguageModel, rows: Rows, hooked: HookedCoder, logits: Float[Tensor, "batch position vocab"]
    ) -> None:
        self.lm, self.tokens, self.writes = lm, rows.tokens, hooked.wiring.writes
        self.kept = rows.kept(hooked)
        self.scored = predicting(self.kept)[:, :-1]
        self.next = rows.tokens[:, 1:][self.scored][:, None]
        self.log_p = self._log_probabilities(logits)
        self.p = self.log_p.exp()

    def ablated(self, mean: Float[Tensor, " d_out"]) -> dict[str, Tensor]:
        """CE of the clean model, and CE and KL with zeros and with the mean in the place of what is written."""
        sums = {"scored": torch.ones(len(self.next)), "ce_clean": self._cross_entropy(self.log_p)}
        for name, value in (("zero", torch.zeros_like(mean)), ("mean", mean)):
            sums[f"ce_{name}"], sums[f"kl_{name}"] = self._spliced(value)
        return sums

    def reconstructed(self, own: Reconstructed) -> dict[str, Tensor]:
        """CE and KL with each prefix's reconstruction, and with that of another token."""
        ce_null, kl_null = self._spliced(own.another)
        ce, kl = zip(*(self._spliced(prefix) for prefix in own.y_hat), strict=True)
        return {"ce_null": ce_null, "kl_null": kl_null, "ce": torch.stack(ce), "kl": torch.stack(kl)}

    def _spliced(self, value: Float[Tensor, "*rows d_out"]) -> tuple[Tensor, Tensor]:
        with spliced(self.lm, self.kept, by_site(self.writes, value)):
            log_q = self._log_probabilities(self.lm.logits(self.tokens))
        return self._cross_entropy(log_q), (self.p * (self.log_p - log_q)).sum(-1)

    def _log_probabilities(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "scored vocab"]:
        return logits[:, :-1][self.scored].float().log_softmax(-1)

    def _cross_entropy(self, log_p: Float[Tensor, "scored vocab"]) -> Float[Tensor, " scored"]:
        return -log_p.gather(1, self.next)[:, 0]
