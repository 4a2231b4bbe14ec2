"""The tensors of a foreign file, by name, checked as they are taken. Nothing is unpickled but plain tensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from matryoshka.errors import MatryoshkaError, did_you_mean, first_line


class Tensors:
    """`file`'s tensors: safetensors, .npz, or torch's .pt of tensors and plain values alone.

    Each is read when it is taken. Raises MatryoshkaError, by file, for what is missing or damaged.
    """

    def __init__(self, file: Path, names: Sequence[str], get: Callable[[str], Any]) -> None:
        self.file, self.names, self._get = file, tuple(names), get

    @classmethod
    def open(cls, file: Path) -> "Tensors":
        """By the file's ending."""
        if not file.is_file():
            raise MatryoshkaError(f"{file}: no such file")
        try:
            if file.suffix == ".npz":
                arrays = np.load(file, allow_pickle=False)
                return cls(file, arrays.files, lambda name: torch.from_numpy(arrays[name]))
            if file.suffix == ".pt":
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                return cls.within(file, content)
            opened = safe_open(file, framework="pt")
            return cls(file, list(opened.keys()), opened.get_tensor)
        except MatryoshkaError:
            raise
        except Exception as error:  # readers of three formats have no common base
            raise MatryoshkaError(f"{file}: damaged, or not a file of plain tensors ({first_line(error)})") from None

    @classmethod
    def within(cls, file: Path, content: object) -> "Tensors":
        """Of a mapping that lies in `file`."""
        if not isinstance(content, Mapping):
            raise MatryoshkaError(f"{file}: holds a {type(content).__name__}, expected tensors by name")
        return cls(file, [str(name) for name in content], content.__getitem__)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def value(self, name: str) -> Any:
        """Whatever lies under `name`."""
        if name not in self.names:
            raise MatryoshkaError(f"{self.file}: no tensor {name!r}{did_you_mean(name, self.names)}")
        try:
            return self._get(name)
        except (SafetensorError, OSError, ValueError, RuntimeError, BadZipFile) as error:
            raise MatryoshkaError(f"{self.file}: {name} is damaged ({first_line(error)})") from None

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor of that name as float32. Raises MatryoshkaError unless it has this shape (None: any size) and all
        of it is finite."""
        tensor = self.value(name)
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.dtype in _INTEGERS):
            raise MatryoshkaError(f"{self.file}: {name} is no tensor of numbers")
        fits = tensor.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits or 0 in tensor.shape:
            expected = ["any" if n is None else n for n in shape]
            raise MatryoshkaError(f"{self.file}: {name} has shape {list(tensor.shape)}, expected {expected}")
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise MatryoshkaError(f"{self.file}: {name} holds NaN or Inf")
        return tensor


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


class Fields:
    """The fields of a foreign JSON or YAML object, checked as they are read."""

    def __init__(self, file: Path, values: object) -> None:
        if not isinstance(values, Mapping):
            raise MatryoshkaError(f"{file}: holds no object of named fields")
        self.file, self.values = file, values

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The field; `default` where it is missing or null. Raises MatryoshkaError if it is not of that kind."""
        value = self.values.get(name)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(each.__name__ for each in kinds)
            raise MatryoshkaError(f"{self.file}: {name} is {json.dumps(value, default=str)}, expected {expected}")
        return value

    def section(self, name: str) -> "Fields":
        """The object under `name`; an empty one where there is none."""
        return Fields(self.file, self.get(name, Mapping, {}))

    def size(self, name: str) -> int:
        """A whole number from 1 on, which has to be there."""
        value = self.get(name, int)
        if value is None or value < 1:
            raise MatryoshkaError(f"{self.file}: {name} is {value}, expected a whole number from 1 on")
        return value

    def refuse_unless(self, name: str, allowed: Sequence[Any], why: str, default: Any = None) -> Any:
        """The field, which must be one of `allowed` (or missing: `default`). Raises MatryoshkaError saying `why`."""
        value = self.values.get(name, default)
        if value not in allowed:
            raise MatryoshkaError(f"{self.file}: {name} {value!r}: {why}")
        return value
