"""Labelled text and its rows: against readings by hand, one example at a time."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.data.tokens import is_held_out
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation import concepts
from matryoshka.evaluation.concepts import Example, LabelledText, is_test, load, read
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.scores import NotMeasurable
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 2)


@pytest.fixture(scope="module")
def placed(lm: LanguageModel) -> Placed:
    """A coder with scales and means to fold, of two sites."""
    config = CoderConfig(d_in=192, d_out=192, d_sae=64, widths=(16, 64), activation="topk", k=5)
    coder = SparseCoder(config).initialise(0, tied=False)
    tokens = lm.tokens("In the beginning God created the heaven and the earth, and the earth was without form.")
    found = lm.read(tokens, [READ, WRITE])
    coder.calibrate(found[READ][0, 1:], found[WRITE][0, 1:])
    return Placed(coder.eval(), READ, WRITE)


def labelled(*examples: Example) -> LabelledText:
    return LabelledText("words", examples)


def at(text: str, word: str, *path: str) -> Example:
    start = text.index(word)
    return Example(text, (start, start + len(word)), path or ("x",), word)


def whole(text: str) -> Example:
    return Example(text, None, ("x",), text)


MANY = [
    at("They spoke of the dogs again, and of much else that I forget.", "dogs"),
    at("Dogs.", "Dogs"),
    whole("A short text."),
    whole("And it came to pass in those days, that he went out into a mountain to pray. " * 3),
    at("He saw the ox, the ass and the camel of his neighbour", "camel"),
    whole("Her sister was there."),
]


def test_a_row_is_at_the_last_token_of_its_span(lm: LanguageModel, placed: Placed) -> None:
    text = "They spoke of the churches again."  # churches is three tokens of this vocabulary
    rows = read(lm, placed, labelled(at(text, "churches")))
    until = lm.tokens("They spoke of the churches")
    x, y = (lm.read(until, [READ, WRITE])[site][0, -1:] for site in (READ, WRITE))
    np.testing.assert_allclose(rows.x, x.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.y, y.numpy(), rtol=1e-4, atol=1e-5)
    expected = placed.coder.fold().encode(x).dense()
    np.testing.assert_allclose(rows.latents.toarray(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_latents_times_the_decoder_are_in_raw_units(lm: LanguageModel, placed: Placed) -> None:
    rows = read(lm, placed, labelled(*MANY[:1]))
    coder = placed.coder
    y_hat = coder.decode(coder.encode(torch.from_numpy(rows.x)))[-1]
    raw = rows.latents @ coder.W_dec.detach().numpy() + (coder.b_dec / coder.scale_out).detach().numpy()
    np.testing.assert_allclose(raw, y_hat.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_entries_of_a_row_are_in_order(lm: LanguageModel, placed: Placed) -> None:
    """scipy's products leave them in disorder, and some of its functions then sort what they were given in place."""
    latents = read(lm, placed, labelled(*MANY)).latents
    for start, end in pairwise(latents.indptr):
        assert (np.diff(latents.indices[start:end]) > 0).all()


