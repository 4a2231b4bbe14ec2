"""circuit-tracer: sets of transcoders, layer_0.safetensors … in a folder with config.yaml; one coder for each layer.

A layer with thresholds is a JumpReLU. One without is a ReLU, or a TopK where config.yaml or a `k` says so (in later
versions of the program alone). Its JumpReLU has no ReLU: with a negative threshold latents may be negative, which those
of no coder here are. Its TopK has none either: where fewer than k are positive, what it keeps below 0 is left out here.

No coder of ours has a threshold below 0. What has none is a ReLU there, whatever it was trained with: a TopK cannot be
told. What its page shows of features is written beside the set (`circuit_tracer_features`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from matryoshka.coder.architecture import JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.config import read_yaml
from matryoshka.errors import MatryoshkaError
from matryoshka.interop import circuit_tracer_features
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import model_of, short_name, site_of_hook
from matryoshka.interop.ours import Ours, distinct
from matryoshka.interop.tensors import Fields, Tensors
from matryoshka.lm.info import describe

CONFIG = "config.yaml"
LAYER, CROSS_LAYER = r"layer_(0|[1-9]\d{0,5})\.safetensors", r"W_enc_\d+\.safetensors"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation_function.threshold", "k")
FILES = (CONFIG, "layer_*.safetensors", *circuit_tracer_features.FILES)
INPUTS = {"mlp_in": "mlp.hook_in", "resid_mid": "hook_resid_mid", "ln2_normalized": "ln2.hook_normalized"}
"""Kinds of sites that its graphs can read, and their hooks there."""
OUTPUT = ("mlp_out", "hook_mlp_out")


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


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """The file of each layer. Raises MatryoshkaError, naming what is missing or unlike, unless there is one transcoder
    for every layer of one model, all of one shape, from one kind of site into mlp_out, and its features, if they were
    collected, are those of its coder."""
    for ours in coders:
        _refuse(ours)
        if ours.run.features_file.is_file():
            ours.features().close()
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
    """A file a layer, one coder in memory at a time, the features that were collected, and config.yaml, whose scan is
    where a graph's page finds them: `features` in the folder of graphs."""
    for name, ours in arranged.items():
        save_file(_tensors(ours.weights(ours.load())), folder / name)
    first = next(iter(arranged.values()))
    model, width = first.card.model.name, first.prefix or first.config.d_sae
    name = re.sub(r"[^\w.-]", "-", f"matryoshka-{short_name(model).split('/')[-1]}-transcoders-{width}", flags=re.ASCII)
    place = f"{circuit_tracer_features.FEATURES}/{name}"
    shown = circuit_tracer_features.write_features(arranged.values(), folder / place)
    config: dict[str, Any] = {
        "model_name": model,
        "model_kind": "transcoder_set",
        "feature_input_hook": INPUTS[first.read.kind],
        "feature_output_hook": OUTPUT[1],
        "scan": f"./data/{place}" if shown else name,
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _tensors(weights: Weights) -> dict[str, Tensor]:
    """As its files call them: the encoder has a row a latent, the skip a row an output."""
    tensors = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
    if (threshold := tensors.pop("threshold", None)) is not None:
        tensors["activation_function.threshold"] = threshold
    transposed = {name: tensors[name].T for name in ("W_enc", "W_skip") if name in tensors}
    return {name: tensor.contiguous() for name, tensor in (tensors | transposed).items()}
