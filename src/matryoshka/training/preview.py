"""What a run will be, said before it starts: where it lies, its coders, and what it takes.

Everything that can be refused without loading weights is refused here, and the first documents are read. The time is an
estimate from this machine's own speed at a product of matrices and at moving memory, and good to a factor of two or so.
"""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from matryoshka.data.documents import documents
from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir, refuse_unwritable
from matryoshka.lm.info import ModelInfo, shape
from matryoshka.lm.model import resolve_device
from matryoshka.run import Run
from matryoshka.training.memory import FLOAT, Item, needed
from matryoshka.training.plan import Plan, check, default_folder, resolve
from matryoshka.training.recipe import Config

DOCUMENTS = 8
"""That are read."""
PASSES = 12
"""Over a coder's weights in one step: gradients, norm, Adam, unit rows."""


class Preview(NamedTuple):
    """A run that has not started."""

    path: Path
    coders: Sequence[Plan]
    steps: int
    tokens: int
    seconds: float
    """Of training, roughly."""
    disk: int
    """Bytes, at most: three checkpoints, the coders, the text's tokens, and the cache of activations where there is
    one."""
    memory: Sequence[Item]


def preview(config: Config, out: Path | None = None, overwrite: bool = False) -> Preview:
    """The run that `config` would make in `out`. Raises MatryoshkaError for what training would refuse, as far as that
    can be told without weights."""
    info, plans = check(config)
    resolved = resolve(config, info)
    path = out or default_folder(resolved, info, plans)
    Run.refuse_existing(path, overwrite)
    refuse_unwritable(cache_dir())
    if not list(islice(documents(config.text), DOCUMENTS)):
        raise MatryoshkaError(f"{config.text.source}: there is no text in it")
    tokens = config.steps * config.training.batch
    seconds, disk = _seconds(resolved, info, plans), _disk(resolved, info, plans)
    return Preview(path, plans, config.steps, tokens, seconds, disk, needed(config))


def _seconds(config: Config, info: ModelInfo, plans: Sequence[Plan]) -> float:
    """Products of the language model up to the last site that is read and of the encoders, passes over the weights."""
    products_a_second, bytes_a_second = _speed(resolve_device(config.model.device))
    tokens = config.steps * config.training.batch
    depth = (1 + max(site.layer for plan in plans for site in plan.wiring.sites)) / info.n_layers
    lm = 2 * depth * (shape(info).parameters - info.d_vocab * info.d_model) * tokens
    weights = sum(plan.coder.d_sae * (plan.coder.d_in + plan.coder.d_out) for plan in plans)
    encoders = 2 * sum(plan.coder.d_sae * plan.coder.d_in for plan in plans) * tokens
    return (lm + encoders) / products_a_second + config.steps * PASSES * FLOAT * weights / bytes_a_second


def _speed(device: torch.device, size: int = 1024, rounds: int = 5) -> tuple[float, float]:
    """Floating-point operations and bytes moved a second: the best of a few rounds."""
    a, large = torch.rand(size, size, device=device), torch.rand(16, size, size, device=device)

    def seconds(*jobs: torch.Tensor) -> float:
        began = time.perf_counter()
        (torch.mm if len(jobs) == 2 else torch.clone)(*jobs).sum().item()  # waits for a GPU
        return time.perf_counter() - began

    products, copies = (min(seconds(*job) for _ in range(rounds)) for job in ((a, a), (large,)))
    return 2 * size**3 / products, 2 * large.nbytes / copies


def _disk(config: Config, info: ModelInfo, plans: Sequence[Plan]) -> int:
    weights = FLOAT * sum(plan.coder.d_sae * (plan.coder.d_in + plan.coder.d_out + 1) for plan in plans)
    tokens = FLOAT * (config.text.limit or 0)
    sites = {site for plan in plans for site in plan.wiring.sites}
    rows = FLOAT * sum(info.check(site) for site in sites) + 8
    cached = config.steps * config.training.batch * rows if config.activations.cache else 0
    return 3 * 3 * weights + 2 * weights + tokens + cached
