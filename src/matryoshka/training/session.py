"""One session of training: the parts are opened, the loop runs, the trained coders are saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.stream import ActivationStream
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
from matryoshka.training.setup import calibrate, new_trainees, open_lm, open_sinks, open_stream, open_tokens
from matryoshka.training.trainee import Trainee

Learned = tuple[SparseCoder, Wiring, RowFilter]
"""A coder as it stands, where it belongs, and which rows count for it."""


@dataclass(frozen=True)
class Session:
    """The opened parts of a run: whatever can be refused is refused before there is one."""

    config: Config
    lm: LanguageModel
    tokens: Tokens
    stream: ActivationStream
    trainees: Sequence[Trainee]
    state: dict[str, Any]
    """Step and best held-out FVU, from a checkpoint or the start's."""

    @classmethod
    def open(cls, config: Config, plans: Sequence[Plan], resumed: Path | None = None) -> "Session":
        """Model, text, activations and coders as they are at the start, or at the checkpoint `resumed`.

        Raises MatryoshkaError for what training cannot start from.
        """
        keep_freed_memory()
        lm = open_lm(config.model)
        tokens = open_tokens(config.text, lm.vocabulary)
        tokens.windows("held_out")  # refused now if there are none
        stream = open_stream(config, lm, tokens, plans)
        trainees = new_trainees(config, plans, lm.device)
        state: dict[str, Any] = {"step": 0, "best": {}}
        if resumed is not None:
            state = checkpoint.load(resumed, trainees, config.steps)
            stream.load_state_dict(state["stream"])
        else:
            calibrate(trainees, stream)
        return cls(config, lm, tokens, stream, trainees, state)

    def train(self, run: Run, evaluate: Callable[[Sequence[Learned]], list[Record]]) -> None:
        """Train to the end, and save each coder in its member of `run`. `evaluate`: held-out numbers of coders, their
        wirings and the rows that count for each."""
        config, stream, keep = self.config, self.stream, self.stream.chunks.keep
        plans = [trainee.plan for trainee in self.trainees]
        sinks = [open_sinks(run, config, plan, self.state["step"], len(plans)) for plan in plans]

        def watch(trainees: Sequence[Trainee]) -> list[Record]:
            return evaluate([(t.folded(), t.plan.wiring, keep.only(t.plan.wiring.sites)) for t in trainees])

        def save(trainee: Trainee, steps: int, folder: Path) -> None:
            coder = trainee.folded()
            coder.card = card(trainee, config, self.lm, self.tokens, keep, stream.counts, steps)
            coder.save(folder)

        def keep_best(trainee: Trainee, steps: int) -> None:
            save(trainee, steps, run.member(trainee.plan.label).best)

        try:
            train(config, self.trainees, stream, run.checkpoints, sinks, watch, keep_best, self.state)
        finally:
            stream.close()
            for sink in (sink for of_coder in sinks for sink in of_coder):
                sink.close()
        for trainee in self.trainees:
            save(trainee, config.steps, run.member(trainee.plan.label).coder)
