"""The sparse coder: SAE, transcoder, skip transcoder and crosscoder in one class.

    pre = x W_enc + b_enc                                     [batch, d_sae]
    latents = activation(pre)                                 sparse
    ŷ_m = b_dec + Σ_{j < n_m} latents_j W_dec[j] (+ x W_skip)     one reconstruction for each prefix n_m of `widths`

x are the activations at the sites that are read, side by side, y those at the sites that are written: a row of W_dec is
all that a latent writes. An SAE reads and writes one site; a transcoder's d_in and d_out may differ. A plain SAE has
widths == (d_sae,). What is saved and loaded is in raw units; in training a `Scaling` stands around it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matryoshka.coder import io, pretrained
from matryoshka.coder.architecture import (
    CoderConfig,
    NonlinearityConfig,
    TopKConfig,
    check_ascending,
    resolve_widths,
)
from matryoshka.coder.candidates import SLACK, Candidates
from matryoshka.coder.card import Card
from matryoshka.coder.kernels import Inputs, Pre, Precision, Values, operations
from matryoshka.coder.latents import Latents, from_mask
from matryoshka.coder.losses import Errors, Prefixes, Target
from matryoshka.coder.nonlinearity import build
from matryoshka.coder.sparse import Widths, exact_values, nested_decode, nested_errors, pre_activations
from matryoshka.coder.subset import Subset
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError

START = 0.9
"""Of the largest pre-activations that are to be selected, how much of the smallest one an untied coder's biases take
off. Of targets that are no linear function of what is read, more explains more of the variance; none is left to a
JumpReLU's thresholds at 1."""


class Forward(NamedTuple):
    """One training forward pass."""

    x: Inputs
    y: Target
    selected: Latents
    """The pattern with pre-activations as values."""
    latents: Latents
    errors: Errors
    """‖y − ŷ_m‖² of every prefix, mean over the batch; without a gradient."""
    total_error: Float[Tensor, ""]
    """Their sum, which teaches."""
    excess: Target
    """ŷ − y of the whole dictionary, without a gradient; the backward pass overwrites it."""
    bias: Float[Tensor, " d_out"]
    """What is written where no latent is active."""
    candidates: Candidates | None
    """What a product of low precision proposed; None where it was exact."""

    @property
    def residual(self) -> Target:
        """y − ŷ of the whole dictionary, without a gradient; to be asked for before the backward pass."""
        return self.excess.neg()


