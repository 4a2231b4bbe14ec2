"""What the peers measure with an exported coder on the language model itself, and what we measure.

SAELens        FVU and L0 on the language model as TransformerLens' bridge loads it, read and written where the export's
               own metadata says
circuit-tracer the same of each layer in its replacement model, and how many features an attribution graph has
SAEBench       its core evaluation of the SAE as SAELens loads it (benchmarks/saebench.py core_agreement)

Both sides get the same tokens, and each runs the language model itself. TransformerLens 3.2 reads what published GPT-2
configs have, so the folder that circuit-tracer gets is a copy with that. SAEBench's whole program (`multiple_evals`)
loads models by their names on the hub and knows no folder: what is run are the functions that it calls.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from exports import PEERS, SAE, Export, read_text
from harness import HERE, OFFLINE
from saebench import core_agreement
from safetensors.torch import save_file
from torch import Tensor

from matryoshka.coder.metrics import Meter
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Rows

TOLERANCE = 1e-3
"""Two programs run the language model, and a latent at its threshold fires in one alone."""
PROMPT = 16
"""Tokens of the text that an attribution graph is made of."""


ONE_DEFINITION = ("CE, clean", "CE, reconstructed", "explained variance, as SAEBench has it", "cosine", "L0")
"""Of SAEBench's core: what it and we mean the same by. It zeroes BOS too, and does not centre (docs/evaluation.md)."""


class Number(NamedTuple):
    """One that both sides measure."""

    peer: str
    what: str
    ours: float
    theirs: float

    @property
    def agrees(self) -> bool:
        """To within TOLERANCE."""
        return abs(self.ours - self.theirs) <= TOLERANCE * abs(self.ours)


PROGRAMS = {"sae-lens": "saelens_at_work.py", "circuit-tracer": "circuit_tracer_at_work.py"}
"""By peer: its program in peers/."""


def compare(runs: Mapping[str, Run], written: Mapping[Export, Path], environments: Path) -> list[Number]:
    """Of all whole coders that were written for these peers."""
    numbers, by_name = [], {peer.name: peer for peer in PEERS}
    for name, program in PROGRAMS.items():
        peer = by_name[name]
        for export in (Export(peer.format, coder, None) for coder in peer.holds):
            if export in written:
                place, python = peer.place(written[export]), peer.python(environments)
                numbers += [
                    Number(name, f"{export.coder}: {what}", *pair)
                    for what, pair in _pairs(program, runs[export.coder], place, python).items()
                ]
    peer, export = by_name["sae-bench"], Export("saebench", SAE, None)
    if export in written:
        core = core_agreement(runs[SAE].path, peer.python(environments), peer.place(written[export]))
        pairs = ((name, core["ours"][name], core["theirs"][name]) for name in ONE_DEFINITION)
        numbers += [Number(peer.name, f"{SAE}: {name}", ours, theirs) for name, ours, theirs in pairs]
    return numbers


def _pairs(program: str, run: Run, place: Path, python: Path) -> dict[str, tuple[float, float]]:
    """Ours and theirs, by what it is."""
    lm, hooked, rows = read_text(run)
    ours = measure(hooked, rows)
    given = {"tokens": rows.tokens, "kept": rows.kept(hooked[0]), "prompt": rows.tokens[0, :PROMPT].clone()}
    theirs = ask(program, given, lm, place, python)
    ours["features"] = [float(sum(active_after_first(one, rows) for one in hooked))] if "features" in theirs else []
    pairs = {}
    for what, words in WORDS.items():
        for layer, pair in enumerate(zip(ours[what], theirs.get(what, []), strict=True)):
            pairs[f"{words} of layer {layer}" if len(ours[what]) > 1 else words] = pair
    return pairs


WORDS = {"fvu": "FVU", "l0": "L0", "features": "features in the attribution graph"}


@torch.no_grad()
def measure(hooked: Sequence[HookedCoder], rows: Rows) -> dict[str, list[float]]:
    """{"fvu", "l0"}: of each coder's whole dictionary on these rows."""
    found: dict[str, list[float]] = {"fvu": [], "l0": []}
    for one in hooked:
        meter, x, latents = Meter(one.coder.config), rows.x(one), rows.latents(one)
        meter.update(rows.y(one), one.coder.decode(latents, x), latents)
        found["fvu"].append(meter.fvu()[-1])
        found["l0"].append(meter.l0())
    return found


@torch.no_grad()
def active_after_first(hooked: HookedCoder, rows: Rows) -> int:
    """Latents that are active on the prompt but for its first token, which circuit-tracer leaves out."""
    x = torch.cat([rows.activations[site][0, 1:PROMPT] for site in hooked.wiring.reads], dim=-1)
    return int((hooked.coder.encode(x).values > 0).sum())


def ask(program: str, given: Mapping[str, Tensor], lm: LanguageModel, export: Path, python: Path) -> dict[str, Any]:
    """The answer of a program in peers/, from a process in the peer's environment."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_file({name: tensor.contiguous() for name, tensor in given.items()}, folder / "given.safetensors")
        copy_model(lm, folder / "model")
        command = [python, HERE / "peers" / program, folder, export]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | OFFLINE)
        if done.returncode:
            raise SystemExit(f"{done.stderr[-3000:]}\n{program} failed: its last words are above")
    return json.loads(done.stdout.splitlines()[-1])


def copy_model(lm: LanguageModel, folder: Path) -> None:
    """The language model's folder, as transformers 4 and TransformerLens 3.2 read it."""
    assert lm.info.folder is not None
    shutil.copytree(lm.info.folder, folder)
    for name, values in {
        "config.json": {"n_ctx": lm.model.config.n_positions},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


def as_table(numbers: Sequence[Number]) -> str:
    """The numbers as a table, nothing of none."""
    if not numbers:
        return ""
    lines = [
        "",
        "## At work on the language model",
        "",
        "| peer | what | ours | theirs | |",
        "|---|---|---|---|---|",
    ]
    for number in numbers:
        judged = "agrees" if number.agrees else "**differs**"
        lines.append(f"| {number.peer} | {number.what} | {number.ours:.6g} | {number.theirs:.6g} | {judged} |")
    return "\n".join(lines) + "\n"
