"""Synthetic activations: drawn by the laws that their features are said to have, and the same ones every time."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from matryoshka.data import synthetic
from matryoshka.data.forest import Forest
from matryoshka.data.sections import SyntheticConfig
from matryoshka.data.stream import ActivationStream, Batch
from matryoshka.data.synthetic import HELD_OUT, SITE, TRAIN, Samples, SyntheticChunks, SyntheticModel
from matryoshka.errors import MatryoshkaError
from matryoshka.files import cache_dir

CPU = torch.device("cpu")
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SAMPLES = 40_000
SMALL = SyntheticConfig(
    features=120, dimension=24, trees=4, branching=3, depth=2, p_max=0.4, p_min=0.02, factors=5, orthogonal_steps=5
)
"""4 roots, 12 children, 36 grandchildren, and 68 that stand alone."""
INSIDE = sum(SMALL.levels)


def small(**values: object) -> SyntheticConfig:
    return SyntheticConfig.build({**SMALL.model_dump(), **values})


def drawn(
    config: SyntheticConfig, count: int = SAMPLES, entries: int = synthetic.ENTRIES, device: torch.device = CPU
) -> tuple[Samples, Forest]:
    model = SyntheticModel(config, device)
    parts = list(model.draw(count, HELD_OUT, entries=entries))
    starts = itertools.accumulate((len(part.x) for part in parts), initial=0)
    rows = torch.cat([part.rows + start for part, start in zip(parts, starts, strict=False)])
    x, features, magnitudes = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("x", "features", "magnitudes")
    )
    return Samples(x, rows, features, magnitudes), model.forest


def dense(samples: Samples, features: int) -> Tensor:
    """[rows, features]"""
    values = torch.zeros(len(samples.x), features)
    values[samples.rows, samples.features] = samples.magnitudes
    return values


@pytest.fixture(scope="module")
def forest() -> Forest:
    return Forest.grow(SMALL)


@pytest.fixture(scope="module")
def values() -> Tensor:
    """Magnitudes of every feature on every sample, of SMALL."""
    return dense(drawn(SMALL)[0], SMALL.features)


def test_frequencies_follow_zipfs_law_from_the_most_frequent_to_the_rarest(forest: Forest) -> None:
    expected = torch.arange(1, 121, dtype=torch.float64) ** -0.5
    slope = (0.4 - 0.02) / (expected[0] - expected[-1])
    torch.testing.assert_close(forest.frequencies.double(), 0.02 + slope * (expected - expected[-1]))


@pytest.mark.parametrize(
    ("device", "entries"),
    [
        ("cpu", synthetic.ENTRIES),
        ("cpu", 2**12),
        pytest.param("cuda", synthetic.GPU_ENTRIES, marks=[pytest.mark.gpu, WITH_GPU]),
    ],
)
def test_what_stands_alone_is_on_as_often_as_the_law_says_however_much_is_drawn_at_once(
    device: str, entries: int
) -> None:
    config = small(trees=0, deviation_mean=0.0, deviation_spread=0.0)
    samples, forest = drawn(config, entries=entries, device=torch.device(device))
    often, expected = torch.bincount(samples.features, minlength=120).cpu() / SAMPLES, forest.frequencies.cpu()
    deviations = (often - expected) / (expected * (1 - expected) / SAMPLES).sqrt()
    assert deviations.abs().max() < 4.5
    assert deviations.square().mean() == pytest.approx(1, abs=0.5)


def test_factors_make_features_fire_together_as_a_gaussian_copula_does() -> None:
    config = small(trees=0, features=2, p_max=0.3, p_min=0.2, factors=1, correlation=3.0, deviation_mean=0.0,
                   deviation_spread=0.0)  # fmt: skip
    samples, forest = drawn(config)
    on = dense(samples, 2) > 0
    rho = (forest.loadings[0] * forest.loadings[1]).sum().item()
    assert abs(rho) > 0.9, "loadings this large are cut to variance 0.99"
    normal = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(1))
    second = rho * normal[:, 0] + math.sqrt(1 - rho**2) * normal[:, 1]
    cuts = -torch.special.ndtri(forest.propensities)
    together = ((normal[:, 0] > cuts[0]) & (second > cuts[1])).float().mean().item()
    assert on.all(1).float().mean().item() == pytest.approx(together, abs=0.01)


def test_a_child_is_on_only_where_its_parent_is(values: Tensor, forest: Forest) -> None:
    children = (forest.parents >= 0).nonzero()[:, 0]
    assert children.tolist() == list(range(4, INSIDE))
    assert forest.parents[4:7].tolist() == [0, 0, 0]
    on = values > 0
    assert not (on[:, children] & ~on[:, forest.parents[children]]).any()
    assert (on[:, children].sum(0) > 0).all()


@pytest.mark.parametrize("exclusive", [True, False])
def test_siblings_exclude_each_other_or_do_not(exclusive: bool) -> None:
    config = small(exclusive=exclusive)
    on = dense(drawn(config, 10_000)[0], 120) > 0
    most = max(on[:, 4 + 3 * parent : 7 + 3 * parent].sum(1).max().item() for parent in range(16))
    assert (most == 1) is exclusive


def test_a_child_is_as_likely_as_its_siblings_to_win_and_nearly_as_frequent_as_the_law_says() -> None:
    config = small(exponent=0.01, p_max=0.2, p_min=0.199, correlation=0.0, trees=1, features=4, depth=1,
                   deviation_mean=0.0, deviation_spread=0.0)  # fmt: skip
    on = dense(drawn(config)[0], 4) > 0
    # propensity min(1, 1 · (1 + 2)) = 1 for each of the three: one of them is on wherever the parent is
    assert on[:, 1:].sum(1).equal(on[:, 0].long())
    share = on[:, 1:].float().mean(0) / on[:, 0].float().mean()
    assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_magnitudes_are_normal_and_children_go_with_their_parent(values: Tensor, forest: Forest) -> None:
    alone = INSIDE
    of_one = values[:, alone][values[:, alone] > 0]
    assert of_one.mean().item() == pytest.approx(forest.means[alone].item(), abs=0.1)
    assert of_one.std().item() == pytest.approx(forest.deviations[alone].item(), rel=0.15)

    fixed = small(deviation_mean=0.0, deviation_spread=0.0)
    samples, known = drawn(fixed, 2000)
    assert samples.magnitudes.equal(known.means[samples.features]), "a parent at its mean scales by 1"

    parent, child = values[:, 0], values[:, 4]
    on = child > 0
    scaled = child[on] / (parent[on] / forest.means[0])
    assert scaled.mean().item() == pytest.approx(forest.means[4].item(), abs=0.1)
    assert torch.corrcoef(torch.stack([parent[on], scaled]))[0, 1].abs() < 0.1


def test_an_activation_is_the_bias_and_the_sum_of_magnitudes_times_directions() -> None:
    samples, forest = drawn(SMALL, 500)
    torch.testing.assert_close(samples.x, dense(samples, 120) @ forest.directions + forest.bias)
    torch.testing.assert_close(forest.bias.norm().item(), 0.5)
    assert samples.rows.equal(samples.rows.sort().values)


def test_directions_are_made_nearly_orthogonal_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overlap(config: SyntheticConfig) -> float:
        rows = Forest.grow(config).directions
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(120))
        return (rows @ rows.T - torch.eye(120)).square().sum().item()

    monkeypatch.setenv("MATRYOSHKA_CACHE", str(tmp_path))
    random, pushed = overlap(small(orthogonal_steps=0)), overlap(small(orthogonal_steps=200, orthogonal_lr=1e-2))
    welch = 120**2 / 24 - 120  # no 120 unit vectors of 24 numbers overlap less
    assert welch <= pushed < welch + 0.1 * (random - welch)
    [file] = (cache_dir() / "synthetic").iterdir()
    assert file.stem == small(orthogonal_steps=200, orthogonal_lr=1e-2).hash
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(MatryoshkaError, match=rf"{file.name}: damaged"):
        overlap(small(orthogonal_steps=200, orthogonal_lr=1e-2))


def test_training_on_a_gpu_draws_in_large_parts_and_a_cpu_as_measures_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert synthetic.training_entries(CPU) == synthetic.ENTRIES
    assert synthetic.training_entries(torch.device("cuda:0")) == synthetic.GPU_ENTRIES
    chunks = SyntheticChunks(SyntheticModel(SMALL, CPU), 300)
    as_measured = torch.cat([part.x for part in chunks.model.draw(300, TRAIN, 0, 0, 7)])
    assert chunks.chunk(0, 0, 7).activations[SITE].equal(as_measured)
    monkeypatch.setattr(synthetic, "training_entries", lambda device: 100 * 96)
    in_parts = torch.cat([part.x for part in chunks.model.draw(300, TRAIN, 0, 0, 7, entries=100 * 96)])
    assert chunks.chunk(0, 0, 7).activations[SITE].equal(in_parts)
    assert not in_parts.equal(as_measured), "the parts are what random numbers are drawn for"


def test_samples_depend_on_their_seeds_alone() -> None:
    model = SyntheticModel(SMALL, CPU)
    one, same, other, held_out = (
        torch.cat([part.x for part in model.draw(300, *seeds)])
        for seeds in ((TRAIN, 0, 0, 7), (TRAIN, 0, 0, 7), (TRAIN, 0, 0, 8), (HELD_OUT,))
    )
    assert one.equal(same)
    assert not one.equal(other)
    assert not one.equal(held_out)


def take(stream: ActivationStream, n: int) -> list[Batch]:
    return list(itertools.islice(stream, n))


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_resumed_stream_goes_on_exactly(taken: int) -> None:
    def stream() -> ActivationStream:
        return ActivationStream(SyntheticChunks(SyntheticModel(SMALL, CPU), 100), batch=30, seed=3)

    expected = take(stream(), 8)
    begun = stream()
    take(begun, taken)
    resumed = stream()
    resumed.load_state_dict(begun.state_dict())
    for a, b in zip(expected[taken:], take(resumed, 8 - taken), strict=True):
        assert a.activations[SITE].equal(b.activations[SITE])
        assert a.positions.equal(b.positions)
    assert stream().peek(30).activations[SITE].equal(expected[0].activations[SITE])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"p_min": 0.5}, r"p_min is 0\.5, expected less than p_max"),
        ({"features": 51}, r"4 such trees hold 52 features, of 51"),
        ({"branching": 1}, r"^branching: "),
        ({"treees": 3}, r"^treees: unknown field \(did you mean 'trees'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values: dict[str, object], line: str) -> None:
    with pytest.raises(MatryoshkaError, match=line):
        small(**values)


def test_the_defaults_are_synthsaebench_16ks() -> None:
    config = SyntheticConfig()
    assert config.levels == (128, 512, 2048, 8192)
    known = Forest.grow(config.model_copy(update={"orthogonal_steps": 0}))
    assert known.frequencies[[0, -1]].tolist() == pytest.approx([0.4, 5e-4])
    assert known.propensities.max() < 1, "nothing had to be cut"
    assert known.loadings.square().sum(1).mean().item() == pytest.approx(0.25, abs=0.01)
