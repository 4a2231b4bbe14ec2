"""The card of a coder that is trained here: what it is of, and what it was trained on."""

from typing import Any

from matryoshka.coder.card import Card, ModelCard, RowCard, SourceCard, TrainingCard
from matryoshka.data.rowfilter import SAMPLE, RowCounts, RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel
from matryoshka.training.recipe import Config
from matryoshka.training.trainee import Trainee
from matryoshka.version import __version__


def card(
    trainee: Trainee, config: Config, lm: LanguageModel, tokens: Tokens, keep: RowFilter, counts: RowCounts, steps: int
) -> Card:
    """The card of `trainee` after `steps` steps. `keep`: which rows it was trained on; `counts`: of those that were
    read for it."""
    wiring = trainee.plan.wiring
    precision: Any = str(lm.dtype).removeprefix("torch.")
    largest = {str(site): norm for site, norm in keep.only(wiring.sites).largest.items()}
    sources = [
        SourceCard(reads=tuple(map(str, source.reads)), writes=tuple(map(str, source.writes)))
        for source in wiring.sources
    ]
    return Card(
        model=ModelCard(name=config.model.name, revision=lm.info.revision, dtype=precision),
        sources=tuple(sources),
        context=config.text.context,
        prepend_bos=lm.bos is not None,
        rows=RowCard(largest_norms=largest, sample=min(SAMPLE, len(tokens.windows("train"))) * config.text.context),
        trained=TrainingCard(
            tokens=steps * config.training.batch,
            left_out=counts.left_out,
            not_finite=counts.not_finite,
            text=config.text.model_dump(mode="json"),
            text_hash=tokens.text_hash,
            dead_after_tokens=trainee.dead.after_tokens,
            dead=tuple(trainee.dead.now.nonzero().flatten().tolist()),
        ),
        origin=f"matryoshka {__version__}",
    )
