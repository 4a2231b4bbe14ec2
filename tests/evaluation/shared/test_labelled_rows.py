"""Labelled text read through a model and coders: against readings by hand, one example at a time."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from coders import hooked_at, raw_coder

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared import labelled_rows
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText, is_test, load
from matryoshka.evaluation.shared.labelled_rows import LabelledRows, encode_labelled, read_labelled
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.hooked import HookedCoder

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 2)


@pytest.fixture(scope="module")
def hooked(lm: LanguageModel, tokens: Tokens) -> HookedCoder:
    """A coder of two sites."""
    config = CoderConfig(reads=(192,), writes=(192,), d_sae=64, widths=(16, 64), activation={"kind": "topk", "k": 5})
    coder = SparseCoder(config).initialise(0, tied=False)
    text = lm.tokens("In the beginning God created the heaven and the earth, and the earth was without form.")
    found = lm.read(text, [READ, WRITE])
    coder = raw_coder(coder, found[READ][0, 1:], found[WRITE][0, 1:])
    return hooked_at(coder, lm, tokens.windows("held_out"), READ, WRITE)


def read(lm: LanguageModel, hooked: HookedCoder, text: LabelledText, progress: Progress = silent) -> LabelledRows:
    return encode_labelled(hooked, read_labelled(lm, [hooked], text, progress))


def labelled(*examples: LabelledExample) -> LabelledText:
    return LabelledText("words", examples)


def at(text: str, word: str, *path: str) -> LabelledExample:
    start = text.index(word)
    return LabelledExample(text, (start, start + len(word)), path or ("x",), word)


def whole(text: str) -> LabelledExample:
    return LabelledExample(text, None, ("x",), text)


MANY = [
    at("They spoke of the dogs again, and of much else that I forget.", "dogs"),
    at("Dogs.", "Dogs"),
    whole("A short text."),
    whole("And it came to pass in those days, that he went out into a mountain to pray. " * 3),
    at("He saw the ox, the ass and the camel of his neighbour", "camel"),
    whole("Her sister was there."),
]


def test_a_row_is_at_the_last_token_of_its_span(lm: LanguageModel, hooked: HookedCoder) -> None:
    text = "They spoke of the churches again."  # churches is three tokens of this vocabulary
    rows = read(lm, hooked, labelled(at(text, "churches")))
    until = lm.tokens("They spoke of the churches")
    x, y = (lm.read(until, [READ, WRITE])[site][0, -1:] for site in (READ, WRITE))
    np.testing.assert_allclose(rows.x, x.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.y, y.numpy(), rtol=1e-4, atol=1e-5)
    expected = hooked.coder.encode(x).dense()
    np.testing.assert_allclose(rows.latents.toarray(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_latents_times_the_decoder_are_in_raw_units(lm: LanguageModel, hooked: HookedCoder) -> None:
    rows = read(lm, hooked, labelled(*MANY[:1]))
    coder = hooked.coder
    y_hat = coder.decode(coder.encode(torch.from_numpy(rows.x)))[-1]
    raw = rows.latents @ coder.W_dec.detach().numpy() + coder.b_dec.detach().numpy()
    np.testing.assert_allclose(raw, y_hat.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_entries_of_a_row_are_in_order(lm: LanguageModel, hooked: HookedCoder) -> None:
    """scipy's products leave them in disorder, and some of its functions then sort what they were given in place."""
    latents = read(lm, hooked, labelled(*MANY)).latents
    for start, end in pairwise(latents.indptr):
        assert (np.diff(latents.indices[start:end]) > 0).all()


