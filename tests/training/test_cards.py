"""What a trained coder says that it is of."""

import json
from pathlib import Path

import torch

from matryoshka.coder import io
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import SAMPLE, RowCounts, RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.training.plan import plan
from matryoshka.training.provenance import card
from matryoshka.training.recipe import Config
from matryoshka.training.supply import TextSupply
from matryoshka.training.trainee import Trainee
from matryoshka.version import __version__


def test_the_card_holds_all_that_a_coder_is_of(lm: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    coder = {"read": ["1.mlp_in", "2.mlp_in"], "write": "2.mlp_out", "d_sae": 64, "k": 4}
    training = {"batch": 512, "dead_after_tokens": 700}
    config = Config.build({"text": {"context": 64}, "coder": coder, "training": training})
    (one,) = plan(config, lm.info)
    trainee = Trainee(one, SparseCoder(one.coder), config.training, 10)
    trainee.dead.tokens_since_fired[[3, 40]] = torch.tensor([700, 701])
    norms = {"1.mlp_in": 30.0, "2.mlp_in": 40.0, "2.mlp_out": 50.0, "3.mlp_out": 60.0}
    keep = RowFilter(lm.bos, {Site.parse(site): norm for site, norm in norms.items()})
    made = card(trainee, config, TextSupply(config, lm, tokens), keep, RowCounts(9000, 120, 7), steps=3)

    assert (made.model.name, made.model.revision, made.model.dtype) == ("bundled", lm.info.revision, "float32")
    (source,) = made.sources
    assert (source.reads, source.writes) == (("1.mlp_in", "2.mlp_in"), ("2.mlp_out",))
    assert (made.context, made.prepend_bos) == (64, lm.bos is not None)
    assert made.rows is not None
    assert made.rows.largest_norms == {site: norms[site] for site in ("1.mlp_in", "2.mlp_in", "2.mlp_out")}
    assert made.rows.sample == SAMPLE * 64
    assert made.trained is not None
    assert (made.trained.tokens, made.trained.left_out, made.trained.not_finite) == (3 * 512, 120, 7)
    assert (made.trained.dead_after_tokens, made.trained.dead) == (700, (3, 40))
    assert made.trained.text["source"] == "bundled"
    assert made.trained.text_hash == tokens.text_hash
    assert made.origin == f"matryoshka {__version__}"

    folded = trainee.folded()
    folded.card = made
    folded.save(tmp_path / "coder")
    assert io.load_card(tmp_path)[1] == made
    assert json.loads((tmp_path / "coder" / "config.json").read_text())["card"]["trained"]["dead"] == [3, 40]
