"""circuit-tracer: a set of transcoders, one for every layer of a model: config.yaml and layer_N.safetensors.

Its JumpReLU has no ReLU: thresholds below 0 would let negative activations pass, and no coder of ours has any. What has
no threshold is a ReLU there, whatever it was trained with: a TopK cannot be told.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.names import short_name
from matryoshka.interop.ours import Ours, distinct
from matryoshka.lm.info import describe

CONFIG = "config.yaml"
FILES = (CONFIG, "layer_*.safetensors")
INPUTS = {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid", "ln2_normalized": "ln2.hook_normalized"}
"""Kinds of sites that its graphs can read, and their hooks there."""
OUTPUT = ("mlp_out", "hook_mlp_out")


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """The file of each layer. Raises MatryoshkaError, naming what is missing or unlike, unless there is one transcoder
    for every layer of one model, all of one shape, from one kind of site into mlp_out."""
    for ours in coders:
        _refuse(ours)
    first = coders[0]
    for ours in coders[1:]:
        for what, get in SHARED.items():
            if get(ours) != get(first):
                raise MatryoshkaError(
                    f"{ours.run.path}: {what} {get(ours)}, and {first.run.path} has {get(first)}; a set of"
                    " circuit-tracer's has one for all layers"
                )
    model = first.card.model
    n_layers = describe(model.name, model.revision).n_layers
    arranged = distinct((f"layer_{ours.read.layer}.safetensors", ours) for ours in coders)
    there = {ours.read.layer for ours in coders}
    if missing := [str(layer) for layer in range(n_layers) if layer not in there]:
        raise MatryoshkaError(
            f"circuit-tracer needs a transcoder for each of the {n_layers} layers of {model.name}; missing:"
            f" {', '.join(missing)}"
        )
    return arranged


SHARED = {
    "model": lambda ours: ours.card.model.name,
    "reads": lambda ours: ours.read.kind,
    "d_sae": lambda ours: ours.prefix or ours.config.d_sae,
}
"""What all layers have in common."""


def _refuse(ours: Ours) -> None:
    where = f"{ours.run.path} ({ours.sites})"
    written = ours.write.kind == OUTPUT[0] and ours.write.layer == ours.read.layer
    if ours.read.kind not in INPUTS or not written:
        raise MatryoshkaError(
            f"{where}: circuit-tracer takes transcoders from {', '.join(INPUTS)} to the {OUTPUT[0]} of the same layer"
        )
    if ours.config.activation.kind == "topk":
        raise MatryoshkaError(
            f"{where}: circuit-tracer would read a TopK as a ReLU; nearest: train with batchtopk or jumprelu"
        )
    if ours.config.d_in != ours.config.d_out:
        raise MatryoshkaError(
            f"{where}: reads {ours.config.d_in} and writes {ours.config.d_out} numbers; circuit-tracer expects as many"
        )


def write(arranged: Mapping[str, Ours], folder: Path) -> None:
    """A file a layer, one coder in memory at a time, and config.yaml."""
    for name, ours in arranged.items():
        save_file(_tensors(ours.weights(ours.load())), folder / name)
    first = next(iter(arranged.values()))
    model, width = first.card.model.name, first.prefix or first.config.d_sae
    config: dict[str, Any] = {
        "model_name": model,
        "model_kind": "transcoder_set",
        "feature_input_hook": INPUTS[first.read.kind],
        "feature_output_hook": OUTPUT[1],
        "scan": f"matryoshka-{short_name(model).split('/')[-1]}-transcoders-{width}",
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _tensors(weights: Weights) -> dict[str, Tensor]:
    """As its files call them: the encoder has a row a latent, the skip a row an output."""
    tensors = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
    if (threshold := tensors.pop("threshold", None)) is not None:
        tensors["activation_function.threshold"] = threshold
    transposed = {name: tensors[name].T for name in ("W_enc", "W_skip") if name in tensors}
    return {name: tensor.contiguous() for name, tensor in (tensors | transposed).items()}
