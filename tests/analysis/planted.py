"""Recordings made from latents that are known."""

from pathlib import Path

import numpy as np
import torch

from matryoshka.coder.latents import from_mask
from matryoshka.study.recorder import CoderRows, Recorder
from matryoshka.study.recording import Head, RecordedCoder, Recording

CONTEXT = 32


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
) -> list[RecordedCoder]:
    """What a recording holds of coders with these latents [rows, d_sae], the rows being whole windows; `left_out`: of
    each the rows that do not count for it. Without `tokens` and `documents` of the rows, tokens are numbered and
    documents are `per_document` rows long."""
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
    places = np.arange(rows)
    tokens = places if tokens is None else tokens
    documents = places // per_document if documents is None else documents
    recorder.append(tokens.reshape(windows, CONTEXT), documents.reshape(windows, CONTEXT), made)
    recorder.commit()
    recorder.close()
    return [RecordedCoder(Recording(folder), key) for key in sizes]
