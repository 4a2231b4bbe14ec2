"""The card in a notebook: its frame holds the page's own code and the feature's data, and no token becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_store import make_store

from matryoshka.errors import MatryoshkaError
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.notebook import SCRIPTS, WEB, FeatureCard

NASTY = "</script><!--<script><img src=x onerror=alert(1)>\"'&lt;&quot; \u202e\u200b\u2028\u2029\0 🙂🏽"


class Elements(HTMLParser):
    """The elements of a text of HTML: (name, attributes, the text directly in it)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:100]}")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = make_store(tmp_path / "features.sqlite")
    for i in range(len(store)):
        store.annotate(i, NASTY, NASTY)
    return store


def frame(store: FeatureStore, index: int) -> list[tuple[str, dict[str, str | None], str]]:
    """The elements inside the frame that the notebook is given."""
    outer = Elements(FeatureCard(store, index)._repr_html_()).found
    assert [(tag, text) for tag, _, text in outer] == [("iframe", "")], "nothing of it is outside the frame"
    attributes = outer[0][1]
    assert set(attributes) == {"title", "sandbox", "srcdoc", "style"}
    assert attributes["sandbox"] == "allow-scripts", "neither the notebook's origin nor its cookies"
    srcdoc = attributes["srcdoc"]
    assert srcdoc
    assert not re.search("[\0\ud800-\udfff]", srcdoc)
    return Elements(srcdoc).found


def test_the_frame_is_the_page_s_card_and_nothing_of_a_token_is_markup(store: FeatureStore) -> None:
    for index in range(len(store)):
        found = frame(store, index)
        assert [tag for tag, _, _ in found] == [
            "html", "head", "meta", "title", "style", "body", "main", "script", "script",
        ]  # fmt: skip
        assert not any(name.startswith("on") for _, attributes, _ in found for name in attributes)
        texts = {tag: text.strip() for tag, _, text in found[:-1]}
        assert texts["style"] == (WEB / "style.css").read_text(encoding="utf-8").strip()
        scripts = [(WEB / name).read_text(encoding="utf-8") for name in SCRIPTS]
        assert texts["script"] == "".join(scripts).strip()
        assert texts["title"] == f"Feature {index}"


def test_the_frame_s_script_hands_over_the_card_as_it_is(store: FeatureStore) -> None:
    for index in (0, 3, 5, 12, 40):
        script = frame(store, index)[-1][2]
        assert not re.search("[<\0\u2028\u2029]", script)
        called = re.fullmatch(
            r'document\.getElementById\("main"\)\.append\(matryoshka\.card\((.*)\)\);', script.strip(), re.DOTALL
        )
        assert called
        card, end = json.JSONDecoder().raw_decode(called[1])
        facts = json.loads(called[1][end:].removeprefix(", "))
        assert card == json.loads(data.to_json(data.card(store, index)))
        assert card["label"] == NASTY
        assert facts == json.loads(data.to_json(data.facts(store, "0", "")))
        assert facts["text"] == '</script> of "tests", held-out split'


def test_what_is_inlined_cannot_end_its_element() -> None:
    assert "</script" not in (WEB / "card.js").read_text(encoding="utf-8").lower()
    assert "<!--" not in (WEB / "card.js").read_text(encoding="utf-8")
    assert "</style" not in (WEB / "style.css").read_text(encoding="utf-8").lower()


def test_elsewhere_it_is_a_few_lines(store: FeatureStore) -> None:
    for index in range(len(store)):
        lines = repr(FeatureCard(store, index)).split("\n")
        assert lines[0].startswith(f"feature {index}, ring {store[index].ring}: </script>")
        assert len(lines) == 1 + sum(len(group.examples) for group in store[index].groups[:1])
        assert all(line.isprintable() for line in lines), "no token moves the cursor or turns the line round"
    store.annotate(5, "", "")
    assert repr(FeatureCard(store, 5)) == "feature 5, ring 0: never fires (density 0.000%)"
    assert FeatureCard(store, 7).feature == store[7]


def test_no_such_feature_is_said_at_once(store: FeatureStore) -> None:
    """Not when the notebook shows it."""
    for wrong in (-1, 70):
        with pytest.raises(MatryoshkaError, match=f"no feature {wrong}; there are 0 to 69"):
            FeatureCard(store, wrong)
