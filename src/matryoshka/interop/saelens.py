"""SAELens: a folder with cfg.json and sae_weights.safetensors (6.x, and flat configs from before 6.0).

Its coders read n(x) − b_dec where apply_b_dec_to_input, with n a normalisation for each token that is none here. Gated
coders are JumpReLUs, TopK that ranks by decoder norms is a TopK of unit rows, negative thresholds act as 0.

Ours are written as they are: nothing taken off x, nothing normalised, a BatchTopK as the JumpReLU that it is at
inference. Prefixes stand in the metadata, under the names that SAELens gives them in training.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from matryoshka.coder.architecture import (
    BatchTopKConfig,
    CoderConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.interop.conventions import gated_as_jumprelu, of_unit_rows, reads_x_itself
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import model_of, returned_by, short_name, site_of_hook
from matryoshka.interop.ours import Ours, distinct
from matryoshka.interop.tensors import Fields, Tensors
from matryoshka.lm.info import describe

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
FILES = tuple(f"{folder}{name}" for folder in ("", "blocks.*/") for name in (CONFIG, WEIGHTS, SPARSITY))
VERSION = "6.54.12"
"""Of SAELens, whose files these are: it rewrites the configs of versions before 6."""
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed")
"""What TransformerLens does to models unless told not to; our sites are of raw ones."""
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", *TRANSCODERS, "batchtopk", "matryoshka_batchtopk")
"""Those that can be our function; the last two lie in checkpoints of training alone."""
PER_TOKEN = "is a normalisation of each token by itself, which no coder here has; it cannot be folded into weights"


def recognises(folder: Path) -> bool:
    """By the names of its two files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Foreign]:
    """Its one coder. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    config, tensors = Fields(folder / CONFIG, read_json(folder / CONFIG)), Tensors.open(folder / WEIGHTS)
    architecture = _architecture(config)
    config.refuse_unless("normalize_activations", ("none", "expected_average_only_in"), PER_TOKEN, "none")
    config.refuse_unless(
        "reshape_activations", ("none",), "reads heads' outputs side by side, which are no site here", "none"
    )
    metadata = config.section("metadata") if "metadata" in config.values else config
    details = metadata.section("training_architecture_details")
    weights = _weights(config, tensors, architecture)
    activation = _activation(config, details, architecture, weights.d_sae)
    widths = config.widths("matryoshka_widths", weights.d_sae) or details.widths("matryoshka_widths", weights.d_sae)
    coder = SparseCoder.of(weights, activation, widths, where=tensors.file)
    version = metadata.get("sae_lens_version", str, config.get("sae_lens_version", str, "before 6.0"))
    yield Foreign("coder", coder, _facts(config, metadata), f"sae-lens {version}")


def _architecture(config: Fields) -> str:
    named = config.get("architecture", str, "standard")
    if config.get("activation_fn_str", str, config.get("activation_fn", str)) == "topk":
        named = "topk"  # before 6.0
    if named not in ARCHITECTURES:
        raise MatryoshkaError(
            f"{config.file}: architecture {named!r} computes something else than any coder here; read are:"
            f" {', '.join(ARCHITECTURES)}"
        )
    return named


def _weights(config: Fields, tensors: Tensors, architecture: str) -> Weights:
    d_in, d_sae = config.size("d_in"), config.size("d_sae")
    transcodes = architecture in TRANSCODERS
    d_out = config.size("d_out") if transcodes else d_in
    weights = Weights(
        tensors.take("W_enc", d_in, d_sae),
        tensors.take("b_mag" if architecture == "gated" else "b_enc", d_sae),
        tensors.take("W_dec", d_sae, d_out),
        tensors.take("b_dec", d_out),
        tensors.take("W_skip", d_out, d_in).T if "skip" in architecture else None,
    )
    if "scaling_factor" in tensors and not (tensors.take("scaling_factor", d_sae) == 1).all():
        raise MatryoshkaError(f"{tensors.file}: scaling_factor is not 1 throughout, which SAELens itself cannot load")
    if architecture == "gated":
        r_mag, b_gate = (tensors.take(name, d_sae) for name in ("r_mag", "b_gate"))
        weights = gated_as_jumprelu(weights, r_mag, b_gate)
    elif "jumprelu" in architecture and "log_threshold" in tensors:  # a checkpoint of training's
        weights = weights._replace(threshold=tensors.take("log_threshold", d_sae).exp())
    elif "jumprelu" in architecture:
        weights = weights._replace(threshold=tensors.take("threshold", d_sae).clamp(min=0))
    elif "batchtopk" in architecture:
        weights = weights._replace(threshold=tensors.take("topk_threshold").clamp(min=0))
    if "topk" in architecture and config.get("rescale_acts_by_decoder_norm", bool, False):
        weights = of_unit_rows(weights)  # it ranks, and judges by its threshold, what latents write
    # before 6.0 nothing said it, and it was so
    subtracts = config.get("apply_b_dec_to_input", bool, not transcodes)
    if subtracts and transcodes:
        raise MatryoshkaError(f"{config.file}: apply_b_dec_to_input true, which no {architecture} of SAELens has")
    return reads_x_itself(weights) if subtracts else weights


def _activation(config: Fields, details: Fields, architecture: str, d_sae: int) -> NonlinearityConfig:
    match architecture:
        case "topk":
            old = config.section("activation_fn_kwargs")  # before 6.0
            return TopKConfig(k=(old if "k" in old.values else config).size("k", d_sae))
        case "batchtopk" | "matryoshka_batchtopk":
            return BatchTopKConfig(k=config.size("k", d_sae))
        case "standard" | "transcoder" | "skip_transcoder":
            return ReLUConfig()
    return JumpReLUConfig(k=details.size("k", d_sae, needed=False) or None)


def _facts(config: Fields, metadata: Fields) -> Facts:
    model = model_of(metadata.get("model_name", str))
    hook = metadata.get("hook_name", str, config.get("hook_point", str))  # the latter before 6.0
    out = metadata.get("hook_name_out", str)
    read = site_of_hook(hook, model)
    read, write = sites(read, read if out is None else site_of_hook(out, model))
    called = " → ".join(name for name in (hook, out) if name)
    return Facts(
        model=model,
        read=read,
        write=write,
        context=metadata.size("context_size", needed=False) or None,
        prepend_bos=metadata.get("prepend_bos", bool, True),
        called=called or None,
    )


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """The folder of each: of one coder the export itself, of several one called by the hook that is read.

    Raises MatryoshkaError for a TopK transcoder and for sites without a hook.
    """
    for ours in coders:
        written_as(ours)
        ours.hooks()
    return {".": coders[0]} if len(coders) == 1 else distinct((ours.hooks()[0], ours) for ours in coders)


def write(arranged: Mapping[str, Ours], folder: Path) -> None:
    """A folder a coder, with its latents' firing frequencies where its run has features.

    Their modules' paths (`hf_hook_name`) stand in it only where the language model's config is at hand.
    """
    for place, ours in arranged.items():
        write_one(ours, partial(_whole, ours), folder / place)


def _whole(ours: Ours) -> tuple[CoderConfig, Weights]:
    coder = ours.load()
    return coder.config, ours.weights(coder)


def written_as(ours: Ours) -> str:
    """The architecture that is our function there. Raises MatryoshkaError where none is."""
    kind, skip = ours.config.activation.kind, ours.config.skip
    if not ours.transcodes and not skip:
        return {"relu": "standard", "batchtopk": "jumprelu"}.get(kind, kind)
    if kind == "topk":
        raise MatryoshkaError(
            f"{ours.run.path}: SAELens has no TopK transcoder, and with a threshold in place of its k it would be"
            " another function; nearest: --format sparsify, or one trained with batchtopk or jumprelu"
        )
    return f"{'' if kind == 'relu' else 'jumprelu_'}{'skip_' if skip else ''}transcoder"


def write_one(ours: Ours, load: Callable[[], tuple[CoderConfig, Weights]], folder: Path) -> None:
    """The three files of one coder: `load` gives the shape and the weights of the latents that are written."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = written_as(ours)
    config, weights = load()
    skip = None if weights.W_skip is None else weights.W_skip.T
    given = {**weights._asdict(), "W_skip": skip}
    tensors = {name: tensor.contiguous() for name, tensor in given.items() if tensor is not None}
    del weights, given  # the file's bytes are made of copies: these need not lie beside them
    save_file(tensors, folder / WEIGHTS)
    fields = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(ours, config),
    }
    if architecture in TRANSCODERS:
        fields["d_out"] = config.d_out
    if architecture == "topk":
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    if ours.run.features_file.is_file():
        save_file({"sparsity": _sparsity(ours)[: config.d_sae].contiguous()}, folder / SPARSITY)


