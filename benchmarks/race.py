"""At equal tokens, whose coder reconstructs held-out activations best? Ours and the peers' trainers, on the same rows.

    python benchmarks/race.py [--model bundled] [--site 2.resid_post] [--tokens 5e5 2e6] [--seeds 3]
                              [--lr RATE …] [--d-sae 3072] [--k 24] [--batch 2048] [--only PATTERN]
                              [--cache DIR] [--peers DIR] [--json FILE] [--save]

    1. activations of the model at the site are written once (write_rows.py). A seed is an order of these rows and the
       contenders' own seed: all contenders of a seed get the same batches in the same order
    2. each contender trains in a process of its own, in its own environment and public training loop, for exactly the
       tokens of the cell (peers/raced.py): with its own defaults, and with each of the learning rates
    3. what it has learned, folded into one form for all, is judged here (judge.py): FVU of every prefix by exact
       selection and by its own threshold, L0, and the share that neither the held-out rows nor the last 200,000
       training rows ever activate
    4. a finished cell is appended to cells.jsonl beside the rows at once: a second call goes on where the first stopped

--only takes a pattern of contender-architecture-setting, such as 'ours-*', '*-matryoshka-*', 'saelens-topk-default' or
'*-0.001'. A cell that is there is not run again, though our code may have changed: delete its line. More tokens than
the text has are several epochs. The table has, of the learning rates, the one with the smallest mean FVU over the
seeds; which is the best of few, judged on the rows that it is chosen by, for every contender alike.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import Contender, Size, launch, machine, new_job, publish
from judge import judge
from peers.canonical import Canonical
from peers.rows import StoredRows, fingerprint, training_order
from standings import markdown
from step import ours, theirs
from write_rows import stored_rows

from matryoshka.files import cache_dir

RATES = {
    "adam": (1e-3, 3e-4, 3e-3, 1e-4, 1e-2),
    "signum": (5e-3, 1.5e-2, 1.5e-3, 5e-2, 5e-4),
}
"""Learning rates if no --lr is given (an empty one is the defaults alone), the likely ones first; sparsify's default
optimiser takes steps of another kind."""
RECENT = 200_000
"""Of the last rows in the order of training, on which a latent may show that it is alive."""


class Cell(NamedTuple):
    """One run of one contender."""

    contender: str
    architecture: str
    lr: float | None
    """none: all of the contender's own defaults"""
    tokens: int
    seed: int
    d_sae: int
    k: int
    batch: int
    model: str
    site: str

    @property
    def name(self) -> str:
        """What --only is matched with."""
        return f"{self.contender}-{self.architecture}-{'default' if self.lr is None else f'{self.lr:g}'}"


class Course(NamedTuple):
    """What all contenders have in common."""

    size: Size
    rows: Path
    peers: Path
    threads: int


class Failed(Exception):
    """A contender did not get to its end; says its last words."""


def entrants(size: Size) -> list[Contender]:
    """Ours and every trainer of a peer. JumpReLU is ours alone: the peers' has no k to aim at."""
    jumprelu = Contender("ours-jumprelu", "ours.py", "jumprelu", size)
    return [*ours(size).values(), jumprelu, *(contender for contender in theirs(size) if not contender.best)]


def who(contender: Contender) -> str:
    return contender.environment or "ours"


def cells(
    contenders: Sequence[Contender],
    tokens: Sequence[int],
    seeds: int,
    rates: Sequence[float] | None,
    model: str,
    site: str,
) -> Iterator[tuple[Cell, Contender]]:
    """In the order of running: a seed is complete before the next one begins."""
    for count in tokens:
        for seed in range(seeds):
            for contender in contenders:
                size, its = contender.size, RATES["signum" if who(contender) == "sparsify" else "adam"]
                for lr in (None, *(its if rates is None else rates)):
                    sizes = (size.d_sae, size.k, size.batch)
                    yield Cell(who(contender), contender.architecture, lr, count, seed, *sizes, model, site), contender


