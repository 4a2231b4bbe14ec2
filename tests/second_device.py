"""The command line with a second device, `apart`, on a machine that has none: what a GPU would refuse, it refuses.

    python second_device.py train … --model.device apart

A tensor there is a CPU tensor in a wrapper. It does not mix with tensors of the CPU, has no numpy array, and the host
gets nothing of it but by a copy or a question; the last line that is printed says how often it asked. To be run as a
program, because a process keeps the device that it was given.
"""

import atexit
import sys
from collections import Counter

import numpy as np
import torch
from torch import library
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "apart"
QUESTIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal", "repeat_interleave")
asked = Counter()


class Apart(torch.Tensor):
    """A tensor of the second device; `inner` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        apart = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=f"{NAME}:0", **layout)
        apart.inner = inner
        return apart

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, *args, **(kwargs or {}))

    # what torch does for subclasses only when it is told how

    def tolist(self):
        asked["tolist"] += 1
        return self.inner.tolist()

    def __getitem__(self, index):
        return super().__getitem__(as_index(index))

    def __setitem__(self, index, value):
        super().__setitem__(as_index(index), value)

    def __deepcopy__(self, memo):
        copied = Apart(self.inner.detach().clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def storage(self):
        return self.inner.storage()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()


def as_index(index):
    """Lists and arrays of positions as tensors, which may be the CPU's."""
    if isinstance(index, tuple):
        return tuple(as_index(each) for each in index)
    return torch.as_tensor(index) if isinstance(index, list | range | np.ndarray) else index


def run(function, *args, **kwargs):
    """The operator on the inner tensors; its results are here unless another device was asked for."""
    name = function.overloadpacket.__name__
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    here = any(isinstance(each, Apart) for each in tensors)
    refuse_mixtures(function, name, args, tensors)
    device = kwargs.get("device")
    goes_here = here if device is None else torch.device(device).type == NAME
    leaves = here and (not goes_here or (name == "copy_" and not isinstance(args[0], Apart)))
    if leaves or (here and name in QUESTIONS and "output_size" not in kwargs):
        asked[name] += 1
    if device is not None:
        kwargs = {**kwargs, "device": "cpu", **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    inner_args, inner_kwargs = tree_map_only(Apart, lambda each: each.inner, (args, kwargs))
    result = function(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in function.tags:
        with no_dispatch():
            function(*args, **kwargs)  # the wrapper's own shape
    if grown := [each for each in tensors if isinstance(each, Apart) and each.inner.shape != each.shape]:
        raise NotImplementedError(f"{function}: {tuple(grown[0].shape)} became {tuple(grown[0].inner.shape)}")
    given = {id(each.inner if isinstance(each, Apart) else each): each for each in tensors}

    def outer(each):
        if id(each) in given:  # what was written into
            return given[id(each)]
        return Apart(each) if goes_here else each

    return tree_map_only(torch.Tensor, outer, result)


def refuse_mixtures(function, name, args, tensors):
    """As CUDA does: only numbers (0-d) and positions to index with may be the CPU's."""
    if name == "copy_" or not any(isinstance(each, Apart) for each in tensors):
        return
    strangers = [each for each in tensors if not isinstance(each, Apart) and each.dim() > 0]
    if name.startswith(("index", "_index_put")) and isinstance(args[0], Apart):
        strangers = [each for each in strangers if each.is_floating_point()]
    if strangers:
        raise RuntimeError(f"{function}: tensors on two devices, {NAME} and cpu {tuple(strangers[0].shape)}")


class Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def moved(make):
    """`torch.tensor` and its like, which cannot make wrappers themselves."""

    def on_device(data, *args, device=None, **kwargs):
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return on_device


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
everything, aten = library.Library("_", "IMPL"), library.Library("aten", "IMPL")
everything.fallback(run, "PrivateUse1")
for overload in "default", "start", "start_step":  # torch would make them empty, and have them grow

    def arange(*args, overload=overload, **kwargs):
        return run(getattr(torch.ops.aten.arange, overload), *args, **kwargs)

    aten.impl("arange" if overload == "default" else f"arange.{overload}", arange, "PrivateUse1")
torch.tensor, torch.as_tensor = moved(torch.tensor), moved(torch.as_tensor)


if __name__ == "__main__":
    from matryoshka.cli import main

    atexit.register(lambda: print(f"asked the device {asked.total()} times: {dict(asked)}", flush=True))
    main(sys.argv[1:])
