"""Recordings made from latents that are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

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


def observed(names: Sequence[str], coders: Sequence[RecordedCoder], sites: Sequence[str]) -> list[Observed]:
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
