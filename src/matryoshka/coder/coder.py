"""The sparse coder: SAE, transcoder and skip transcoder in one class.

    x' = scale_in · x − b_in
    pre = x' W_enc + b_enc                                    [batch, d_sae]
    latents = activation(pre)                                 sparse
    ŷ'_m = b_dec + Σ_{j < n_m} latents_j W_dec[j] (+ x' W_skip)   one reconstruction for each prefix n_m of `widths`
    ŷ_m = ŷ'_m / scale_out

An SAE reads and writes the same site; a transcoder's d_in and d_out may differ. A plain SAE has widths == (d_sae,).
The scales are constants that make E‖·‖² = d at both ends, b_in the mean of x'; both are estimated once from the first
activations (`calibrate`). Callers see raw units; `fold` moves the constants into the weights.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from matryoshka.coder import io
from matryoshka.coder.activations import build
from matryoshka.coder.kernels import operations
from matryoshka.coder.latents import Latents
from matryoshka.coder.names import ActivationName
from matryoshka.coder.nesting import check_ascending, nested_decode, nested_errors
from matryoshka.coder.sparse import pre_activations
from matryoshka.errors import MatryoshkaError

Size = Annotated[int, Field(ge=1, lt=2**31)]


class CoderConfig(BaseModel):
    """What a coder's tensors look like; with the weights it is all that a coder is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: Size
    d_out: Size
    d_sae: Size
    widths: tuple[int, ...]
    activation: ActivationName
    k: Size
    bandwidth: Annotated[float, Field(gt=0)] = 0.1
    skip: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "CoderConfig":
        try:
            check_ascending(self.widths, self.d_sae)
        except MatryoshkaError as error:
            raise ValueError(str(error)) from None
        if self.widths[-1] != self.d_sae or self.k > self.d_sae:
            raise ValueError(f"widths {self.widths} must end with, and k {self.k} not exceed, d_sae {self.d_sae}")
        return self


class Forward(NamedTuple):
    """One training forward pass, in scaled units."""

    inputs: Float[Tensor, "batch d_in"]
    y: Float[Tensor, "batch d_out"]
    selected: Latents
    """The pattern with pre-activations as values."""
    latents: Latents
    errors: Float[Tensor, " prefix"]
    """‖y − ŷ_m‖² of every prefix, mean over the batch."""
    residual: Float[Tensor, "batch d_out"]
    """y − ŷ of the whole dictionary, without a gradient."""


