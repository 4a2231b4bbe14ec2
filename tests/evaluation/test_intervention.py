"""Ablations against hooks by hand, the sample against the population, ranks against SciPy's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from coders import hooked_at, raw_coder, subject
from scipy import stats
from scipy.sparse import csr_array
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.intervention import MEASURES, evaluate, rank_correlation
from matryoshka.evaluation.shared import ablation
from matryoshka.evaluation.shared.ablation import (
    ABLATED,
    MATCHED,
    ON,
    RANDOM,
    Sample,
    changes_along,
    draw_sample,
    draw_trials,
)
from matryoshka.interventions.attribution import Attribution, attribute
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.study.hooked import HookedCoder, hook_all

WRITE = Site("mlp_out", 1)
TOKENS = 64 * 24


def sae(lm: LanguageModel, tokens: Tokens, d_sae: int = 24) -> HookedCoder:
    """A random one of 1.mlp_out."""
    config = CoderConfig(
        reads=(192,), writes=(192,), d_sae=d_sae, widths=(8, d_sae), activation={"kind": "topk", "k": 5}
    )
    coder = SparseCoder(config).initialise(0, tied=True).eval()
    y = lm.read(torch.from_numpy(tokens.windows("train")[:4]), [WRITE])[WRITE][:, 1:].flatten(0, 1)
    return hooked_at(raw_coder(coder, y, y), lm, tokens.windows("held_out"), WRITE, WRITE)


def attribution_of(firing: list[list[int]]) -> Attribution:
    """Of these counts, a row a window."""
    counts = csr_array(np.array(firing))
    return Attribution(np.arange(len(firing)), counts.astype(float), counts, np.zeros(counts.shape[1]))


# --- one ablation


def by_hand(lm: LanguageModel, tokens: Tensor, by: Tensor) -> Tensor:
    """Logits with `by` added to what the MLP of layer 1 adds."""
    handle = lm.model.transformer.h[1].mlp.register_forward_hook(lambda _module, _args, output: output + by)
    with torch.no_grad():
        logits = lm.model(tokens).logits
    handle.remove()
    return logits


def test_kl_and_ce_are_those_of_a_hook_by_hand(lm: LanguageModel, tokens: Tokens) -> None:
    window = torch.from_numpy(tokens.windows("held_out")[7])
    kept = torch.ones(1, 64, dtype=torch.bool)
    kept[0, [0, 5, 63]] = False
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(61, 3, generator=generator).relu()
    a[:20] = 0
    directions = torch.randn(2, 3, 192, generator=generator)
    found = changes_along(lm, [WRITE], window, kept, a, directions)
    assert found.shape == (2, 2, 3, 61)

    clean = by_hand(lm, window, torch.zeros(192))[0, kept[0]].log_softmax(-1)
    target = window[0, 1:][kept[0, :-1]]
    for kind in range(2):
        for n in range(3):
            by = torch.zeros(1, 64, 192)
            by[kept] = -a[:, n, None] * directions[kind, n]
            changed = by_hand(lm, window, by)[0, kept[0]].log_softmax(-1)
            kl = F.kl_div(changed, clean, reduction="none", log_target=True).sum(-1)
            ce = F.nll_loss(changed, target, reduction="none") - F.nll_loss(clean, target, reduction="none")
            assert torch.allclose(found[0, kind, n].float(), kl, atol=1e-5)
            assert torch.allclose(found[1, kind, n].float(), ce, atol=1e-5)
    assert found[:, :, :, 20:].abs().min(-1).values.max() > 1e-4
    assert found[:, :, :, :20].abs().max() < 1e-5, "what comes before the first change cannot feel it"


def test_nulls_are_as_large_at_the_same_positions(
    lm: LanguageModel, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is really added to y, caught on its way: only the direction differs."""
    hooked = sae(lm, tokens)
    [attribution] = attribute(lm, tokens.windows("held_out"), [hooked], 64 * 4)
    added: list[Tensor] = []
    shifted = ablation.shifted
    monkeypatch.setattr(ablation, "shifted", lambda lm, sites, by: added.append(by) or shifted(lm, sites, by))
    sample = Sample(np.array([3]), np.ones(1), np.array([11]))
    row = int(attribution.firing.tocsc()[:, [3]].nonzero()[0][0])
    ablation.ablate(
        lm,
        tokens.windows("held_out"),
        hooked,
        attribution,
        sample,
        {row: [0]},
        np.random.default_rng(0),
        lambda *_: None,
    )
    by = torch.cat(added)
    assert len(by) == 3
    length = by.norm(dim=-1)
    assert (length[0] > 0).sum() == attribution.firing[[row]][:, [3]].toarray().item()
    assert torch.allclose(length[[MATCHED, RANDOM]], length[[ABLATED, ABLATED]], rtol=1e-5)
    changed = by[:, length[0] > 0]
    cosine = torch.cosine_similarity
    assert torch.allclose(cosine(changed[ABLATED], -hooked.coder.W_dec[3]), torch.ones(1))
    assert torch.allclose(cosine(changed[MATCHED], -hooked.coder.W_dec[11]), torch.ones(1))
    assert cosine(changed[RANDOM], -hooked.coder.W_dec[3]).abs().max() < 0.3


