"""What the peers' programs measure with, in float64."""

from torch import Tensor


def fvu(y: Tensor, y_hat: Tensor) -> float:
    """Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean of each dimension: y, y_hat [row, d]."""
    y, y_hat = y.double(), y_hat.double()
    return float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())


def l0(latents: Tensor) -> float:
    """Active latents a row: latents [row, d_sae]."""
    return float((latents > 0).double().sum(1).mean())
