"""sparsify: a folder with cfg.json and sae.safetensors, which is called as the module of a model that it is of.

Its coders are TopK alone. Those that `transcode` read what the module reads and write what it returns; the others are
SAEs of what it returns, and read x − b_dec. `multi_topk` is a term of training's loss.
"""

from collections.abc import Iterator
from pathlib import Path

from matryoshka.coder.architecture import TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.files import read_json
from matryoshka.interop.conventions import reads_x_itself
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import depends_on_model, model_of, sites_of_module
from matryoshka.interop.tensors import Fields, Tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
RUN = "config.json"
"""Of the run, in the folder above; in the one above that where there are several seeds."""


def recognises(folder: Path) -> bool:
    """By the names of its two files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Foreign]:
    """Its one coder. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    config, tensors = Fields(folder / CONFIG, read_json(folder / CONFIG)), Tensors.open(folder / WEIGHTS)
    config.refuse_unless("activation", ("topk",), "no activation here; read is topk", "topk")
    config.refuse_unless("signed", (False, None), "its latents may be negative, those of no coder here")
    transcodes = config.get("transcode", bool, False)
    weights = _weights(config, tensors)
    if not transcodes:
        weights = reads_x_itself(weights)
    activation = TopKConfig(k=config.size("k", weights.d_sae))
    coder = SparseCoder.of(weights, activation, where=tensors.file)
    yield Foreign("coder", coder, _facts(folder, transcodes), "sparsify")


def _weights(config: Fields, tensors: Tensors) -> Weights:
    d_in = config.size("d_in")
    # 0 latents, as it writes them, and none said mean so many times d_in
    said = config.get("num_latents", int, 0)
    d_sae = config.size("num_latents") if said else d_in * config.size("expansion_factor")
    skips = "W_skip" in tensors
    if skips is not config.get("skip_connection", bool, skips):
        raise config.wrong("skip_connection", f"{tensors.file.name} holds {'a' if skips else 'no'} W_skip")
    return Weights(
        tensors.take("encoder.weight", d_sae, d_in).T,
        tensors.take("encoder.bias", d_sae),
        tensors.take("W_dec", d_sae, d_in),
        tensors.take("b_dec", d_in),
        tensors.take("W_skip", d_in, d_in).T if skips else None,
    )


def _facts(folder: Path, transcodes: bool) -> Facts:
    module, above = folder.resolve().name, folder.resolve().parent
    if above.name.startswith("seed"):
        above = above.parent
    run = Fields(above / RUN, read_json(above / RUN)) if (above / RUN).is_file() else Fields(above / RUN, {})
    model = model_of(run.get("model", str))
    read, write = sites_of_module(module, model)
    read, write = sites(read if transcodes else write, write)
    return Facts(
        model=model,
        read=read,
        write=write,
        context=run.size("ctx_len", needed=False) or None,
        called=module,
        unless_norm_follows=model is None and depends_on_model(module),
    )