# --- the sample


def test_dead_features_are_never_drawn_and_the_others_stand_for_their_ring() -> None:
    count = np.random.default_rng(1).integers(1, 1000, 200)
    count[::3] = 0
    count[20:27] = 0
    sample = draw_sample(count, (20, 30, 200), np.random.default_rng(0), size=20)
    assert (count[sample.features] > 0).all()
    assert (count[sample.matched] > 0).all()
    assert (np.diff(sample.features) > 0).all()
    for first, end, n in ((0, 20, 6), (20, 30, 2), (30, 200, 6)):
        inside = (sample.features >= first) & (sample.features < end)
        assert inside.sum() == n
        assert sample.weight[inside].sum() == pytest.approx((count[first:end] > 0).sum())


def test_a_matched_feature_fires_as_often_and_is_another() -> None:
    count = np.random.default_rng(1).permutation(300)
    sample = draw_sample(count, (300,), np.random.default_rng(0))
    assert (sample.matched != sample.features).all()
    assert (np.abs(count[sample.matched] - count[sample.features]) == 1).all()


def test_where_nothing_fires_nothing_is_measurable(lm: LanguageModel, tokens: Tokens) -> None:
    hooked = sae(lm, tokens)
    with torch.no_grad():
        hooked.coder.b_enc.fill_(-1e6)
    with pytest.raises(NotMeasurable, match="none of the 24 features fires"):
        evaluate(subject(lm, tokens.windows("held_out"), hooked, 64 * 2))


