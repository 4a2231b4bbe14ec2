"""From a configuration to the parts that train: what can be refused is refused before anything is loaded.

check     config + the model's sizes → plans; wrong sites, sizes, sources and devices end here
resolve   what the config left open (model revision, tokens to read from the hub), so that it can be re-run
open_lm, open_tokens, open_stream, new_trainees
trained, sole       a run's coders; the run of a single one
placed              where a coder belongs
names               what to call them
progress            how far a long job is
"""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from matryoshka.coder.coder import SparseCoder
from matryoshka.data import cache
from matryoshka.data.activations import ActivationStream, Chunks, LiveChunks
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import Tokens, tokenise
from matryoshka.lm.model import LanguageModel, ModelInfo, Vocabulary, load
from matryoshka.progress import progress_bar
from matryoshka.training.config import Config, ModelSection
from matryoshka.training.plan import Plan, chunk_rows
from matryoshka.training.trainee import Trainee

CALIBRATION_ROWS = 2048
"""Rows that fix a coder's scales and means, at least: enough that a mean is good to a few per cent of a deviation."""


def open_lm(model: ModelSection) -> LanguageModel:
    """The language model that this section names, in its precision and on its device."""
    transformers.utils.logging.disable_progress_bar()  # reading weights from a disk is no news
    return load(model.name, model.revision, model.dtype, model.device)


def open_tokens(text: TextConfig, vocabulary: Vocabulary) -> Tokens:
    """The tokenised text, made now if it is not there yet."""
    return tokenise(text, *vocabulary)


def open_stream(config: Config, lm: LanguageModel, tokens: Tokens, plans: Sequence[Plan]) -> ActivationStream:
    """Batches for all `plans`: from the live model, or from the cache, which is written first if it is not there."""
    sites = list(dict.fromkeys(site for each in plans for site in (each.read, each.write)))
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


def new_trainees(config: Config, plans: Sequence[Plan], device: torch.device, info: ModelInfo) -> list[Trainee]:
    """Initialised coders, not yet calibrated."""
    trainees = []
    for each in plans:
        metadata = {
            "model": info.name,
            "revision": info.revision,
            "read": str(each.read),
            "write": str(each.write),
            "context": config.text.context,
            "dead_after_tokens": config.training.dead_after_tokens,
        }
        coder = SparseCoder(each.coder, metadata).initialise(each.section.seed, tied=each.read == each.write)
        trainees.append(Trainee(each, coder.to(device), config.training, config.steps))
    return trainees


def calibrate(trainees: Sequence[Trainee], stream: ActivationStream) -> None:
    """Fix each coder's constants from the first activations of the stream."""
    first = stream.peek(max(CALIBRATION_ROWS, stream.batch))
    for trainee in trainees:
        x, y = (first.activations[site] for site in (trainee.plan.read, trainee.plan.write))
        trainee.coder.calibrate(x, y)


def provenance(lm: LanguageModel, tokens: Tokens) -> dict[str, Any]:
    """What the numbers of a run depend on besides its config: versions, model, tokens, commit, hardware."""
    packages = ("matryoshka-sae", "torch", "transformers", "tokenizers", "numpy", "safetensors")
    cuda = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        "model": {
            "name": lm.info.name,
            "revision": lm.info.revision,
            "dtype": str(lm.dtype).removeprefix("torch."),
        },
        "tokens": {"hash": tokens.hash, "bos": lm.bos, "separator": lm.separator},
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpu": cuda},
    }


def _commit() -> str | None:
    """The git commit of this source, if it is a checkout."""
    try:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
