"""The configuration of a run: its sections, what they default to, and what each field means."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from matryoshka.coder.architecture import (
    ActivationName,
    BatchTopKConfig,
    ConventionName,
    JumpReLUConfig,
    NonlinearityConfig,
    TopKConfig,
)
from matryoshka.config import Auto, Count, Section, Seed, WholeOrShare, one_line
from matryoshka.data.sections import ActivationConfig, SyntheticConfig, TextConfig
from matryoshka.defaults import EVALUATION_TOKENS
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.sites import Site
from matryoshka.training import automatic


class ModelSection(Section):
    """The language model."""

    name: str = "bundled"
    """Hub id, local folder, GGUF file, or `bundled` (the small model in the package)."""
    revision: str | None = None
    """Revision on the hub: branch, tag or commit. The commit it resolves to is recorded."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the language model; auto: float32 on a CPU, the checkpoint's own on an accelerator. A CPU with AMX
    reads in bfloat16 three times as fast."""
    device: str = "auto"
    """Where model and coders live: cpu, cuda, cuda:1; auto: cuda where there is one, under torchrun one a process."""


def _canonical(value: object) -> object:
    """Sites by their canonical names, each once; a list of one is that one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return value  # whose type is refused next
    try:
        sites = tuple(str(Site.parse(name)) for name in names)
    except MatryoshkaError as error:
        raise ValueError(str(error)) from None
    if repeated := [site for site in sites if sites.count(site) > 1]:
        raise ValueError(f"{repeated[0]} is named twice")
    return sites[0] if len(sites) == 1 else sites


Sites = Annotated[str | Annotated[tuple[str, ...], Field(min_length=1)], BeforeValidator(_canonical)]
"""One site, or several side by side."""


