"""What Python is offered: the public names, and what a run has to tell."""

import subprocess
import sys

import pytest

import matryoshka
from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run


def test_every_public_name_is_there() -> None:
    for name in matryoshka.__all__:
        assert getattr(matryoshka, name) is not None
    assert {"train", "evaluate", "explain", "steer", "results", "store", "feature", "Run"} <= set(matryoshka.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = matryoshka.trian  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, matryoshka; sys.exit(bool({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_is_given_as_such_or_by_its_path(featured: Run) -> None:
    assert matryoshka.results(featured).values("FVU") == matryoshka.results(str(featured.path)).values("FVU")
    assert matryoshka.store(featured.path).about == matryoshka.store(featured).about
    assert repr(matryoshka.feature(featured, 3)) == repr(matryoshka.feature(featured.path, 3))


def test_what_is_not_there_is_said(trained: Run) -> None:
    with pytest.raises(MatryoshkaError, match=r"no such results; measure first: matryoshka eval"):
        matryoshka.results(trained, "probing")
    with pytest.raises(MatryoshkaError, match="no features here; collect them with: matryoshka features"):
        matryoshka.store(trained)
    with pytest.raises(MatryoshkaError, match="no run here"):
        matryoshka.feature("nowhere", 0)
