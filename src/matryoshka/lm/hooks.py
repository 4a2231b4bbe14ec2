"""Forward hooks on a transformer block: watch the activation at a site, put another in its place, leave the block out.

A hook function takes the activation, [batch, position, d], and returns its replacement, or None to leave it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from matryoshka.lm.sites import Family

Hook = Callable[[Tensor], Tensor | None]


def on_input(module: nn.Module, hook: Hook, first: bool = False) -> RemovableHandle:
    """`hook` at the hidden states that `module` reads: positional mostly, for some attentions by keyword; `first`:
    before the hooks that are there."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = hook(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return module.register_forward_pre_hook(before, with_kwargs=True, prepend=first)


def on_output(module: nn.Module, hook: Hook, first: bool = False) -> RemovableHandle:
    """`hook` at what `module` returns, of a tuple at its first; `first`: before the hooks that are there."""

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        new = hook(output[0] if is_tuple else output)
        return (new, *output[1:]) if new is not None and is_tuple else new

    return module.register_forward_hook(after, prepend=first)


def on_normalized(norm: nn.Module, gain_offset: float, hook: Hook) -> RemovableHandle:
    """`hook` between a norm's division and its gain and bias."""

    def after(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        new = hook(normalized(norm, args[0]))
        return None if new is None else affine(norm, gain_offset, new).to(output.dtype)

    # its replacement is what a hook at the norm's output has to see
    return norm.register_forward_hook(after, prepend=True)


def normalized(norm: nn.Module, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """`x` as `norm` divides it, before gain and bias, in float32, then in the dtype of `x`. LayerNorm: centred, divided
    by the biased standard deviation. RMSNorm: divided by the root mean square."""
    wide = centred(norm, x.float())
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon(norm))).to(x.dtype)


def centred(norm: nn.Module, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """What `norm` divides: LayerNorm subtracts the mean over d, RMSNorm nothing."""
    return x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x


def epsilon(norm: nn.Module) -> float:
    """What `norm` adds to the mean square."""
    added: Any = getattr(norm, "eps", None) or norm.variance_epsilon
    return added


def affine(norm: nn.Module, gain_offset: float, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """What `norm` does after its division: gain and bias, in float32."""
    weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
    scaled = x.float() * (gain_offset + weight.float())
    return scaled if bias is None else scaled + bias.float()


# what a module of a block reads, and what one returns: by kind the module's name in `Family`, "" for the block itself
READ = {"resid_pre": "", "resid_mid": "mlp_norm"}
RETURNED = {
    "attn_in": "attn_norm", "attn_out": "attn_added", "mlp_in": "mlp_norm", "mlp_out": "mlp_added", "resid_post": "",
}  # fmt: skip


def watch(block: nn.Module, family: Family, kind: str, hook: Hook, first: bool = False) -> RemovableHandle:
    """`hook` at the activation of this kind; at resid_mid its replacement would reach the MLP only."""
    if kind == "ln2_normalized":
        return on_normalized(block.get_submodule(family.mlp_norm), family.gain_offset, hook)
    attach, part = (on_input, READ[kind]) if kind in READ else (on_output, RETURNED[kind])
    return attach(block.get_submodule(getattr(family, part)) if part else block, hook, first)


def substitute(block: nn.Module, family: Family, kind: str, fn: Callable[[Tensor], Tensor]) -> list[RemovableHandle]:
    """Everything downstream of this kind of activation, the residual stream included, gets `fn` of it."""
    if kind != "resid_mid":
        # attn_out goes before a resid_mid that is replaced at the same module, whichever was asked for first
        return [watch(block, family, kind, fn, first=kind == "attn_out")]
    before: list[Tensor] = []

    def keep(resid_pre: Tensor) -> None:
        before[:] = [resid_pre]

    def move(attn_out: Tensor) -> Tensor:
        # the block keeps the residual to itself: attention has to add what leads to fn(resid_mid)
        resid_pre = before.pop()
        resid_mid = fn(resid_pre + attn_out)
        return (resid_mid.float() - resid_pre.float()).to(attn_out.dtype)

    part = block.get_submodule
    return [on_input(part(family.attn_norm), keep), on_output(part(family.attn_added), move)]


@contextmanager
def left_out(block: nn.Module) -> Iterator[None]:
    """Within the block of code, the module returns the hidden states that it reads, and computes nothing."""
    attributes = vars(block)
    before = attributes.get("forward")
    attributes["forward"] = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before