class SparseCoder(nn.Module):
    """See the module's docstring. `metadata` says what it was trained on (model, sites …) and is saved along."""

    b_in: Tensor
    scale_in: Tensor
    scale_out: Tensor
    tokens_since_fired: Tensor

    def __init__(self, config: CoderConfig, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.metadata = config, dict(metadata or {})
        d_in, d_out, d_sae = config.d_in, config.d_out, config.d_sae
        # each latent's encoder weights lie together in memory, as its decoder weights do
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out)) if config.skip else None
        self.activation = build(config.activation, config.k, d_sae, config.bandwidth)
        self.register_buffer("b_in", torch.zeros(d_in))
        self.register_buffer("scale_in", torch.ones(()))
        self.register_buffer("scale_out", torch.ones(()))
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))

    @torch.no_grad()
    def initialise(self, seed: int, tied: bool) -> "SparseCoder":
        """Random decoder rows of unit norm; `tied`: the encoder starts as their transpose (an SAE's), otherwise its
        columns are random unit vectors of their own."""
        if tied and self.config.d_in != self.config.d_out:
            raise MatryoshkaError(f"tied weights need d_in = d_out, got {self.config.d_in} and {self.config.d_out}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(self.W_dec.shape, generator=generator)
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        if tied:
            self.W_enc.copy_(self.W_dec.T)
        else:
            columns = torch.randn(self.W_enc.shape, generator=generator)
            self.W_enc.copy_(columns / columns.norm(dim=0))
        return self

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> "SparseCoder":
        """Fix the constants from the first activations: scales, b_in, and the start of b_dec and of thresholds."""
        x, y = x.to(self.W_enc.dtype), y.to(self.W_dec.dtype)
        for name, values in (("read", x), ("written", y)):
            power = values.double().square().sum(-1).mean()
            if not (torch.isfinite(power) and power > 0):
                raise MatryoshkaError(f"cannot scale the {name} activations: their mean squared norm is {power.item()}")
            (self.scale_in if name == "read" else self.scale_out).fill_((values.shape[1] / power).sqrt().item())
        self.b_in.copy_(self.scale_in * x.mean(0))
        self.b_dec.copy_(self.scale_out * y.mean(0))
        self.activation.calibrate(self._pre(self.inputs(x)))
        return self

    def inputs(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Raw activations scaled and centred: x' of the module's docstring."""
        return x.to(self.W_enc.dtype) * self.scale_in - self.b_in

    @torch.no_grad()
    def _pre(self, inputs: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        # it only selects, so under autocast it may be bfloat16
        return operations(inputs).product(inputs, self.W_enc, self.b_enc)

    def _select(self, inputs: Float[Tensor, "batch d_in"]) -> Latents:
        return pre_activations(inputs, self.W_enc, self.b_enc, self.activation.select(self._pre(inputs)))

    def reconstruct(
        self, latents: Latents, inputs: Tensor | None, widths: Sequence[int]
    ) -> Float[Tensor, "prefix batch d_out"]:
        """`decode` in scaled units, from scaled and centred `inputs`."""
        y_hat = nested_decode(latents, self.W_dec, widths) + self.b_dec
        if self.W_skip is None:
            return y_hat
        if inputs is None:
            raise MatryoshkaError("a skip transcoder decodes from its latents and its input: decode(latents, x)")
        return y_hat + (inputs @ self.W_skip).to(y_hat.dtype)

    def forward(
        self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], widths: Sequence[int] | None = None
    ) -> Forward:
        """The training pass on raw `x` and `y`; the prefixes of `widths` (default: the coder's own) are its errors."""
        inputs, y = self.inputs(x), y.to(self.W_dec.dtype) * self.scale_out
        selected = self._select(inputs)
        latents = self.activation.activate(selected)
        errors, residual = self.errors(latents, y, inputs, widths or self.config.widths)
        return Forward(inputs, y, selected, latents, errors, residual)

    def errors(
        self,
        latents: Latents,
        y: Float[Tensor, "batch d_out"],
        inputs: Float[Tensor, "batch d_in"],
        widths: Sequence[int],
    ) -> tuple[Float[Tensor, " prefix"], Float[Tensor, "batch d_out"]]:
        """`Forward.errors` and `Forward.residual` of these latents, in scaled units."""
        target = y - self.b_dec
        if self.W_skip is not None:
            target = target - (inputs @ self.W_skip).to(y.dtype)
        return nested_errors(latents, self.W_dec, target, widths)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        """Sparse latents of raw activations (in eval mode: by the inference threshold)."""
        return self.activation.activate(self._select(self.inputs(x)))

    def decode(
        self,
        latents: Latents,
        x: Float[Tensor, "batch d_in"] | None = None,
        widths: Sequence[int] | None = None,
    ) -> Float[Tensor, "prefix batch d_out"]:
        """One reconstruction in raw units for each prefix of `widths` (default: the coder's own). A skip coder needs
        `x`."""
        if widths is not None:
            check_ascending(widths, self.config.d_sae)
        inputs = None if x is None else self.inputs(x)
        return self.reconstruct(latents, inputs, widths or self.config.widths) / self.scale_out

    def dead(self, after_tokens: int) -> Bool[Tensor, " d_sae"]:
        """Latents that did not fire in the last `after_tokens` tokens of training."""
        return self.tokens_since_fired >= after_tokens

    @torch.no_grad()
    def fold(self) -> "SparseCoder":
        """A copy with the constants moved into the weights: scales 1, b_in 0, decoder rows unchanged, the same
        function.

        Its latents are the old ones divided by scale_out, so that they times W_dec are in the raw units of the target.
        """
        coder = copy.deepcopy(self)
        unit = 1 / self.scale_out
        coder.b_enc.copy_((self.b_enc - self.b_in @ self.W_enc) * unit)
        coder.W_enc.copy_(self.W_enc * self.scale_in * unit)
        coder.b_dec.copy_(self.b_dec * unit)
        if coder.W_skip is not None and self.W_skip is not None:
            coder.b_dec -= self.b_in @ self.W_skip * unit
            coder.W_skip.copy_(self.W_skip * self.scale_in * unit)
        coder.activation.rescale(unit.item())
        coder.config = self.config.model_copy(update={"bandwidth": self.config.bandwidth * unit.item()})
        coder.b_in.zero_()
        coder.scale_in.fill_(1)
        coder.scale_out.fill_(1)
        return coder

    def save(self, folder: str | Path) -> None:
        """Write config.json and weights.safetensors into `folder`, which is replaced as a whole or not at all.

        Raises MatryoshkaError if something other than a coder lies there.
        """
        io.save(Path(folder), self.config.model_dump(), self.metadata, self.state_dict())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "SparseCoder":
        """The coder in a run's folder or a coder's own, in eval mode.

        Raises MatryoshkaError where there is none, or where its files are damaged or foreign.
        """
        config, metadata, tensors = io.load(Path(path), CoderConfig)
        coder = cls(config, metadata)
        if (dtype := tensors["W_enc"].dtype if "W_enc" in tensors else torch.float32).is_floating_point:
            coder.to(dtype)
        io.check_tensors(f"{path}: the weights", coder.state_dict(), tensors)
        coder.load_state_dict(tensors)
        return coder.to(device).eval()
