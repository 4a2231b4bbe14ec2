"""What a run's numbers depend on besides its config, and the card of a coder that is trained here: what it is of, and
what it was trained on."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from matryoshka.coder.card import Card, ModelCard, RowCard, SourceCard, TrainingCard
from matryoshka.data.rowfilter import SAMPLE, RowCounts, RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.lm.model import LanguageModel
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee
from matryoshka.version import __version__


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
            "dtype": lm.precision,
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


def card(
    trainee: Trainee, config: Config, lm: LanguageModel, tokens: Tokens, keep: RowFilter, counts: RowCounts, steps: int
) -> Card:
    """The card of `trainee` after `steps` steps. `keep`: which rows it was trained on; `counts`: of those that were
    read for it."""
    wiring = trainee.plan.wiring
    largest = {str(site): norm for site, norm in keep.only(wiring.sites).largest.items()}
    sites = [(map(str, source.reads), map(str, source.writes)) for source in wiring.sources]
    return Card(
        model=ModelCard(name=config.model.name, revision=lm.info.revision, dtype=lm.precision),
        sources=tuple(SourceCard(reads=tuple(reads), writes=tuple(writes)) for reads, writes in sites),
        context=config.text.context,
        prepend_bos=lm.bos is not None,
        rows=RowCard(largest_norms=largest, sample=min(SAMPLE, len(tokens.windows("train"))) * config.text.context),
        trained=TrainingCard(
            tokens=steps * config.training.batch,
            left_out=counts.left_out,
            not_finite=counts.not_finite,
            text=config.text.model_dump(mode="json"),
            text_hash=tokens.text_hash,
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