def _metadata(ours: Ours, config: CoderConfig) -> dict[str, Any]:
    card, trained = ours.card, ours.card.trained
    (hook, hook_out), (path, path_out) = ours.hooks(), _module_paths(ours)
    out = {"hook_name_out": hook_out, "hook_head_index_out": None, "hf_hook_name_out": path_out}
    details = {"k": config.k, "matryoshka_widths": list(config.widths)}
    kind = config.activation.kind
    return {
        "sae_lens_version": VERSION,
        "model_name": short_name(card.model.name),
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": dict.fromkeys(PROCESSING, False),
        "hook_name": hook,
        "hook_head_index": None,
        "hf_hook_name": path,
        **(out if written_as(ours) in TRANSCODERS else {}),
        "context_size": card.context,
        "prepend_bos": card.prepend_bos,
        "dataset_path": trained.text.get("source") if trained is not None else None,
        "training_architecture": f"matryoshka_{kind}" if len(config.widths) > 1 else kind,
        "training_architecture_details": {name: value for name, value in details.items() if value is not None},
    }


def _module_paths(ours: Ours) -> tuple[str | None, str | None]:
    try:
        family = describe(ours.card.model.name, ours.card.model.revision).family
    except MatryoshkaError:
        return None, None
    read, write = (returned_by(site, family) for site in (ours.read, ours.write))
    return (f"{read}.output" if read else None), (f"{write}.output" if write else None)


def _sparsity(ours: Ours) -> Tensor:
    """log10 of each latent's firing frequency [d_sae], as SAELens floors it."""
    with closing(ours.features()) as store:
        return (torch.tensor(store.columns()["density"], dtype=torch.float32) + 1e-10).log10()
