"""sparsify: a folder for each module that was hooked, called by its path, with cfg.json and sae.safetensors.

pre = ReLU((x − b_dec) W_enc + b_enc), the k largest of each row       an SAE: b_dec is taken off what it reads
pre = ReLU(x W_enc + b_enc), the k largest of each row                 a transcoder
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.conventions import reads_x_less_b_dec, row_norms
from matryoshka.interop.names import computed_by, returned_by
from matryoshka.interop.ours import Ours, distinct
from matryoshka.lm.info import describe

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"
FILES = (RUN_CONFIG, f"*/{CONFIG}", f"*/{WEIGHTS}")
UNIT = 1e-3
"""How far the norm of a decoder row that it calls normalised may be from 1."""


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
    (folder / RUN_CONFIG).write_text(json.dumps(of, indent=2) + "\n", encoding="utf-8")


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
