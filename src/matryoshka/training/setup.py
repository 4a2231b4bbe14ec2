"""From a configuration and its plans to the parts that train.

open_lm, open_tokens    the language model and the text
open_stream             batches of activations, live or from the cache
new_trainees, calibrate coders, their constants fixed from the first activations
open_sinks              where a coder logs to
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.data import cache
from matryoshka.data.sections import TextConfig
from matryoshka.data.stream import ActivationStream, Chunks, LiveChunks
from matryoshka.data.tokens import Tokens, tokenise
from matryoshka.lm.model import LanguageModel, Vocabulary, load
from matryoshka.progress import progress_bar
from matryoshka.run import Run
from matryoshka.training.log import JsonLines, Sink, TensorBoard, Wandb
from matryoshka.training.plan import Plan, chunk_rows
from matryoshka.training.recipe import Config, ModelSection
from matryoshka.training.trainee import Trainee

CALIBRATION_ROWS = 2048
"""Rows that fix a coder's scales and means, at least: enough that a mean is good to a few per cent of a deviation."""


def open_lm(model: ModelSection) -> LanguageModel:
    """The language model that this section names, in its precision and on its device."""
    return load(model.name, model.revision, model.dtype, model.device)


def open_tokens(text: TextConfig, vocabulary: Vocabulary) -> Tokens:
    """The tokenised text, made now if it is not there yet."""
    return tokenise(text, *vocabulary)


def open_stream(config: Config, lm: LanguageModel, tokens: Tokens, plans: Sequence[Plan]) -> ActivationStream:
    """Batches for all `plans`: from the live model, or from the cache, which is written first if it is not there."""
    sites = list(dict.fromkeys(site for plan in plans for site in plan.wiring.sites))
    live = LiveChunks(lm, tokens.windows("train"), sites, chunk_rows(config), config.activations.lm_batch)
    chunks: Chunks = live
    if config.activations.cache is not None:
        chunks = _cached(config, config.activations.cache, live, tokens)
    return ActivationStream(chunks, config.training.batch, config.training.seed, ahead=reads_ahead(lm.device))


def reads_ahead(device: torch.device) -> bool:
    """On a GPU the next chunk is made during training; on a CPU both would compete for the same cores."""
    return device.type == "cuda"


def _cached(config: Config, folder: Path, live: LiveChunks, tokens: Tokens) -> cache.CachedChunks:
    info, seed = live.lm.info, config.training.seed
    identity = {
        "model": info.name,
        "revision": info.revision,
        "dtype": str(live.lm.dtype).removeprefix("torch."),
        "tokens": tokens.hash,
        "context": tokens.context,
    }
    if not (folder / "index.json").is_file():
        usable = live.per_chunk * (live.windows.context - 1) // config.training.batch * config.training.batch
        count = min(len(live), -(-config.steps * config.training.batch // usable) + 1)
        with progress_bar(f"caching activations in {folder}") as update:
            cache.write(live, folder, seed, count, identity, lambda done: update(done, count))
    return cache.CachedChunks(folder, identity, list(live.sites), live.lm.device)


def new_trainees(config: Config, plans: Sequence[Plan], device: torch.device) -> list[Trainee]:
    """Initialised coders, not yet calibrated."""
    trainees = []
    for plan in plans:
        tied = plan.wiring.reads == plan.wiring.writes
        coder = SparseCoder(plan.coder).initialise(plan.section.seed, tied)
        trainees.append(Trainee(plan, coder.to(device), config.training, config.steps))
    return trainees


def calibrate(trainees: Sequence[Trainee], stream: ActivationStream) -> None:
    """Fix each coder's constants from the first activations of the stream."""
    first = stream.peek(max(CALIBRATION_ROWS, stream.batch))
    for trainee in trainees:
        trainee.calibrate(first)


def open_sinks(run: Run, config: Config, plan: Plan, start: int, coders: int) -> list[Sink]:
    """Where one of `coders` coders logs to, from step `start` on."""
    member = run.member(plan.label)
    sinks: list[Sink] = [JsonLines(member.metrics, start)]
    if config.log.wandb:
        name = run.path.name if coders == 1 else f"{run.path.name}/{plan.label}"
        group = run.path.name if coders > 1 else None
        settings = {**config.model_dump(mode="json"), "coder": plan.section.model_dump(mode="json")}
        identity = hashlib.sha256(run.provenance.read_bytes() + plan.label.encode()).hexdigest()[:16]
        sinks.append(Wandb(config.log.wandb, name, group, settings, member.path, identity))
    if config.log.tensorboard:
        sinks.append(TensorBoard(member.path / "tensorboard"))
    return sinks
