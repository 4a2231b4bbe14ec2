"""dictionary_learning: a folder with ae.pt, torch's plain tensors, and config.json; or of checkpoints, ae_<step>.pt.

What a coder is stands in its tensors' names; the class in config.json may be another. AutoEncoderTopK and BatchTopKSAE
have the same, so that there config.json decides. All but AutoEncoderNew and JumpReluAutoEncoder read x − b_dec. A run
that was interrupted leaves a backup under the same name, whose biases and threshold are in units of `norm_factor`.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from matryoshka.coder.architecture import (
    BatchTopKConfig,
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
from matryoshka.interop.foreign import Facts, Foreign
from matryoshka.interop.names import model_of, norm_follows
from matryoshka.interop.tensors import Fields, Tensors
from matryoshka.lm.sites import KINDS, Site

FINAL, CHECKPOINTS, CONFIG = "ae.pt", "ae_*.pt", "config.json"
NORMALISED = ("bias", "b_dec", "b_enc", "decoder_bias", "decoder.bias", "encoder.bias", "gate_bias", "mag_bias")
"""Biases, which are in units of `norm_factor` while training goes on, as `threshold` is."""


def recognises(folder: Path) -> bool:
    """By the name of its file, or of its checkpoints'."""
    return bool(_files(folder))


def read(folder: Path) -> Iterator[Foreign]:
    """Its coder, or its checkpoints'. Raises MatryoshkaError, by file and field, for what is no coder of ours."""
    if not (files := _files(folder)):
        raise MatryoshkaError(f"{folder}: holds no {FINAL}")
    place = next((place for place in (folder, folder.resolve().parent) if (place / CONFIG).is_file()), folder)
    file = place / CONFIG
    config = Fields(file, read_json(file) if file.is_file() else {})
    for path in files:
        tensors, trainer = Tensors.open(path), config.section("trainer")
        if "norm_factor" in tensors:
            tensors = _in_raw_units(tensors)
        coder = _coder(tensors, trainer)
        label = "coder" if path.name == FINAL else path.stem
        yield Foreign(label, coder, _facts(config, trainer, folder), "dictionary_learning")


def _files(folder: Path) -> list[Path]:
    if (folder / FINAL).is_file():
        return [folder / FINAL]
    return sorted(folder.glob(CHECKPOINTS), key=lambda path: (len(path.name), path.name))


def _in_raw_units(backup: Tensors) -> Tensors:
    """The tensors in a backup."""
    inner = Tensors.within(backup.file, backup.value("ae"))
    factor = Fields(backup.file, {"norm_factor": backup.value("norm_factor")}).scale("norm_factor")

    def value(name: str) -> object:
        scaled = name in NORMALISED or name == "threshold"
        return inner.take(name, *([None] * inner.value(name).dim())) * factor if scaled else inner.value(name)

    return Tensors(backup.file, inner.names, value)


def _coder(tensors: Tensors, trainer: Fields) -> SparseCoder:
    widths: list[int] = []
    activation: NonlinearityConfig = ReLUConfig()
    if "group_sizes" in tensors:
        weights, widths = _upright(tensors), _widths(tensors)
        weights, activation = _by_threshold(tensors, trainer, reads_x_itself(weights))
    elif "W_enc" in tensors:
        weights, activation = _upright(tensors), JumpReLUConfig()
        weights = weights._replace(threshold=tensors.take("threshold", weights.d_sae).clamp(min=0))
    elif "decoder.bias" in tensors:
        weights = _linear(tensors, "encoder.bias", "decoder.bias")
    elif "gate_bias" in tensors:
        weights, activation = _linear(tensors, "mag_bias", "decoder_bias"), JumpReLUConfig()
        r_mag, b_gate = (tensors.take(name, weights.d_sae) for name in ("r_mag", "gate_bias"))
        weights = reads_x_itself(gated_as_jumprelu(weights, r_mag, b_gate))
    elif "bias" in tensors:  # it makes decoder rows unit vectors as it loads them
        weights = of_unit_rows(reads_x_itself(_linear(tensors, "encoder.bias", "bias")))
    elif "b_dec" in tensors:
        weights = reads_x_itself(_linear(tensors, "encoder.bias", "b_dec"))
        weights, activation = _by_k(tensors, trainer, weights)
    else:
        raise MatryoshkaError(f"{tensors.file}: holds the tensors of no dictionary known here: {_listed(tensors)}")
    return SparseCoder.of(weights, activation, widths, where=tensors.file)


