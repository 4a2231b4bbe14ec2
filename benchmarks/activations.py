"""Activations to time on: synthetic, with what speed depends on in real ones."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

SEED = 0


def synthetic(rows: int, d: int, device: str = "cpu") -> Float[Tensor, "rows d"]:
    """Sparse features in superposition, on a mean, in anisotropic noise; E‖x‖² is about 2d. The same at every call on
    the same kind of device, which is where they are made: a GPU needs seconds for what takes a CPU hours.

    What a training step costs depends on the data through the firing counts alone: BatchTopK's rows differ in length
    and some latents fire on most rows while most fire hardly ever. So feature i of 8d unit directions fires with
    probability min(0.6, 4/i), a Zipf law with some 35 features a row, with log-normal strength; the strength of a row
    as a whole varies too. The noise's variance falls as a power law over random directions, as a residual stream's
    does.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    features, chunk = 8 * d, 2048

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    directions = torch.nn.functional.normalize(normal(features, d), dim=1)
    probabilities = (4 / torch.arange(1, features + 1, device=device)).clamp(max=0.6)
    spectrum = torch.arange(1, d + 1, device=device) ** -0.5
    rotation = torch.linalg.qr(normal(d, d)).Q * (spectrum * (0.3 * d / spectrum.square().sum()).sqrt())
    mean = normal(d) * 0.7
    parts = []
    for start in range(0, rows, chunk):
        n = min(chunk, rows - start)
        fires = torch.rand(n, features, generator=generator, device=device) < probabilities
        strength = normal(n, features).mul_(0.5).exp_() * (0.3 * normal(n, 1)).exp() * (d / 40) ** 0.5
        parts.append(mean + (fires * strength) @ directions + normal(n, d) @ rotation.T)
    return torch.cat(parts)


def write(file: Path, rows: int, d: int, device: str) -> None:
    """Write them as a safetensors file with one tensor, `activations`."""
    save_file({"activations": synthetic(rows, d, device).cpu()}, file)
