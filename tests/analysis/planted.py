"""Recordings made from latents that are known."""

from pathlib import Path

import numpy as np
import torch

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.observed import Observed
from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import from_mask
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import EVERY_ROW, HookedCoder
from matryoshka.study.recorder import CoderRows, Recorder
from matryoshka.study.recording import Head, RecordedCoder, Recording

CONTEXT = 32


def latents(seed: int, rows: int, features: int, density: float = 0.03) -> np.ndarray:
    """Dense [rows, features]: where each fires, by chance, and how strongly."""
    generator = np.random.default_rng(seed)
    return (generator.random((rows, features)) < density) * generator.uniform(0.5, 2, (rows, features))


def recorded(
    folder: Path, *coders: np.ndarray, left_out: tuple[np.ndarray, ...] = (), per_document: int = 64
) -> list[RecordedCoder]:
    """What a recording holds of coders with these latents [rows, d_sae], the rows being whole windows; `left_out`: of
    each the rows that do not count for it."""
    rows = len(coders[0])
    windows = rows // CONTEXT
    sizes = {f"coder-{i}": coder.shape[1] for i, coder in enumerate(coders)}
    recorder = Recorder(folder, Head(of={}, context=CONTEXT, total=windows, coders=sizes, columns={}))
    made = {}
    for i, coder in enumerate(coders):
        kept = ~left_out[i] if left_out else np.ones(rows, bool)
        values = torch.from_numpy(coder[kept].astype(np.float32))
        sparse = from_mask(values, values.flatten().nonzero().flatten())
        made[f"coder-{i}"] = CoderRows(kept.reshape(windows, CONTEXT), np.zeros((windows, CONTEXT), bool), sparse)
    places = np.arange(rows).reshape(windows, CONTEXT)
    recorder.append(places, places // per_document, made)
    recorder.commit()
    recorder.close()
    return [RecordedCoder(Recording(folder), key) for key in sizes]


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


def observed(folder: Path, dense: np.ndarray, rows: torch.Tensor, per_document: int = 64) -> Observed:
    """A coder with these latents [rows, d_sae] and decoder rows [d_sae, d_out]."""
    [of_coder] = recorded(folder, dense, per_document=per_document)
    d_sae, d = rows.shape
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=d_sae, widths=(d_sae // 2, d_sae), activation=TopKConfig(k=4))
    coder = SparseCoder(config).eval().requires_grad_(False)
    coder.W_dec.copy_(rows)
    site = Site.parse("1.resid_post")
    return Observed("planted", HookedCoder(coder, Wiring.of([site], [site]), EVERY_ROW), of_coder)


def no_corpus() -> Corpus:
    """For analyses that ask the recording alone: it has nothing to read."""
    return object.__new__(Corpus)
