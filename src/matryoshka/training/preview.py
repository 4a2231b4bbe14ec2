"""What a run will be, said before it starts: where it lies, its coders, and what it takes of memory, disk and time.

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
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.synthetic import SyntheticInfo, training_entries
from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir, refuse_unwritable
from matryoshka.lm.info import ModelInfo, shape
from matryoshka.lm.model import resolve_device
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.training.optim import peak_rate
from matryoshka.training.plan import Plan, check, default_folder, resolve
from matryoshka.training.recipe import Config
from matryoshka.training.session import reads_ahead
from matryoshka.training.supply import Info, lm_batch, read_itemsize

FLOAT = 4
LIBRARIES = 900_000_000
"""Python, torch, transformers, pyarrow and what malloc keeps, which differs by some 100 MB from run to run."""
DOCUMENTS = 8
"""That are read."""
DRAWING = 8
"""What drawing a sample costs, in products of all features' loadings and the factors."""
PASSES = 12
"""Over a coder's weights in one step: gradients, norm, Adam, unit rows."""


class Item(NamedTuple):
    """One line of what is held in memory."""

    name: str
    bytes: int
    detail: str


class Preview(NamedTuple):
    """A run that has not started."""

    path: Path
    coders: Sequence[Plan]
    steps: int
    batch: int
    """Tokens in a step."""
    lr: float
    """Peak learning rate."""
    seconds: float
    """Of training, roughly."""
    disk: int
    """Bytes, at most: three checkpoints, the coders, the text's tokens, and the cache of activations where there is
    one."""
    memory: Sequence[Item]


def preview(config: Config, out: str | Path | None = None, overwrite: bool = False) -> Preview:
    """What `train` with these arguments would do and take; loads no weights, and writes nothing. Raises MatryoshkaError
    for what training would refuse, as far as that can be told without weights."""
    info, plans = check(config)
    resolved = resolve(config, info, plans)
    path = Path(out) if out else default_folder(resolved, info, plans)
    Run.refuse_existing(path, overwrite)
    refuse_unwritable(cache_dir())
    if isinstance(info, ModelInfo) and not list(islice(documents(config.text), DOCUMENTS)):
        raise MatryoshkaError(f"{config.text.source}: there is no text in it")
    before, lr = upstream(resolved, info, plans), peak_rate(config.training, config.steps, plans[0].coder.d_in)
    seconds, disk = _seconds(resolved, plans, before.operations), _disk(resolved, info, plans)
    memory = needed(config, info, plans, before)
    return Preview(path, plans, config.steps, config.training.batch, lr, seconds, disk, memory)


def _seconds(config: Config, plans: Sequence[Plan], upstream: float) -> float:
    """`upstream` operations a token and the encoders' products, and passes over the weights."""
    products_a_second, bytes_a_second = _speed(resolve_device(config.model.device))
    tokens = config.steps * config.training.batch
    weights = sum(plan.coder.d_sae * (plan.coder.d_in + plan.coder.d_out) for plan in plans)
    encoders = 2 * sum(plan.coder.d_sae * plan.coder.d_in for plan in plans)
    passes = config.steps * PASSES * FLOAT * weights
    return (upstream + encoders) * tokens / products_a_second + passes / bytes_a_second


def _speed(device: torch.device, size: int = 1024, rounds: int = 5) -> tuple[float, float]:
    """Floating-point operations and bytes moved a second: the best of a few rounds."""
    a, large = torch.rand(size, size, device=device), torch.rand(16, size, size, device=device)

    def seconds(*jobs: torch.Tensor) -> float:
        began = time.perf_counter()
        (torch.mm if len(jobs) == 2 else torch.clone)(*jobs).sum().item()  # waits for a GPU
        return time.perf_counter() - began

    products, copies = (min(seconds(*job) for _ in range(rounds)) for job in ((a, a), (large,)))
    return 2 * size**3 / products, 2 * large.nbytes / copies


