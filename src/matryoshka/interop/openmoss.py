"""OpenMOSS (llamascopium, formerly lm-saes): a folder with config.json and sae_weights.safetensors.

With `dataset-wise` norms its coders read s x and write y s, where s = √d / the average norm there. With
`sparsity_include_decoder_norm` what a latent writes, its value times its decoder row's norm, is judged by the threshold
and ranked among the k. Nothing is taken off x.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from matryoshka.coder.architecture import JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.interop.conventions import of_unit_rows
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import model_of, site_of_hook
from matryoshka.interop.tensors import Fields, Tensors

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm"
KINDS = {
    "clt": "a cross-layer transcoder writes to several layers, as no coder here yet",
    "crosscoder": "a crosscoder of theirs has an encoder for each place, as no coder here",
    "lorsa": "low-rank sparse attention is no sparse coder",
    "molt": "a mixture of linear transforms is no sparse coder",
}
"""What else it trains, and why that is none of ours."""
FOLDABLE = "no constant, which alone can be folded into weights; read are dataset-wise, inference"


def recognises(folder: Path) -> bool:
    """By the names of its two files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Foreign]:
    """Its one coder. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    config, tensors = Fields(folder / CONFIG, read_json(folder / CONFIG)), Tensors.open(folder / WEIGHTS)
    kind = config.get("sae_type", str, "sae")
    config.refuse_unless("sae_type", ("sae",), KINDS.get(kind, "not known here; read is sae"), "sae")
    config.refuse_unless("use_glu_encoder", (False, None), "a gated linear unit is no encoder here")
    weights = _weights(config, tensors)
    activation = _activation(config, weights)
    by_norm = config.get("sparsity_include_decoder_norm", bool)
    if by_norm is None and not isinstance(activation, ReLUConfig):
        raise config.wrong("sparsity_include_decoder_norm", "expected true or false")
    if isinstance(activation, JumpReLUConfig):
        weights = weights._replace(threshold=_threshold(tensors, weights, by_norm is True))
    if isinstance(activation, TopKConfig) and by_norm:
        weights = of_unit_rows(weights)
    weights = _in_raw_units(config, tensors, weights)
    coder = SparseCoder.of(weights, activation, where=tensors.file)
    yield Foreign("coder", coder, _facts(config), "OpenMOSS")


def _weights(config: Fields, tensors: Tensors) -> Weights:
    """As they lie there."""
    d_model = config.size("d_model")
    d_sae = int(d_model * config.scale("expansion_factor"))
    biased = config.get("use_decoder_bias", bool, True)
    return Weights(
        tensors.take("W_E", d_model, d_sae),
        tensors.take("b_E", d_sae),
        tensors.take("W_D", d_sae, d_model),
        tensors.take("b_D", d_model) if biased else torch.zeros(d_model),
    )


def _activation(config: Fields, weights: Weights) -> NonlinearityConfig:
    match config.get("act_fn", str):
        case "relu":
            return ReLUConfig()
        case "jumprelu":
            return JumpReLUConfig()
        case "topk":
            return TopKConfig(k=config.size("top_k", weights.d_sae))
        case "batchtopk":
            why = "it has no threshold, and takes the largest of a batch at inference too, as no coder here"
            raise config.wrong("act_fn", why)
    raise config.wrong("act_fn", "no activation here; read are relu, jumprelu, topk")


def _threshold(tensors: Tensors, weights: Weights, by_norm: bool) -> torch.Tensor:
    """θ of the latents themselves. One that writes nothing never exceeds a threshold by norm: Inf stands for the
    largest number there is."""
    threshold = tensors.take(THRESHOLD, weights.d_sae).double().exp()
    if by_norm:
        threshold /= weights.W_dec.double().norm(dim=1)
    return threshold.clamp(max=torch.finfo(torch.float32).max).float()


def _in_raw_units(config: Fields, tensors: Tensors, weights: Weights) -> Weights:
    """Of coders that read and write normalised vectors."""
    if config.refuse_unless("norm_activation", ("dataset-wise", "inference"), FOLDABLE) == "inference":
        return weights
    into, out = (_scale(config, tensors, weights, f"hook_point_{end}") for end in ("in", "out"))
    return weights._replace(
        W_enc=weights.W_enc.mul_(into), W_dec=weights.W_dec.div_(out), b_dec=weights.b_dec.div_(out)
    )


def _scale(config: Fields, tensors: Tensors, weights: Weights, end: str) -> float:
    """√d over the average norm where it reads, or writes."""
    name = f"{NORM}.{config.get(end, str)}"
    norm = tensors.take(name).item()
    if not 1e-30 < norm < 1e30:
        raise MatryoshkaError(f"{tensors.file}: {name} is {norm:g}, as where nobody has measured it")
    return weights.W_enc.shape[0] ** 0.5 / norm


def _facts(config: Fields) -> Facts:
    return facts_of_hooks(config, model_of(config.get("model_name", str)))


def facts_of_hooks(config: Fields, model: str | None) -> Facts:
    """Where a coder of `model` belongs by its hook points, as this program's configs have always called them."""
    hooks = [config.get(name, str) for name in ("hook_point_in", "hook_point_out")]
    read, write = sites(*(site_of_hook(hook, model) for hook in hooks))
    return Facts(
        model=model,
        read=read,
        write=write,
        called=" → ".join(dict.fromkeys(hook for hook in hooks if hook)) or None,
    )
