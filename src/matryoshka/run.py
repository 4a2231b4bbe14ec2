"""A run's folder: its paths, its coders, and how it is made.

    config.yaml  provenance.json  metrics.jsonl  checkpoints/  coder/  best/  evaluation/  analysis/  features.sqlite
    figures/  comparison/  report/

A run with several coders (`variants`) holds config.yaml, provenance.json and checkpoints/, and one folder for each
coder, named by what is different in it, which is a run of its own to every command but `resume`. A folder with nothing
but a coder's two files, wherever it comes from, is one too.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from matryoshka.errors import MatryoshkaError
from matryoshka.files import locked, refuse_unwritable, replaced_folder, sweep

CODER = "config.json"
"""What every coder's folder holds."""


class _Inside:
    """A path of this name in the run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", owner: type["Run"]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """The folder of one coder or several, trained here or not."""

    path: Path

    config_file = _Inside("config.yaml")
    """The resolved, re-runnable configuration."""
    best = _Inside("best")
    """The coder with the lowest held-out FVU so far."""
    checkpoints = _Inside("checkpoints")
    """What `resume` goes on from."""
    metrics = _Inside("metrics.jsonl")
    """One JSON object a line: training's numbers."""
    evaluation = _Inside("evaluation")
    """Folder of the results of evaluations."""
    analysis = _Inside("analysis")
    """Folder of what analyses find of its features."""
    report = _Inside("report")
    """Folder of the report on all that was found, as `matryoshka analyze` writes it."""
    comparison = _Inside("comparison")
    """Folder of what its coders have in common, as `matryoshka compare` has found it."""
    provenance = _Inside("provenance.json")
    """Versions, model revision, tokens' hash, git commit, hardware."""
    features_file = _Inside("features.sqlite")
    """The store of its features."""
    recording = _Inside("recording")
    """The latents of its coders on a text, as `matryoshka features` has recorded them."""

    @property
    def coder(self) -> Path:
        """The coder: what `SparseCoder.load` reads."""
        return self.path if (self.path / CODER).is_file() else self.path / "coder"

    def member(self, label: str) -> "Run":
        """The run of one of several coders; of the only coder (label `coder`), this one."""
        return self if label == "coder" else Run(self.path / label)

    def members(self) -> list["Run"]:
        """The runs of its coders."""
        if (self.coder / CODER).is_file():
            return [self]
        return [Run(file.parent.parent) for file in sorted(self.path.glob(f"*/coder/{CODER}"))]

    def trained(self) -> list["Run"]:
        """The same. Raises MatryoshkaError if none is trained yet."""
        if not (members := self.members()):
            raise MatryoshkaError(f"{self.path}: no trained coder yet; go on with: matryoshka resume {self.path}")
        return members

    @classmethod
    def open(cls, path: "Run | str | Path") -> "Run":
        """The run at `path`, which may be one already. Raises MatryoshkaError if there is none."""
        run = path if isinstance(path, Run) else cls(Path(path))
        if not run.config_file.is_file() and not run.members():
            near = sorted(str(file.parent) for file in Path("runs").rglob("config.yaml"))
            hint = f"; there are: {', '.join(near[:5])}" if near else ""
            raise MatryoshkaError(f"{run.path}: no run here (a run has a config.yaml, or a coder's {CODER}){hint}")
        return run

    @classmethod
    def sole(cls, path: "Run | str | Path") -> "Run":
        """The run at `path`, trained and of one coder. Raises MatryoshkaError if it is not."""
        run = cls.open(path)
        if (members := run.trained()) != [run]:
            names = ", ".join(str(member.path) for member in members)
            raise MatryoshkaError(f"{run.path}: has several coders; give one of: {names}")
        return run

    @classmethod
    def refuse_existing(cls, path: Path, overwrite: bool) -> None:
        """Raise MatryoshkaError if a new run may not lie at `path`: something does, or (with `overwrite`) no run
        does."""
        run = cls(path)
        if os.path.isfile(path):  # which says no to a name that is too long; Path.is_file raises
            raise MatryoshkaError(f"{path}: is a file; a run is a folder, give another --out")
        refuse_unwritable(path)
        if not path.exists() or not any(path.iterdir()):
            return
        if not overwrite:
            begun = any(run.checkpoints.glob("step_*"))
            hint = f"; to go on with it: matryoshka resume {path}" if begun else ""
            raise MatryoshkaError(f"{path}: exists already; give another --name or --out, or --overwrite{hint}")
        if not run.config_file.is_file() and not run.provenance.is_file():
            raise MatryoshkaError(f"{path}: not a run, so --overwrite leaves it alone; give another --out")

    @classmethod
    def create(cls, path: Path, configs: Mapping[str, str], provenance: str, overwrite: bool) -> "Run":
        """A new folder, whole from the first moment; a run that lies there is refused, or with `overwrite` replaced.

        `configs`: the configuration as YAML of the run ("") and, by label, of its coders where there are several.
        """
        cls.refuse_existing(path, overwrite)
        with replaced_folder(path) as new:
            made = cls(new)
            made.checkpoints.mkdir()
            made.provenance.write_text(provenance, encoding="utf-8")
            for label, config in configs.items():
                (new / label).mkdir(exist_ok=True)
                cls(new / label).config_file.write_text(config, encoding="utf-8")
        return cls(path)

    @contextmanager
    def held(self, verb: str) -> Iterator[None]:
        """Keep other processes from doing the same to this run at once, and sweep what killed ones have left in it.

        Raises MatryoshkaError that names the process if one does. The lock ends with its process, however that ends.
        """
        file = self.path / f".lock-{verb}"
        with locked(file, f"{self.path}: `matryoshka {verb}` is at work on it already"):
            for folder in (
                self.path.resolve().parent,
                self.path,
                self.checkpoints,
                self.evaluation,
                self.analysis,
                self.recording,
                self.report,
            ):
                sweep(folder)
            yield


def opened(runs: "Run | str | Path | Sequence[Run | str | Path]") -> list[Run]:
    """The runs at these paths, or the one. Raises MatryoshkaError as `Run.open` does."""
    return [Run.open(run) for run in ([runs] if isinstance(runs, Run | str | Path) else runs)]


def once(runs: Iterable[Run]) -> list[Run]:
    """Each of these folders once, however often and by whatever path it is named."""
    return list({run.path.resolve(): run for run in runs}.values())


@contextmanager
def all_held(runs: Iterable[Run], verb: str) -> Iterator[None]:
    """Keep other processes from doing the same to any of these runs meanwhile."""
    with ExitStack() as stack:
        for path in dict.fromkeys(run.path.resolve() for run in runs):
            stack.enter_context(Run(path).held(verb))
        yield


def names(runs: Sequence[Run]) -> list[str]:
    """The last part of each run's path, as many more as tell them apart."""
    resolved, parts = [run.path.resolve() for run in runs], 1
    while len(set(shortened := ["/".join(path.parts[-parts:]) for path in resolved])) < len(set(resolved)):
        parts += 1
    return shortened