def _listed(tensors: Tensors) -> str:
    return ", ".join(tensors.names[:10]) or "none"


def _upright(tensors: Tensors) -> Weights:
    """As JumpReLU's and Matryoshka's are stored."""
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    return Weights(W_enc, tensors.take("b_enc", d_sae), tensors.take("W_dec", d_sae, d_in), tensors.take("b_dec", d_in))


def _linear(tensors: Tensors, b_enc: str, b_dec: str) -> Weights:
    """As torch's linear layers are stored."""
    encoder = tensors.take("encoder.weight", None, None)
    d_sae, d_in = encoder.shape
    decoder = tensors.take("decoder.weight", d_in, d_sae)
    return Weights(encoder.T, tensors.take(b_enc, d_sae), decoder.T, tensors.take(b_dec, d_in))


def _widths(tensors: Tensors) -> list[int]:
    """What its groups' sizes add up to, group by group."""
    sizes = tensors.take("group_sizes", None).double()
    if (sizes < 1).any() or (sizes != sizes.round()).any():
        raise MatryoshkaError(f"{tensors.file}: group_sizes are {sizes.tolist()}, expected whole numbers from 1 on")
    widths, (_, d_sae) = [int(width) for width in accumulate(sizes.tolist())], tensors.value("W_enc").shape
    if widths[-1] != d_sae:
        raise MatryoshkaError(f"{tensors.file}: group_sizes add up to {widths[-1]:,}, W_enc has {d_sae:,} latents")
    return widths


def _k(tensors: Tensors, trainer: Fields, d_sae: int) -> int:
    return tensors.whole_number("k", d_sae) if "k" in tensors else trainer.size("k", d_sae)  # older files have none


def _by_threshold(tensors: Tensors, trainer: Fields, weights: Weights) -> tuple[Weights, NonlinearityConfig]:
    """A BatchTopK; where its threshold is below 0, as before training, all that is positive is active."""
    if (threshold := tensors.take("threshold")) < 0:
        return weights, ReLUConfig()
    return weights._replace(threshold=threshold), BatchTopKConfig(k=_k(tensors, trainer, weights.d_sae))


def _by_k(tensors: Tensors, trainer: Fields, weights: Weights) -> tuple[Weights, NonlinearityConfig]:
    """A TopK or a BatchTopK: without a threshold it is the former, which has had one for some time only."""
    named = trainer.get("dict_class", str) or trainer.get("trainer_class", str, "")
    batch = "BatchTopK" in named
    if not batch and "TopK" not in named and "threshold" in tensors:
        raise MatryoshkaError(
            f"{trainer.file}: does not say whether {tensors.file.name} is an AutoEncoderTopK or a BatchTopKSAE, whose"
            " tensors have the same names: write it there, as trainer.dict_class"
        )
    if batch:
        return _by_threshold(tensors, trainer, weights)
    return weights, TopKConfig(k=_k(tensors, trainer, weights.d_sae))


def _facts(config: Fields, trainer: Fields, folder: Path) -> Facts:
    model = model_of(trainer.get("lm_name", str))
    called = trainer.get("submodule_name", str) or folder.resolve().parent.name
    match = re.fullmatch(r"(\w+)_layer_(\d{1,6})", called)
    site = Site(match[1], int(match[2])) if match and match[1] in KINDS else None
    added = site is not None and site.kind in ("attn_out", "mlp_out")  # what the module returns
    return Facts(
        model=model,
        read=None if added and norm_follows(model) else site,
        context=config.section("buffer").size("ctx_len", needed=False) or None,
        called=called if match else trainer.get("submodule_name", str),
        unless_norm_follows=added and model is None,
    )
