"""Activations of a model that were written once (`write_rows.py`), as every contender and the judge read them.

FOLDER/  index.json  train.f32  held_out.f32        float32, little-endian, one row [d] after the other
"""

import json
import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_index(folder: Path) -> dict[str, Any]:
    """What the folder holds."""
    return json.loads((folder / "index.json").read_text())


class StoredRows:
    """The rows of a split, `train` or `held_out`, memory-mapped."""

    def __init__(self, folder: Path, split: str) -> None:
        with (folder / f"{split}.f32").open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.rows = np.frombuffer(self.map, "<f4").reshape(-1, read_index(folder)["d"])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: np.ndarray) -> Tensor:
        """A copy of the rows with these numbers, float32 [n, d]."""
        taken = torch.from_numpy(self.rows.take(numbers, axis=0))
        # or the pages of the file would count as this process' memory, the more of them the longer it trains
        self.map.madvise(mmap.MADV_DONTNEED)
        return taken


def training_order(stored: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Numbers of the rows of each batch [steps, batch]: of as many stored rows as are needed, each once in an order
    that depends on nothing but `seed`; where they do not suffice, all of them again in another order, and so on."""
    needed = steps * batch
    rows = min(stored, needed)
    epochs = (np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(-(-needed // rows)))
    return np.concatenate(list(epochs))[:needed].reshape(steps, batch)


def fingerprint(order: np.ndarray) -> int:
    """Of an order: two contenders that say the same were given the same rows in the same order."""
    return zlib.crc32(order.astype("<i8").tobytes())