class SparseCoder(nn.Module):
    """See the module's docstring. `card` says what it is of; None in a coder that nobody has placed anywhere.

    `precision` is that of the dense product in training mode. A low one proposes candidates, of which their exact
    values decide (`candidates`); in eval mode the product is always exact.
    """

    precision: Precision = "float32"

    def __init__(self, config: CoderConfig, card: Card | None = None) -> None:
        super().__init__()
        self.config, self.card = config, card
        d_in, d_out, d_sae = config.d_in, config.d_out, config.d_sae
        # each latent's encoder weights lie together in memory, as its decoder weights do
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out)) if config.skip else None
        self.activation = build(config.activation, d_sae)

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
    def pair(self, x: Inputs, y: Target) -> "SparseCoder":
        """Start decoder and biases of an untied coder from what its encoder finds: of the k largest pre-activations a
        row, each latent writes the targets of its rows, weighted; biases bring the smallest down to near zero.

        With random rows and no biases nearly all that is written first is wrong: encoders would shrink until hardly
        anything is, and then have to grow the thresholds of which functions such as an MLP's are made.
        """
        pre = self._pre(x, "float32")
        positions = operations(pre).batch_topk(pre, (self.config.k or 1) * len(pre))
        positions = positions[pre.flatten()[positions] > 0]  # a GPU fills up
        if not len(positions):
            return self
        selected = from_mask(pre, positions)
        by = selected.pattern.by_latent
        rows = operations(y).bags(y - y.mean(0), by.rows, selected.values[by.order], by.offsets)
        norms = rows.norm(dim=1, keepdim=True)
        self.W_dec.copy_(torch.where(norms > 0, rows / norms, self.W_dec))  # who is never selected keeps its own
        self.b_enc.copy_(-START * selected.values.min())
        return self

    @torch.no_grad()
    def calibrate(self, x: Inputs, y_mean: Float[Tensor, " d_out"]) -> "SparseCoder":
        """Start b_dec at the targets' mean, and thresholds from the first activations."""
        self.b_dec.copy_(y_mean)
        self.activation.calibrate(self._pre(x, "float32"))
        return self

    @torch.no_grad()
    def _pre(self, x: Inputs, precision: Precision) -> Pre:
        return operations(x).product(x, self.W_enc, self.b_enc, precision)

    def _select(self, x: Inputs) -> tuple[Latents, Candidates | None]:
        """The selected entries with exact, differentiable pre-activations, and what they were selected from."""
        precision = self.precision if self.training else "float32"
        selected, candidates = self.activation.select(pre := self._pre(x, precision), SLACK[precision]), None
        if pre.dtype != self.dtype:
            exact = exact_values(x, self.W_enc, self.b_enc, selected)
            candidates = Candidates(selected, self.activation.cut(exact))
            selected = exact if candidates.places is None else exact.keep(candidates.places)
        return pre_activations(x, self.W_enc, self.b_enc, selected), candidates

    @torch.no_grad()
    def shortfall(self, forward: Forward) -> Float[Tensor, ""]:
        """Share of the selected latents that one may exceed which was not even a candidate."""
        if forward.candidates is None:
            return forward.selected.values.new_zeros(())
        return self.activation.shortfall(forward.selected, forward.candidates, SLACK[self.precision])

    def forward(self, x: Inputs, y: Target, widths: Widths | None = None) -> Forward:
        """The training pass; the prefixes of `widths` (default: the coder's own) are its errors."""
        selected, candidates = self._select(x)
        latents = self.activation.activate(selected)
        errors = self.errors(latents, x, y, self.widths if widths is None else widths)
        return Forward(x, y, selected, latents, *errors, self.b_dec, candidates)

    def errors(
        self, latents: Latents, x: Inputs, y: Target, widths: Widths
    ) -> tuple[Errors, Float[Tensor, ""], Target]:
        """`Forward.errors`, `Forward.total_error` and `Forward.excess` of these latents."""
        if self.W_skip is None:
            return nested_errors(latents, self.W_dec, y.to(self.dtype), widths, self.b_dec)
        return nested_errors(latents, self.W_dec, self.to_explain(x, y), widths)

    def encode(self, x: Inputs) -> Latents:
        """Sparse latents of activations (in eval mode: by the inference threshold)."""
        return self.activation.activate(self._select(x.to(self.dtype))[0])

    def decode(self, latents: Latents, x: Inputs | None = None, widths: Sequence[int] | None = None) -> Prefixes:
        """One reconstruction for each prefix of `widths` (default: the coder's own). A skip coder needs `x`."""
        if widths is not None:
            check_ascending(widths, self.config.d_sae)
        y_hat = nested_decode(latents, self.W_dec, widths or self.widths) + self.b_dec
        if self.W_skip is None:
            return y_hat
        if x is None:
            raise MatryoshkaError("a skip transcoder decodes from its latents and its input: decode(latents, x)")
        return y_hat + (x.to(self.dtype) @ self.W_skip).to(y_hat.dtype)

    # --- what others may know of the weights, and do to them: nobody else touches a parameter

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    @property
    def widths(self) -> tuple[int, ...]:
        """The nested prefixes, ascending to d_sae."""
        return self.config.widths

    @property
    def unit_rows(self) -> tuple[nn.Parameter, ...]:
        """The weights whose rows keep norm 1 in training, so that a latent's value is how much it writes."""
        return (self.W_dec,)

    @property
    def forgetful(self) -> tuple[nn.Parameter, ...]:
        """The weights that momentum moves on for many steps after their latent was active, away from the rows that
        taught it: latents that are seldom active die of it where nothing ties them to what they read."""
        return (self.W_enc,)

    def decoder_rows(self, features: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n d_out"]:
        """What one unit of each of these latents (default: of all) adds to the reconstruction; without a gradient."""
        rows = self.W_dec.detach()
        return rows if features is None else rows[features]

    @torch.no_grad()
    def contribution(self, latents: Latents, slope: Target) -> Values:
        """a ⟨slope, W_dec[f]⟩ of every entry: how far each active latent moves the reconstruction along `slope`, one
        direction a row."""
        slope = slope.to(self.dtype)
        return latents.values * operations(slope).dots(slope, self.W_dec, latents.rows, latents.indices)

    def to_explain(self, x: Inputs, y: Target) -> Target:
        """y − b_dec (− x W_skip): what latents times decoder rows are to add up to."""
        rest = y.to(self.dtype) - self.b_dec
        return rest if self.W_skip is None else rest - (x.to(self.dtype) @ self.W_skip).to(rest.dtype)

    def subset(self, index: Int[Tensor, " n"]) -> Subset:
        """Copies of some latents' weights: a small dense coder of their own, which learns apart."""
        whole = (self.W_enc.T, self.b_enc, self.W_dec)
        return Subset(index, *(weights.detach()[index].requires_grad_() for weights in whole))

    @torch.no_grad()
    def add_gradients(self, subset: Subset) -> None:
        """Add what a subset has learned to the gradients of the latents that it is of, after the backward pass."""
        parts = (subset.encoder, subset.biases, subset.decoder)
        wholes = (_gradient(self.W_enc).T, _gradient(self.b_enc), _gradient(self.W_dec))
        for whole, part in zip(wholes, parts, strict=True):
            whole[subset.index] += _gradient(part)

    # --- as plain tensors, and on disk

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weights: Weights,
        activation: NonlinearityConfig,
        widths: Sequence[int] = (),
        card: Card | None = None,
        where: object = "the weights",
    ) -> "SparseCoder":
        """A coder of one read and one written site, in eval mode, with copies of these weights (default: no inner
        prefixes). Raises MatryoshkaError, naming `where` they lie, if they do not fit together or are not finite."""
        sizes = {"reads": (weights.W_enc.shape[0],), "writes": (weights.W_dec.shape[1],), "d_sae": weights.d_sae}
        prefixes = resolve_widths(widths, weights.d_sae)
        skip = weights.W_skip is not None
        coder = cls(CoderConfig.build({**sizes, "widths": prefixes, "activation": activation, "skip": skip}), card)
        given = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
        if (threshold := given.pop("threshold", None)) is not None:
            given["activation.threshold"] = threshold
        return coder._filled(where, given)

    @property
    def weights(self) -> Weights:
        """Its function in plain tensors, without gradients."""
        stored = {name.removeprefix("activation."): tensor.detach() for name, tensor in self._stored().items()}
        return Weights(**stored)

    def prefix(self, width: int) -> "SparseCoder":
        """The coder of the first `width` latents alone, in eval mode, with their prefixes.

        Raises MatryoshkaError unless `width` is one of `widths`, and for a TopK: its k largest are chosen before the
        cut, so that its prefix is no TopK.
        """
        if width not in self.widths:
            raise MatryoshkaError(f"prefix {width:,} is none of the coder's: {', '.join(map(str, self.widths))}")
        if width == self.config.d_sae:
            return self
        activation = self.config.activation
        if isinstance(activation, TopKConfig):
            raise MatryoshkaError(
                f"the first {width:,} latents of a TopK are no TopK: it chooses among all {self.config.d_sae:,} before"
                " the cut; train with batchtopk or jumprelu, or take the whole coder"
            )
        if (k := self.config.k) is not None:
            activation = activation.model_copy(update={"k": min(k, width)})
        widths = [inner for inner in self.widths if inner <= width]
        return SparseCoder.of(self.weights.prefix(width), activation, widths, self.card)

    def save(self, folder: str | Path) -> None:
        """Write config.json and weights.safetensors into `folder`, which is replaced as a whole or not at all. Raises
        MatryoshkaError if something other than a coder lies there."""
        io.save(Path(folder), self.config, self.card, self._stored())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "SparseCoder":
        """The coder in a run's folder or a coder's own, in eval mode. Raises MatryoshkaError where there is none, or
        where its files are damaged or foreign."""
        config, card, tensors = io.load(Path(path))
        coder = cls(config, card)
        if (dtype := tensors["W_enc"].dtype if "W_enc" in tensors else torch.float32).is_floating_point:
            coder.to(dtype)
        return coder._filled(f"{path}: the weights", tensors).to(device)

    @classmethod
    def from_pretrained(cls, repository: str, id: str, revision: str | None = None) -> "SparseCoder":
        """The coder `id` of a repository on the hub, or of a release that is known by name (`matryoshka releases`), in
        eval mode, whichever program it is of. Raises MatryoshkaError where it cannot be had or is no function of ours.
        """
        return pretrained.read(repository, id, revision)

    def _filled(self, where: object, tensors: dict[str, Tensor]) -> "SparseCoder":
        """With these tensors of a file, in eval mode. Raises MatryoshkaError where they are not a coder's."""
        io.check_tensors(str(where), self._stored(), tensors)
        threshold = tensors.get("activation.threshold")
        if threshold is not None and (least := threshold.min().item()) < 0:
            raise MatryoshkaError(f"{where}: activation.threshold is {least:g}, expected 0 or more")
        self.load_state_dict(tensors, strict=False)
        return self.eval()

    def _stored(self) -> dict[str, Tensor]:
        """Every tensor of a coder's file, by name."""
        thresholds = {f"activation.{name}": tensor for name, tensor in self.activation.stored().items()}
        weights = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("activation.")}
        return weights | thresholds


def _gradient(weights: Tensor) -> Tensor:
    if weights.grad is None:
        raise RuntimeError("there are no gradients yet: add them after the backward pass")
    return weights.grad
