"""The configuration of a run: small frozen sections, YAML in and out, one line for each mistake.

A recipe is a YAML file of these fields. Every field can be overridden by its dotted flag (`--coder.k 64`);
validation is the same for recipes, flags and Python. `plan` joins a configuration to the sizes of its language model
and so refuses wrong sites, widths and sizes before any weight is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from matryoshka.coder.activations import ActivationName
from matryoshka.coder.coder import CoderConfig
from matryoshka.coder.losses import ConventionName
from matryoshka.coder.nesting import resolve_widths
from matryoshka.data.activations import ActivationConfig
from matryoshka.data.tokens import TextConfig
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.lm.model import ModelInfo
from matryoshka.lm.sites import Site


def _count(value: object) -> object:
    """Whole numbers as people write them: 2e7 and 20_000_000 (YAML reads both as text)."""
    if isinstance(value, str):
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0)] | Share
"""A number of steps (whole), or a share of all steps (with a decimal point)."""


class Section(BaseModel):
    """Frozen; unknown keys are refused; the string below a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


class CoderSection(Section):
    """The sparse coder."""

    read: str
    """Site to read, e.g. 8.mlp_in (TransformerLens names are understood too)."""
    write: str | None = None
    """Site to reconstruct; none: the one that is read (an SAE)."""
    d_sae: Count
    """Latents in the dictionary."""
    widths: tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)], ...] = (
        1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0,
    )  # fmt: skip
    """Nested prefixes, ascending to d_sae: numbers of latents, or fractions of d_sae (with a decimal point)."""
    random_widths: bool = False
    """Draw as many prefixes anew each step from a Pareto(0.5) distribution; `widths` are then what is reported."""
    activation: ActivationName = "batchtopk"
    """How latents are chosen."""
    k: Count = 32
    """Active latents a token: of each (topk), on average (batchtopk), aimed at (jumprelu)."""
    bandwidth: Annotated[float, Field(gt=0)] = 0.1
    """Width of the straight-through kernel around JumpReLU's thresholds, in units where E‖x‖² = d."""
    skip: bool = False
    """Add a linear skip connection from input to output."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of random widths."""

    @field_validator("read", "write")
    @classmethod
    def _canonical_site(cls, value: str | None) -> str | None:
        try:
            return None if value is None else str(Site.parse(value))
        except MatryoshkaError as error:
            raise ValueError(str(error)) from None


class TrainingSection(Section):
    """Optimisation."""

    tokens: Count = 10_000_000
    """Tokens to train on; more than the text has means several epochs."""
    batch: Count = 2048
    """Tokens in one step."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of Adam."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates."""
    warm_up: Steps = 0.02
    """Linear warm-up: steps, or a share of all steps."""
    decay: Literal["none", "linear", "cosine"] = "linear"
    """Shape of the learning rate's decay to zero."""
    decay_start: Steps = 0.8
    """Where the decay begins: step, or share of all steps."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    loss: ConventionName = "matryoshka"
    """Convention that weights the loss terms: ours, or that of another project to repeat its runs."""
    aux_coefficient: Annotated[float, Field(ge=0)] | None = None
    """Weight of the dead latents' term; none: the convention's own."""
    aux_k: Count | None = None
    """Dead latents a token that reconstruct the residual; none: half of d_out."""
    dead_after_tokens: Count = 1_000_000
    """A latent that did not fire in so many tokens is dead."""
    l0_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Weight of JumpReLU's sparsity term (L0/k − 1)²."""
    autocast: Literal["auto", "bfloat16", "off"] = "auto"
    """Precision of the product that selects latents; their values, weights and gradients stay float32. auto: bfloat16
    on CUDA and on a CPU that multiplies it natively. A CPU that has no such product takes float32 instead of bfloat16,
    and says so."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; the last two are kept."""
    evaluate_every: Count = 500
    """Steps between measures of the held-out FVU, by which the best coder is kept."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the data."""


