"""Where a run's activations come from: a language model that reads a text, or features that are known.

    described(config)   what can be said of it from configuration files alone: its name, its sites and their widths
    supply(config)      the same with everything loaded: the chunks that training shuffles, and what the card says

Nothing else in training knows which of the two it is.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from matryoshka.coder.card import ModelCard, RowCard
from matryoshka.data import cache
from matryoshka.data.documents import check_source
from matryoshka.data.rowfilter import SAMPLE, RowFilter
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.stream import Chunks, LiveChunks
from matryoshka.data.synthetic import SyntheticChunks, SyntheticInfo, SyntheticModel
from matryoshka.data.tokens import Tokens, Windows, tokenise
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.info import ModelInfo, Shape, describe, shape
from matryoshka.lm.model import DTYPES, LanguageModel, load, resolve_device
from matryoshka.lm.sites import Site, Wiring
from matryoshka.progress import progress_bar
from matryoshka.training import automatic
from matryoshka.training.recipe import Config

Info = ModelInfo | SyntheticInfo


def described(config: Config) -> Info:
    """From configuration files alone; a text that cannot be read is refused too."""
    if config.synthetic is not None:
        return SyntheticInfo(config.synthetic)
    check_source(config.text)
    info = describe(config.model.name, config.model.revision)
    if config.text.context > info.context:
        raise MatryoshkaError(
            f"text.context: {config.text.context} tokens, but {info.name} takes at most {info.context}"
        )
    return info


def read_itemsize(config: Config, lm: Shape) -> int:
    """Bytes of a number in the language model that `config` reads with, weights and activations alike."""
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype].itemsize
    return torch.float32.itemsize if resolve_device(config.model.device).type == "cpu" else lm.bytes_a_parameter


def lm_batch(config: Config, info: ModelInfo) -> int:
    """Windows in one forward pass: as configured, or by the rule for the run's device and the memory free there, of
    which the language model, not yet loaded, takes its part."""
    if config.activations.lm_batch != "auto":
        return config.activations.lm_batch
    device = resolve_device(config.model.device)
    if device.type != "cuda":
        return automatic.CPU_WINDOWS
    lm, context = shape(info), config.text.context
    itemsize = read_itemsize(config, lm)
    free, _ = torch.cuda.mem_get_info(device)
    return automatic.gpu_windows(context, lm.bytes_a_token(context, itemsize), free - lm.parameters * itemsize)


class TextSupply:
    """A language model and the text that it reads."""

    kind = "tokens"

    def __init__(self, config: Config, lm: LanguageModel, tokens: Tokens) -> None:
        self.config, self.lm, self.tokens = config, lm, tokens
        tokens.windows("held_out")  # refused now if there are none

    @classmethod
    def load(cls, config: Config) -> "TextSupply":
        """Model and text. Raises MatryoshkaError for what cannot be had."""
        model = config.model
        lm = load(model.name, model.revision, model.dtype, model.device)
        return cls(config, lm, tokenise(config.text, *lm.vocabulary))

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def hash(self) -> str:
        """Of the tokens: where it is another one, so are the activations."""
        return self.tokens.hash

    @property
    def source(self) -> str:
        """Where they are from, as it was asked for."""
        return self.config.text.source

    def chunks(self, sites: Sequence[Site], world: World) -> Chunks:
        """From the live model, read by all processes together, or from the cache, which the first of them writes if it
        is not there."""
        folder, windows = self.config.activations.cache, self.tokens.windows("train")
        size = self.config.chunk_rows, lm_batch(self.config, self.lm.info)
        if folder is None:
            return LiveChunks(self.lm, windows, sites, *size, world)
        if not world.first:
            world.barrier()
        cached = self._cached(folder, LiveChunks(self.lm, windows, sites, *size))
        if world.first:
            world.barrier()
        return cached

    def _cached(self, folder: Path, live: LiveChunks) -> cache.CachedChunks:
        training, info = self.config.training, self.lm.info
        identity = {
            "model": info.name,
            "revision": info.revision,
            "dtype": self.lm.precision,
            "tokens": self.tokens.hash,
            "context": self.tokens.context,
        }
        usable = live.per_chunk * (live.windows.context - 1) // training.batch * training.batch
        count = min(len(live), -(-self.config.steps * training.batch // usable) + 1)
        if not (folder / "index.json").is_file():
            with progress_bar(f"caching activations in {folder}") as update:
                cache.write(live, folder, training.seed, count, identity, lambda done: update(done, count))
        cached = cache.CachedChunks(folder, identity, list(live.sites), live.lm.device)
        if cached.tokens < (needed := count * live.per_chunk * self.tokens.context):
            raise MatryoshkaError(
                f"{folder}: holds the activations of {cached.tokens:,} tokens, this run reads {needed:,}: give another"
                " activations.cache, or delete it to have it written anew"
            )
        return cached

    @property
    def held_out(self) -> tuple[LanguageModel, Windows]:
        """What training never sees, and who reads it."""
        return self.lm, self.tokens.windows("held_out")

    def keep(self, rows: RowFilter, wiring: Wiring) -> RowFilter:
        """Which rows count for a coder, of the rule for all sites."""
        return rows.only(wiring.sites)

    def facts(self) -> dict[str, Any]:
        """For provenance.json."""
        lm = self.lm
        return {
            "model": {"name": lm.info.name, "revision": lm.info.revision, "dtype": lm.precision},
            "tokens": {"hash": self.tokens.hash, "bos": lm.bos, "separator": lm.separator},
        }

    def on_card(self, keep: RowFilter) -> dict[str, Any]:
        """The card's fields of model and rows, given the rows that count for the coder."""
        context, windows = self.config.text.context, len(self.tokens.windows("train"))
        largest = {str(site): norm for site, norm in keep.largest.items()}
        return {
            "model": ModelCard(name=self.config.model.name, revision=self.lm.info.revision, dtype=self.lm.precision),
            "context": context,
            "prepend_bos": self.lm.bos is not None,
            "rows": RowCard(largest_norms=largest, sample=min(SAMPLE, windows) * context),
        }

    def trained_on(self) -> dict[str, Any]:
        """The card's fields of the text."""
        return {"text": self.config.text.model_dump(mode="json"), "text_hash": self.tokens.text_hash}


