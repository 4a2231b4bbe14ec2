"""What a run's numbers depend on besides its config, and the card of a coder that is trained here: what it is of, and
what it was trained on."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from matryoshka.coder.card import Card, SourceCard, TrainingCard
from matryoshka.data.rowfilter import RowCounts, RowFilter
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.training.recipe import Config
from matryoshka.training.supply import Supply
from matryoshka.training.trainee import Trainee
from matryoshka.version import __version__


def provenance(supply: Supply, select: Mapping[str, str], processes: int) -> dict[str, Any]:
    """Versions, model, tokens or samples, commit, hardware, how many processes train on it, and in which precision each
    coder's latents are proposed (`select`, by label), as plain JSON."""
    packages = ("matryoshka-sae", "torch", "transformers", "tokenizers", "numpy", "safetensors")
    cuda = torch.cuda.get_device_name(supply.device) if supply.device.type == "cuda" else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
        **supply.facts(),
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpu": cuda},
        "processes": processes,
        "select": dict(select),
    }


def recorded_hash(file: Path, kind: str) -> str:
    """What a run's provenance.json says of its tokens or samples. Raises MatryoshkaError where that cannot be read."""
    try:
        return read_json(file)[kind]["hash"]
    except (KeyError, TypeError):
        raise MatryoshkaError(f"{file}: damaged: it says nothing of the {kind}") from None


def card(trainee: Trainee, config: Config, supply: Supply, keep: RowFilter, counts: RowCounts, steps: int) -> Card:
    """The card of `trainee` after `steps` steps. `keep`: which rows it was trained on; `counts`: of those that were
    read for it."""
    wiring = trainee.plan.wiring
    sites = [(map(str, source.reads), map(str, source.writes)) for source in wiring.sources]
    return Card(
        **supply.on_card(supply.keep(keep, wiring)),
        sources=tuple(SourceCard(reads=tuple(reads), writes=tuple(writes)) for reads, writes in sites),
        trained=TrainingCard(
            tokens=steps * config.training.batch,
            left_out=counts.left_out,
            not_finite=counts.not_finite,
            **supply.trained_on(),
            dead_after_tokens=trainee.dead.after_tokens,
            dead=tuple(trainee.dead.now.nonzero().flatten().tolist()),
        ),
        origin=f"matryoshka {__version__}",
    )


def _commit() -> str | None:
    """The git commit of this source, if it is a checkout."""
    try:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
