"""Qwen-Scope: TopK SAEs of a model's residual stream, layer0.sae.pt …, torch's plain tensors; one coder for each layer.

The files say nothing but their tensors: model and k stand in the repository's name, SAE-Res-Qwen3-8B-Base-W64K-L0_50.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from matryoshka.coder.architecture import TopKConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.foreign import Facts, Foreign
from matryoshka.interop.tensors import Tensors
from matryoshka.lm.sites import Site

LAYER = r"layer(\d{1,6})\.sae\.pt"
REPOSITORY = r"SAE-Res-(Qwen[\w.-]+?)-W\w+-L0_(\d{1,6})"


def recognises(folder: Path) -> bool:
    """By the names of its layers' files."""
    return bool(_layers(folder))


def read(folder: Path) -> Iterator[Foreign]:
    """A coder for each layer that is there. Raises MatryoshkaError, by file, for what is no coder of ours."""
    named = re.search(REPOSITORY, str(folder.resolve()))
    if named is None:
        raise MatryoshkaError(
            f"{folder}: does not say how many latents are active, as the repository's name does: call the folder"
            " SAE-Res-<model>-W<width>-L0_<k>"
        )
    for layer, file in sorted(_layers(folder).items()):
        tensors = Tensors.open(file)
        encoder = tensors.take("W_enc", None, None)
        d_sae, d_model = encoder.shape
        decoder = tensors.take("W_dec", d_model, d_sae)
        weights = Weights(encoder.T, tensors.take("b_enc", d_sae), decoder.T, tensors.take("b_dec", d_model))
        if not 1 <= (k := int(named[2])) <= d_sae:
            raise MatryoshkaError(f"{folder}: is called L0_{k}, expected a whole number from 1 to {d_sae:,}")
        coder = SparseCoder.of(weights, TopKConfig(k=k), where=file)
        facts = Facts(model=f"Qwen/{named[1]}", read=Site("resid_post", layer), called=f"layer {layer}")
        yield Foreign(f"layer{layer}.sae", coder, facts, "Qwen-Scope")


def _layers(folder: Path) -> dict[int, Path]:
    return {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(LAYER, path.name))}
