"""Coders from their folders into a language model, with the rows that count for them."""

from pathlib import Path

import pytest
import torch

from matryoshka.coder.architecture import CoderConfig, TopKConfig
from matryoshka.coder.card import Card, ModelCard, RowCard, SourceCard
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.study.hooked import hook_all

NORMS = {"1.mlp_in": 12.5, "1.mlp_out": 40.0}


@pytest.fixture(scope="module")
def windows(tokens: Tokens) -> Windows:
    return tokens.windows("held_out")


def saved(
    folder: Path,
    reads: tuple[str, ...] = ("1.mlp_in",),
    writes: tuple[str, ...] = ("1.mlp_out",),
    sizes: tuple[int, ...] = (192,),
    norms: dict[str, float] | None = None,
) -> Path:
    """A coder that reads and writes vectors of these sizes, with a card that names these sites."""
    config = CoderConfig(reads=sizes, writes=sizes, d_sae=32, widths=(8, 32), activation=TopKConfig(k=4))
    card = Card(
        model=ModelCard(name="bundled", dtype="float32"),
        sources=(SourceCard(reads=reads, writes=writes),),
        context=64,
        prepend_bos=True,
        rows=None if norms is None else RowCard(largest_norms=norms, sample=1024),
        origin="by hand",
    )
    coder = SparseCoder(config, card).initialise(0, tied=False)
    coder.save(folder)
    return folder


def test_the_cards_norms_are_taken_and_where_it_has_none_they_are_measured(
    lm: LanguageModel, windows: Windows, tmp_path: Path
) -> None:
    known, unknown = saved(tmp_path / "known", norms=NORMS), saved(tmp_path / "unknown")
    stated, measured = hook_all([known, unknown], lm, windows)
    wiring = Wiring.of([Site("mlp_in", 1)], [Site("mlp_out", 1)])
    assert stated.wiring == measured.wiring == wiring
    assert stated.keep.largest == {Site.parse(site): norm for site, norm in NORMS.items()}
    assert measured.keep.largest == RowFilter.measure(lm, windows, wiring.sites).largest
    assert measured.keep.largest != stated.keep.largest
    assert stated.keep.bos == measured.keep.bos == lm.bos
    assert stated.fingerprint == measured.fingerprint, "the same weights"
    assert stated.key != measured.key, "but other rows"
    assert stated.dead is None, "of a coder that was not trained here nobody knows"


def test_the_rows_of_the_card_are_those_that_count(lm: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    tokens = torch.from_numpy(windows[:4])
    norms = lm.read(tokens, [Site("mlp_in", 1)])[Site("mlp_in", 1)].norm(dim=-1)
    middle = norms[:, 1:].median().item()
    [hooked] = hook_all([saved(tmp_path / "coder", norms={"1.mlp_in": middle})], lm, windows)
    expected = norms <= middle
    expected[:, 0] = False
    expected &= tokens != lm.bos
    assert torch.equal(hooked.keep(tokens, lm.read(tokens, hooked.wiring.sites)), expected)


@pytest.mark.parametrize(
    ("reads", "writes", "sizes", "said"),
    [
        (("9.mlp_in",), ("1.mlp_out",), (192,), "site 9.mlp_in: bundled has 4 layers, 0 to 3"),
        (("1.mlp_inn",), ("1.mlp_out",), (192,), "unknown site '1.mlp_inn' (did you mean '1.mlp_in'?)"),
        (("1.mlp_in",), ("1.mlp_out",), (64,), "takes 64 numbers at 1.mlp_in, where bundled has 192"),
        (
            ("1.mlp_in", "2.mlp_in"),
            ("1.mlp_out",),
            (192,),
            "its card names 1.mlp_in + 2.mlp_in, but its weights are of 1",
        ),
        (("1.mlp_in", "2.mlp_in"), ("1.mlp_out",), (192, 192), "its card names 1.mlp_out, but its weights are of 2"),
        (("1.mlp_in", "1.mlp_in"), ("1.mlp_out",), (192, 192), "its card names 1.mlp_in, but its weights are of 2"),
    ],
    ids=["layer", "name", "size", "more sites", "fewer sites", "a site twice"],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(
    lm: LanguageModel,
    windows: Windows,
    tmp_path: Path,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    sizes: tuple[int, ...],
    said: str,
) -> None:
    for norms in (None, dict.fromkeys((*reads, *writes), 40.0)):
        folder = saved(tmp_path / "coder", reads, writes, sizes, norms)
        with pytest.raises(MatryoshkaError) as error:
            hook_all([folder], lm, windows)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
