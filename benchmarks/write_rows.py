"""Activations of a real model at one site, written once for all that train on them (peers/rows.py reads them).

1. the training windows in the order of our own stream, and as many held-out ones as are needed, through the model;
   BOS, first tokens and attention sinks are left out of both
2. scaled by one constant, taken from the first chunk, so that E‖x‖² = d
3. stored as float32: in float16 large entries of a residual stream would not fit, and bfloat16 would round every
   row by up to 0.4 % of it, which is not small beside what a good coder leaves unexplained
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.rows import read_index
from torch import Tensor

from matryoshka.data.sections import TextConfig
from matryoshka.data.stream import LiveChunks
from matryoshka.data.tokens import tokenise
from matryoshka.files import replaced_folder
from matryoshka.lm.model import load
from matryoshka.lm.sites import Site
from matryoshka.progress import progress_bar

CHUNK = 16_384
"""Tokens read at once."""
HELD_OUT = 32_768
"""Rows to judge on, at most."""
SEED = 0
"""Of the order of the windows."""


def stored_rows(folder: Path, model: str, site: str, rows: int) -> dict[str, Any]:
    """The index of the folder, which is written unless it holds `rows` training rows, or all that the text has.

    More rows begin with the same ones: what was trained on fewer of them stays what it was.
    """
    if (folder / "index.json").exists():
        index = read_index(folder)
        if (index["model"], index["site"]) != (Path(model).name, site):
            raise SystemExit(f"{folder} holds {index['site']} of {index['model']}: give another --cache")
        if index["train"] >= rows or index["whole_text"]:
            return index
    with replaced_folder(folder) as new, progress_bar(f"writing activations to {folder}") as update:
        lm = load(model)
        tokens = tokenise(TextConfig(), *lm.vocabulary)
        where = Site.parse(site)
        train, held_out = (LiveChunks(lm, tokens.windows(split), [where], CHUNK) for split in ("train", "held_out"))
        held_out.keep = train.keep
        first = next(_activations(train, where))
        scale = (first.shape[1] / first.double().square().sum(1).mean()).sqrt().item()
        index = {"model": Path(model).name, "site": site, "d": first.shape[1], "scale": scale, "text": tokens.hash}
        index["train"] = _write(new / "train.f32", _activations(train, where), scale, rows, update)
        index["held_out"] = _write(new / "held_out.f32", _activations(held_out, where), scale, HELD_OUT, update)
        index["whole_text"] = index["train"] < rows
        (new / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    return index


def _activations(chunks: LiveChunks, site: Site) -> Iterator[Tensor]:
    for index in range(len(chunks)):
        chunk = chunks.chunk(SEED, 0, index)
        yield chunk.activations[site][chunk.rows]


def _write(file: Path, chunks: Iterator[Tensor], scale: float, rows: int, update: Any) -> int:
    """Write at most so many rows; returns how many."""
    written = 0
    with file.open("wb") as opened:
        while written < rows and (chunk := next(chunks, None)) is not None:
            some = chunk[: rows - written].to("cpu", torch.float32) * scale
            opened.write(some.numpy().astype(np.dtype("<f4")).tobytes())
            written += len(some)
            update(written, rows)
    return written
