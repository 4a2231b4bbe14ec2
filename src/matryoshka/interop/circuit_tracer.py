"""circuit-tracer: sets of transcoders, layer_0.safetensors … in a folder with config.yaml; one coder for each layer.

A layer with thresholds is a JumpReLU. One without is a ReLU, or a TopK where config.yaml or a `k` says so (in later
versions of the program alone). Its JumpReLU has no ReLU: with a negative threshold latents may be negative, which those
of no coder here are. Its TopK has none either: where fewer than k are positive, what it keeps below 0 is left out here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from matryoshka.coder.architecture import JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.config import read_yaml
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import model_of, site_of_hook
from matryoshka.interop.tensors import Fields, Tensors

CONFIG = "config.yaml"
LAYER, CROSS_LAYER = r"layer_(0|[1-9]\d{0,5})\.safetensors", r"W_enc_\d+\.safetensors"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation_function.threshold", "k")


def recognises(folder: Path) -> bool:
    """By the names of its layers' files, or a config.yaml that names its hooks."""
    if _files(folder, LAYER) or _files(folder, CROSS_LAYER):
        return True
    return (folder / CONFIG).is_file() and b"feature_input_hook" in (folder / CONFIG).read_bytes()


def read(folder: Path) -> Iterator[Foreign]:
    """A coder for each layer. Raises MatryoshkaError, by file and field, for what is no set of coders of ours."""
    file = folder / CONFIG
    config = Fields(file, read_yaml(file) if file.is_file() else {})  # some sets on the hub have none
    if config.get("model_kind", str) == "cross_layer_transcoder" or _files(folder, CROSS_LAYER):
        raise MatryoshkaError(
            f"{folder}: holds a cross-layer transcoder, whose latents write to all later layers: a coder of several"
            " sources, which is not there yet"
        )
    if "transcoders" in config.values:
        raise MatryoshkaError(
            f"{file}: transcoders lists files of other folders, which are not followed: import each from its own"
        )
    layers = sorted(int(match[1]) for match in _files(folder, LAYER))
    if missing := sorted(set(range(len(layers))) - set(layers)):
        raise MatryoshkaError(f"{folder}: lacks layer_{missing[0]}.safetensors of layers 0 to {layers[-1]}")
    if not layers:
        raise MatryoshkaError(f"{folder}: holds no layer_0.safetensors")
    sizes: tuple[int | None, ...] = (None, None)
    for layer in layers:
        tensors = Tensors.open(folder / f"layer_{layer}.safetensors")
        weights = _weights(tensors, *sizes)
        sizes = tuple(weights.W_dec.shape)
        coder = SparseCoder.of(weights, _activation(config, tensors, weights), where=tensors.file)
        yield Foreign(f"layer_{layer}", coder, _facts(config, layer), "circuit-tracer")


def _files(folder: Path, name: str) -> list[re.Match[str]]:
    return [match for path in folder.iterdir() if (match := re.fullmatch(name, path.name))]


def _weights(tensors: Tensors, d_sae: int | None, d_model: int | None) -> Weights:
    """Of one layer; all read and write vectors of one size, and have as many latents."""
    tensors.refuse_others(TENSORS, "no tensor of a transcoder's")
    encoder = tensors.take("W_enc", d_sae, d_model)
    d_sae, d_model = encoder.shape
    threshold = None
    if "activation_function.threshold" in tensors:
        threshold = tensors.take("activation_function.threshold", d_sae)
        if (least := threshold.min().item()) < 0:
            raise MatryoshkaError(
                f"{tensors.file}: activation_function.threshold is {least:g} somewhere: such a latent may be negative"
                " there, as none can be here"
            )
    return Weights(
        encoder.T,
        tensors.take("b_enc", d_sae),
        tensors.take("W_dec", d_sae, d_model),
        tensors.take("b_dec", d_model),
        tensors.take("W_skip", d_model, d_model).T if "W_skip" in tensors else None,
        threshold,
    )


def _activation(config: Fields, tensors: Tensors, weights: Weights) -> NonlinearityConfig:
    named, thresholds, k = config.get("activation", str), weights.threshold is not None, config.get("k", int)
    if named == "topk" or "k" in tensors:
        if thresholds or named not in ("topk", None):
            held = "thresholds" if thresholds else "k, a TopK's"
            raise config.wrong("activation", f"{tensors.file.name} holds {held}")
        k_there = tensors.whole_number("k", weights.d_sae) if "k" in tensors else config.size("k", weights.d_sae)
        if k not in (k_there, None):
            raise config.wrong("k", f"{tensors.file.name} holds k {k_there}")
        return TopKConfig(k=k_there)
    if named not in (("jumprelu", "jump_relu", None) if thresholds else ("relu", None)):
        raise config.wrong("activation", f"{tensors.file.name} holds {'' if thresholds else 'no '}thresholds")
    return JumpReLUConfig() if thresholds else ReLUConfig()


def _facts(config: Fields, layer: int) -> Facts:
    model = model_of(config.get("model_name", str))
    hooks = [config.get(name, str) for name in ("feature_input_hook", "feature_output_hook")]
    read, write = (site_of_hook(f"blocks.{layer}.{hook}", model) for hook in hooks)
    called = f"layer {layer}: {' → '.join(hook for hook in hooks if hook)}" if any(hooks) else f"layer {layer}"
    read, write = sites(read, write)
    return Facts(model=model, read=read, write=write, called=called)
