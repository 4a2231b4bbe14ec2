"""What a run will hold in memory, computed from shapes alone and stated before it starts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from matryoshka.lm.info import ModelInfo, Shape, shape
from matryoshka.lm.model import DTYPES, resolve_device
from matryoshka.training.plan import Plan, check, chunk_rows
from matryoshka.training.recipe import Config
from matryoshka.training.setup import reads_ahead

FLOAT = 4
LIBRARIES = 900_000_000
"""Python, torch, transformers, pyarrow and what malloc keeps, which differs by some 100 MB from run to run."""


class Item(NamedTuple):
    """One line of the statement."""

    name: str
    bytes: int
    detail: str


def needed(config: Config) -> list[Item]:
    """What training `config` would hold; loads no weights. Raises MatryoshkaError for what cannot be trained."""
    info, plans = check(config)
    device = resolve_device(config.model.device)
    lm = shape(info)
    if config.model.dtype == "auto":
        itemsize = torch.float32.itemsize if device.type == "cpu" else lm.bytes_a_parameter
    else:
        itemsize = DTYPES[config.model.dtype].itemsize
    return estimate(config, plans, info, lm, itemsize, chunks=2 if reads_ahead(device) else 1)


def estimate(
    config: Config, plans: Sequence[Plan], info: ModelInfo, lm: Shape, itemsize: int, chunks: int
) -> list[Item]:
    """Upper bounds in bytes. `lm` and `itemsize` are the language model's, `chunks` those in memory at once."""
    tokens = config.activations.lm_batch * config.text.context
    widths = {site: info.check(site) for plan in plans for site in plan.wiring.sites}
    attention = config.activations.lm_batch * lm.n_heads * config.text.context**2 * FLOAT
    forward = tokens * (6 * info.d_model + 3 * lm.d_mlp) * itemsize + 2 * attention
    logits = 5 * 4 * config.text.context * info.d_vocab * FLOAT  # evaluation: four windows; clean, spliced, products
    weights = sum(_parameters(plan) for plan in plans) * FLOAT
    rows = chunk_rows(config)
    return [
        Item("language model", lm.parameters * itemsize, f"{lm.parameters:,} parameters"),
        Item("its forward pass", max(forward, logits), f"{tokens:,} tokens at once; logits in evaluation"),
        Item("activations", chunks * rows * (sum(widths.values()) * itemsize + 16), f"{chunks} × {rows:,} rows"),
        Item("coders", weights, f"{weights // FLOAT:,} parameters, float32"),
        Item("gradients", weights, ""),
        Item("optimiser", 2 * weights, "Adam's two moments"),
        Item(
            "step buffers",
            max(_step(config, plan) for plan in plans),
            f"{config.training.batch:,} tokens a step",
        ),
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