class EvaluationSection(Section):
    """Measures on held-out text."""

    tokens: Count = 32_768
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

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """A validated configuration from nested values; a mistake is one MatryoshkaError line that names the field."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise MatryoshkaError(_one_line(error, cls)) from None

    @classmethod
    def load(cls, file: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """The fields of this class in a YAML recipe, with nested `overrides` laid over them before validation."""
        return cls.build(merged(read_yaml(file), overrides or {}))


class Config(TokensConfig):
    """Everything that a run depends on."""

    activations: ActivationConfig = ActivationConfig()
    coder: CoderSection
    variants: tuple[dict[str, Any], ...] = ()
    """Several coders from one stream: for each, the fields of `coder` in which it differs (recipes only)."""
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    log: LogSection = LogSection()
    name: str | None = None
    """Name of the run under runs/<sae|transcoder>/<base model>/; none: made from what is trained."""

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """As `TokensConfig.build`; each variant is held against the fields of a coder too."""
        config = super().build(values)
        for number, variant in enumerate(config.variants):
            try:
                CoderSection.model_validate({**config.coder.model_dump(), **variant})
            except ValidationError as error:
                raise MatryoshkaError(f"variants.{number}.{_one_line(error, CoderSection)}") from None
        return config

    def to_yaml(self) -> str:
        """The resolved configuration, re-runnable."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def steps(self) -> int:
        """Optimiser steps: the whole batches in training.tokens."""
        return max(1, self.training.tokens // self.training.batch)


class Plan(NamedTuple):
    """One coder to train: its section with the variant applied, and what that means for this language model."""

    label: str
    section: CoderSection
    read: Site
    write: Site
    coder: CoderConfig


def plan(config: Config, info: ModelInfo) -> list[Plan]:
    """The coders of `config` on the model `info`. Raises MatryoshkaError for sites, widths and sizes that cannot be."""
    if config.text.context > info.context:
        raise MatryoshkaError(
            f"text.context: {config.text.context} tokens, but {info.name} takes at most {info.context}"
        )
    plans = [_plan_one(config, info, variant) for variant in config.variants or ({},)]
    labels = [each.label for each in plans]
    if repeated := {label for label in labels if labels.count(label) > 1}:
        raise MatryoshkaError(f"variants: {repeated.pop()!r} is named twice")
    return plans


def _plan_one(config: Config, info: ModelInfo, variant: dict[str, Any]) -> Plan:
    section = CoderSection.model_validate({**config.coder.model_dump(), **variant})
    read, write = Site.parse(section.read), Site.parse(section.write or section.read)
    widths = []
    for field, site in (("read", read), ("write", write)):
        try:
            widths.append(info.check(site))
        except MatryoshkaError as error:
            raise MatryoshkaError(f"coder.{field}: {error}") from None
    if section.k > section.d_sae:
        raise MatryoshkaError(f"coder.k: {section.k} latents a token, but coder.d_sae is {section.d_sae}")
    coder = CoderConfig(
        d_in=widths[0],
        d_out=widths[1],
        d_sae=section.d_sae,
        widths=resolve_widths(section.widths, section.d_sae),
        activation=section.activation,
        k=section.k,
        bandwidth=section.bandwidth,
        skip=section.skip,
    )
    label = ",".join(f"{name}={_short(value)}" for name, value in variant.items()) or "coder"
    return Plan(label, section, read, write, coder)


def _short(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace("/", "_")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file (safe loader)."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        near = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        hint = did_you_mean(str(file), near) if near else ""
        raise MatryoshkaError(f"{file}: cannot read this recipe ({error.strerror}){hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MatryoshkaError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MatryoshkaError(f"{file}: expected a mapping of sections, got {type(content).__name__}")
    return content


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of `model` that are sections themselves."""
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake: the field, what was expected, what was given, the nearest right name."""
    first = error.errors()[0]
    *parents, last = first["loc"]
    if first["type"] == "extra_forbidden":
        for parent in parents:
            model = sections(model)[str(parent)]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: unknown field{did_you_mean(str(last), model.model_fields)}"
    # in a union pydantic appends the branch that failed, as a type's name or a description, to the path
    path = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    where = ".".join(part for part in path if part not in ("int", "float", "str"))
    if first["type"] == "missing":
        return f"{where}: is needed (give it in the recipe, or as --{where})"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{given}"
