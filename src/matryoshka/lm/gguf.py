"""A GGUF file → a folder that transformers reads fast.

transformers needs some 20 s for a small GGUF file and half a second for the same model as safetensors, so each file is
converted once, to float32: exactly the numbers that it holds. The folder is named by the file's sha256.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir, replaced_folder


def converted(file: Path) -> Path:
    """The folder in the cache with this file's model and tokenizer; made if it is not there yet."""
    if not file.is_file():
        raise MatryoshkaError(f"{file}: there is no such GGUF file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise MatryoshkaError(f"{file}: not a GGUF file (it does not begin with the bytes GGUF)")
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = cache_dir() / "models" / digest
    if not (folder / "config.json").is_file():
        _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise MatryoshkaError(f"{file}: reading GGUF needs {' and '.join(missing)}: pip install 'matryoshka-sae[gguf]'")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a foreign architecture, a damaged file: whatever transformers and gguf raise
        raise MatryoshkaError(f"{file}: cannot be read as GGUF: {' '.join(str(error).split())}") from error
    # the weights are plain numbers now, but save_pretrained refuses a model that is marked as quantised
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with replaced_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
