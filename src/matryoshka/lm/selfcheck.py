"""Proof at load that a model is laid out as its family's row says: the residual adds up, at every layer.

A row that names the wrong module would still give activations of the right shape: coders would be trained,
without a word, on something else than their label says.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from matryoshka.errors import MatryoshkaError
from matryoshka.lm import hooks
from matryoshka.lm.info import ModelInfo
from matryoshka.lm.sites import KINDS, Site

TOKENS = 8
Read = Callable[[Tensor, list[Site]], dict[Site, Tensor]]


class Claim(NamedTuple):
    """`whole` is the sum of `parts`, which are added in the order in which the models add."""

    whole: str
    parts: tuple[str, ...]
    slack: float = 0.0
    """Allowed beyond the rounding of the sum, relative to the largest number of the row."""


def self_check(info: ModelInfo, blocks: nn.Module, read: Read) -> None:
    """Refuse a model for which one of the claims fails on a few tokens, with the numbers. `read` is
    `LanguageModel.read` of the model whose `blocks` these are."""
    values = _values(info, blocks, read)
    dtype = values["0.resid_pre"].dtype
    eps = torch.finfo(dtype).eps
    for whole, parts, slack in _claims(info, eps):
        terms = [values[part] for part in parts]
        total = sum(terms[1:], terms[0])
        error = (values[whole].double() - total.double()).abs()
        sizes = values[whole].double().abs() + sum(term.double().abs() for term in terms)
        allowed = eps * sizes + slack * sizes.amax(-1, keepdim=True)
        if not (error <= allowed).all():  # also where either is NaN
            worst = (error - allowed).argmax()
            raise MatryoshkaError(
                f"{info.name}: refused, its layers are not what the table says of {info.model_type!r}:"
                f" {whole} differs from {' + '.join(parts)} by {error.flatten()[worst]:.3g}"
                f" (rounding of {dtype} allows {allowed.flatten()[worst]:.3g})"
            )


def _claims(info: ModelInfo, eps: float) -> Iterator[Claim]:
    slack = 4 * max(eps, 1e-5)  # means and variances are summed in another order
    for layer in range(info.n_layers):
        pre, attn, mid, mlp, post = (
            f"{layer}.{kind}" for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        )
        if info.parallel:
            yield Claim(post, (mlp, attn, pre))
        else:
            yield Claim(mid, (pre, attn))
            yield Claim(post, (mid, mlp))
        if layer + 1 < info.n_layers:
            yield Claim(f"{layer + 1}.resid_pre", (post,))
        yield Claim(f"{layer}.input of attention", (f"{layer}.attn_in",))
        yield Claim(f"{layer}.input of MLP", (f"{layer}.mlp_in",))
        yield Claim(f"{layer}.mlp_in", (f"{layer}.ln2_normalized with gain and bias",), slack)


def _values(info: ModelInfo, blocks: nn.Module, read: Read) -> dict[str, Tensor]:
    """Every site of a few tokens, and what the modules themselves read, by the names that the claims use."""
    family = info.family
    values: dict[str, Tensor] = {}

    kinds = [kind for kind in KINDS if not (info.parallel and kind == "resid_mid")]
    sites = [Site(kind, layer) for layer in range(info.n_layers) for kind in kinds]
    tokens = torch.linspace(0, min(info.d_vocab, 1000) - 1, min(TOKENS, info.context)).long()
    with ExitStack() as attached:
        for layer, block in enumerate(blocks.children()):
            for name, module in (("attention", family.attention), ("MLP", family.mlp)):
                hook = partial(values.__setitem__, f"{layer}.input of {name}")
                attached.enter_context(hooks.on_input(block.get_submodule(module), hook))
        values.update({str(site): x for site, x in read(tokens[None], sites).items()})
    for layer, block in enumerate(blocks.children()):
        norm, x = block.get_submodule(family.mlp_norm), values[f"{layer}.ln2_normalized"]
        values[f"{layer}.ln2_normalized with gain and bias"] = hooks.affine(norm, family.gain_offset, x)
    return values
