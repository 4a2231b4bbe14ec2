"""What the numbers of a run depend on besides its config."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.lm.model import LanguageModel


def provenance(lm: LanguageModel, tokens: Tokens) -> dict[str, Any]:
    """Versions, model, tokens, commit, hardware, as plain JSON."""
    packages = ("matryoshka-sae", "torch", "transformers", "tokenizers", "numpy", "safetensors")
    cuda = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        "model": {
            "name": lm.info.name,
            "revision": lm.info.revision,
            "dtype": str(lm.dtype).removeprefix("torch."),
        },
        "tokens": {"hash": tokens.hash, "bos": lm.bos, "separator": lm.separator},
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpu": cuda},
    }


def tokens_hash(file: Path) -> str:
    """What a run's provenance.json says of its tokens. Raises MatryoshkaError where that cannot be read."""
    try:
        return read_json(file)["tokens"]["hash"]
    except (KeyError, TypeError):
        raise MatryoshkaError(f"{file}: damaged: it says nothing of the tokens") from None


def _commit() -> str | None:
    """The git commit of this source, if it is a checkout."""
    try:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
