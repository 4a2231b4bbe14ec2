"""One session of training: the parts are opened, the loop runs, the trained coders are saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.config import Config
from matryoshka.training.plan import Plan
from matryoshka.training.setup import calibrate, new_trainees, open_sinks, open_stream
from matryoshka.training.train import Evaluate, train
from matryoshka.training.trainee import Trainee


def train_members(
    run: Run,
    config: Config,
    lm: LanguageModel,
    tokens: Tokens,
    plans: Sequence[Plan],
    evaluate: Evaluate,
    resumed: Path | None,
) -> None:
    """Train the coders of `plans` to the end, from the start or from the checkpoint `resumed`, and save each in its
    member of `run`. `evaluate` is what the loop watches on held-out text."""
    keep_freed_memory()
    stream = open_stream(config, lm, tokens, plans)
    trainees = new_trainees(config, plans, lm.device, lm.info)
    state: dict[str, Any] = {"step": 0, "best": {}}
    if resumed is not None:
        state = checkpoint.load(resumed, trainees)
        stream.load_state_dict(state["stream"])
    else:
        calibrate(trainees, stream)
    sinks = [open_sinks(run, config, plan, state["step"], len(plans)) for plan in plans]

    def keep_best(trainee: Trainee) -> None:
        trainee.coder.save(run.member(trainee.plan.label).best)

    try:
        train(config, trainees, stream, run.checkpoints, sinks, evaluate, keep_best, state)
    finally:
        stream.close()
        for sink in (sink for of_coder in sinks for sink in of_coder):
            sink.close()
    for trainee in trainees:
        trainee.coder.metadata["tokens"] = config.steps * config.training.batch
        trainee.coder.metadata["tokens_left_out"] = stream.tokens_left_out
        trainee.coder.save(run.member(trainee.plan.label).coder)
