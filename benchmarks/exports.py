"""Coders of every kind, trained on the bundled language model in some minutes, and what is exported of them."""

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import environment

import matryoshka
from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.study.hooked import HookedCoder, hook_all
from matryoshka.study.opening import studied
from matryoshka.study.reader import Rows, batches, read, spread_windows

TRAINING = {
    "text": {"context": 64},
    "activations": {"chunk": 16_384},
    "training": {"tokens": 30_720, "batch": 512, "lr": 3e-3, "dead_after_tokens": 10_000},
    "evaluation": {"tokens": 2048},
}
WIDTHS, K = [48, 192, 768], 16
PREFIX = WIDTHS[1]
"""That is exported on its own."""
TOKENS = 512
"""Of held-out text, whose activations go through the coders."""
FEATURE_TOKENS = 4096
"""What Neuronpedia's pages are made from."""


def _coder(read: str, write: str | None = None, matryoshka: bool = True, **fields: Any) -> dict[str, Any]:
    return {"read": read, "write": write, "d_sae": WIDTHS[-1], "k": K, "widths": WIDTHS if matryoshka else [], **fields}


LAYERS: list[dict[str, Any]] = [{"read": f"{layer}.mlp_in", "write": f"{layer}.mlp_out"} for layer in range(4)]
"""All that the bundled language model has."""
CODERS: dict[str, dict[str, Any]] = {
    "Matryoshka SAE, BatchTopK": {"coder": _coder("2.resid_post")},
    "SAE, TopK": {"coder": _coder("2.resid_post", matryoshka=False, activation="topk")},
    "transcoder, JumpReLU": {"coder": _coder(**LAYERS[2], matryoshka=False, activation="jumprelu")},
    "Matryoshka skip transcoder, BatchTopK": {"coder": _coder(**LAYERS[2], skip=True)},
    "skip transcoder, TopK": {"coder": _coder(**LAYERS[2], matryoshka=False, activation="topk", skip=True)},
    "Matryoshka transcoders of all layers, BatchTopK": {"coder": _coder(**LAYERS[0]), "variants": LAYERS},
    "transcoders of all layers, JumpReLU": {
        "coder": _coder(**LAYERS[0], matryoshka=False, activation="jumprelu"),
        "variants": LAYERS,
    },
}
SAE, TOPK, JUMPRELU, SKIP, TOPK_SKIP, ALL, ALL_JUMPRELU = CODERS


class Peer(NamedTuple):
    """A program of others that reads exports."""

    name: str
    """of its distribution, where it has one"""
    format: str
    check: tuple[str, ...]
    """the program in --checks that asks it, and its flags"""
    reads: str
    """the file by which it knows a folder, or (of flags that take files) the file itself"""
    environment: str | None
    """of harness.environment; None: it cannot be run here, and the program in --checks says what it would take"""
    holds: tuple[str, ...]
    """of CODERS"""

    def python(self, environments: Path) -> Path:
        """What it runs on, of an environment in this folder; its own program on this one."""
        return environment(self.environment, environments) if self.environment else Path(sys.executable)

    def place(self, folder: Path) -> Path:
        """What the program is asked about, of an export in `folder`."""
        [file] = folder.rglob(self.reads)
        return file if len(self.check) > 1 else file.parent


SHOWN = (SAE, SKIP)
"""Whose features are exported."""
PEERS = (
    Peer("sae-lens", "saelens", ("check_saelens.py",), "cfg.json", "saelens", (SAE, TOPK, JUMPRELU, SKIP)),
    Peer(
        "circuit-tracer",
        "circuit-tracer",
        ("check_circuit_tracer.py",),
        "config.yaml",
        "circuit_tracer",
        (ALL, ALL_JUMPRELU),
    ),
    Peer("eai-sparsify", "sparsify", ("check_sparsify.py",), "cfg.json", "sparsify", (TOPK, TOPK_SKIP)),
    Peer("sae-bench", "saebench", ("check_saebench.py",), "cfg.json", "saebench", (SAE, TOPK)),
    Peer("sae-dashboard", "neuronpedia", ("check_neuronpedia.py", "--batch"), "batch-0.json", "saelens", SHOWN),
    Peer("Neuronpedia's columns", "neuronpedia", ("check_neuronpedia.py",), "release.jsonl", None, SHOWN),
)


