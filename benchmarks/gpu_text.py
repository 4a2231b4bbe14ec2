"""The GPU report's way from text to a trained coder: language models of real shapes with random weights, which read
random tokens, through the stream and the steps that `matryoshka train` has."""

import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_clock import Pace, block_seconds, milliseconds, reserved
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PretrainedConfig

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from memory import read_peak, reset_peak

from matryoshka.data.stream import ActivationStream, Batch, Chunk
from matryoshka.data.tokens import Split, Tokens, Windows
from matryoshka.lm.info import ModelInfo
from matryoshka.lm.model import LanguageModel, Vocabulary
from matryoshka.lm.sites import FAMILIES
from matryoshka.training.plan import plan
from matryoshka.training.recipe import Config
from matryoshka.training.session import new_trainees, open_stream
from matryoshka.training.supply import TextSupply
from matryoshka.training.trainee import Trainee

TEXT = 8
"""Chunks in the text, after which it is read again in another order."""
STEPS = 10_000
"""Length of the run that the trainer is told."""
LOGGED = 10
"""Steps between two records, as in `matryoshka train`."""
GPT2_SMALL = GPT2Config()
GEMMA2_2B = Gemma2Config(
    vocab_size=256_000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
)
TINY_GPT2 = GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
TINY_GEMMA2 = Gemma2Config(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


class Reading(NamedTuple):
    """What reads, where a coder is trained, and how long it is watched: until so many chunks have been read, or so many
    seconds are over."""

    name: str
    model: PretrainedConfig
    layer: int
    d_sae: int
    k: int
    batch: int
    context: int
    chunks: int
    seconds: float
    windows: int = 512
    """in a forward pass: what `auto` is on a card of 80 GB"""
    chunk: int | None = None
    """rows; none: as many as where nothing is said"""


class RandomWindows(Windows):
    """Random ids in place of a split of a text."""

    def __init__(self, tokens: "RandomTokens", split: Split) -> None:
        self.tokens, self.split, self.context, self.bos = tokens, split, tokens.context, tokens.bos
        self._stride = self.context - (self.bos is not None)
        shape = (tokens.count // self._stride, self._stride)
        self._rows = np.random.default_rng(0).integers(tokens.vocabulary, size=shape, dtype=np.uint32)
        self._starts = np.zeros(1, dtype=np.int64)


class RandomTokens(Tokens):
    """Random ids in place of a text."""

    def __init__(self, vocabulary: int, count: int, context: int, bos: int | None) -> None:
        self.vocabulary, self.count, self.context, self.bos, self.hash = vocabulary, count, context, bos, "random"

    def windows(self, split: Split) -> Windows:
        return RandomWindows(self, split)


def random_model(name: str, config: Any, device: str) -> LanguageModel:
    """A language model of this shape, its weights random and made on the device; bfloat16 on a GPU."""
    family = FAMILIES[config.model_type]
    forced = family.attention_implementation
    attention = {"attn_implementation": forced} if forced else {}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
    info = ModelInfo(
        name=name,
        folder=None,
        revision=None,
        model_type=config.model_type,
        family=family,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        context=config.max_position_embeddings,
        parallel=False,
    )
    return LanguageModel(model, Vocabulary(None, config.bos_token_id, config.bos_token_id), info)


def measure_text(reading: Reading, device: str, pace: Pace) -> dict[str, Any]:
    """Tokens a second of the language model alone, of the coder alone, and of both as `matryoshka train` runs them;
    rows that are left out are tokens too. Then what memory is in use, and what is held."""
    before = reset_peak(device)
    lm = random_model(reading.name, reading.model, device)
    config = _config(reading, device)
    plans = plan(config, lm.info)
    tokens = RandomTokens(lm.info.d_vocab, TEXT * config.chunk_rows, reading.context, lm.bos)
    stream = open_stream(config, TextSupply(config, lm, tokens), plans)
    chunk = stream.chunks.chunk(0, 0, 0)
    alone = milliseconds(lambda: stream.chunks.chunk(0, 0, 1), device, pace)["median"]
    [trainee] = new_trainees(config, plans, lm.device)
    coder = _step_milliseconds(trainee, chunk, reading.batch, pace)
    read = chunk.counts.read
    del chunk
    rows_a_second, chunks = _both(trainee, stream, reading)
    stream.close()
    tokens_a_row = reading.context / (reading.context - 1)
    return {
        "model": reading.name,
        "layer": reading.layer,
        "d": lm.info.d_model,
        "d_sae": reading.d_sae,
        "lm_batch": reading.windows,
        "tokens_per_second": {
            "language model alone": 1000 * read / alone,
            "coder alone": 1000 * tokens_a_row * reading.batch / coder,
            "end to end": tokens_a_row * rows_a_second,
        },
        "chunks": chunks,
        "peak_bytes": read_peak(device) - before,
        "allocated_bytes": torch.cuda.memory_allocated() if device == "cuda" else 0,
        "reserved_bytes": reserved(device),
    }


def _config(reading: Reading, device: str) -> Config:
    return Config.build(
        {
            "model": {"device": device},
            "text": {"context": reading.context},
            "activations": {"lm_batch": reading.windows} | ({} if reading.chunk is None else {"chunk": reading.chunk}),
            "coder": {"read": f"{reading.layer}.resid_post", "d_sae": reading.d_sae, "k": reading.k},
            "training": {"batch": reading.batch, "tokens": STEPS * reading.batch},
        }
    )


def _step_milliseconds(trainee: Trainee, chunk: Chunk, batch: int, pace: Pace) -> float:
    """Of the coder alone, on the rows of a chunk that is there, by which it is calibrated."""
    [(site, rows)] = chunk.activations.items()
    batches = [Batch({site: x}, chunk.positions[:batch]) for x in rows.split(batch) if len(x) == batch]
    trainee.calibrate(batches[0])
    steps = enumerate(cycle(batches))

    def step() -> None:
        number, x = next(steps)
        _step(trainee, x, number)

    device = rows.device.type
    block_seconds(step, 2 * LOGGED, device)  # kernels are compiled, and graphs captured
    return milliseconds(step, device, pace)["median"]


def _both(trainee: Trainee, stream: ActivationStream, reading: Reading) -> tuple[float, int]:
    """Rows a second, and over how many chunks: from the moment that the second chunk has been read to the one that a
    later one has, since the first was not read ahead."""
    read: list[tuple[float, int]] = []
    for number, batch in enumerate(stream):
        if stream.next_batch == 1:
            read.append((time.perf_counter(), number))
            chunks = len(read) - 2
            if chunks >= reading.chunks or (chunks >= 1 and read[-1][0] - read[1][0] > reading.seconds):
                break
        _step(trainee, batch, number)
    (first_at, first), (last_at, last) = read[1], read[-1]
    return (last - first) * reading.batch / (last_at - first_at), len(read) - 2


def _step(trainee: Trainee, batch: Batch, number: int) -> None:
    """With a record now and then, which the host waits for."""
    log = number % LOGGED == LOGGED - 1
    trainee.step(batch, number, measure=log)
    if log:
        trainee.report(LOGGED)
