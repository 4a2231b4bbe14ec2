"""Learning rates, and decoder rows that stay on the unit sphere."""

import pytest
import torch
from torch import nn

from matryoshka.training.config import TrainingSection
from matryoshka.training.optim import learning_rate, normalise_rows, project_rows


def rates(steps: int, **fields: object) -> list[float]:
    section = TrainingSection.model_validate({"lr": 1.0, **fields})
    return [learning_rate(step, steps, section) for step in range(steps)]


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


def test_the_projected_gradient_is_orthogonal_to_unit_rows() -> None:
    W_dec = nn.Parameter(nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64)))
    gradient = torch.randn(7, 5, dtype=torch.float64)
    W_dec.grad = gradient.clone()
    project_rows(W_dec)
    assert W_dec.grad is not None
    assert (W_dec.grad * W_dec).sum(1).abs().max() < 1e-12
    rejected = gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec
    torch.testing.assert_close(W_dec.grad, rejected.detach())


def test_normalised_rows_keep_their_direction() -> None:
    rows = torch.randn(7, 5)
    normalised = rows.clone()
    normalise_rows(normalised)
    torch.testing.assert_close(normalised.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(normalised, nn.functional.normalize(rows))