def _disk(config: Config, info: Info, plans: Sequence[Plan]) -> int:
    weights = FLOAT * sum(plan.coder.d_sae * (plan.coder.d_in + plan.coder.d_out + 1) for plan in plans)
    tokens = FLOAT * (config.text.limit or 0)
    rows = FLOAT * sum(info.check(site) for site in _sites(plans)) + 8
    cached = config.steps * config.training.batch * rows if config.activations.cache else 0
    return 3 * 3 * weights + 2 * weights + tokens + cached


class Upstream(NamedTuple):
    """What it takes to make activations."""

    items: Sequence[Item]
    """Memory: upper bounds, from shapes alone."""
    itemsize: int
    """Bytes of a number in an activation."""
    operations: float
    """On floating-point numbers, a token."""


def upstream(config: Config, info: Info, plans: Sequence[Plan]) -> Upstream:
    """Of the language model up to the last site that is read, or of known features."""
    return _drawing(config, info.config) if isinstance(info, SyntheticInfo) else _reading(config, info, plans)


def _reading(config: Config, info: ModelInfo, plans: Sequence[Plan]) -> Upstream:
    lm = shape(info)
    itemsize, windows = read_itemsize(config, lm), lm_batch(config, info)
    tokens = windows * config.text.context
    forward = tokens * lm.bytes_a_token(config.text.context, itemsize)
    logits = 5 * 4 * config.text.context * info.d_vocab * FLOAT  # evaluation: four windows; clean, spliced, products
    items = [
        Item("language model", lm.parameters * itemsize, f"{lm.parameters:,} parameters"),
        Item("its forward pass", max(forward, logits), f"{windows:,} windows, {tokens:,} tokens; logits in evaluation"),
    ]
    depth = (1 + max(site.layer for site in _sites(plans))) / info.n_layers
    return Upstream(items, itemsize, 2 * depth * (lm.parameters - info.d_vocab * info.d_model))


def _drawing(config: Config, synthetic: SyntheticConfig) -> Upstream:
    entries = training_entries(resolve_device(config.model.device))
    known = synthetic.features * (2 * synthetic.dimension + 3 * synthetic.factors + 8) * FLOAT
    items = [
        Item("known features", known, f"{synthetic.features:,} directions and loadings; twice while they are made"),
        Item("their samples", 8 * entries * FLOAT, "drawn at once"),
    ]
    return Upstream(items, FLOAT, 2 * DRAWING * synthetic.features * synthetic.factors)


def needed(config: Config, info: Info, plans: Sequence[Plan], before: Upstream) -> list[Item]:
    """What training `config` would hold in memory: upper bounds, from shapes alone."""
    device = resolve_device(config.model.device)
    weights = sum(_parameters(plan) for plan in plans) * FLOAT
    row = sum(info.check(site) for site in _sites(plans)) * before.itemsize + 16
    rows, chunks = config.chunk_rows, 2 if reads_ahead(device) else 1
    step = max(_step(config, plan) for plan in plans)
    return [
        *before.items,
        Item("activations", chunks * rows * row, f"{chunks} × {rows:,} rows"),
        Item("coders", weights, f"{weights // FLOAT:,} parameters, float32"),
        Item("gradients", weights, ""),
        Item("optimiser", 2 * weights, "Adam's two moments"),
        Item("step buffers", step, f"{config.training.batch:,} tokens a step"),
        Item("libraries", LIBRARIES, "Python, torch, transformers, pyarrow"),
    ]


def _parameters(plan: Plan) -> int:
    c = plan.coder
    skip = c.d_in * c.d_out if c.skip else 0
    return c.d_sae * (c.d_in + c.d_out + 1) + c.d_out + skip + (c.d_sae if c.activation.kind == "jumprelu" else 0)


def _step(config: Config, plan: Plan) -> int:
    c, batch = plan.coder, config.training.batch
    pre = 1.5 * batch * c.d_sae * FLOAT  # pre-activations, and what selects among them
    nested = 4 * len(c.widths) * batch * c.d_out * FLOAT
    aux = 5 * batch * c.d_sae * FLOAT  # at worst every latent is dead: their dense coder, forward and backward
    return int(pre) + nested + aux + _parameters(plan) * FLOAT  # one copy of weights in low precision, one being made


def _sites(plans: Sequence[Plan]) -> set[Site]:
    return {site for plan in plans for site in plan.wiring.sites}