def test_without_a_span_a_row_is_the_mean_over_the_text(lm: LanguageModel, placed: Placed) -> None:
    text = MANY[3].text
    rows = read(lm, placed, labelled(whole(text)))
    found = lm.read(lm.tokens(text), [READ, WRITE])
    x, y = found[READ][0, 1:], found[WRITE][0, 1:]  # without BOS
    np.testing.assert_allclose(rows.x[0], x.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.y[0], y.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    expected = placed.coder.fold().encode(x).dense().mean(0).detach().numpy()
    np.testing.assert_allclose(rows.latents.toarray()[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_other_examples_and_padding_do_not_change_a_row(
    lm: LanguageModel, placed: Placed, bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bos:  # this model's BOS has the id that padding has, and would hide it
        monkeypatch.setattr(lm, "bos", None)
    together = read(lm, placed, labelled(*MANY))
    assert [example.text for example in together.labelled.examples] == [example.text for example in MANY]
    assert together.dropped == 0
    for i, example in enumerate(MANY):
        alone = read(lm, placed, labelled(example))
        np.testing.assert_allclose(together.x[i], alone.x[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.y[i], alone.y[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            together.latents[[i]].toarray(), alone.latents.toarray(), rtol=1e-3, atol=1e-3 * alone.latents.max()
        )


def test_what_follows_the_span_does_not_change_a_row(lm: LanguageModel, placed: Placed) -> None:
    rows = read(lm, placed, labelled(at("I saw the dog there", "dog"), at("I saw the dog and all of the rest", "dog")))
    np.testing.assert_allclose(rows.x[0], rows.x[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["naïve", "🙂", "café", "日本", "x🙂y", "end"])
def test_spans_count_characters_not_bytes(lm: LanguageModel, word: str) -> None:
    """The tokens of a prompt end with the byte that the span ends with."""
    example = at("Ünïcode: naïve 🙂 café 日本 x🙂y and no end of it", word)
    (prompt,) = concepts._prompts(lm, labelled(example))
    assert example.span is not None
    spelt = b"".join(lm.token_bytes[token] for token in prompt.ids[1:])
    assert spelt == example.text[: example.span[1]].encode()
    assert prompt.position == len(prompt.ids) - 1


def test_a_long_text_is_cut_so_that_its_span_stays(lm: LanguageModel, placed: Placed) -> None:
    text = "the river and " * 200 + "the camel went on"
    rows = read(lm, placed, labelled(at(text, "camel")))
    ids = lm.tokens(text[: text.index("camel") + len("camel")])[0]
    room = lm.info.context - 1
    x = lm.read(torch.cat([ids[:1], ids[-room:]])[None], [READ])[READ][0, -1]
    np.testing.assert_allclose(rows.x[0], x.numpy(), rtol=1e-3, atol=1e-4)


def test_a_long_text_without_a_span_loses_its_end(lm: LanguageModel, placed: Placed) -> None:
    text = "the river and the sea of his people " * 100
    x = lm.read(lm.tokens(text)[:, : lm.info.context], [READ])[READ][0, 1:]
    rows = read(lm, placed, labelled(whole(text)))
    np.testing.assert_allclose(rows.x[0], x.mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_a_span_longer_than_the_context_is_refused(lm: LanguageModel, placed: Placed) -> None:
    text = "the river and " * 200
    with pytest.raises(MatryoshkaError, match=r"words, example 2: its span of \d+ tokens does not fit.*255 tokens"):
        read(lm, placed, labelled(MANY[0], Example(text, (0, len(text)), ("x",), "g")))


def test_examples_without_a_position_are_dropped_and_counted(lm: LanguageModel, placed: Placed) -> None:
    nothing = Example("", None, ("x",), "g")  # BOS alone
    rows = read(lm, placed, labelled(MANY[0], nothing, MANY[4]))
    assert rows.dropped == 1
    assert [example.text for example in rows.labelled.examples] == [MANY[0].text, MANY[4].text]
    assert len(rows.x) == len(rows.y) == rows.latents.shape[0] == len(rows.test) == 2
    np.testing.assert_allclose(rows.x[1], read(lm, placed, labelled(MANY[4])).x[0], rtol=1e-3, atol=1e-4)


def test_an_example_without_any_token_gets_no_padding_for_a_row(
    lm: LanguageModel, placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "bos", None)
    rows = read(lm, placed, labelled(MANY[0], Example("", (0, 0), ("x",), "g"), whole("")))
    assert (len(rows.x), rows.dropped) == (1, 2)


def test_sinks_are_no_rows(lm: LanguageModel, placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [at(f"They spoke of the {word} again.", word) for word in ("dog", "king", "queen", "sea", "house")]
    everything = read(lm, placed, labelled(*examples))
    assert everything.dropped == 0
    monkeypatch.setattr(concepts, "SINK_FACTOR", 1.0)  # every second position is a sink
    some = read(lm, placed, labelled(*examples))
    assert 0 < some.dropped < 5
    assert len(some.x) == 5 - some.dropped
    assert np.linalg.norm(some.x, axis=1).max() < np.linalg.norm(everything.x, axis=1).max()
    monkeypatch.setattr(concepts, "SINK_FACTOR", 0.0)
    with pytest.raises(NotMeasurable, match="no position of its 5 examples"):
        read(lm, placed, labelled(*examples))


def test_reading_leaves_the_coder_as_it_is_and_says_how_far_it_is(lm: LanguageModel, placed: Placed) -> None:
    before = {name: value.clone() for name, value in placed.coder.state_dict().items()}
    placed.coder.train()
    told: list[tuple[int, int]] = []
    read(lm, placed, labelled(*MANY), lambda done, total: told.append((done, total)))
    assert placed.coder.training
    placed.coder.eval()
    assert all(before[name].equal(value) for name, value in placed.coder.state_dict().items())
    assert told[-1] == (len(MANY), len(MANY))


# --- halves and concepts


def test_a_group_is_in_one_half_whatever_its_examples() -> None:
    tests = [is_test(f"word {i}") for i in range(10_000)]
    assert np.mean(tests) == pytest.approx(0.3, abs=0.015)
    held_out = [text for text in map(str, range(20_000)) if is_held_out(text, 0.05)]
    assert np.mean([is_test(text) for text in held_out]) == pytest.approx(0.3, abs=0.05)


def test_rows_of_one_group_are_in_one_half(lm: LanguageModel, placed: Placed) -> None:
    words = ["dog", "cat", "king", "sea", "house", "tree", "stone", "book", "hand", "day"]
    texts = ("I saw the {}", "He spoke of the {} again", "It was my {}")
    rows = read(lm, placed, labelled(*(at(text.format(word), word) for text in texts for word in words)))
    groups = [example.group for example in rows.labelled.examples]
    halves = {half: {group for group, test in zip(groups, rows.test, strict=True) if test == half} for half in (0, 1)}
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(words)
    assert halves[1] == {word for word in words if is_test(word)} != set()


def test_a_path_is_of_all_its_concepts() -> None:
    paths = [("animal", "dog"), ("tool",), ("animal", "cat"), ("animal", "dog")]
    found = LabelledText("s", tuple(Example("t", None, path, "g") for path in paths)).concepts()
    assert {name: np.flatnonzero(labels).tolist() for name, labels in found.items()} == {
        "animal": [0, 2, 3],
        "animal/dog": [0, 3],
        "tool": [1],
        "animal/cat": [2],
    }


# --- the user's own


def write(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_users_labels_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pets.jsonl",
        {"text": "A Dog ran.", "span": [2, 5], "path": ["animal", "dog"]},
        "",
        {"text": "All of it", "label": "thing"},
        {"text": "Café 🙂", "span": [5, 6], "label": "thing", "group": "faces"},
    )
    assert load(file) == LabelledText(
        "pets",
        (
            Example("A Dog ran.", (2, 5), ("animal", "dog"), "dog"),
            Example("All of it", None, ("thing",), "all of it"),
            Example("Café 🙂", (5, 6), ("thing",), "faces"),
        ),
    )


GOOD = {"text": "A dog ran.", "span": [2, 5], "label": "dog"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "not a line of JSON"),
        ("[1]", "expected an object .* found list"),
        ({**GOOD, "spam": [1, 2]}, r"unknown field 'spam' \(did you mean 'span'"),
        ({"label": "dog"}, "field 'text' must be text, found null"),
        ({**GOOD, "text": 3}, "field 'text' must be text, found 3"),
        ({**GOOD, "text": "  "}, "field 'text' must be text"),
        ({**GOOD, "span": [2, 11]}, r"span \[2, 11\] must be .* the text has 10"),
        ({**GOOD, "span": [5, 2]}, "span"),
        ({**GOOD, "span": [-1, 2]}, "span"),
        ({**GOOD, "span": [1, 2]}, "not all spaces"),
        ({**GOOD, "span": [2]}, "span"),
        ({**GOOD, "span": [2.0, 5.0]}, "span"),
        ({**GOOD, "span": "dog"}, "span"),
        ({"text": "A dog ran."}, 'expected either "path"'),
        ({**GOOD, "path": ["dog"]}, 'expected either "path"'),
        ({**GOOD, "label": ["dog"]}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": []}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": "dog"}, "a path is a list of one or more names"),
        ({"text": "A dog", "path": ["dog", 2]}, "a path is a list of one or more names"),
        ({**GOOD, "label": "a/b"}, "holds a \"/\""),
        ({**GOOD, "group": 7}, "field 'group' must be text, found 7"),
    ],
)  # fmt: skip
def test_every_mistake_is_refused_with_its_line(tmp_path: Path, row: object, said: str) -> None:
    file = write(tmp_path / "words.jsonl", GOOD, "", row)
    with pytest.raises(MatryoshkaError, match=rf"words\.jsonl:3: .*{said}"):
        load(file)


def test_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"none\.jsonl: labelled text cannot be read: No such file"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(MatryoshkaError, match="not UTF-8 text"):
        load(tmp_path / "latin.jsonl")
    with pytest.raises(MatryoshkaError, match="at least two concepts, there are none"):
        load(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(MatryoshkaError, match="at least two concepts, all are of 'dog'"):
        load(write(tmp_path / "one.jsonl", GOOD, GOOD))


def test_lone_surrogates_do_not_stop_the_tokenizer(tmp_path: Path, lm: LanguageModel, placed: Placed) -> None:
    file = write(
        tmp_path / "odd.jsonl", r'{"text": "a \ud83d dog", "span": [4, 7], "label": "a"}', {**GOOD, "label": "b"}
    )
    assert len(read(lm, placed, load(file)).x) == 2
