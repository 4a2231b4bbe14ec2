"""Files of other programs: those that they wrote themselves, and what they compute of some that are made here."""

from pathlib import Path

import numpy as np
import torch

from matryoshka.coder.coder import SparseCoder

GOLDEN = Path(__file__).parent / "golden"
"""See its README."""
D, F, N = 6, 16, 40


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """x, latents, out and more, as the program that wrote the folder computed them."""
    with np.load(folder / "io.npz") as stored:
        return {name: stored[name] for name in stored.files}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs() -> np.ndarray:
    """Activations [N, D]; one row of them next to nothing."""
    x = draw(N, D, seed=99) * 1.5 + 0.7
    x[-1] *= 0.01
    return x


def top(pre: np.ndarray, k: int) -> np.ndarray:
    """ReLU of the k largest of each row."""
    cut = np.sort(pre, axis=1)[:, -k][:, None]
    return np.maximum(pre, 0) * (pre >= cut)


def compare(coder: SparseCoder, x: np.ndarray, latents: np.ndarray, out: np.ndarray, tolerance: float = 1e-5) -> None:
    """The same latents are active, and they and what they decode to differ by `tolerance` of the largest at most."""
    with torch.no_grad():
        encoded = coder.encode(torch.from_numpy(x.astype(np.float32)))
        decoded = coder.decode(encoded, torch.from_numpy(x.astype(np.float32)))[-1].numpy()
    dense = encoded.dense().numpy()
    assert not coder.training
    assert dense.any()
    np.testing.assert_array_equal(dense != 0, latents != 0)
    for ours, theirs in ((dense, latents), (decoded, out)):
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
