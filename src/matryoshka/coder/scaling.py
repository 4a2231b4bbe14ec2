"""The constants that stand around a coder in training, and how they are folded into its weights.

    x' = scale_in · x − b_in,   y' = scale_out · y         one scale for each site, so that E‖·‖² is its dimension

b_in is the mean of scale_in · x. All are estimated once from the first activations. What is saved is folded: the same
function of raw activations, with no constants left.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matryoshka.coder.architecture import CoderConfig, JumpReLUConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError

ROWS = 8192
"""Of a weight that are float64 at once."""


class Scaling(nn.Module):
    """Raw activations → what the coder in training sees. Its buffers are part of a checkpoint."""

    b_in: Tensor
    scale_in: Tensor
    scale_out: Tensor

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("b_in", torch.zeros(config.d_in))
        self.register_buffer("scale_in", torch.ones(len(config.reads)))
        self.register_buffer("scale_out", torch.ones(len(config.writes)))

    @torch.no_grad()
    def measure(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> "Scaling":
        """Fix the constants. Raises MatryoshkaError for activations that have no scale."""
        for what, values, sizes, scales in (
            ("read", x, self.config.reads, self.scale_in),
            ("written", y, self.config.writes, self.scale_out),
        ):
            for i, site in enumerate(values.to(self.b_in.dtype).split(sizes, dim=1)):
                scales[i] = _scale(site, what)
        self.b_in.copy_(_columns(self.scale_in, self.config.reads) * x.to(self.b_in.dtype).mean(0))
        return self

    def x(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What is read, scaled and centred."""
        return x.to(self.b_in.dtype) * _columns(self.scale_in, self.config.reads) - self.b_in

    def y(self, y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """What is to be written, scaled."""
        return y.to(self.b_in.dtype) * _columns(self.scale_out, self.config.writes)

    @torch.no_grad()
    def fold(self, coder: SparseCoder) -> SparseCoder:
        """A copy of `coder`, in eval mode, with the constants moved into the weights in float64: the same function of
        raw activations. Its latents are the old ones divided by the (mean) scale_out: with one written site decoder
        rows stay as they are, and latents times them are in the raw units of the target."""
        unit = self.scale_out.double().mean()
        into = _columns(self.scale_in.double(), self.config.reads)
        out = _columns(self.scale_out.double(), self.config.writes)
        b_in = self.b_in.double()
        folded = copy.deepcopy(coder)
        for start in range(0, self.config.d_sae, ROWS):
            some = slice(start, start + ROWS)
            encoder, decoder = coder.W_enc.T[some].double(), coder.W_dec[some].double()
            folded.b_enc[some] = ((coder.b_enc[some].double() - encoder @ b_in) / unit).to(coder.dtype)
            folded.W_enc.T[some] = (encoder * into / unit).to(coder.dtype)
            folded.W_dec[some] = (decoder * (unit / out)).to(coder.dtype)
        b_dec = coder.b_dec.double()
        if coder.W_skip is not None and folded.W_skip is not None:
            skip = coder.W_skip.double()
            b_dec = b_dec - b_in @ skip
            folded.W_skip.copy_(into[:, None] * skip / out)
        folded.b_dec.copy_(b_dec / out)
        factor = 1 / unit.item()
        folded.activation.rescale(factor)
        if isinstance(activation := coder.config.activation, JumpReLUConfig):
            scaled = activation.model_copy(update={"bandwidth": activation.bandwidth * factor})
            folded.config = coder.config.model_copy(update={"activation": scaled})
        return folded.eval()


def _scale(site: Float[Tensor, "batch d"], what: str) -> float:
    power = site.double().square().sum(-1).mean()
    if not (torch.isfinite(power) and power > 0):
        raise MatryoshkaError(f"cannot scale the {what} activations: their mean squared norm is {power.item()}")
    return (site.shape[1] / power).sqrt().item()


def _columns(scales: Float[Tensor, " sites"], sizes: Sequence[int]) -> Float[Tensor, " d"]:
    """Each site's scale, for every column of that site; of a single site just that."""
    return scales if len(sizes) == 1 else torch.repeat_interleave(scales, torch.tensor(sizes, device=scales.device))