class Export(NamedTuple):
    """A coder in a peer's format."""

    format: str
    coder: str
    prefix: int | None

    @property
    def what(self) -> str:
        """In words."""
        return self.coder + (f", first {self.prefix}" if self.prefix else "")


def train(folder: Path) -> dict[str, Run]:
    """A run of each of CODERS; those that Neuronpedia is shown have their features too."""
    runs = {}
    for number, (name, values) in enumerate(CODERS.items()):
        print(f"training: {name}", flush=True)
        runs[name] = api.train(matryoshka.Config.build({**TRAINING, **values}), folder / f"run-{number}")
    for name in SHOWN:
        api.features(runs[name], FEATURE_TOKENS)
    return runs


def planned(runs: Iterable[str]) -> list[Export]:
    """What is exported of these of CODERS: each once in every format."""
    exports = {}
    for name in runs:
        prefixes = (None, PREFIX) if CODERS[name]["coder"]["widths"] else (None,)
        for peer in PEERS:
            exports |= {Export(peer.format, name, prefix): None for prefix in prefixes if name in peer.holds}
    return list(exports)


def write(export: Export, run: Run, folder: Path) -> None:
    """Export into `folder`, with our numbers beside the weights. Raises MatryoshkaError where it cannot be."""
    matryoshka.export(run, folder, format=export.format, prefix=export.prefix)
    for config in (*folder.rglob("cfg.json"), *folder.rglob("config.yaml")):
        np.savez(config.parent / "io.npz", **numbers(run, export.prefix))


def read_text(run: Run) -> tuple[LanguageModel, list[HookedCoder], Rows]:
    """Held-out text with its activations, and the run's coders, which all have the same rows of it."""
    members = run.trained()
    its = studied(members[0].coder)
    lm = its.open_lm("cpu")
    windows = its.open_tokens(lm.vocabulary).windows("held_out")
    hooked = hook_all([member.coder for member in members], lm, windows)
    keep = RowFilter(lm.bos, {site: norm for one in hooked for site, norm in one.keep.largest.items()})
    hooked = [one._replace(keep=keep) for one in hooked]
    [rows] = read(lm, batches(windows, spread_windows(windows, TOKENS), TOKENS), hooked)
    return lm, hooked, rows


def numbers(run: Run, prefix: int | None = None) -> dict[str, np.ndarray]:
    """Activations of held-out text, and what our coder makes of them in float64: {"x" [row, d_in], "latents" [row,
    d_sae], "out" [row, d_out]}, of the whole dictionary or of a prefix; of a run of several coders one above another
    [coder, row, …]. Of one SAE or transcoder without a skip also "widths" and "out_prefixes" [prefix, row, d_out]."""
    _, hooked, rows = read_text(run)
    of_each = [_numbers(one.coder, rows.x(one), prefix) for one in hooked]
    if len(of_each) == 1:
        return of_each[0]
    return {name: np.stack([one[name] for one in of_each]) for name in ("x", "latents", "out")}


@torch.no_grad()
def _numbers(coder: SparseCoder, x: torch.Tensor, prefix: int | None) -> dict[str, np.ndarray]:
    coder, width = copy.deepcopy(coder).double(), prefix or coder.config.d_sae
    widths = [*(each for each in coder.widths if each < width), width]
    latents = coder.encode(x.double())
    out = coder.decode(latents, x, widths)
    found = {"x": x, "latents": latents.first(width).dense(), "out": out[-1]}
    if not coder.config.skip:
        found |= {"widths": torch.tensor(widths), "out_prefixes": out}
    return {name: (tensor.float() if name != "widths" else tensor).numpy() for name, tensor in found.items()}
