"""Recordings made from latents that are known."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.observed import Observed
from matryoshka.coder.architecture import CoderConfig, ReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import from_mask
from matryoshka.coder.weights import Weights
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import EVERY_ROW, HookedCoder
from matryoshka.study.reader import Rows, Text
from matryoshka.study.recorder import CoderRows, Recorder
from matryoshka.study.recording import Head, RecordedCoder, Recording

CONTEXT = 32
SITE = Site("resid_post", 0)


def latents(seed: int, rows: int, features: int, density: float = 0.03) -> np.ndarray:
    """Dense [rows, features]: where each fires, by chance, and how strongly."""
    generator = np.random.default_rng(seed)
    return (generator.random((rows, features)) < density) * generator.uniform(0.5, 2, (rows, features))


def recorded(
    folder: Path,
    *coders: np.ndarray,
    left_out: tuple[np.ndarray, ...] = (),
    per_document: int = 64,
    tokens: np.ndarray | None = None,
    documents: np.ndarray | None = None,
    context: int = CONTEXT,
) -> list[RecordedCoder]:
    """What a recording holds of coders with these latents [rows, d_sae], the rows being whole windows of `context`;
    `left_out`: of each the rows that do not count for it; `tokens` and `documents`: of each row (default: all
    different, and `per_document` rows each)."""
    rows = len(coders[0])
    windows = rows // context
    sizes = {f"coder-{i}": coder.shape[1] for i, coder in enumerate(coders)}
    recorder = Recorder(folder, Head(of={}, context=context, total=windows, coders=sizes, columns={}))
    made = {}
    for i, coder in enumerate(coders):
        kept = ~left_out[i] if left_out else np.ones(rows, bool)
        values = torch.from_numpy(coder[kept].astype(np.float32))
        sparse = from_mask(values, values.flatten().nonzero().flatten())
        made[f"coder-{i}"] = CoderRows(kept.reshape(windows, context), np.zeros((windows, context), bool), sparse)
    places = np.arange(rows)
    tokens = places if tokens is None else tokens
    documents = places // per_document if documents is None else documents
    recorder.append(tokens.reshape(windows, context), documents.reshape(windows, context), made)
    recorder.commit()
    recorder.close()
    return [RecordedCoder(Recording(folder), key) for key in sizes]


def observed(
    folder: Path, dense: np.ndarray, hooked: HookedCoder, tokens: np.ndarray | None = None, per_document: int = 64
) -> Observed:
    """A coder with these latents on text of these tokens."""
    return Observed("planted", hooked, recorded(folder, dense, tokens=tokens, per_document=per_document)[0])


class KnownCorpus(Corpus):
    """Activations that are known, in windows of CONTEXT rows, in place of a text and its language model."""

    def __init__(self, activations: dict[Site, torch.Tensor], at_once: int = 16) -> None:
        """`activations`: [rows, d] of each site; `at_once`: windows in a batch."""
        self._activations, self._at_once = activations, at_once * CONTEXT
        self._rows = len(next(iter(activations.values())))
        self.token_bytes = [f" {number}".encode() for number in range(self._rows)]

    def rows(self, coders: Sequence[HookedCoder], sites: Iterable[Site] = ()) -> Iterator[Rows]:
        for start in range(0, self._rows, self._at_once):
            parts = {site: x[start : start + self._at_once] for site, x in self._activations.items()}
            n = min(self._at_once, self._rows - start) // CONTEXT
            tokens = torch.zeros(n, CONTEXT, dtype=torch.int64)
            text = Text(tokens.numpy(), tokens.numpy(), np.arange(n))
            yield Rows(text, tokens, {site: x.reshape(n, CONTEXT, -1) for site, x in parts.items()})


def sae(
    directions: torch.Tensor, widths: tuple[int, ...], bias: torch.Tensor | None = None, write: Site = SITE
) -> HookedCoder:
    """A coder whose decoder rows are these directions [features, d]; it reads SITE, and is an SAE unless `write` is
    another."""
    features, d = directions.shape
    weights = Weights(
        W_enc=directions.T,
        b_enc=torch.zeros(features),
        W_dec=directions,
        b_dec=torch.zeros(d) if bias is None else bias,
    )
    coder = SparseCoder.of(weights, ReLUConfig(), widths)
    return HookedCoder(coder, Wiring.of([SITE], [write]), EVERY_ROW)


def halved(directions: torch.Tensor) -> HookedCoder:
    """The same in two rings of as many features."""
    return sae(directions, (len(directions) // 2, len(directions)))


def side_by_side(names: Sequence[str], coders: Sequence[RecordedCoder], sites: Sequence[str]) -> list[Observed]:
    """Coders of these recordings, SAEs of 16 numbers at these sites with random weights."""
    made = []
    for seed, (name, recorded, site) in enumerate(zip(names, coders, sites, strict=True)):
        config = CoderConfig(
            reads=(16,), writes=(16,), d_sae=recorded.d_sae, widths=(recorded.d_sae,), activation=TopKConfig(k=2)
        )
        coder = SparseCoder(config).initialise(seed, tied=True).eval()
        wiring = Wiring.of([Site.parse(site)], [Site.parse(site)])
        made.append(Observed(name, HookedCoder(coder, wiring, EVERY_ROW, name), recorded))
    return made


def grouped(seed: int, rows: int, groups: int, size: int, density: float = 0.02) -> np.ndarray:
    """Dense [rows, groups · size]: the features of a group, which stand together, fire on the same rows four times in
    five, and now and then by themselves."""
    generator = np.random.default_rng(seed)
    fires = np.repeat(generator.random((rows, groups)) < density, size, axis=1)
    alone = generator.random(fires.shape) < density / 10
    return ((fires & (generator.random(fires.shape) < 0.8)) | alone) * generator.uniform(0.5, 2, fires.shape)


def directions(seed: int, groups: int, size: int, d: int = 64, spread: float = 0.7) -> torch.Tensor:
    """Decoder rows [groups · size, d]: those of a group lie around one direction."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, d, generator=generator).repeat_interleave(size, 0)
    return centres + spread * torch.randn(centres.shape, generator=generator)


def no_corpus() -> Corpus:
    """For analyses that ask the recording alone: it has nothing to read."""
    return object.__new__(Corpus)
