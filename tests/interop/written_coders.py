"""Coders of every kind as runs, and what programs of others compute from their files: in numpy, in float64."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from matryoshka.coder.architecture import BatchTopKConfig, JumpReLUConfig, ReLUConfig, TopKConfig
from matryoshka.coder.card import Card, ModelCard, SourceCard
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.run import Run

KINDS = {
    "relu": ReLUConfig(),
    "topk": TopKConfig(k=3),
    "batchtopk": BatchTopKConfig(k=3),
    "jumprelu": JumpReLUConfig(k=3),
}
Numbers = tuple[np.ndarray, np.ndarray]
"""Dense latents and outputs."""


def card(read: str, write: str, model: str = "bundled") -> Card:
    sites = SourceCard(reads=(read,), writes=(write,))
    return Card(model=ModelCard(name=model), sources=(sites,), context=64, prepend_bos=True, origin="matryoshka")


def random_coder(
    kind: str,
    read: str = "1.resid_post",
    write: str | None = None,
    d_in: int = 6,
    d_out: int | None = None,
    widths: tuple[int, ...] = (2, 5, 16),
    skip: bool = False,
    seed: int = 0,
    model: str = "bundled",
) -> SparseCoder:
    """Of random weights, whose rows have no unit norm and whose biases are none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_sae = d_out or d_in, widths[-1]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    threshold = {"jumprelu": draw(d_sae).abs(), "batchtopk": draw(1)[0].abs() + 0.1}.get(kind)
    weights = Weights(
        draw(d_in, d_sae), draw(d_sae), draw(d_sae, d_out), draw(d_out), draw(d_in, d_out) if skip else None, threshold
    )
    return SparseCoder.of(weights, KINDS[kind], widths, card(read, write or read, model))


def saved(coder: SparseCoder, folder: Path) -> Run:
    coder.save(folder / "coder")
    return Run(folder)


def inputs(d_in: int, rows: int = 40, seed: int = 9) -> torch.Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))


def ours(coder: SparseCoder, x: torch.Tensor) -> Numbers:
    """What the coder itself computes, of its whole dictionary."""
    with torch.no_grad():
        latents = coder.encode(x)
        return latents.dense().numpy(), coder.decode(latents, x)[-1].numpy()


def close(got: Numbers, want: Numbers, tolerance: float = 1e-6) -> None:
    """To `tolerance` of the largest number; the same latents are active, and some are."""
    assert (want[0] != 0).any()
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())
    assert ((got[0] != 0) == (want[0] != 0)).all()


def _tensors(file: Path) -> dict[str, np.ndarray]:
    tensors = load_file(file)
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def saelens(folder: Path, x: torch.Tensor) -> Numbers:
    """What SAELens computes from its folder."""
    config, t, data = (
        json.loads((folder / "cfg.json").read_text()),
        _tensors(folder / "sae_weights.safetensors"),
        x.double().numpy(),
    )
    assert (config["apply_b_dec_to_input"], config["normalize_activations"]) == (False, "none")
    pre = data @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0)
    if config["architecture"] == "topk":
        latents = _largest(latents, config["k"])
    if "jumprelu" in config["architecture"]:
        latents = latents * (pre > t["threshold"])
    assert ("threshold" in t) == ("jumprelu" in config["architecture"])
    skip = data @ t["W_skip"].T if "skip" in config["architecture"] else 0
    return latents, latents @ t["W_dec"] + t["b_dec"] + skip


def circuit_tracer(folder: Path, layer: int, x: torch.Tensor) -> Numbers:
    """What circuit-tracer computes from one layer of a set."""
    assert yaml.safe_load((folder / "config.yaml").read_text())["model_kind"] == "transcoder_set"
    t, data = _tensors(folder / f"layer_{layer}.safetensors"), x.double().numpy()
    known = {"W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold", "W_skip"}
    assert t.keys() <= known  # it loads strictly
    pre = data @ t["W_enc"].T + t["b_enc"]
    threshold = t.get("activation_function.threshold")
    latents = np.maximum(pre, 0) if threshold is None else pre * (pre > threshold)
    skip = data @ t["W_skip"].T if "W_skip" in t else 0
    return latents, latents @ t["W_dec"] + t["b_dec"] + skip


def sparsify(folder: Path, x: torch.Tensor) -> Numbers:
    """What sparsify computes from the folder of one hookpoint."""
    config, t, data = (
        json.loads((folder / "cfg.json").read_text()),
        _tensors(folder / "sae.safetensors"),
        x.double().numpy(),
    )
    assert (config["activation"], config["num_latents"]) == ("topk", len(t["W_dec"]))
    read = data if config["transcode"] else data - t["b_dec"]
    latents = _largest(np.maximum(read @ t["encoder.weight"].T + t["encoder.bias"], 0), config["k"])
    skip = data @ t["W_skip"].T if config["skip_connection"] else 0
    return latents, latents @ t["W_dec"] + t["b_dec"] + skip


def _largest(latents: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(latents)
    chosen = np.argsort(-latents, axis=-1, kind="stable")[:, :k]
    np.put_along_axis(kept, chosen, np.take_along_axis(latents, chosen, -1), -1)
    return kept
