"""Steered text: towards a token that is planted in the dictionary, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from coders import hooked_at, raw_coder

from matryoshka import api
from matryoshka.cli import main
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.interventions.steering import RARE, Steered, Unit, measure_unit, steer
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import spread

READ, WRITE = Site("mlp_in", 3), Site("mlp_out", 3)
TOWARDS, NOWHERE, TO_THE_END, DEAD = range(4)
WORD = " people"


@pytest.fixture(scope="module", params=[READ, WRITE], ids=["transcoder", "sae"])
def hooked(request: pytest.FixtureRequest, lm: LanguageModel, tokens: Tokens) -> HookedCoder:
    """One feature writes WORD, one nothing, one ends the text, and one never fires."""
    config = CoderConfig(reads=(192,), writes=(192,), d_sae=16, widths=(16,), activation={"kind": "topk", "k": 8})
    text = torch.from_numpy(tokens.windows("train")[:4])
    x, y = (lm.read(text, [site])[site][:, 1:].flatten(0, 1) for site in (request.param, WRITE))
    coder = raw_coder(SparseCoder(config).initialise(0, tied=False), x, y)
    unembedding = lm.model.get_output_embeddings().weight
    [word] = lm.tokenizer(WORD, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for feature, token in ((TOWARDS, word), (TO_THE_END, lm.separator)):
            row = unembedding[token] - unembedding.mean(0)
            coder.W_dec[feature] = row / row.norm()
        coder.W_dec[NOWHERE] = 0
        coder.b_enc[DEAD] = -1e6
    return hooked_at(coder, lm, tokens.windows("held_out"), request.param, WRITE)


@pytest.fixture(scope="module")
def unit(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> Unit:
    return measure_unit(lm, tokens.windows("held_out"), hooked, TOWARDS, 64 * 8)


def test_the_unit_is_the_maximum_on_held_out_text_in_raw_units(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, unit: Unit
) -> None:
    windows = tokens.windows("held_out")
    text = torch.from_numpy(windows[spread(8, len(windows))])
    read = lm.read(text, hooked.wiring.sites)
    kept = hooked.keep(text, read)
    dense = hooked.coder.encode(read[hooked.wiring.reads[0]][kept]).dense()[:, TOWARDS]
    assert unit.maximum == pytest.approx(dense.max().item(), rel=1e-5)
    assert unit.tokens == 64 * 8


def test_a_feature_that_writes_a_token_makes_the_model_write_it(
    lm: LanguageModel, hooked: HookedCoder, unit: Unit
) -> None:
    strength = 1000 / unit.maximum
    found = steer(lm, hooked, TOWARDS, unit, strength, "The king", 6)
    assert found.steered == WORD * 6
    assert WORD * 3 not in found.plain
    assert len(found.kl) == 6
    assert min(found.kl) > 1
    weaker = steer(lm, hooked, TOWARDS, unit, strength / 20, "The king", 6)
    assert 0 < sum(weaker.kl) < sum(found.kl)


def test_kl_is_from_the_unsteered_to_the_steered_prediction(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder
) -> None:
    """Its first, by hand; at layer 1, where what is done to BOS would show."""
    reads, writes = Site(hooked.wiring.reads[0].kind, 1), Site("mlp_out", 1)
    hooked = hooked_at(hooked.coder, lm, tokens.windows("held_out"), reads, writes)
    unit = measure_unit(lm, tokens.windows("held_out"), hooked, TOWARDS, 64 * 8)
    found = steer(lm, hooked, TOWARDS, unit, 3, "The king", 2)
    ids = lm.tokens("The king")
    read = lm.read(ids, [reads, writes])
    kept = hooked.keep(ids, read)
    a = hooked.coder.encode(read[reads][kept]).dense()[:, TOWARDS]
    y = read[writes].clone()
    y[kept] += (3 * unit.maximum - a)[:, None] * hooked.coder.W_dec[TOWARDS]
    p = lm.logits(ids)[0, -1].log_softmax(-1)
    with lm.replace(writes, lambda _: y):
        q = lm.logits(ids)[0, -1].log_softmax(-1)
    assert found.kl[0] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-3)
    assert found.kl[0] > 1e-3


def test_a_feature_that_writes_nothing_changes_nothing(lm: LanguageModel, hooked: HookedCoder, unit: Unit) -> None:
    found = steer(lm, hooked, NOWHERE, unit, 50, "The king", 6)
    assert found.steered == found.plain != ""
    assert max(map(abs, found.kl)) < 1e-5


def test_text_ends_where_the_model_ends_it(lm: LanguageModel, hooked: HookedCoder, unit: Unit) -> None:
    found = steer(lm, hooked, TO_THE_END, unit, 3000 / unit.maximum, "The king", 6)
    assert found.steered == ""
    assert len(found.kl) == 1


def test_a_seed_draws_the_same_text_again(lm: LanguageModel, hooked: HookedCoder, unit: Unit) -> None:
    def drawn(seed: int) -> Steered:
        return steer(lm, hooked, TOWARDS, unit, 2, "The king", 8, temperature=1, seed=seed)

    assert drawn(0) == drawn(0)
    assert len({drawn(seed).plain for seed in range(3)}) == 3
    assert len({drawn(seed).steered for seed in range(3)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": 16}, "feature 16: the coder has 16, numbered 0 to 15"),
        ({"prompt": ""}, "prompt '': too short"),
        ({"tokens": 255}, "prompt of 3 tokens and 255 more: bundled reads 256 at most"),
        ({"strength": float("nan")}, "strength nan"),
        ({"temperature": -1}, "temperature -1"),
    ],
)
def test_what_cannot_be_is_refused(
    lm: LanguageModel, hooked: HookedCoder, unit: Unit, change: dict[str, object], message: str
) -> None:
    given = {"feature": TOWARDS, "unit": unit, "strength": 1, "prompt": "The king", "tokens": 4, **change}
    with pytest.raises(MatryoshkaError, match=message):
        steer(lm, hooked, **given)


def test_a_dead_feature_has_no_unit(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> None:
    windows = tokens.windows("held_out")
    with pytest.raises(MatryoshkaError, match=rf"feature {DEAD} never fires on {RARE * 128:,} held-out tokens"):
        measure_unit(lm, windows, hooked, DEAD, 128)


def test_a_rare_feature_is_sought_further(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> None:
    """One that fires on a single row of the text, which the first window does not hold."""
    windows = tokens.windows("held_out")
    text = torch.from_numpy(windows[spread(RARE, len(windows))])
    read = lm.read(text, hooked.wiring.sites)
    kept = hooked.keep(text, read)
    x = read[hooked.wiring.reads[0]][kept]
    rare = SparseCoder(hooked.coder.config)
    rare.load_state_dict(hooked.coder.state_dict())
    row = int((x - x.mean(0))[kept[0].sum() :].norm(dim=1).argmax() + kept[0].sum())
    with torch.no_grad():
        rare.W_enc[:, DEAD] = 100 * (x[row] - x.mean(0))
        rare.b_enc[DEAD] = -rare.W_enc[:, DEAD] @ x[row] * (1 - 1e-4)
        others = torch.arange(16) != DEAD
        rare.b_enc[others] = -1e6
    fires = rare.encode(x).dense()[:, DEAD] > 0
    assert fires.nonzero().flatten().tolist() == [row]
    found = measure_unit(lm, windows, hooked._replace(coder=rare.eval()), DEAD, 64)
    assert found.tokens == RARE * 64


# --- the command


def test_the_command_shows_both_texts_side_by_side(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["steer", str(trained.path), "3", "--tokens", "5", "--prompt", "[red]The\x1b king[/red]"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "unsteered" in out
    assert "feature 3 held at 5 × its maximum" in " ".join(out.split())
    assert out.count("[red]The\\u001b") == 2, "a prompt is no markup, and no escape sequence"
    assert "KL(unsteered ‖ steered)" in out


def test_from_python_it_takes_the_commands_defaults(trained: Run) -> None:
    found = api.steer(trained.path, 3, tokens=3)
    assert (found.feature, found.strength, found.prompt, len(found.kl)) == (3, 5.0, "I think that", 3)


def test_of_several_coders_one_has_to_be_named(trained: Run, tmp_path: Path) -> None:
    shutil.copy(trained.config_file, tmp_path / "config.yaml")
    for name in ("a", "b"):
        shutil.copytree(trained.coder, tmp_path / name / "coder")
    with pytest.raises(MatryoshkaError, match=r"has several coders; give one of: .*/a, .*/b"):
        api.steer(tmp_path, 3)
