"""A model's shape without its weights: built on torch's meta device, which allocates nothing."""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from matryoshka.lm.info import ModelInfo


class Shape(NamedTuple):
    """What memory depends on."""

    parameters: int
    """Tied ones count once."""
    n_heads: int
    d_mlp: int
    """Width of the widest layer of the MLP."""
    bytes_a_parameter: int
    """In the checkpoint's own dtype."""


def shape(info: ModelInfo) -> Shape:
    """The shape of the model that `info` describes."""
    source, revision = info.source, info.revision or "main"
    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    blocks = model.get_submodule(info.family.blocks)
    widths = [max(p.shape) for p in blocks[0].get_submodule(info.family.mlp).parameters()]
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    count = sum(parameter.numel() for parameter in model.parameters())
    return Shape(count, text.num_attention_heads, max(widths), own.itemsize)
