"""What the quickstart shows of what it has learned."""

import pytest

from matryoshka import api
from matryoshka.cli.quickstart import _show_telling, _telling
from matryoshka.run import Run


def test_telling_features_are_shown_with_their_strongest_examples(
    featured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = api.store(featured)
    chosen = _telling(store, 3)
    assert [store[index].ring for index in chosen] == sorted({store[index].ring for index in chosen})
    assert chosen
    assert not any(store[index].flags for index in chosen)
    _show_telling(store, 3)
    shown = capsys.readouterr().out
    for index in chosen:
        assert f"feature {index}, ring {store[index].ring}" in shown
        assert f"{store[index].groups[0].examples[0].activation:.2f}" in shown