def run(cell: Cell, contender: Contender, course: Course) -> dict[str, Any]:
    """Train and judge. Raises Failed with the contender's last words."""
    steps = cell.tokens // cell.batch
    job = new_job(contender, "cpu", course.threads, steps, cell.seed, cell.lr)
    with tempfile.TemporaryDirectory() as folder:
        log, weights = Path(folder) / "log", Path(folder) / "weights.safetensors"
        process = launch(contender, job, ["raced", str(course.rows), str(weights)], course.peers, log, tuned=False)
        answer, _ = process.communicate()
        if process.returncode:
            raise Failed(log.read_text()[-3000:])
        trained, canonical = json.loads(answer), Canonical.load(weights)
    train, held_out = (StoredRows(course.rows, split) for split in ("train", "held_out"))
    order = training_order(len(train), steps, cell.batch, cell.seed)
    if trained.pop("order") != fingerprint(order):
        raise Failed("it was given other rows than this process would have given it")
    recent = (train.take(numbers) for numbers in order[-(RECENT // cell.batch + 1) :])
    everything = held_out.take(np.arange(len(held_out)))
    epochs = steps * cell.batch / min(len(train), steps * cell.batch)
    return {**judge(canonical, cell.architecture, course.size, everything, recent), **trained, "epochs": epochs}


def finished(file: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """What the file says of cells that were run."""
    for line in file.read_text().splitlines() if file.exists() else []:
        record = json.loads(line)
        yield Cell(**record["cell"]), record["result"]


def hold(planned: Sequence[tuple[Cell, Contender]], course: Course, file: Path) -> list[str]:
    """Run the cells that the file does not have yet, and append each to it. Returns the names of those that failed."""
    there, failed = dict(finished(file)), []
    left = [(cell, contender) for cell, contender in planned if cell not in there]
    print(f"{len(planned)} cells, {len(planned) - len(left)} of them finished before", flush=True)
    for number, (cell, contender) in enumerate(left, 1):
        what = f"[{number}/{len(left)}] {cell.name}, {cell.tokens:,} tokens, seed {cell.seed}"
        try:
            result = run(cell, contender, course)
        except Failed as failure:
            failed.append(what)
            print(f"{failure}\n{what} FAILED: its last words are above", flush=True)
            continue
        with file.open("a") as opened:
            opened.write(json.dumps({"cell": cell._asdict(), "result": result}) + "\n")
        said = f"FVU {result['fvu'][-1]:.4f}" if result["finite"] else "not finite"
        print(f"{what}: {said}, {result['seconds']:.0f} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="what a recipe takes: hub id, folder, GGUF file, bundled")
    parser.add_argument("--site", default="2.resid_post")
    parser.add_argument("--tokens", type=lambda text: int(float(text)), nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="*", metavar="RATE", help="besides the default [five; see RATES]")
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--only", metavar="PATTERN", default="*")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=cache_dir() / "race", help="for rows and cells")
    parser.add_argument("--peers", type=Path, metavar="DIR", default=Path.home() / ".cache" / "matryoshka" / "peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-race-… .json and .md")
    given = parser.parse_args()
    model = Path(given.model).name
    folder = given.cache / f"{model}-{given.site}"
    index = stored_rows(folder / "rows", given.model, given.site, max(given.tokens))
    if index["held_out"] < given.batch or min(given.tokens) < given.batch:
        raise SystemExit("--tokens and the held-out rows have to be a batch at least")
    size = Size(index["d"], given.d_sae, given.k, given.batch)
    course = Course(size, folder / "rows", given.peers, torch.get_num_threads())
    every = list(cells(entrants(size), given.tokens, given.seeds, given.lr, model, given.site))
    planned = [(cell, contender) for cell, contender in every if fnmatch(cell.name, given.only)]
    failed = hold(planned, course, folder / "cells.jsonl")
    there = dict(finished(folder / "cells.jsonl"))
    results = {
        "command": " ".join(["python benchmarks/race.py", *sys.argv[1:]]),
        "machine": machine("cpu", course.threads),
        "rows": index,
        "size": {**size._asdict(), "widths": size.widths},
        "cells": [{**cell._asdict(), **there[cell]} for cell, _ in planned if cell in there],
    }
    publish(results, markdown(results), given.json, given.save, f"-race-{Path(model).stem.lower()}-{given.site}")
    if failed:
        raise SystemExit("\n".join(["failed:", *failed]))


if __name__ == "__main__":
    main()
