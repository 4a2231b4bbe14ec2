"""What a configuration means for one model: a plan for each coder, or one line on why it cannot be.

Nothing is loaded or written for any of it.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matryoshka.coder.architecture import CoderConfig, resolve_widths
from matryoshka.config import merged
from matryoshka.data.documents import is_local
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.info import ModelInfo
from matryoshka.lm.sites import Site, Wiring
from matryoshka.training.optim import peak_rate
from matryoshka.training.recipe import CoderSection, Config
from matryoshka.training.supply import Info, described, lm_batch

LONGEST_LABEL = 120
"""Characters: it is the name of a folder, and of files beside which others have longer ones."""


class Plan(NamedTuple):
    """One coder to train: its section with the variant applied, and what that means for this model."""

    label: str
    section: CoderSection
    wiring: Wiring
    coder: CoderConfig

    @property
    def tied(self) -> bool:
        """Whether the encoder starts as the decoder's transpose: where what is read is what is written."""
        return self.wiring.reads == self.wiring.writes


def plan(config: Config, info: Info) -> list[Plan]:
    """The coders of `config` on the model `info`. Raises MatryoshkaError for sites, widths and sizes that cannot be."""
    plans = [_plan_one(config, info, variant) for variant in config.variants or ({},)]
    labels = [planned.label for planned in plans]
    if repeated := {label for label in labels if labels.count(label) > 1}:
        raise MatryoshkaError(f"variants: {repeated.pop()!r} is named twice")
    return plans


def _plan_one(config: Config, info: Info, variant: dict[str, Any]) -> Plan:
    section = CoderSection.model_validate({**config.coder.model_dump(), **variant})
    reads = _sites(section.read)
    writes = reads if section.write is None else _sites(section.write)
    if section.k > section.d_sae:
        raise MatryoshkaError(f"coder.k: {section.k} latents a token, but coder.d_sae is {section.d_sae}")
    coder = CoderConfig(
        reads=_sizes("read", reads, info),
        writes=_sizes("write", writes, info),
        d_sae=section.d_sae,
        widths=resolve_widths(section.widths, section.d_sae),
        activation=section.nonlinearity,
        skip=section.skip,
    )
    label = ",".join(f"{name}={_short(value)}" for name, value in variant.items())
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 9]}-{zlib.crc32(label.encode()):08x}"
    label = label or ("unchanged" if config.variants else "coder")
    return Plan(label, section, Wiring.of(reads, writes), coder)


def _sites(names: str | tuple[str, ...]) -> tuple[Site, ...]:
    return tuple(Site.parse(name) for name in ([names] if isinstance(names, str) else names))


def _sizes(field: str, sites: tuple[Site, ...], info: Info) -> tuple[int, ...]:
    try:
        return tuple(info.check(site) for site in sites)
    except MatryoshkaError as error:
        raise MatryoshkaError(f"coder.{field}: {error}") from None


def _short(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace("/", "_")


def check(config: Config) -> tuple[Info, list[Plan]]:
    """What the activations come from and the coders planned on it, from configuration files alone; a text that cannot
    be read is refused too."""
    info = described(config)
    return info, plan(config, info)


def configurations(config: Config, plans: Sequence[Plan]) -> dict[str, str]:
    """As YAML, of a run ("") and of each of its coders where there are several."""
    alone = {plan.label: {"coder": plan.section, "variants": ()} for plan in plans if config.variants}
    configs = {"": config, **{label: config.model_copy(update=update) for label, update in alone.items()}}
    return {label: one.to_yaml() for label, one in configs.items()}


def resolve(config: Config, info: Info, plans: Sequence[Plan]) -> Config:
    """`config` so that it can be re-run: with the model's revision pinned, paths that hold from any folder, a text read
    only as far as this run needs (the bundled one, which is small, to its end), and what is automatic as
    numbers: the learning rate (of the first of `plans`) and the windows in a forward pass."""
    resolved: dict[str, Any] = {"training": {"lr": peak_rate(config.training, config.steps, plans[0].coder.d_in)}}
    if isinstance(info, ModelInfo):
        resolved |= _pinned(config, info)
    return Config.build(merged(config.model_dump(), resolved))


def _pinned(config: Config, info: ModelInfo) -> dict[str, Any]:
    model: dict[str, Any] = {"revision": info.revision}
    if info.folder is not None:
        model["name"] = _absolute(config.model.name)
    text: dict[str, Any] = {"source": _absolute(config.text.source)} if is_local(config.text.source) else {}
    if config.text.limit is None:
        trained = config.chunk_rows + config.steps * config.training.batch
        text["limit"] = config.text.read_on(trained, config.evaluation.tokens).limit
    cache = config.activations.cache
    activations = {
        "lm_batch": lm_batch(config, info),
        "cache": None if cache is None else str(cache.expanduser().absolute()),
    }
    return {"model": model, "text": text, "activations": activations}


def _absolute(name: str) -> str:
    return name if name == "bundled" else str(Path(name).expanduser().resolve())


def default_folder(config: Config, info: Info, plans: Sequence[Plan]) -> Path:
    """runs/<sae|transcoder>/<base model>/<name>, the name made of what is trained if the config has none."""
    kind = "sae" if all(plan.tied for plan in plans) else "transcoder"
    c = config.coder
    sites = "-".join(_short(field) for field in ((c.read,) if c.write in (None, c.read) else (c.read, c.write)))
    made = f"{sites}-{c.activation}-{c.d_sae}-k{c.k}-s{c.seed}"
    model = Path(_absolute(info.name)).name.lower().removesuffix(".gguf")
    return Path("runs") / kind / model / (config.name or made)