def test_without_a_span_a_row_is_the_mean_over_the_text(lm: LanguageModel, hooked: HookedCoder) -> None:
    text = MANY[3].text
    rows = read(lm, hooked, labelled(whole(text)))
    found = lm.read(lm.tokens(text), [READ, WRITE])
    x, y = found[READ][0, 1:], found[WRITE][0, 1:]  # without BOS
    np.testing.assert_allclose(rows.x[0], x.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.y[0], y.mean(0).numpy(), rtol=1e-4, atol=1e-5)
    expected = hooked.coder.encode(x).dense().mean(0).detach().numpy()
    np.testing.assert_allclose(rows.latents.toarray()[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_other_examples_and_padding_do_not_change_a_row(
    lm: LanguageModel, hooked: HookedCoder, bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bos:  # this model's BOS has the id that padding has, and would hide it
        monkeypatch.setattr(lm, "bos", None)
    together = read(lm, hooked, labelled(*MANY))
    assert [example.text for example in together.labelled.examples] == [example.text for example in MANY]
    assert together.dropped == 0
    for i, example in enumerate(MANY):
        alone = read(lm, hooked, labelled(example))
        np.testing.assert_allclose(together.x[i], alone.x[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.y[i], alone.y[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            together.latents[[i]].toarray(), alone.latents.toarray(), rtol=1e-3, atol=1e-3 * alone.latents.max()
        )


def test_what_follows_the_span_does_not_change_a_row(lm: LanguageModel, hooked: HookedCoder) -> None:
    rows = read(lm, hooked, labelled(at("I saw the dog there", "dog"), at("I saw the dog and all of the rest", "dog")))
    np.testing.assert_allclose(rows.x[0], rows.x[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["naïve", "🙂", "café", "日本", "x🙂y", "end"])
def test_spans_count_characters_not_bytes(lm: LanguageModel, word: str) -> None:
    """The tokens of a prompt end with the byte that the span ends with."""
    example = at("Ünïcode: naïve 🙂 café 日本 x🙂y and no end of it", word)
    (prompt,) = labelled_rows._prompts(lm, labelled(example))
    assert example.span is not None
    spelt = b"".join(lm.token_bytes[token] for token in prompt.ids[1:])
    assert spelt == example.text[: example.span[1]].encode()
    assert prompt.position == len(prompt.ids) - 1


def test_a_long_text_is_cut_so_that_its_span_stays(lm: LanguageModel, hooked: HookedCoder) -> None:
    text = "the river and " * 200 + "the camel went on"
    rows = read(lm, hooked, labelled(at(text, "camel")))
    ids = lm.tokens(text[: text.index("camel") + len("camel")])[0]
    room = lm.info.context - 1
    x = lm.read(torch.cat([ids[:1], ids[-room:]])[None], [READ])[READ][0, -1]
    np.testing.assert_allclose(rows.x[0], x.numpy(), rtol=1e-3, atol=1e-4)


def test_a_long_text_without_a_span_loses_its_end(lm: LanguageModel, hooked: HookedCoder) -> None:
    text = "the river and the sea of his people " * 100
    x = lm.read(lm.tokens(text)[:, : lm.info.context], [READ])[READ][0, 1:]
    rows = read(lm, hooked, labelled(whole(text)))
    np.testing.assert_allclose(rows.x[0], x.mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_a_span_longer_than_the_context_is_refused(lm: LanguageModel, hooked: HookedCoder) -> None:
    text = "the river and " * 200
    with pytest.raises(MatryoshkaError, match=r"words, example 2: its span of \d+ tokens does not fit.*255 tokens"):
        read(lm, hooked, labelled(MANY[0], LabelledExample(text, (0, len(text)), ("x",), "g")))


def test_examples_without_a_position_are_dropped_and_counted(lm: LanguageModel, hooked: HookedCoder) -> None:
    nothing = LabelledExample("", None, ("x",), "g")  # BOS alone
    rows = read(lm, hooked, labelled(MANY[0], nothing, MANY[4]))
    assert rows.dropped == 1
    assert [example.text for example in rows.labelled.examples] == [MANY[0].text, MANY[4].text]
    assert len(rows.x) == len(rows.y) == rows.latents.shape[0] == len(rows.test) == 2
    np.testing.assert_allclose(rows.x[1], read(lm, hooked, labelled(MANY[4])).x[0], rtol=1e-3, atol=1e-4)


def test_an_example_without_any_token_gets_no_padding_for_a_row(
    lm: LanguageModel, hooked: HookedCoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "bos", None)
    rows = read(lm, hooked, labelled(MANY[0], LabelledExample("", (0, 0), ("x",), "g"), whole("")))
    assert (len(rows.x), rows.dropped) == (1, 2)


def test_what_the_coder_s_filter_leaves_out_is_no_row(lm: LanguageModel, hooked: HookedCoder) -> None:
    examples = [at(f"They spoke of the {word} again.", word) for word in ("dog", "king", "queen", "sea", "house")]
    everything = read(lm, hooked, labelled(*examples))
    assert everything.dropped == 0
    norms = np.sort(np.linalg.norm(everything.x, axis=1))

    def with_largest(norm: float) -> HookedCoder:
        return hooked._replace(keep=RowFilter(lm.bos, {READ: norm, WRITE: float("inf")}))

    some = read(lm, with_largest(float(norms[2] + norms[3]) / 2), labelled(*examples))
    assert some.dropped == 2
    assert len(some.x) == 3
    assert np.linalg.norm(some.x, axis=1).max() < norms[3]
    with pytest.raises(NotMeasurable, match="no position of its 5 examples"):
        read(lm, with_largest(0.0), labelled(*examples))


def test_the_model_reads_once_for_coders_of_any_sites(
    lm: LanguageModel, tokens: Tokens, hooked: HookedCoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each gets the rows that it gets alone."""
    windows, text = tokens.windows("held_out"), labelled(*MANY)
    other = hooked_at(hooked.coder, lm, windows, Site("resid_mid", 1), Site("resid_post", 1))
    alone = [read(lm, coder, text) for coder in (hooked, other)]
    passes: list[int] = []
    forward = lm._forward
    monkeypatch.setattr(lm, "_forward", lambda ids: passes.append(len(ids)) or forward(ids))
    together = read_labelled(lm, [hooked, other], text)
    assert sum(passes) == len(MANY)
    for coder, rows in zip((hooked, other), alone, strict=True):
        again = encode_labelled(coder, together)
        assert (again.x == rows.x).all()
        assert (again.y == rows.y).all()
        assert (again.latents != rows.latents).nnz == 0


def test_reading_leaves_the_coder_as_it_is_and_says_how_far_it_is(lm: LanguageModel, hooked: HookedCoder) -> None:
    before = {name: value.clone() for name, value in hooked.coder.state_dict().items()}
    told: list[tuple[int, int]] = []
    read(lm, hooked, labelled(*MANY), lambda done, total: told.append((done, total)))
    assert not hooked.coder.training
    assert all(before[name].equal(value) for name, value in hooked.coder.state_dict().items())
    assert told[-1] == (len(MANY), len(MANY))


def test_rows_of_one_group_are_in_one_half(lm: LanguageModel, hooked: HookedCoder) -> None:
    words = ["dog", "cat", "king", "sea", "house", "tree", "stone", "book", "hand", "day"]
    texts = ("I saw the {}", "He spoke of the {} again", "It was my {}")
    rows = read(lm, hooked, labelled(*(at(text.format(word), word) for text in texts for word in words)))
    groups = [example.group for example in rows.labelled.examples]
    halves = {half: {group for group, test in zip(groups, rows.test, strict=True) if test == half} for half in (0, 1)}
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(words)
    assert halves[1] == {word for word in words if is_test(word)} != set()


def test_lone_surrogates_do_not_stop_the_tokenizer(tmp_path: Path, lm: LanguageModel, hooked: HookedCoder) -> None:
    file = tmp_path / "odd.jsonl"
    rows = [
        r'{"text": "a \ud83d dog", "span": [4, 7], "label": "a"}',
        '{"text": "A dog ran.", "span": [2, 5], "label": "b"}',
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert len(read(lm, hooked, load(file)).x) == 2
