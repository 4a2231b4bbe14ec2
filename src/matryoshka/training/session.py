"""One session of training: the parts are opened, the loop runs, the trained coders are saved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Wiring
from matryoshka.run import Run
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.cards import card
from matryoshka.training.log import Record
from matryoshka.training.loop import train
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import Config
from matryoshka.training.setup import calibrate, new_trainees, open_sinks, open_stream
from matryoshka.training.trainee import Trainee

Learned = tuple[SparseCoder, Wiring, RowFilter]
"""A coder as it stands, where it belongs, and which rows count for it."""


def train_members(
    run: Run,
    config: Config,
    lm: LanguageModel,
    tokens: Tokens,
    plans: Sequence[Plan],
    evaluate: Callable[[Sequence[Learned]], list[Record]],
    resumed: Path | None,
) -> None:
    """Train the coders of `plans` to the end, from the start or from the checkpoint `resumed`, and save each in its
    member of `run`. `evaluate`: held-out numbers of coders, their wirings and the rows that count for each."""
    keep_freed_memory()
    stream = open_stream(config, lm, tokens, plans)
    trainees = new_trainees(config, plans, lm.device)
    state: dict[str, Any] = {"step": 0, "best": {}}
    if resumed is not None:
        state = checkpoint.load(resumed, trainees)
        stream.load_state_dict(state["stream"])
    else:
        calibrate(trainees, stream)
    keep = stream.chunks.keep
    sinks = [open_sinks(run, config, plan, state["step"], len(plans)) for plan in plans]

    def watch(trainees: Sequence[Trainee]) -> list[Record]:
        return evaluate(
            [(trainee.folded(), trainee.plan.wiring, keep.only(trainee.plan.wiring.sites)) for trainee in trainees]
        )

    def save(trainee: Trainee, steps: int, folder: Path) -> None:
        coder = trainee.folded()
        coder.card = card(trainee, config, lm, tokens, keep, stream.counts, steps)
        coder.save(folder)

    def keep_best(trainee: Trainee, steps: int) -> None:
        save(trainee, steps, run.member(trainee.plan.label).best)

    try:
        train(config, trainees, stream, run.checkpoints, sinks, watch, keep_best, state)
    finally:
        stream.close()
        for sink in (sink for of_coder in sinks for sink in of_coder):
            sink.close()
    for trainee in trainees:
        save(trainee, config.steps, run.member(trainee.plan.label).coder)
