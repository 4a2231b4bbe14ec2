"""Gemma Scope 1 (params.npz) and 2 (params.safetensors and config.json): JumpReLU SAEs and transcoders.

Of the first the file says nothing but its tensors; model and site stand in its path, gemma-scope-2b-pt-res/layer_12/….
What attention SAEs read, heads' outputs side by side, is no site here. Thresholds below 0 act as 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from matryoshka.coder.architecture import JumpReLUConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import model_of, sites_of_module
from matryoshka.interop.tensors import Fields, Tensors
from matryoshka.lm.sites import Site

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
ACROSS_LAYERS = "params_layer_*.safetensors"
SKIP = "affine_skip_connection"
SITES = {"res": ("resid_post", None), "mlp": ("mlp_out", None), "transcoders": ("ln2_normalized", "mlp_out")}
"""What a repository of the first is called by, and the kinds of sites that its coders read and write."""


def recognises(folder: Path) -> bool:
    """By the names of its files; the second's has a name that others may use too, and is told by its config.json."""
    second = (folder / SECOND).is_file() and (folder / CONFIG).is_file()
    return (folder / FIRST).is_file() or second or any(folder.glob(ACROSS_LAYERS))


def read(folder: Path) -> Iterator[Foreign]:
    """Its one coder. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    if any(folder.glob(ACROSS_LAYERS)):
        raise MatryoshkaError(
            f"{folder}: holds a crosscoder or cross-layer transcoder (params_layer_0.safetensors …), which reads or"
            " writes several layers: a coder of several sources, which is not there yet"
        )
    if (folder / FIRST).is_file():
        yield _first(folder)
    else:
        yield _second(folder)


def _first(folder: Path) -> Foreign:
    tensors = Tensors.open(folder / FIRST)
    weights = _weights(tensors, "W_enc", "W_dec")
    path = "/".join(folder.resolve().parts)
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", path)
    layer = re.search(r"/layer_(\d{1,6})(?=/|$)", path)
    facts = Facts()
    if repository is not None:
        tuned = "-it" if repository[2] == "it" else ""
        part = f"layer {layer[1]}" if layer else "embedding" if "/embedding/" in path else "no layer"
        facts = Facts(model=f"google/gemma-2-{repository[1]}{tuned}", called=f"{repository[0]}: {part}")
        if layer is not None and (kinds := SITES.get(repository[3])):
            read, write = (None if kind is None else Site(kind, int(layer[1])) for kind in kinds)
            facts = facts._replace(read=read, write=write)
    sizes = weights.W_enc.shape[0], weights.W_dec.shape[1]
    if facts.read is not None and facts.write is None and sizes[0] != sizes[1]:
        raise MatryoshkaError(f"{tensors.file}: is an SAE by its path, but reads {sizes[0]:,} and writes {sizes[1]:,}")
    return Foreign("coder", _coder(weights, tensors), facts, "Gemma Scope")


def _second(folder: Path) -> Foreign:
    config, tensors = Fields(folder / CONFIG, read_json(folder / CONFIG)), Tensors.open(folder / SECOND)
    config.refuse_unless("architecture", ("jump_relu",), "no architecture of Gemma Scope's; read is jump_relu")
    config.refuse_unless("type", ("sae", "transcoder"), "reads or writes several layers, as no coder here yet", "sae")
    tensors.refuse_others(("w_enc", "w_dec", "b_enc", "b_dec", "threshold", SKIP), "no tensor of Gemma Scope's")
    skips = SKIP in tensors
    if config.get("affine_connection", bool, skips) is not skips:
        raise config.wrong("affine_connection", f"{tensors.file.name} holds {'' if skips else 'no '}{SKIP}")
    weights = _weights(tensors, "w_enc", "w_dec")
    width = config.get("width", (int, str))  # or 16k
    if isinstance(width, int) and width != weights.d_sae:
        raise config.wrong("width", f"{tensors.file.name} holds {weights.d_sae:,} latents")
    if skips:
        shape = weights.W_enc.shape[0], weights.W_dec.shape[1]
        weights = weights._replace(W_skip=tensors.take(SKIP, *shape))
    return Foreign("coder", _coder(weights, tensors), _facts(config), "Gemma Scope 2")


def _weights(tensors: Tensors, encoder: str, decoder: str) -> Weights:
    W_enc = tensors.take(encoder, None, None)
    W_dec = tensors.take(decoder, W_enc.shape[1], None)
    return Weights(
        W_enc,
        tensors.take("b_enc", W_enc.shape[1]),
        W_dec,
        tensors.take("b_dec", W_dec.shape[1]),
        threshold=tensors.take("threshold", W_enc.shape[1]).clamp(min=0),
    )


def _coder(weights: Weights, tensors: Tensors) -> SparseCoder:
    return SparseCoder.of(weights, JumpReLUConfig(), where=tensors.file)


def _facts(config: Fields) -> Facts:
    model = model_of(config.get("model_name", str))
    hooks = [config.get(name, str) for name in ("hf_hook_point_in", "hf_hook_point_out")]
    read = _site(hooks[0], model)
    read, write = sites(read, read if hooks[1] is None else _site(hooks[1], model))
    return Facts(
        model=model,
        read=read,
        write=write,
        called=" → ".join(hook for hook in hooks if hook) or None,
    )


def _site(hook: str | None, model: str | None) -> Site | None:
    """Of `model.layers.12.output`, the input or output of a module."""
    module, _, end = (hook or "").rpartition(".")
    return sites_of_module(module, model)[end == "output"] if end in ("input", "output") else None
