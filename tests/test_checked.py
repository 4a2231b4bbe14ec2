"""What conftest.py has all tests hold to is held to: shapes as they are annotated, and every other annotation."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from matryoshka.coder.losses import squared_error
from matryoshka.interop.dashboards import text


def test_sizes_of_one_name_are_one_size() -> None:
    """Which torch would broadcast."""
    y = torch.ones(4, 3)
    assert squared_error(y, y) == 0
    with pytest.raises(TypeCheckError):
        squared_error(y, torch.ones(4, 1))


def test_what_has_no_shape_is_checked_too() -> None:
    assert text("a") == "a"
    with pytest.raises(BeartypeCallHintViolation):
        text(3)  # type: ignore[arg-type]
