"""SAEBench: takes SAELens' objects, or any with the same face, whose decoder rows have unit norm.

    export(run, folder, "saebench")    a folder of SAELens' with unit rows: ("ours", SAE.load_from_disk(folder))
    saebench_object(run)               the coder that we have, without SAELens: ("ours", saebench_object(run))

A row's norm goes into its latent: exact for ReLU and thresholds. A TopK ranks by latents, so that its rows have to have
unit norm already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matryoshka.coder.architecture import CoderConfig, JumpReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.interop import saelens
from matryoshka.interop.conventions import UNIT, of_unit_rows, row_norms
from matryoshka.interop.names import short_name
from matryoshka.interop.ours import Ours
from matryoshka.run import Run

FILES = saelens.FILES
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class SAEBenchConfig:
    """What SAEBench reads of a coder; it writes more attributes onto it."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    context_size: int
    prepend_bos: bool
    dtype: str
    device: str = "cpu"
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    dataset_path: str = ""
    seqpos_slice: tuple[None] = (None,)
    training_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For a result's JSON."""
        return asdict(self)


class SAEBenchCoder(nn.Module):
    """A coder with SAEBench's face: dense latents of any leading dimensions, weights by SAELens' names."""

    def __init__(self, coder: SparseCoder, cfg: SAEBenchConfig) -> None:
        super().__init__()
        self.coder, self.cfg = coder, cfg

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802
        """Encoder columns."""
        return self.coder.weights.W_enc

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """What is added to what they read."""
        return self.coder.weights.b_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802
        """Decoder rows, of unit norm."""
        return self.coder.weights.W_dec

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """What is written where no latent is active."""
        return self.coder.weights.b_dec

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what is encoded."""
        return self.coder.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.coder.device

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Dense latents."""
        latents = self.coder.encode(x.reshape(-1, x.shape[-1]).to(self.device)).dense()
        return latents.to(self.dtype).reshape(*x.shape[:-1], -1)

    def decode(self, latents: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """What they reconstruct."""
        weights = self.coder.weights
        return latents.to(self.dtype) @ weights.W_dec + weights.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction."""
        return self.decode(self.encode(x))


def saebench_object(
    run: Run | str | Path, prefix: int | None = None, model_name: str | None = None, dtype: str = "float32"
) -> SAEBenchCoder:
    """The coder of a run (or one of its prefixes) as an object that SAEBench's evaluations take. `model_name` is
    TransformerLens' name of its model, where the card's is another.

    Raises MatryoshkaError for what `arrange` refuses, and for a TopK whose decoder rows are not of unit norm.
    """
    if dtype not in DTYPES:
        raise MatryoshkaError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}")
    ours = Ours.of(Run.sole(run), prefix)
    arrange([ours])
    (config, weights), trained = unit_rows(ours), ours.card.trained
    activation = config.activation if weights.threshold is None else JumpReLUConfig(k=config.k)
    coder = SparseCoder.of(weights, activation, config.widths, ours.card, where=ours.run.path)
    cfg = SAEBenchConfig(
        model_name=model_name or short_name(ours.card.model.name),
        d_in=config.d_in,
        d_sae=config.d_sae,
        hook_layer=ours.read.layer,
        hook_name=ours.hooks()[0],
        architecture=saelens.written_as(ours),
        context_size=ours.card.context,
        prepend_bos=ours.card.prepend_bos,
        dtype=dtype,
        dataset_path=str(trained.text.get("source") or "") if trained is not None else "",
        training_tokens=trained.tokens if trained is not None else 0,
    )
    return SAEBenchCoder(coder.requires_grad_(False), cfg).to(DTYPES[dtype])


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """As `saelens` does. Raises MatryoshkaError for transcoders, whose output SAEBench would put in place of what they
    read."""
    for ours in coders:
        if ours.transcodes or ours.config.skip:
            raise MatryoshkaError(
                f"{ours.run.path} ({ours.sites}): SAEBench puts what a coder writes in place of what it reads; expected"
                " an SAE"
            )
    return saelens.arrange(coders)


def write(arranged: Mapping[str, Ours], folder: Path) -> None:
    """SAELens' files of coders of unit rows."""
    for place, ours in arranged.items():
        saelens.write_one(ours, partial(unit_rows, ours), folder / place)


def unit_rows(ours: Ours) -> tuple[CoderConfig, Weights]:
    """The coder's shape, and its function with decoder rows of unit norm: each latent, and its threshold, times the
    norm of its row. Raises MatryoshkaError for a TopK that has rows of other norms."""
    coder = ours.load()
    weights = ours.weights(coder)
    norms = row_norms(weights)
    if not isinstance(coder.config.activation, TopKConfig):
        threshold = None if weights.threshold is None else (weights.threshold.double() * norms).float()
        return coder.config, of_unit_rows(weights)._replace(threshold=threshold)
    if (farthest := (norms - 1).abs().max().item()) > UNIT:
        raise MatryoshkaError(
            f"{ours.run.path}: a TopK whose decoder rows have norms up to {farthest:.3g} away from 1; with unit rows"
            " other latents would be the k largest"
        )
    return coder.config, weights
