"""One pass for all coders, against reading the same windows by hand."""

import numpy as np
import pytest
import torch
from coders import plain, random_coder

from matryoshka.data.tokens import Tokens, Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.reader import (
    GPU_READ_TOKENS,
    READ_BATCH,
    batches,
    predicting,
    read,
    read_batch,
    sequences,
    spread_windows,
)


@pytest.fixture(scope="module")
def windows(tokens: Tokens) -> Windows:
    return tokens.windows("held_out")


def test_coders_of_different_sites_and_filters_share_one_pass_and_each_sees_its_own_rows(
    lm: LanguageModel, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    coders = [
        random_coder(lm, windows, "0.resid_post", "0.resid_post"),
        random_coder(lm, windows, "2.mlp_in", "2.mlp_out"),
        random_coder(lm, windows, "2.mlp_in", "2.mlp_out", seed=1, largest=14.0),
    ]
    numbers = spread_windows(windows, 40 * windows.context)
    by_hand = [[plain(lm, hooked, torch.from_numpy(windows[part])) for hooked in coders] for part in (numbers[:16],)]
    passes: list[int] = []
    forward = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda self, tokens: passes.append(1) or forward(self, tokens))
    seen = []
    for rows in read(lm, batches(windows, numbers, READ_BATCH), coders, [Site("resid_post", 3)]):
        seen.append(rows.text.numbers)
        assert rows.activations.keys() == {
            *(Site.parse(name) for name in ("0.resid_post", "2.mlp_in", "2.mlp_out", "3.resid_post"))
        }
        assert np.array_equal(rows.text.documents, windows.documents(rows.text.numbers))
        if len(seen) == 1:
            for hooked, (kept, x, latents) in zip(coders, by_hand[0], strict=True):
                assert torch.equal(rows.kept(hooked), kept)
                assert torch.equal(rows.x(hooked), x)
                assert torch.equal(rows.latents(hooked).dense(), latents)
                assert rows.y(hooked).shape == x.shape
            assert len({int(rows.kept(hooked).sum()) for hooked in coders[1:]}) == 2, "each has its own filter"
    assert np.array_equal(np.concatenate(seen), numbers)
    assert len(passes) == -(-len(numbers) // READ_BATCH)


@pytest.mark.parametrize("context", [2, 128, 511, 512, 8192])
def test_on_a_gpu_a_pass_is_of_tokens_enough_and_on_a_cpu_of_few_windows(context: int) -> None:
    assert read_batch(torch.device("cpu"), context) == READ_BATCH
    on_gpu = read_batch(torch.device("cuda:0"), context)
    assert on_gpu == READ_BATCH if context > 512 else on_gpu * context <= GPU_READ_TOKENS < (on_gpu + 1) * context


def test_several_sites_stand_side_by_side(lm: LanguageModel, windows: Windows) -> None:
    one = random_coder(lm, windows, "0.resid_post", "1.resid_post")
    sites = [Site("resid_post", 0), Site("mlp_out", 1)]
    both = one._replace(wiring=Wiring.of(sites, sites))
    [rows] = read(lm, batches(windows, np.arange(2), READ_BATCH), [both], [Site("resid_post", 1)])
    kept = rows.kept(both)
    expected = torch.cat([rows.activations[site][kept] for site in sites], dim=1)
    assert torch.equal(rows.x(both), expected)
    assert torch.equal(rows.y(both), expected)


def test_only_what_is_asked_for_counts(lm: LanguageModel, windows: Windows) -> None:
    hooked = random_coder(lm, windows, "1.mlp_in", "1.mlp_out")
    [text] = batches(windows, np.arange(3), READ_BATCH)
    asked = np.zeros_like(text.tokens, dtype=bool)
    asked[1, 5:9] = True
    [rows] = read(lm, [text._replace(asked=asked)], [hooked])
    assert rows.kept(hooked).nonzero().tolist() == [[1, place] for place in range(5, 9)]
    assert not predicting(torch.ones(1, 4, dtype=torch.bool))[0, -1]


def test_sequences_of_ones_own_are_documents_each() -> None:
    texts = list(sequences(np.arange(15).reshape(5, 3), 2))
    assert [len(text.tokens) for text in texts] == [2, 2, 1]
    assert np.concatenate([text.numbers for text in texts]).tolist() == [0, 1, 2, 3, 4]
    assert texts[1].documents.tolist() == [[2, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (8, True)])
def test_rows_that_are_not_finite_are_counted_apart_and_refused_past_one_per_cent(
    lm: LanguageModel, windows: Windows, bad: int, refused: bool
) -> None:
    hooked = random_coder(lm, windows, "1.mlp_in", "1.mlp_out")
    site = hooked.wiring.reads[0]

    def break_some(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, 10 : 10 + bad] = float("nan")
        return x

    seen = []

    def go() -> None:
        with lm.replace(site, break_some):
            seen.extend(read(lm, batches(windows, np.arange(8), READ_BATCH), [hooked]))

    if refused:
        with pytest.raises(MatryoshkaError, match=r"8 of 512 rows at 1\.mlp_in, 1\.mlp_out are NaN or Inf"):
            go()
    else:
        go()
    [rows] = seen
    assert rows.not_finite(hooked).nonzero().tolist() == [[0, 10 + i] for i in range(bad)]
    assert not (rows.kept(hooked) & rows.not_finite(hooked)).any()
    assert rows.x(hooked).isfinite().all()
