"""Kill every verb at its n-th file event, go on as a person would, and compare the end with an undisturbed one.

    python tests/reliability/chaos.py [--every N] [VERB ...]     `make chaos`: every event of every verb

A file event is what Python's audit hooks tell of: a file opened to be written, a rename, a removal, a folder made, a
database opened. The killed process is a fork of this one, so that torch is imported once. SIGKILL leaves it no word.
"""

import argparse
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from matryoshka import api
from matryoshka.features.store import FeatureStore
from matryoshka.run import Run
from matryoshka.training.recipe import Config

CONFIG = Config.build(
    {
        "text": {"context": 64},
        "activations": {"chunk": 2048},
        "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 64, "k": 4},
        "training": {"tokens": 2560, "batch": 256, "lr": 1e-2, "checkpoint_every": 4, "evaluate_every": 5},
        "evaluation": {"tokens": 512},
    }
)
TOKENS = 3000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "sqlite3.connect"}


class Verb(NamedTuple):
    """What is done to a run, and what is done after it was killed."""

    start: Callable[[Path], None]
    go_on: Callable[[Path], None]


def train(path: Path) -> None:
    """A new run."""
    api.train(CONFIG, path)


def go_on_training(path: Path) -> None:
    """From the last checkpoint; where there is none yet, anew."""
    if any(Run(path).checkpoints.glob("step_*")):
        api.resume(path)
    else:
        api.train(CONFIG, path, overwrite=True)


def features(path: Path) -> None:
    """Of a run that has none; what was killed after its end leaves some."""
    api.features(path, TOKENS, overwrite=Run(path).features_file.exists())


def collect_anew(path: Path) -> None:
    """Of a run with labels and explanations."""
    api.features(path, TOKENS, overwrite=True)


def evaluate(path: Path) -> None:
    """One evaluation."""
    api.evaluate([path], only=["reconstruction"], tokens=1024)


def export(path: Path) -> None:
    """The page, into the run's folder."""
    api.export_page(path, path / "page", overwrite=(path / "page").exists())


VERBS = {
    "train": Verb(train, go_on_training),
    "features": Verb(features, features),
    "features --overwrite": Verb(collect_anew, collect_anew),
    "eval": Verb(evaluate, evaluate),
    "export-page": Verb(export, export),
}


def prepare(verb: str, folder: Path) -> Path:
    """A run as it is before `verb`; of `train` none."""
    path = folder / "run"
    if verb == "train":
        return path
    api.train(CONFIG, path)
    if verb in ("features --overwrite", "export-page"):
        [store] = api.features(path, TOKENS)
        store.annotate(3, label="mine", note="of people")
        store.explain({5: ("said by somebody", "gpt")})
        store.close()
    return path


def killed_at(n: int, job: Callable[[], None]) -> bool:
    """Do `job` in a fork that is killed at its n-th file event; whether it came to that. Raises RuntimeError where the
    fork failed otherwise."""
    if (child := os.fork()) == 0:
        _die_at(n)
        try:
            job()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"the fork failed by itself before event {n}")
    return False


def _die_at(n: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def snapshot(path: Path) -> dict[str, object]:
    """What a run holds, file by file, without what differs from one time to the next; databases by their rows."""
    return dict(sorted(_files(path)))


def _files(path: Path) -> Iterator[tuple[str, object]]:
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.suffix == ".sqlite":
            with sqlite3.connect(file) as database:
                rows = [line for line in database.iterdump() if "json" not in line]
            words = FeatureStore(file)
            yield name, (rows, words.annotations(), words.explanations())
        elif file.name == "metrics.jsonl":
            yield name, [line.partition('"tokens_per_second"')[0] for line in file.read_text().splitlines()]
        elif file.is_file() and file.name != "provenance.json":
            yield name, file.read_bytes()


def sweep(verb: str, every: int, most: int | None = None) -> int:
    """Kill `verb` at every so many-th of its events (`most` times at most), and go on each time; how many kills there
    were. Raises AssertionError where the end is not that of an undisturbed run, or something is left over."""
    with tempfile.TemporaryDirectory() as folder:
        before = prepare(verb, Path(folder) / "before")
        whole = Path(folder) / "whole" / "run"
        _copied(before, whole)
        VERBS[verb].start(whole)
        expected, kills, n = snapshot(whole), 0, 1
        while most is None or kills < most:
            # always at the same place, whose name is in some files
            path = Path(folder) / "whole" / "run"
            _copied(before, path)
            if not killed_at(n, lambda path=path: VERBS[verb].start(path)):
                break
            kills, n = kills + 1, n + every
            VERBS[verb].go_on(path)
            found = snapshot(path)
            differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
            assert not differing, f"{verb}, killed at event {n - every}: {', '.join(sorted(differing))} differ"
            left = [entry.name for entry in path.parent.iterdir() if entry != path]
            assert not left, f"{verb}, killed at event {n - every}: left over {left}"
    return kills


def _copied(before: Path, path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    if before.exists():
        shutil.copytree(before, path)


def main() -> None:
    """Sweep the verbs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*", metavar="VERB", choices=[*VERBS, []], help=f"some of: {', '.join(VERBS)}")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="kill at every N-th event [%(default)s]")
    parser.add_argument("--most", type=int, metavar="N", help="kill each verb so many times at most")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True  # these files are not the run's
    for verb in arguments.verbs or VERBS:
        print(f"{verb}: {sweep(verb, arguments.every, arguments.most)} kills, each went on to the same end", flush=True)


if __name__ == "__main__":
    main()
