"""The loop: one stream of activation batches, a list of coders.

Each step takes the next batch and lets every coder learn from it; every so often it logs, measures the held-out FVU and
writes a checkpoint. What differs between coders (sites, widths, k, seeds) is in their plans; a single coder is a
list of one. Ctrl-C and SIGTERM save and stop after the current step; a NaN or Inf stops with the facts.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from matryoshka.data.stream import ActivationStream
from matryoshka.errors import Interrupted, MatryoshkaError
from matryoshka.training import checkpoint
from matryoshka.training.log import ProgressBar, Record, Sink
from matryoshka.training.optim import learning_rate
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee

Evaluate = Callable[[Sequence[Trainee]], list[Record]]
"""Held-out numbers of each coder; `fvu` (one for each prefix) among them."""


def train(
    config: Config,
    trainees: Sequence[Trainee],
    stream: ActivationStream,
    checkpoints: Path,
    sinks: Sequence[Sequence[Sink]],
    evaluate: Evaluate,
    keep_best: Callable[[Trainee, int], None],
    state: dict[str, Any],
) -> None:
    """Train from `state` (`{"step": 0, "best": {}}`, or a checkpoint's) to the last step, and save there.

    `sinks` are each trainee's; `keep_best` is called with a trainee whose held-out FVU has improved, and the steps
    done. Raises Interrupted after a signal, MatryoshkaError when a loss is not finite.
    """
    training, steps, start = config.training, config.steps, state["step"]
    best: dict[str, float] = state["best"]

    def due(done: int, every: int) -> bool:
        return done % every == 0 or done == steps

    with ExitStack() as stack:
        received = stack.enter_context(_signals())
        bar = stack.enter_context(ProgressBar(steps, start))
        pace = _Pace(start)
        for step in range(start, steps):
            batch, done = next(stream), step + 1
            for trainee in trainees:
                trainee.step(batch, step, measure=due(done, config.log.every))

            if due(done, config.log.every):
                _check_finite(trainees, stream, checkpoints)
                length = done - step // config.log.every * config.log.every
                rate = config.training.batch * pace.steps_a_second(done)
                records = [_record(config, trainee, step, length, rate) for trainee in trainees]
                _write(sinks, records)
                bar.show(done, records)
            if due(done, training.evaluate_every):
                _check_finite(trainees, stream, checkpoints)
                with pace.paused():
                    held_out = evaluate(trainees)
                    _write(sinks, [{"step": done, "held_out": True, **record} for record in held_out])
                    for trainee in _improved(trainees, held_out, best):
                        keep_best(trainee, done)
            if due(done, training.checkpoint_every) or received:
                _check_finite(trainees, stream, checkpoints)
                with pace.paused():
                    checkpoint.save(checkpoints, done, trainees, {"best": best, "stream": stream.state_dict()})
            if received and done < steps:
                go_on = f"to go on: matryoshka resume {checkpoints.parent}"
                raise Interrupted(f"stopped at step {done} of {steps}, saved; {go_on}", received[0])
            bar.advance(done)


class _Pace:
    """Steps a second since they were asked for last, in this process, without what else was done meanwhile."""

    def __init__(self, start: int) -> None:
        self._since, self._clock = start, time.monotonic()

    def steps_a_second(self, done: int) -> float:
        now = time.monotonic()
        rate = (done - self._since) / (now - self._clock)
        self._since, self._clock = done, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._clock += time.monotonic() - began


def _improved(trainees: Sequence[Trainee], held_out: Sequence[Record], best: dict[str, float]) -> list[Trainee]:
    """Those whose held-out FVU is the lowest so far; `best` is brought up to date."""
    improved = []
    for trainee, record in zip(trainees, held_out, strict=True):
        if record["fvu"][-1] < best.get(trainee.plan.label, float("inf")):
            best[trainee.plan.label] = record["fvu"][-1]
            improved.append(trainee)
    return improved


def _record(config: Config, trainee: Trainee, step: int, length: int, rate: float) -> Record:
    """What metrics.jsonl says of the `length` steps that end with `step` (0-based)."""
    tokens = config.training.batch
    return {
        "step": step + 1,
        "tokens": (step + 1) * tokens,
        "lr": learning_rate(step, config.steps, config.training),
        **trainee.report(length),
        "tokens_per_second": rate,
    }


def _write(sinks: Sequence[Sequence[Sink]], records: Sequence[Record]) -> None:
    for of_coder, record in zip(sinks, records, strict=True):
        for sink in of_coder:
            sink.write(record)


def _check_finite(trainees: Sequence[Trainee], stream: ActivationStream, checkpoints: Path) -> None:
    """Stop with the facts if any step's loss or gradient was NaN or Inf. The last good checkpoint is never touched."""
    for trainee in trainees:
        if (bad := trainee.bad_step.item()) >= 0:
            try:
                good = f"the last good checkpoint is {checkpoint.latest(checkpoints)}"
            except MatryoshkaError:
                good = "there is no checkpoint before it"
            place = stream.state_dict()
            raise MatryoshkaError(
                f"{trainee.plan.label}: the loss or its gradient is not finite at step {int(bad) + 1}"
                f" (epoch {place['epoch']}, chunk {place['index']}, before batch {place['next_batch']}); {good};"
                " try a smaller training.lr, or model.dtype float32"
            )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying from them; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
