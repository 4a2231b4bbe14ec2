"""A coder on disk: a folder with `config.json` and `weights.safetensors`. Nothing is ever unpickled."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.card import Card
from matryoshka.config import Section
from matryoshka.errors import MatryoshkaError
from matryoshka.files import checksum, read_json, replaced_folder

Kind = TypeVar("Kind", bound=Section)

FORMAT = "matryoshka-coder"
VERSION = 2
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
NUMBERS = re.compile(r"\[\n\s*(-?\d[\d\s,.eE+-]*?)\n\s*\]")
"""An indented list of numbers, which may be long; within a string no line ends."""
SOME = 2**22
"""Numbers that are looked at at once."""


def save(folder: Path, config: CoderConfig, card: Card | None, tensors: dict[str, Tensor]) -> None:
    """Write both files; a coder that lies there already is replaced in one rename, anything else is refused."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or {file.name for file in folder.iterdir()} - {CONFIG, WEIGHTS}):
        raise MatryoshkaError(f"{folder}: holds something other than a coder; give a new folder to save one in")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "coder": config.model_dump(mode="json"),
        "card": None if card is None else card.model_dump(mode="json"),
    }
    indented = json.dumps(content, indent=2, ensure_ascii=False)
    one_line_a_list = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", indented)
    with replaced_folder(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / WEIGHTS)
        (new / CONFIG).write_text(one_line_a_list + "\n", encoding="utf-8")


def load(path: Path) -> tuple[CoderConfig, Card | None, dict[str, Tensor]]:
    """(config, card, tensors) of the coder in `path` or `path/coder`. Raises MatryoshkaError where there is none, or
    where a file is damaged, foreign or of another version."""
    file = _folder(path) / WEIGHTS
    config, card = load_card(path)
    try:
        return config, card, load_file(file)
    except (SafetensorError, OSError) as error:
        raise MatryoshkaError(f"{file}: missing or damaged ({error})") from None


def load_card(path: Path) -> tuple[CoderConfig, Card | None]:
    """(config, card) of the coder in `path` or `path/coder`, without its weights; raises as `load` does."""
    file = _folder(path) / CONFIG
    content = _object(file)
    if content.get("format") != FORMAT:
        raise MatryoshkaError(f"{file}: not a coder of matryoshka (its format is not {FORMAT!r})")
    if content.get("version") != VERSION:
        raise MatryoshkaError(
            f"{file}: coder format version {content.get('version')}; this matryoshka reads version {VERSION}"
            " (older ones are not in raw units: train anew)"
        )
    if unknown := content.keys() - {"format", "version", "coder", "card"}:
        raise MatryoshkaError(f"{file}: unknown field {min(unknown)!r}")
    config = _section(CoderConfig, content.get("coder"), f"{file}: coder")
    card = None if content.get("card") is None else _section(Card, content["card"], f"{file}: card")
    if card is not None and card.trained is not None and max(card.trained.dead, default=0) >= config.d_sae:
        raise MatryoshkaError(f"{file}: card.trained.dead: latent {max(card.trained.dead)} of {config.d_sae:,}")
    return config, card


def fingerprint(path: Path) -> str:
    """sha256 in hex of the stored weights' bytes: what labels and results belong to, the same on every device."""
    file = _folder(path) / WEIGHTS
    try:
        return checksum(file)
    except OSError as error:
        raise MatryoshkaError(f"{file}: missing or damaged ({error})") from None


def _folder(path: Path) -> Path:
    folder = path / "coder" if (path / "coder").is_dir() else path
    if not (folder / CONFIG).is_file():
        raise MatryoshkaError(f"{path}: no coder here; expected a run, or a folder with {CONFIG} and {WEIGHTS}")
    return folder


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise MatryoshkaError(f"{file}: damaged, not a JSON object")
    return content


def _section(kind: type[Kind], values: object, where: str) -> Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (where, *first["loc"])))
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise MatryoshkaError(" ".join(f"{place}: {what}".split())) from None


def check_tensors(where: str, expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Refuse, by name, tensors that are missing, unknown, of another shape or dtype than `expected`, or not finite."""
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise MatryoshkaError(f"{where} lack {name}")
        if name not in expected:
            raise MatryoshkaError(f"{where} hold an unknown tensor {name}")
        want, got = ({"shape": list(t[name].shape), "dtype": t[name].dtype} for t in (expected, stored))
        for what in want:
            if want[what] != got[what]:
                raise MatryoshkaError(f"{where}: {name} has {what} {got[what]}, expected {want[what]}")
        if stored[name].is_floating_point() and not finite(stored[name]):
            raise MatryoshkaError(f"{where}: {name} holds NaN or Inf")


def finite(tensor: Tensor) -> bool:
    """Whether all of a tensor is finite; some rows at a time, since asking takes more memory than a tensor has."""
    rows = torch.atleast_1d(tensor)
    return all(bool(part.isfinite().all()) for part in rows.split(max(1, SOME * len(rows) // max(1, rows.numel()))))