def test_features_are_ablated_where_they_fire_in_different_documents(tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    document = windows.documents(slice(0, 40))[:, 0]
    assert len(set(document)) < 40
    firing = np.random.default_rng(0).integers(0, 2, (40, 6))
    firing[:, 5] = 0
    firing[17, 5] = 3
    sample = Sample(np.array([0, 2, 5]), np.ones(3), np.array([1, 1, 1]))
    trials = draw_trials(attribution_of(firing.tolist()), sample, windows, np.random.default_rng(0))
    assert list(trials) == sorted(trials)
    for i, feature in enumerate(sample.features):
        rows = [row for row, places in trials.items() if i in places]
        assert all(firing[row, feature] > 0 for row in rows)
        assert len({document[row] for row in rows}) == len(rows)
        assert len(rows) == min(ablation.WINDOWS, len(set(document[firing[:, feature] > 0])))


# --- ranks


def test_ranks_are_spearmans_of_the_population_that_is_stood_for() -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal(40)
    b = a + generator.standard_normal(40)
    assert rank_correlation(a, b, np.ones(40)) == pytest.approx(stats.spearmanr(a, b)[0])
    weight = generator.integers(1, 5, 40)
    population = stats.spearmanr(np.repeat(a, weight), np.repeat(b, weight))[0]
    assert rank_correlation(a, b, weight.astype(float)) == pytest.approx(population)
    assert population != pytest.approx(stats.spearmanr(a, b)[0], abs=1e-3)


# --- the whole, of a trained transcoder


@pytest.fixture(scope="module")
def hooked(trained: Run, lm: LanguageModel, tokens: Tokens) -> HookedCoder:
    """The trained transcoder; latent 40 is dead."""
    [found] = hook_all([trained.coder], lm, tokens.windows("held_out"))
    with torch.no_grad():
        found.coder.b_enc[40] = -1e6
    return found


@pytest.fixture(scope="module")
def result(lm: LanguageModel, tokens: Tokens, hooked: HookedCoder) -> Result:
    return evaluate(subject(lm, tokens.windows("held_out"), hooked, TOKENS), sample_size=45)


def test_every_prefix_has_every_score_with_a_null(result: Result) -> None:
    assert {(each.measure, each.width) for each in result.scores} == {(m, w) for m in MEASURES for w in (32, 96, 256)}
    for each in result.scores:
        assert each.null is not None
        assert np.isfinite([each.value, each.null, *each.interval]).all()
        assert each.measure.unit == "feature"
        assert not each.measure.paired


def test_attribution_ranks_features_as_ablating_them_does(result: Result) -> None:
    ranking = result.of("attribution ρ")[-1]
    assert ranking.value > 0.8
    assert ranking.null is not None
    assert 0 < ranking.null < 0.4
    rows = result.details["ablated"]
    pairs = np.array([(row["ce_to_first_order"], row["ce"]) for row in rows])
    assert result.details["pearson"][-1] == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    assert result.details["pearson"][-1] > 0.8


def test_scores_are_means_over_the_living_of_a_prefix(result: Result) -> None:
    rows, rings = result.details["ablated"], result.details["rings"]
    edges = (0, 32, 96, 256)
    stood_for = [(each["latents"] - each["silent"]) / each["ablated"] for each in rings]
    for width in (32, 96, 256):
        inside = [row for row in rows if row["feature"] < width]
        weight = [stood_for[np.searchsorted(edges, row["feature"], side="right") - 1] for row in inside]
        kl, matched, random = (
            np.average([row[name] for row in inside], weights=weight)
            for name in ("kl_mnat", "kl_matched_mnat", "kl_random_mnat")
        )
        [on] = [each for each in result.of("ablation KL (mnat)") if each.width == width]
        [ratio] = [each for each in result.of("ablation KL over random") if each.width == width]
        assert (on.value, on.null) == pytest.approx((kl, matched))
        assert (ratio.value, ratio.null) == pytest.approx((kl / random, matched / random))
    assert result.details["kl_random_mnat"][-1] == pytest.approx(random)
    assert kl > 0


def test_dead_features_are_counted_and_left_out(result: Result) -> None:
    rings = result.details["rings"]
    assert rings[1]["silent"] >= 1
    assert [each["latents"] for each in rings] == [32, 64, 160]
    assert all("40" not in each.units for each in result.scores)


def test_the_ends_of_the_ranking_are_the_extremes_of_the_attribution(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, result: Result
) -> None:
    total = attribute(lm, tokens.windows("held_out"), [hooked], TOKENS)[0].total
    ends = result.details["attribution"]
    order = np.argsort(total)
    assert [row["feature"] for row in ends["bottom"]] == order[:10].tolist()
    assert [row["feature"] for row in ends["top"]] == order[::-1][:10].tolist()
    assert ends["top"][0]["effect"] == pytest.approx(total.max(), rel=1e-4)
    assert ends["top"][0]["effect"] <= ends["top"][0]["size"] + 1e-4


def test_a_feature_that_writes_nothing_has_no_effect_and_nor_do_its_nulls(lm: LanguageModel, tokens: Tokens) -> None:
    """An SAE of which half the features have no decoder row."""
    hooked = sae(lm, tokens, d_sae=16)
    with torch.no_grad():
        hooked.coder.W_dec[::2] = 0
    found = evaluate(subject(lm, tokens.windows("held_out"), hooked, 64 * 8), sample_size=45)
    for row in found.details["ablated"]:
        effects = np.abs([row[name] for name in ("kl_mnat", "kl_random_mnat", "ce")])
        assert (effects < 1e-3).all() if row["feature"] % 2 == 0 else (effects > 1e-3).all()


def test_the_same_question_has_the_same_answer_and_progress_counts_to_the_end(
    lm: LanguageModel, tokens: Tokens
) -> None:
    windows, hooked = tokens.windows("held_out"), sae(lm, tokens)
    told: list[tuple[int, int]] = []
    first, again = (
        evaluate(subject(lm, windows, hooked, 64 * 2), lambda *done: told.append(done), sample_size=8) for _ in range(2)
    )
    assert [each.as_json() for each in first.scores] == [each.as_json() for each in again.scores]
    assert first.details == again.details
    told = told[: len(told) // 2]
    assert told[-1][0] == told[-1][1] > 2
    assert [done for done, _ in told] == list(range(2, len(told) + 2))


def test_on_is_where_it_fires_and_after_is_behind(lm: LanguageModel, tokens: Tokens) -> None:
    hooked = sae(lm, tokens)
    windows = tokens.windows("held_out")
    [attribution] = attribute(lm, windows, [hooked], 64 * 4)
    sample = Sample(np.array([2, 3]), np.ones(2), np.array([4, 5]))
    trials = {row: [0, 1] for row in range(4) if attribution.firing[[row]][:, [2, 3]].toarray().all()}
    assert trials
    effects = ablation.ablate(
        lm, windows, hooked, attribution, sample, trials, np.random.default_rng(0), lambda *_: None
    )
    fired = attribution.firing[list(trials)][:, [2, 3]].toarray().sum(0)
    assert effects.positions[:, ON].tolist() == fired.tolist()
    assert (effects.positions.sum(1) <= 63 * len(trials)).all()
    assert (effects.positions[:, 1] > 0).all()
    assert effects.predicted == pytest.approx(attribution.effect[list(trials)][:, [2, 3]].toarray().sum(0))
    assert (effects.kl[ABLATED, :, ON] / fired > effects.kl[ABLATED, :, 1] / effects.positions[:, 1]).all()
