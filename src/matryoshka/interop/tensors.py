"""Foreign files' tensors and fields, by name, checked as they are taken. Nothing is unpickled but plain tensors."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from matryoshka.coder.io import finite
from matryoshka.errors import MatryoshkaError, did_you_mean, first_line

MOST = 2**31 - 1
"""The largest size of anything."""


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
                arrays = _Arrays(file)
                return cls(file, arrays.names, arrays.read)
            if file.suffix == ".pt":
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                return cls.within(file, content)
            with safe_open(file, framework="pt") as opened:
                return cls(file, list(opened.keys()), partial(_stored, file))
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
        except Exception as error:  # as above
            raise MatryoshkaError(f"{self.file}: {name} is damaged ({first_line(error)})") from None

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor of that name as float32. Raises MatryoshkaError unless it has this shape (None: any size) and all
        of it is finite."""
        tensor = self.value(name)
        if not isinstance(tensor, Tensor) or not _plain(tensor):
            raise MatryoshkaError(f"{self.file}: {name} is no tensor of numbers")
        fits = tensor.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits or 0 in tensor.shape:
            expected = ["any" if n is None else n for n in shape]
            raise MatryoshkaError(f"{self.file}: {name} has shape {list(tensor.shape)}, expected {expected}")
        tensor = tensor.detach().float()
        if not finite(tensor):
            raise MatryoshkaError(f"{self.file}: {name} holds NaN or Inf")
        return tensor

    def whole_number(self, name: str, most: int) -> int:
        """The whole number that lies there, as a tensor or not. Raises MatryoshkaError unless it is in 1 … `most`."""
        value = self.value(name)
        if isinstance(value, int):
            return Fields(self.file, {name: value}).size(name, most)
        number = self.take(name).item()
        if not 1 <= number <= most or number != int(number):
            raise MatryoshkaError(f"{self.file}: {name} is {number:g}, expected a whole number from 1 to {most:,}")
        return int(number)

    def refuse_others(self, known: Sequence[str], why: str) -> None:
        """Raise MatryoshkaError, saying `why`, if there is a tensor that is none of `known`."""
        if others := [name for name in self.names if name not in known]:
            raise MatryoshkaError(f"{self.file}: holds {others[0]!r}: {why}")


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def _plain(tensor: Tensor) -> bool:
    """Whether it is of numbers that lie there, each of them: a file of few bytes may claim any number of them."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    numbers = tensor.is_floating_point() or tensor.dtype in _INTEGERS
    return numbers and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


class _Arrays:
    """The arrays of an .npz. None is made room for unless as many bytes lie there as it claims."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with zipfile.ZipFile(file) as opened:
            self.names = [name.removesuffix(".npy") for name in opened.namelist()]

    def read(self, name: str) -> Tensor:
        with zipfile.ZipFile(self.file) as opened, opened.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of numpy's format")
            one = version == (1, 0)
            header = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = header(member)
            claimed, there = math.prod(shape) * dtype.itemsize, opened.getinfo(f"{name}.npy").file_size - member.tell()
            if dtype.hasobject or claimed != there:
                raise ValueError(f"claims {claimed:,} bytes of {dtype}, holds {there:,}")
            array = np.empty(math.prod(shape), dtype)
            content = array.view(np.uint8)
            for start in range(0, claimed, 2**24):
                content[start : start + 2**24] = np.frombuffer(member.read(2**24), np.uint8)
        array = array.astype(dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(array.reshape(shape, order="F" if by_columns else "C"))


def _stored(file: Path, name: str) -> Tensor:
    """One of a safetensors file, which is mapped anew: what was read before need not stay in memory."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


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
            raise self.wrong(name, f"expected {expected}")
        return value

    def wrong(self, name: str, why: str) -> MatryoshkaError:
        """The error that says what lies under `name`, and `why` it cannot be."""
        value = self.values.get(name)
        long = isinstance(value, Mapping | list) or (isinstance(value, int) and abs(value) > 2**64)
        said = f"a {type(value).__name__}{' too large' if isinstance(value, int) else ''}" if long else repr(value)
        return MatryoshkaError(f"{self.file}: {name} is {said}: {why}")

    def section(self, name: str) -> "Fields":
        """The object under `name`; an empty one where there is none."""
        return Fields(self.file, self.get(name, Mapping, {}))

    def size(self, name: str, most: int = MOST, needed: bool = True) -> int:
        """A whole number in 1 … `most`, which has to be there; 0 of what is missing but not `needed`."""
        value = self.get(name, int)
        if value is None and not needed:
            return 0
        if value is None or not 1 <= value <= most:
            raise self.wrong(name, f"expected a whole number from 1 to {most:,}")
        return value

    def scale(self, name: str) -> float:
        """A positive finite number, which has to be there."""
        value = self.get(name, (int, float))
        if value is None or not 0 < value < 1e38:
            raise self.wrong(name, "expected a positive number")
        return float(value)

    def widths(self, name: str, d_sae: int) -> list[int]:
        """Nested prefixes, which ascend to `d_sae`; [] of what is missing."""
        widths = self.get(name, list, [])
        if not all(isinstance(width, int) and not isinstance(width, bool) for width in widths):
            raise self.wrong(name, "expected whole numbers")
        if widths and (widths != sorted(set(widths)) or widths[0] < 1 or widths[-1] != d_sae):
            raise MatryoshkaError(f"{self.file}: {name} {widths} do not ascend from at least 1 to d_sae {d_sae:,}")
        return widths

    def refuse_unless(self, name: str, allowed: Sequence[Any], why: str, default: Any = None) -> Any:
        """The field, which must be one of `allowed` (or missing: `default`). Raises MatryoshkaError saying `why`."""
        value = self.values.get(name, default)
        if value not in allowed:
            raise self.wrong(name, why)
        return value
