"""sparsify: a folder with cfg.json and sae.safetensors, which is called as the module of a model that it is of.

Its coders are TopK alone. Those that `transcode` read what the module reads and write what it returns; the others are
SAEs of what it returns, and read x − b_dec. `multi_topk` is a term of training's loss.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file

from matryoshka.coder.architecture import TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.interop.conventions import UNIT, reads_x_itself, reads_x_less_b_dec, row_norms
from matryoshka.interop.foreign import Facts, Foreign, sites
from matryoshka.interop.names import computed_by, depends_on_model, model_of, returned_by, sites_of_module
from matryoshka.interop.ours import Ours, distinct
from matryoshka.interop.tensors import Fields, Tensors
from matryoshka.lm.info import describe

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
RUN = "config.json"
"""Of the run, in the folder above; in the one above that where there are several seeds."""
FILES = (RUN, f"*/{CONFIG}", f"*/{WEIGHTS}")


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


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """The folder of each: the path of the module whose output it reads, a transcoder's that of the module whose input
    it reads and whose output it writes. Raises MatryoshkaError for all but TopK, and for sites of no module."""
    return distinct((_module(ours), ours) for ours in coders)


def _module(ours: Ours) -> str:
    where, kind = f"{ours.run.path} ({ours.sites})", ours.config.activation.kind
    if kind != "topk":
        raise MatryoshkaError(
            f"{where}: sparsify has no {kind}, only the k largest of each row, which is another function; nearest:"
            " --format saelens, or one trained with topk"
        )
    if ours.config.d_in != ours.config.d_out:
        raise MatryoshkaError(
            f"{where}: reads {ours.config.d_in} and writes {ours.config.d_out} numbers; sparsify expects as many"
        )
    family = describe(ours.card.model.name, ours.card.model.revision).family
    if ours.transcodes:
        path = computed_by(ours.read, ours.write, family)
        expected = "a transcoder from what one module reads to what it returns, such as mlp_in → mlp_out"
    else:
        path, expected = returned_by(ours.read, family), "what a module returns, such as resid_post or mlp_out"
    if path is None:
        raise MatryoshkaError(f"{where}: sparsify calls coders by modules of the model, and expects {expected}")
    return path.split(".", 1)[1]  # the module that has the unembedding beside it is left out


def write(arranged: Mapping[str, Ours], folder: Path) -> None:
    """A folder a coder, one in memory at a time, and what the run was of."""
    for path, ours in arranged.items():
        _write_one(ours, folder / path)
    first = next(iter(arranged.values()))
    trained = first.card.trained
    of = {
        "model": first.card.model.name,
        "dataset": trained.text.get("source") if trained is not None else None,
        "ctx_len": first.card.context,
        "hookpoints": list(arranged),
    }
    (folder / RUN).write_text(json.dumps(of, indent=2) + "\n", encoding="utf-8")


def _write_one(ours: Ours, folder: Path) -> None:
    coder = ours.load()
    weights = coder.weights if ours.transcodes else reads_x_less_b_dec(coder.weights)
    unit = bool(((row_norms(weights) - 1).abs() < UNIT).all())
    tensors = {
        "encoder.weight": weights.W_enc.T,
        "encoder.bias": weights.b_enc,
        "W_dec": weights.W_dec,
        "b_dec": weights.b_dec,
    }
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip.T
    fields = {
        "activation": "topk",
        "expansion_factor": max(1, weights.d_sae // coder.config.d_in),
        "normalize_decoder": unit,
        "num_latents": weights.d_sae,
        "k": coder.config.k,
        "multi_topk": False,
        "skip_connection": weights.W_skip is not None,
        "transcode": ours.transcodes,
        "d_in": coder.config.d_in,
    }
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
