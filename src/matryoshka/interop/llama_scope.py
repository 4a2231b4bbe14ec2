"""Llama Scope, as OpenMOSS' program stored coders in 2024: hyperparams.json and checkpoints/final.safetensors.

It reads them in raw units: b_enc / s_in, W_dec s_in / s_out, b_dec / s_out, with s = √d / the average norm there. Then,
with `sparsity_include_decoder_norm`, decoder rows become unit vectors. One threshold is that of all these latents.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from matryoshka.coder.architecture import JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.files import read_json
from matryoshka.interop.conventions import of_unit_rows
from matryoshka.interop.foreign import Facts, Foreign
from matryoshka.interop.names import model_of
from matryoshka.interop.openmoss import FOLDABLE, facts_of_hooks
from matryoshka.interop.tensors import Fields, Tensors

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


def recognises(folder: Path) -> bool:
    """By the names of its two files; `folder` may be checkpoints too."""
    top = _top(folder)
    return (top / CONFIG).is_file() and (top / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Foreign]:
    """Its one coder. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    top = _top(folder)
    config, tensors = Fields(top / CONFIG, read_json(top / CONFIG)), Tensors.open(top / WEIGHTS)
    config.refuse_unless("use_glu_encoder", (False, None), "a gated linear unit is no encoder here")
    config.refuse_unless(
        "apply_decoder_bias_to_pre_encoder", (False, None), "not read: no release of Llama Scope has it"
    )
    weights = _in_raw_units(config, _weights(config, tensors))
    if config.get("sparsity_include_decoder_norm", bool):
        weights = of_unit_rows(weights)
    activation = _activation(config, weights)
    if isinstance(activation, JumpReLUConfig):
        threshold = torch.full((weights.d_sae,), config.scale("jump_relu_threshold"))
        weights = weights._replace(threshold=threshold)
    coder = SparseCoder.of(weights, activation, where=tensors.file)
    yield Foreign("coder", coder, _facts(config, top), "OpenMOSS")


def _top(folder: Path) -> Path:
    return folder.resolve().parent if folder.resolve().name == "checkpoints" else folder


def _weights(config: Fields, tensors: Tensors) -> Weights:
    d_model, d_sae = config.size("d_model"), config.size("d_sae")
    biased = config.get("use_decoder_bias", bool, True)
    return Weights(
        tensors.take("encoder.weight", d_sae, d_model).T,
        tensors.take("encoder.bias", d_sae),
        tensors.take("decoder.weight", d_model, d_sae).T,
        tensors.take("decoder.bias", d_model) if biased else torch.zeros(d_model),
    )


def _in_raw_units(config: Fields, weights: Weights) -> Weights:
    if config.refuse_unless("norm_activation", ("dataset-wise", "inference"), FOLDABLE) == "inference":
        return weights
    norms = config.section("dataset_average_activation_norm")
    into, out = (weights.W_enc.shape[0] ** 0.5 / norms.scale(end) for end in ("in", "out"))
    return weights._replace(
        b_enc=weights.b_enc.div_(into), W_dec=weights.W_dec.mul_(into / out), b_dec=weights.b_dec.div_(out)
    )


def _activation(config: Fields, weights: Weights) -> NonlinearityConfig:
    named = config.refuse_unless("act_fn", ("relu", "topk", "jumprelu"), "read are relu, topk, jumprelu")
    # a TopK with a threshold is a JumpReLU once it is trained
    if named == "jumprelu" or (named == "topk" and config.get("jump_relu_threshold", (int, float), 0) > 0):
        return JumpReLUConfig()
    return TopKConfig(k=config.size("top_k", weights.d_sae)) if named == "topk" else ReLUConfig()


def _facts(config: Fields, top: Path) -> Facts:
    released = any("Llama3_1-8B-Base-L" in part for part in top.resolve().parts)
    model = model_of(config.get("model_name", str)) or ("meta-llama/Llama-3.1-8B" if released else None)
    return facts_of_hooks(config, model)
