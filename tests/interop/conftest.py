"""Coders of every kind, really trained on the bundled model, in one pass."""

import shutil
from pathlib import Path

import pytest

from matryoshka import api
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.card import Card
from matryoshka.coder.io import load_card
from matryoshka.run import Run
from matryoshka.training.recipe import Config

from ..conftest import Once

RESIDUAL = {"read": "2.resid_post", "write": "2.resid_post"}
LAYERS = [{"read": f"{layer}.mlp_in", "write": f"{layer}.mlp_out"} for layer in range(4)]
OTHERS = {
    "sae": RESIDUAL,
    "topk sae": {**RESIDUAL, "activation": "topk"},
    "jumprelu sae": {**RESIDUAL, "activation": "jumprelu"},
    "topk transcoder": {"activation": "topk"},
    "topk skip transcoder": {"activation": "topk", "skip": True},
    "jumprelu skip transcoder": {"activation": "jumprelu", "skip": True},
    "attention": {"read": "1.attn_in", "write": "1.attn_in"},
    "crosscoder": {"read": ["1.mlp_in", "2.mlp_in"], "write": ["1.mlp_out", "2.mlp_out"]},
}


@pytest.fixture(scope="session")
def kinds(once: Once) -> dict[str, Run]:
    """By the names of OTHERS, and as `layer 0` … `layer 3` BatchTopK transcoders of each layer's MLP."""
    variants = {**{f"layer {n}": sites for n, sites in enumerate(LAYERS)}, **OTHERS}
    config = {
        "text": {"context": 64},
        "activations": {"chunk": 2048},
        "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 256, "k": 6, "widths": [32, 96, 256]},
        "training": {"tokens": 4096, "batch": 256, "lr": 3e-3, "dead_after_tokens": 2000},
        "evaluation": {"tokens": 1024},
        "variants": list(variants.values()),
    }
    run = Run(once("kinds", lambda path: api.train(Config.build(config), path)))
    members = {_what(*load_card(member.coder)): member for member in run.members()}
    plain = {"activation": "batchtopk", "skip": False, "read": "1.mlp_in", "write": "1.mlp_out"}
    return {name: members[_key(**{**plain, **variant})] for name, variant in variants.items()}


def _what(config: CoderConfig, card: Card | None) -> tuple[str, ...]:
    assert card is not None
    source = card.sources[0]
    return _key(list(source.reads), list(source.writes), config.activation.kind, config.skip)


def _key(read: str | list[str], write: str | list[str], activation: str, skip: bool) -> tuple[str, ...]:
    return (*(site if isinstance(site, str) else "+".join(site) for site in (read, write)), activation, str(skip))


@pytest.fixture(scope="session")
def shown_layers(kinds: dict[str, Run], once: Once) -> list[Run]:
    """Copies of the layers, and the features of all but layer 2. Never changed."""

    def make(path: Path) -> None:
        runs = [Run(Path(shutil.copytree(kinds[f"layer {n}"].path, path / f"layer-{n}"))) for n in range(4)]
        api.features([run for n, run in enumerate(runs) if n != 2], 6000, keep_recording=False)

    folder = once("shown", make)
    return [Run(folder / f"layer-{n}") for n in range(4)]
