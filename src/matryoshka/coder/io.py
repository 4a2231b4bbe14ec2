"""A coder on disk: a folder with `config.json` and `weights.safetensors`. Nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from matryoshka.errors import MatryoshkaError
from matryoshka.files import replaced_folder

FORMAT = "matryoshka-coder"
VERSION = 1
FILES = {"config.json", "weights.safetensors"}
Config = TypeVar("Config", bound=BaseModel)


def save(folder: Path, config: dict[str, Any], metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files; a coder that lies there already is replaced in one rename, anything else is refused."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or {file.name for file in folder.iterdir()} - FILES):
        raise MatryoshkaError(f"{folder}: holds something other than a coder; give a new folder to save one in")
    with replaced_folder(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / "weights.safetensors")
        content = {"format": FORMAT, "version": VERSION, **config, "metadata": metadata}
        (new / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(path: Path, config_type: type[Config]) -> tuple[Config, dict[str, Any], dict[str, Tensor]]:
    """(config, metadata, tensors) of the coder in `path` or `path/coder`."""
    folder = path / "coder" if (path / "coder").is_dir() else path
    file = folder / "config.json"
    if not file.is_file():
        raise MatryoshkaError(
            f"{path}: no coder here; expected a run, or a folder with config.json and weights.safetensors"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("metadata", {}), dict):
            raise MatryoshkaError(f"{file}: damaged, not an object with metadata")
        if content.pop("format", None) != FORMAT:
            raise MatryoshkaError(f"{file}: not a coder of matryoshka (its format is not {FORMAT!r})")
        if (version := content.pop("version", None)) != VERSION:
            raise MatryoshkaError(f"{file}: coder format version {version}; this matryoshka reads version {VERSION}")
        metadata = content.pop("metadata", {})
        config = config_type.model_validate(content)
        tensors = load_file(folder / "weights.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MatryoshkaError(f"{file}: damaged, not a JSON object ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise MatryoshkaError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (SafetensorError, OSError) as error:
        raise MatryoshkaError(f"{folder / 'weights.safetensors'}: missing or damaged ({error})") from None
    return config, metadata, tensors


def check_tensors(where: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Refuse, by name, tensors that are missing, unknown or of another shape or dtype than `expected`."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise MatryoshkaError(f"{where} lack {name}")
        if name not in expected:
            raise MatryoshkaError(f"{where} hold an unknown tensor {name}")
        for what in ("shape", "dtype"):
            want, got = (getattr(tensors[name], what) for tensors in (expected, found))
            if want != got:
                shown = [list(x) if what == "shape" else x for x in (got, want)]
                raise MatryoshkaError(f"{where}: {name} has {what} {shown[0]}, expected {shown[1]}")
