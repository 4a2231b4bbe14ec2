"""Learning rates."""

import pytest

from matryoshka.training.optim import Schedule
from matryoshka.training.recipe import TrainingSection


def rates(steps: int, **fields: object) -> list[float]:
    section = TrainingSection.model_validate({"lr": 1.0, **fields})
    schedule = Schedule.of(section, steps, d=1)
    return [schedule.rate(step) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    assert rates(10, warm_up=4, decay="none") == [0.25, 0.5, 0.75, 1.0, 1, 1, 1, 1, 1, 1]


def test_linear_decay_ends_near_zero() -> None:
    assert rates(10, warm_up=0, decay="linear", decay_start=5) == pytest.approx([1] * 5 + [1, 0.8, 0.6, 0.4, 0.2])


def test_cosine_decay_is_half_at_its_middle() -> None:
    values = rates(100, warm_up=0, decay="cosine", decay_start=0.0)
    assert values[50] == pytest.approx(0.5)
    assert values[25] == pytest.approx(0.5 * (1 + 2**-0.5))


def test_shares_and_steps_mean_the_same() -> None:
    assert rates(50, warm_up=0.2, decay_start=0.5) == rates(50, warm_up=10, decay_start=25)


def test_decay_never_begins_before_warm_up_ends() -> None:
    values = rates(10, warm_up=5, decay="linear", decay_start=0)
    assert max(values) == 1.0
