"""Sums over rows, apart for each document, position or frequency, and histograms of counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

DENSITY_EDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Bins of firing density; a latent that never fires is below all."""


class Totals:
    """Named sums over rows, apart for each of `count` groups (documents, positions, frequencies)."""

    def __init__(self, count: int) -> None:
        self.count, self._sums = count, dict[str, np.ndarray]()

    def add(self, groups: Int[np.ndarray, " rows"], values: Mapping[str, Tensor]) -> None:
        """Add `values`, [rows] or [k, rows] each, to the sums of each row's group."""
        for name, value in values.items():
            table = np.atleast_2d(value.double().cpu().numpy())
            sums = np.stack([np.bincount(groups, row, self.count) for row in table])
            self._sums[name] = self._sums.get(name, 0) + sums

    def __getitem__(self, name: str) -> Float[np.ndarray, "k groups"]:
        return self._sums[name]


def density_histogram(density: Float[np.ndarray, " d_sae"], widths: Sequence[int]) -> dict[str, Any]:
    """Latents of each ring by their density: those that never fire, then one count for each bin."""
    bins = np.searchsorted(DENSITY_EDGES, density, side="left")
    rings = np.split(bins, widths[:-1])
    return {"edges": list(DENSITY_EDGES), "rings": [np.bincount(r, minlength=8)[:8].tolist() for r in rings]}


def add_counts(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> Int[np.ndarray, " k"]:
    """Their sum, as long as the longer."""
    size = max(len(a), len(b))
    return np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b)))
