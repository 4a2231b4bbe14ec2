"""Coders that are measured together: what they share of the language model's passes, and that nothing depends on it."""

from collections.abc import Sequence

import pytest
import torch
from coders import hooked_at, raw_coder

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.intervention import evaluate as intervention
from matryoshka.evaluation.reconstruction import evaluate as reconstruction
from matryoshka.evaluation.subject import Bench
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.scores.result import Result
from matryoshka.study.hooked import HookedCoder

MLP, EARLIER = (Site("mlp_in", 2), Site("mlp_out", 2)), (Site("resid_post", 0), Site("resid_post", 0))
WINDOWS, BATCHES = 8, 2
"""Of 64 tokens, and how many batches of LOGIT_BATCH they are; the mean activations take one batch more."""
PREFIXES = 2


def coder_at(lm: LanguageModel, tokens: Tokens, sites: tuple[Site, Site], k: int) -> HookedCoder:
    """A random coder of the model's activations."""
    config = CoderConfig(reads=(192,), writes=(192,), d_sae=16, widths=(8, 16), activation={"kind": "topk", "k": k})
    text = torch.from_numpy(tokens.windows("train")[:4])
    x, y = (lm.read(text, [site])[site][:, 1:].flatten(0, 1) for site in sites)
    coder = SparseCoder(config).initialise(k, tied=sites[0] == sites[1])
    return hooked_at(raw_coder(coder, x, y), lm, tokens.windows("held_out"), *sites)


def bench(lm: LanguageModel, tokens: Tokens, coders: Sequence[HookedCoder]) -> Bench:
    return Bench(lm, tokens.windows("held_out"), coders, 64 * WINDOWS)


@pytest.fixture
def passes(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward pass of the language model: how many windows it is of."""
    counted: list[int] = []
    forward = lm._forward
    monkeypatch.setattr(lm, "_forward", lambda ids: counted.append(len(ids)) or forward(ids))
    return counted


def test_the_passes_that_reconstruction_takes(lm: LanguageModel, tokens: Tokens, passes: list[int]) -> None:
    def taken(*coders: HookedCoder) -> int:
        passes.clear()
        for subject in bench(lm, tokens, coders).subjects():
            reconstruction(subject)
        return len(passes)

    same = [coder_at(lm, tokens, MLP, k) for k in (3, 4, 5)]
    other = coder_at(lm, tokens, EARLIER, 4)
    for_mean, read, clean, ablated, own = 1, BATCHES, BATCHES, 2 * BATCHES, (PREFIXES + 1) * BATCHES
    assert taken(same[0]) == for_mean + read + clean + ablated + own
    assert taken(*same) == for_mean + read + clean + ablated + 3 * own, "one written site: all is shared but one's own"
    assert taken(*same[:2], other) == for_mean + read + clean + 2 * ablated + 3 * own, "ablations are of a site"


@pytest.mark.parametrize("evaluate", [reconstruction, intervention], ids=["reconstruction", "intervention"])
def test_together_coders_get_what_each_gets_alone_bit_for_bit(
    lm: LanguageModel, tokens: Tokens, evaluate: type
) -> None:
    coders = [coder_at(lm, tokens, sites, k) for sites, k in ((MLP, 3), (EARLIER, 4), (MLP, 5))]
    together = [evaluate(subject) for subject in bench(lm, tokens, coders).subjects()]
    alone = [evaluate(bench(lm, tokens, [hooked]).subjects()[0]) for hooked in coders]
    assert all(map(_same, together, alone))
    assert not _same(together[0], together[2])


def _same(one: Result, other: Result) -> bool:
    if one.details != other.details or len(one.scores) != len(other.scores):
        return False
    return all(
        a.measure == b.measure
        and a.units == b.units
        and (a.numerator == b.numerator).all()
        and (a.denominator == b.denominator).all()
        and a.null == b.null
        for a, b in zip(one.scores, other.scores, strict=True)
    )


def test_what_nobody_knows_to_be_dead_is_no_score(lm: LanguageModel, tokens: Tokens) -> None:
    hooked = coder_at(lm, tokens, MLP, 3)
    [unknown] = [reconstruction(subject) for subject in bench(lm, tokens, [hooked]).subjects()]
    assert "dead" not in {score.measure.name for score in unknown.scores}
    [known] = [reconstruction(subject) for subject in bench(lm, tokens, [hooked._replace(dead=(2, 9))]).subjects()]
    assert known.values("dead") == [1 / 8, 2 / 16]


def test_what_is_made_once_is_made_once(lm: LanguageModel, tokens: Tokens) -> None:
    shared, made = bench(lm, tokens, [coder_at(lm, tokens, MLP, 3)]), []
    assert [shared.once("key", lambda: made.append(1) or len(made)) for _ in range(3)] == [1, 1, 1]
    assert shared.once("another", lambda: 7) == 7