class CoderSection(Section):
    """The sparse coder."""

    read: Sites
    """Site to read, e.g. 8.mlp_in (TransformerLens names are understood too); several are read side by side."""
    write: Sites | None = None
    """Site, or sites, to reconstruct; none: what is read (an SAE)."""
    d_sae: Annotated[Count, Field(lt=2**31)]
    """Latents in the dictionary."""
    widths: tuple[WholeOrShare, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Nested prefixes, ascending to d_sae: numbers of latents, or fractions of d_sae (with a decimal point)."""
    random_widths: bool = False
    """Draw as many prefixes anew each step from a Pareto(0.5) distribution; `widths` are then what is reported."""
    activation: ActivationName = "batchtopk"
    """How latents are chosen."""
    k: Count = 32
    """Active latents a token: of each (topk), on average (batchtopk), aimed at (jumprelu)."""
    bandwidth: Annotated[float, Field(gt=0)] = JumpReLUConfig().bandwidth
    """Width of the straight-through kernel around JumpReLU's thresholds, in units where E‖x‖² = d: thresholds are 1 to
    3 there, and narrower ones learn too slowly."""
    skip: bool = False
    """Add a linear skip connection from input to output."""
    seed: Seed = 0
    """Seed of the initial weights and of random widths."""

    @property
    def nonlinearity(self) -> NonlinearityConfig:
        """The activation with its own parameters."""
        match self.activation:
            case "topk":
                return TopKConfig(k=self.k)
            case "batchtopk":
                return BatchTopKConfig(k=self.k)
            case "jumprelu":
                return JumpReLUConfig(k=self.k, bandwidth=self.bandwidth)


Decay = Annotated[float, Field(ge=0, lt=1)]


SelectName = Literal["auto", "fp8", "bfloat16", "float32"]


class TrainingSection(Section):
    """Optimisation."""

    RENAMED: ClassVar[Mapping[str, str]] = {"autocast": "select"}

    tokens: Count = 10_000_000
    """Tokens to train on; more than the text has means several epochs."""
    batch: Annotated[Count, Auto, Field(ge=2)] = Field(default_factory=lambda fields: automatic.batch(fields["tokens"]))
    """Tokens in one step; two at least, since FVU is of their variance. auto: 128 to 4096, growing as the root of
    `tokens`."""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Peak learning rate of Adam. auto: 2 batch^¼ / (d^¾ √steps), d the number of activations that are
    read."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates."""
    warm_up: WholeOrShare = 0.02
    """Linear warm-up: steps, or a share of all steps."""
    decay: Literal["none", "linear", "cosine"] = "linear"
    """Shape of the learning rate's decay to zero."""
    decay_start: WholeOrShare = 0.8
    """Where the decay begins: step, or share of all steps."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    loss: ConventionName = "matryoshka"
    """Convention that weights the loss terms: ours, or that of another project to repeat its runs."""
    aux_coefficient: Annotated[float, Field(ge=0)] | None = None
    """Weight of the dead latents' term; none: the convention's own."""
    aux_k: Count | None = None
    """Dead latents a token that reconstruct the residual; none: half of d_out."""
    dead_after_tokens: Annotated[Count, Auto] = Field(
        default_factory=lambda fields: automatic.dead_after_tokens(fields["tokens"])
    )
    """A latent that did not fire in so many tokens is dead. auto: `tokens` / 64, from 1024 to ten
    million."""
    l0_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Weight of JumpReLU's sparsity term (L0/k − 1)²."""
    select: SelectName = "auto"
    """Precision of the product that proposes latents; which of them are active, their values, weights and gradients are
    of float32. auto: on CUDA fp8 where the GPU has it and d_in × d_sae is large, else bfloat16; bfloat16 on a CPU that
    multiplies it natively. What a device does not have is replaced by the next one, with a line that says so."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; the last two are kept."""
    evaluate_every: Count = 500
    """Steps between measures of the held-out FVU, by which the best coder is kept."""
    seed: Seed = 0
    """Seed of the order of the data."""


class EvaluationSection(Section):
    """Measures on held-out text."""

    tokens: Count = EVALUATION_TOKENS
    """Held-out tokens to evaluate on."""


class LogSection(Section):
    """Where the numbers go; metrics.jsonl is always written."""

    every: Count = 10
    """Steps between records."""
    wandb: str | None = None
    """Weights & Biases project to log to as well (WANDB_MODE=offline needs no network)."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run as well."""


class TokensConfig(Section):
    """What tokens depend on: the part of a configuration that `matryoshka tokens` reads."""

    model: ModelSection = ModelSection()
    text: TextConfig = TextConfig()


class Config(TokensConfig):
    """Everything that a run depends on."""

    synthetic: SyntheticConfig | None = None
    """In place of a language model and a text; of `model` then only `device` is read."""
    activations: ActivationConfig = ActivationConfig()
    coder: CoderSection
    variants: tuple[dict[str, Any], ...] = ()
    """Several coders from one stream: for each, the fields of `coder` in which it differs (recipes only)."""
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    log: LogSection = LogSection()
    name: Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=100)] | None = None
    """Name of the run under runs/<sae|transcoder>/<base model>/; none: made from what is trained."""

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """As `Section.build`; each variant is held against the fields of a coder too."""
        config = super().build(values)
        config._refuse_text()
        for number, variant in enumerate(config.variants):
            try:
                CoderSection.model_validate({**config.coder.model_dump(), **variant})
            except ValidationError as error:
                raise MatryoshkaError(f"variants.{number}.{one_line(error, CoderSection)}") from None
        return config

    def _refuse_text(self) -> None:
        """Raise MatryoshkaError where a synthetic run is told of a language model or a text."""
        if self.synthetic is None:
            return
        there_is_none = {
            "model": self.model.model_copy(update={"device": "auto"}) != ModelSection(),
            "text": self.text != TextConfig(),
            "activations": self.activations.model_copy(update={"chunk": ActivationConfig().chunk})
            != ActivationConfig(),
        }
        if told := [name for name, differs in there_is_none.items() if differs]:
            raise MatryoshkaError(
                f"{told[0]}: a run with a section synthetic has no language model and no text; it reads model.device"
                " and activations.chunk alone"
            )

    def to_yaml(self) -> str:
        """The resolved configuration, re-runnable; without what it does not read."""
        unread = {"synthetic"} if self.synthetic is None else {"text": True, "model": {"name", "revision", "dtype"}}
        values = self.model_dump(mode="json", exclude=unread)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @property
    def steps(self) -> int:
        """Optimiser steps: the whole batches in training.tokens."""
        return max(1, self.training.tokens // self.training.batch)

    @property
    def chunk_rows(self) -> int:
        """Tokens in a chunk of activations: as configured, or what the whole run needs where that is less."""
        context, batch = self.text.context, self.training.batch
        needed = int(1.02 * (self.steps + 1) * batch * context / (context - 1)) + context
        return min(self.activations.chunk, needed)
