"""The loop: one stream of activation batches, a list of coders.

Each step takes the next batch and lets every coder learn from it; every so often it logs, measures the held-out FVU and
writes a checkpoint. What differs between coders (sites, widths, k, seeds) is in their plans; a single coder is a
list of one. Ctrl-C and SIGTERM save and stop after the current step; a NaN or Inf stops with the facts.

In a world of several processes each has coders of its own and takes these steps with the same batches; they meet where
something is logged, measured or saved. The first one writes and prints what is of all.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from types import FrameType

from matryoshka.errors import Interrupted, MatryoshkaError
from matryoshka.run import Run
from matryoshka.training import checkpoint
from matryoshka.training.log import ProgressBar, Record, Sink, open_sinks
from matryoshka.training.optim import Schedule
from matryoshka.training.recipe import Config
from matryoshka.training.session import Learned, Session
from matryoshka.training.trainee import Trainee

logger = logging.getLogger("matryoshka")
MEETING = 8
"""Steps between two moments at which several processes ask each other whether a signal has come."""
Evaluate = Callable[[Sequence[Learned]], list[Record]]
"""Held-out numbers of each coder; `fvu` (one for each prefix) among them."""


def train(session: Session, run: Run, evaluate: Evaluate) -> None:
    """Train from the session's state to the last step, and save each coder in its member of `run`.

    Raises Interrupted after a signal, MatryoshkaError when a loss is not finite.
    """
    config, trainees, stream, best = session.config, session.trainees, session.stream, session.state["best"]
    steps, start, world = config.steps, session.state["step"], session.world
    intervals = (config.log.every, config.training.evaluate_every, config.training.checkpoint_every)
    with ExitStack() as stack:
        coders = len(session.plans)
        sinks = [open_sinks(run, config, plan, start, coders) if world.first else [] for plan in session.plans]
        for part in (*chain.from_iterable(sinks), stream):
            stack.enter_context(closing(part))
        received = stack.enter_context(_signals())
        bar = stack.enter_context(ProgressBar(steps, start, quiet=not world.first))
        for line in _first_lines(session):
            bar.say(line)
        pace = _Pace(start)
        held_out: list[Record] = []
        for step in range(start, steps):
            batch, done = next(stream), step + 1
            log, watch, save = (done % every == 0 or done == steps for every in intervals)
            for trainee in trainees:
                trainee.step(batch, step, measure=log)
            for trainee in trainees:
                trainee.join()
            if log or watch:
                _check_finite(session, run)
            if log:
                rate = config.training.batch * pace.steps_a_second(done)
                records = session.of_all([_record(config, trainee, step, rate) for trainee in trainees])
                _write(sinks, records)
                bar.show(done, records)
            if watch:
                with pace.paused():
                    held_out = session.of_all(evaluate([session.learned(trainee) for trainee in trainees]))
                    _write(sinks, [{"step": done, "held_out": True, **record} for record in held_out])
                    _keep_best(session, run, done, held_out)
            stop = bool(received) if world.size == 1 else done % MEETING == 0 and world.any(bool(received))
            if save or stop:
                _check_finite(session, run)
                with pace.paused():
                    state = {"best": best, "stream": stream.state_dict()}
                    checkpoint.save(run.checkpoints, done, trainees, state, world)
            if stop and done < steps:
                go_on = f"to go on: matryoshka resume {run.path}"
                number = received[0] if received else signal.SIGTERM
                raise Interrupted(f"stopped at step {done} of {steps}, saved; {go_on}", number)
            bar.reach(done)
    for trainee in trainees:
        session.save(trainee, steps, run.member(trainee.plan.label).coder)
    world.barrier()
    if world.first:
        _warn_of_failures(session, held_out)


def _first_lines(session: Session) -> Iterator[str]:
    """What was chosen, and what cannot be had."""
    config, world = session.config, session.world
    chosen = session.of_all([(t.schedule.peak, t.coder.precision, t.unfit) for t in session.trainees])
    peaks, precisions, reasons = zip(*chosen, strict=True)
    rates, selects = " and ".join(dict.fromkeys(f"{peak:g}" for peak in peaks)), " and ".join(dict.fromkeys(precisions))
    windows = "" if config.synthetic else f", {config.activations.lm_batch} windows a forward pass"
    yield (
        f"training: {config.steps:,} steps of {config.training.batch:,} tokens, peak learning rate {rates},"
        f" latents proposed in {selects}{windows}"
    )
    if world.size > 1:
        yield f"{len(session.plans)} coders in {world.size} processes, which read the text together"
    for reason in dict.fromkeys(filter(None, reasons)):
        yield f"steps are launched kernel by kernel, not as one graph: {reason}"


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


def _keep_best(session: Session, run: Run, done: int, held_out: Sequence[Record]) -> None:
    """Save those whose held-out FVU is the lowest so far."""
    best = session.state["best"]
    own = {trainee.plan.label: trainee for trainee in session.trainees}
    for plan, record in zip(session.plans, held_out, strict=True):
        label, fvu = plan.label, record["fvu"][-1]
        if fvu < best.get(label, math.inf):
            best[label] = fvu
            if label in own:
                session.save(own[label], done, run.member(label).best)


def _warn_of_failures(session: Session, held_out: Sequence[Record]) -> None:
    """Say of each coder that ends worse than the mean alone would be, and what to change. A session without steps has
    measured none."""
    for plan, record in zip(session.plans, held_out, strict=False):
        if not record["fvu"][-1] <= 1:
            peak = Schedule.of(session.config.training, session.config.steps, plan.coder.d_in).peak
            logger.warning(
                f"{plan.label}: held-out FVU {record['fvu'][-1]:.2f}: the mean alone would do better (1.00)."
                f" Train on more tokens (--tokens), or with another learning rate than {peak:g} (--lr; auto is one that"
                " mostly works)"
            )


def _record(config: Config, trainee: Trainee, step: int, rate: float) -> Record:
    """What metrics.jsonl says of the log interval that ends with `step` (0-based)."""
    tokens, every = config.training.batch, config.log.every
    return {
        "step": step + 1,
        "tokens": (step + 1) * tokens,
        "lr": trainee.schedule.rate(step),
        **trainee.report(step % every + 1),
        "tokens_per_second": rate,
    }


def _write(sinks: Sequence[Sequence[Sink]], records: Sequence[Record]) -> None:
    for of_coder, record in zip(sinks, records, strict=True):
        for sink in of_coder:
            sink.write(record)


def _check_finite(session: Session, run: Run) -> None:
    """Stop with the facts if any step's loss or gradient was NaN or Inf. The last good checkpoint is never touched."""
    for trainee in session.trainees:
        if (bad := trainee.bad_step.item()) >= 0:
            try:
                good = f"the last good checkpoint is {checkpoint.latest(run.checkpoints)}"
            except MatryoshkaError:
                good = "there is no checkpoint before it"
            stream = session.stream
            raise MatryoshkaError(
                f"{trainee.plan.label}: the loss or its gradient is not finite at step {int(bad) + 1}"
                f" (epoch {stream.epoch}, chunk {stream.index}, before batch {stream.next_batch}); {good};"
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
