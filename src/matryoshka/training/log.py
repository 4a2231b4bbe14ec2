"""Where a run's numbers go: metrics.jsonl always, W&B and TensorBoard when asked, a progress bar for the person."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich import progress
from rich.console import Console, RenderableType
from rich.text import Text

from matryoshka.errors import MatryoshkaError, first_line
from matryoshka.files import parse_json, write_bytes
from matryoshka.run import Run
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import Config

Record = dict[str, Any]
logger = logging.getLogger("matryoshka")


class Sink(Protocol):
    """Takes one coder's records, and is closed once."""

    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object a line, flushed at once.

    `start` is the step training starts from: what lies beyond it in the file (written after the checkpoint that
    training resumes from, or half a line) is cut off, so that a resumed file equals an uninterrupted one.
    """

    def __init__(self, file: Path, start: int) -> None:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() and start else []
        write_bytes(file, b"".join(line for i, line in enumerate(lines, 1) if _until(start, line, f"{file}:{i}")))
        self._file = file.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _until(start: int, line: bytes, where: str) -> bool:
    """Whether a line of metrics.jsonl is of a step up to `start`. A damaged one is left behind, with a warning."""
    if not line.endswith(b"\n"):
        return False
    try:
        return parse_json(line, where)["step"] <= start
    except (MatryoshkaError, KeyError, TypeError) as error:
        logger.warning("%s: a damaged line is left behind (%s)", where, first_line(error))
        return False


class Wandb:
    """Weights & Biases. Its failures never stop a run: the first one is reported in one line, then it is left alone."""

    INIT_TIMEOUT = 60  # seconds; without it an unreachable server hangs the run

    def __init__(
        self, project: str, name: str, group: str | None, config: dict[str, Any], folder: Path, identity: str
    ) -> None:
        """`identity`: the same for a run that is resumed, so that W&B goes on with it too."""
        try:
            import wandb
        except ImportError:
            raise MatryoshkaError("log.wandb needs W&B: pip install 'matryoshka-sae[wandb]'") from None
        settings = wandb.Settings(init_timeout=self.INIT_TIMEOUT, console="off", silent=True)
        options: dict[str, Any] = {
            "project": project, "name": name, "group": group, "config": config, "dir": str(folder),
            "settings": settings, "reinit": "create_new", "id": identity, "resume": "allow",
        }  # fmt: skip
        self._run = None
        with _failing("W&B cannot start (%s); logging to it offline instead"):
            self._run = wandb.init(**options)
        if self._run is None:
            with _failing("W&B fails offline too (%s); metrics.jsonl goes on"):
                self._run = wandb.init(**options, mode="offline")

    def write(self, record: Record) -> None:
        run, self._run = self._run, None
        if run is not None:
            with _failing("W&B failed (%s); the run goes on without it"):
                run.log(_flat(record), step=record["step"])
                self._run = run

    def close(self) -> None:
        if self._run is not None:
            with _failing("W&B failed at the end (%s)"):
                self._run.finish()


@contextmanager
def _failing(message: str) -> Iterator[None]:
    """Whatever W&B raises becomes a warning, and training goes on."""
    try:
        yield
    except Exception as error:
        logger.warning(message, first_line(error))


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MatryoshkaError("log.tensorboard needs it: pip install 'matryoshka-sae[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        for name, value in _flat(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


def _flat(record: Record) -> dict[str, float]:
    """Lists become name/0, name/1 …"""
    flat: dict[str, float] = {}
    for name, value in record.items():
        flat |= {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
    return flat


def open_sinks(run: Run, config: Config, plan: Plan, start: int, coders: int) -> list[Sink]:
    """Where one of `coders` coders logs to, from step `start` on."""
    member = run.member(plan.label)
    sinks: list[Sink] = [JsonLines(member.metrics, start)]
    if config.log.wandb:
        name = run.path.name if coders == 1 else f"{run.path.name}/{plan.label}"
        group = run.path.name if coders > 1 else None
        settings = {**config.model_dump(mode="json"), "coder": plan.section.model_dump(mode="json")}
        identity = hashlib.sha256(run.provenance.read_bytes() + plan.label.encode()).hexdigest()[:16]
        sinks.append(Wandb(config.log.wandb, name, group, settings, member.path, identity))
    if config.log.tensorboard:
        sinks.append(TensorBoard(member.path / "tensorboard"))
    return sinks


class ProgressBar(progress.Progress):
    """Loss, L0, FVU of the first and the full prefix, dead share, tokens/s and time left; where there is no terminal, a
    line now and then."""

    LINES = 10  # in a log file: so many lines a run
    numbers = ""

    def __init__(self, steps: int, start: int, console: Console | None = None, quiet: bool = False) -> None:
        """`quiet`: another process shows it."""
        self.steps, self._printed = steps, start
        console = console or Console(stderr=True, quiet=quiet)
        clock = (progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())
        counts = (progress.TextColumn("training"), progress.BarColumn(), progress.MofNCompleteColumn())
        super().__init__(*counts, *clock, console=console, disable=not console.is_terminal)
        self._task = self.add_task("training", total=steps, completed=start)

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, and below it the numbers: on one line they would not fit a narrow terminal."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def reach(self, step: int) -> None:
        """`step` steps are done."""
        self.update(self._task, completed=step)

    def show(self, step: int, records: Sequence[Record]) -> None:
        """New numbers: of the only coder, or the means over several."""
        mean = {name: sum(r[name] for r in records) / len(records) for name in ("loss", "l0", "dead")}
        first, full = (sum(r["fvu"][i] for r in records) / len(records) for i in (0, -1))
        self.numbers = (
            f"loss {mean['loss']:.4g}  L0 {mean['l0']:.1f}  FVU {first:.3f} → {full:.3f}"
            f"  dead {mean['dead']:.1%}  {records[0]['tokens_per_second']:,.0f} tokens/s"
        )
        if not self.console.is_terminal and ((step - self._printed) * self.LINES >= self.steps or step == self.steps):
            self._printed = step
            self.say(f"step {step}/{self.steps}  {self.numbers}")