class SyntheticSupply:
    """Features that are known, and the samples drawn of them: every row counts, and none is read twice."""

    kind = "samples"

    def __init__(self, config: Config, synthetic: SyntheticConfig) -> None:
        self.config, self.synthetic = config, synthetic
        self.device = resolve_device(config.model.device)

    @cached_property
    def model(self) -> SyntheticModel:
        """On the run's device."""
        return SyntheticModel(self.synthetic, self.device)

    @property
    def hash(self) -> str:
        """Of all that samples depend on."""
        return self.synthetic.hash

    @property
    def source(self) -> str:
        """Where they are from."""
        return self.synthetic.name

    def chunks(self, sites: Sequence[Site], world: World) -> Chunks:
        """Drawn as they are needed, by each process the same."""
        return SyntheticChunks(self.model, self.config.chunk_rows)

    @property
    def held_out(self) -> SyntheticModel:
        """Who draws samples that training never sees."""
        return self.model

    def keep(self, rows: RowFilter, wiring: Wiring) -> RowFilter:
        """All."""
        return rows

    def facts(self) -> dict[str, Any]:
        """For provenance.json."""
        name, digest = self.synthetic.name, self.synthetic.hash
        return {"model": {"name": name, "revision": None, "dtype": "float32"}, "samples": {"hash": digest}}

    def on_card(self, keep: RowFilter) -> dict[str, Any]:
        """The card's fields of model and rows: a sample stands alone."""
        section = self.synthetic.model_dump(mode="json")
        model = ModelCard(name=self.synthetic.name, dtype="float32", synthetic=section)
        return {"model": model, "context": 1, "prepend_bos": False}

    def trained_on(self) -> dict[str, Any]:
        """The card's fields of the text, which there is none of."""
        return {"text": {}, "text_hash": self.synthetic.hash}


Supply = TextSupply | SyntheticSupply


def supply(config: Config) -> Supply:
    """What `config` trains on, loaded. Raises MatryoshkaError for what cannot be had."""
    return TextSupply.load(config) if config.synthetic is None else SyntheticSupply(config, config.synthetic)
