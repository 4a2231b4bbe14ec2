"""Words of two tokenisations of one text: against the tokenizer's own offsets, and planted features found again."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from planted import CONTEXT, latents, recorded

from matryoshka.analysis import words
from matryoshka.analysis.across import PARTS, in_stretches
from matryoshka.analysis.correspondence import classes
from matryoshka.analysis.matching import Activity, Living, activity, exchanged, match
from matryoshka.analysis.words import Aligned, Pass, Spelled, aligned, of_letters, pooled, spelled
from matryoshka.data.documents import documents
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.vocabulary import token_bytes
from matryoshka.study.recording import RecordedCoder, Recording

ODD = "naïve\u00a0café 🙂🙂 don't\n\n  “quoted”\u3000日本語 テキスト\tend."


class Tokenised(NamedTuple):
    """A text's tokens, in whole windows."""

    ids: np.ndarray
    documents: np.ndarray
    vocabulary: list[bytes]
    spans: list[tuple[int, int]]
    """Of each token the characters of its document, from the tokenizer itself."""

    @property
    def rows(self) -> int:
        return len(self.ids) - len(self.ids) % CONTEXT

    def recording(self, folder: Path, *coders: np.ndarray, left_out: tuple[np.ndarray, ...] = ()) -> Recording:
        rows = slice(self.rows)
        recorded(folder, *coders, left_out=left_out, tokens=self.ids[rows], documents=self.documents[rows])
        return Recording(folder)

    def spelled(self, recording: Recording) -> Spelled:
        return spelled(recording, self.vocabulary, np.ones(self.documents.max() + 1, bool))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    every = documents(TextConfig())
    return [ODD, *(next(every)[:1200] for _ in range(24))]


@pytest.fixture(scope="module")
def in_pairs(lm: LanguageModel, texts: list[str]) -> Tokenised:
    """By the bundled model's byte-pair encoding."""
    encoded = [lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    ids = np.concatenate([one["input_ids"] for one in encoded])
    numbers = np.repeat(np.arange(len(texts)), [len(one["input_ids"]) for one in encoded])
    return Tokenised(
        ids, numbers, token_bytes(lm.tokenizer), [span for one in encoded for span in one["offset_mapping"]]
    )


@pytest.fixture(scope="module")
def in_characters(texts: list[str]) -> Tokenised:
    alphabet = sorted(set("".join(texts)))
    ids = np.array([alphabet.index(character) for text in texts for character in text])
    numbers = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    spans = [(i, i + 1) for text in texts for i in range(len(text))]
    return Tokenised(ids, numbers, [character.encode() for character in alphabet], spans)


def touched(text: Tokenised, texts: list[str]) -> list[list[int]]:
    """Numbers of the words, over all documents, that each token lies in."""
    numbers, before = [], 0
    for document, content in enumerate(texts):
        found = [match.span() for match in re.finditer(r"\S+", content)]
        for row in np.flatnonzero(text.documents == document):
            start, end = text.spans[row]
            numbers.append([before + i for i, (first, last) in enumerate(found) if start < last and first < end])
        before += len(found)
    return numbers


def test_words_are_those_of_the_tokenizers_own_offsets(
    in_pairs: Tokenised, in_characters: Tokenised, texts: list[str], tmp_path: Path
) -> None:
    for name, text in (("pairs", in_pairs), ("characters", in_characters)):
        spelling = text.spelled(text.recording(tmp_path / name, np.zeros((text.rows, 2))))
        assert all(spelling.words[i] == content.split() for i, content in enumerate(texts[:-1]))
        starts = np.cumsum([0, *map(len, spelling.words.values())])[text.documents[: text.rows]]
        whole = text.documents[: text.rows] < len(texts) - 1  # the last document is cut
        expected = touched(text, texts)
        for row in np.flatnonzero(whole):
            first = starts[row] + spelling.first[row]
            assert list(range(first, first + spelling.touched[row])) == expected[row], text.spans[row]


def activities(folder: Path, *texts: tuple[Tokenised, np.ndarray]) -> tuple[list[Activity], np.ndarray]:
    """The one coder of each text on the words that all have; the words' documents."""
    passes = []
    for number, (text, values) in enumerate(texts):
        recording = text.recording(folder / f"tokens-{number}", values)
        coder = RecordedCoder(recording, "coder-0")
        passes.append(Pass(recording, text.spelled(recording), {f"{number}-coder": coder}))
    common = pooled(passes, aligned([its.spelled for its in passes]), folder / "words")
    coders = [RecordedCoder(common, f"{number}-coder") for number in range(len(texts))]
    rows = np.logical_and.reduce([coder.kept for coder in coders])
    return [activity(coder, rows, Living.of(coder, rows)) for coder in coders], coders[0].documents[rows]


def planted(text: Tokenised, texts: list[str], of_word: np.ndarray, seed: int) -> np.ndarray:
    """Latents that are at one of the tokens of each word what they are said to be at the word, and less elsewhere in
    it; and nothing at spaces."""
    generator = np.random.default_rng(seed)
    values = np.zeros((text.rows, of_word.shape[1]))
    rows_of = [[] for _ in range(len(of_word))]
    for row, numbers in enumerate(touched(text, texts)[: text.rows]):
        for number in numbers:
            rows_of[number].append(row)
    for number, rows in enumerate(rows_of):
        for feature in np.flatnonzero(of_word[number]) if rows else ():
            values[rows, feature] = of_word[number, feature] * 0.4 * (generator.random(len(rows)) < 0.5)
            values[generator.choice(rows), feature] = of_word[number, feature]
    return values


def test_planted_partners_are_recovered_exactly_and_nothing_else(
    in_pairs: Tokenised, in_characters: Tokenised, texts: list[str], tmp_path: Path
) -> None:
    """Twenty features of words, in another order; ten of either coder that have nothing to do with the other's."""
    total = sum(len(text.split()) for text in texts)
    common, permutation = latents(0, total, 20), np.random.default_rng(1).permutation(20)
    a = planted(in_pairs, texts, np.concatenate([common, latents(2, total, 10)], 1), 3)
    b = planted(in_characters, texts, np.concatenate([latents(4, total, 10), common[:, permutation]], 1), 5)
    acts, of_word = activities(tmp_path, (in_pairs, a), (in_characters, b))
    assert acts[0].living.rows >= total - CONTEXT, "all but the end that no window holds"
    of_a, of_b = match(*acts)
    assert of_b.by_pearson[10:].tolist() == of_b.by_jaccard[10:].tolist() == permutation.tolist()
    np.testing.assert_allclose(of_b.pearson[10:], 1, atol=1e-6)
    assert (of_b.jaccard[10:] == 1).all()
    assert classes(of_a, of_b).tolist() == [0] * 20 + [2] * 10
    assert classes(of_b, of_a).tolist() == [2] * 10 + [0] * 20
    null = match(*acts, exchanged(of_word, 0))[0]
    assert (classes(null) == 2).all()
    assert null.pearson.max() < 0.2


def test_the_largest_value_of_a_words_tokens_is_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a token that touches several words it is each one's, and of one that touches none nobody's; a word counts
    where one of its tokens does."""
    monkeypatch.setattr(words, "POOLED", 2)
    vocabulary = [b"", b"ab", b" ", b"cd", b" e f", b"g ", b"h"]
    ids = np.array([0, 1, 3, 2, 4, 5, 6, *[2] * 24, 0, *[3] * 31, 2])  # "abcd  e fg h", "cdcd…"
    numbers = np.repeat([0, 1], [31, 33])
    values = np.zeros((64, 4))
    values[1, 0], values[2, 0], values[4, 1], values[5, 2], values[3, 3], values[40, 3] = 1, 2, 3, 4, 5, 6
    left_out = np.isin(np.arange(64), [0, 6, 31])
    text = Tokenised(ids, numbers, vocabulary, [])
    recording = text.recording(tmp_path / "tokens", values, left_out=(left_out,))
    spelling = text.spelled(recording)
    assert spelling.words == {0: ["abcd", "e", "fg", "h"], 1: ["cd" * 31]}
    common = aligned([spelling, spelling])
    assert common.starts.tolist() == [0, 4, 5]
    its = Pass(recording, spelling, {"coder": RecordedCoder(recording, "coder-0")})
    pool = RecordedCoder(pooled([its], common, tmp_path / "words"), "coder")
    assert pool.kept.tolist() == [True, True, True, False, True]
    assert pool.documents.tolist() == [0, 0, 0, 0, 1]
    dense = [{int(pool.indices[i]): float(pool.values[i]) for i in range(*pool.offsets[n : n + 2])} for n in range(5)]
    assert dense == [{0: 2.0}, {1: 3.0}, {1: 3.0, 2: 4.0}, {}, {3: 6.0}]


def test_what_is_pooled_is_taken_and_a_killed_pooling_goes_on(
    in_pairs: Tokenised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "POOLED", 500)
    recording = in_pairs.recording(tmp_path / "tokens", latents(0, in_pairs.rows, 5))
    its = Pass(recording, in_pairs.spelled(recording), {"coder": RecordedCoder(recording, "coder-0")})
    common = aligned([its.spelled])
    whole = pooled([its], common, tmp_path / "whole")
    made, largest = [], words._largest

    def killed(*arguments: object) -> object:
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt
        return largest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(words, "_largest", killed)
    monkeypatch.setattr(words.Recorder.__init__, "__defaults__", (0.0,))
    with pytest.raises(KeyboardInterrupt):
        pooled([its], common, tmp_path / "killed")
    again = pooled([its], common, tmp_path / "killed")
    blocks = len(made) - 1
    for name in ("tokens", "documents", "coder/counts", "coder/indices", "coder/values"):
        assert np.array_equal(whole.mapped(name), again.mapped(name))
    pooled([its], common, tmp_path / "killed")
    assert len(made) - 1 == blocks > 10


def spelling(*contents: str) -> Spelled:
    none = np.zeros(0, np.int64)
    return Spelled({i: content.split() for i, content in enumerate(contents)}, none, none, np.zeros(0, bool))


def test_a_document_that_is_cut_counts_as_far_as_it_goes_and_one_that_is_spelt_otherwise_not_at_all() -> None:
    whole = spelling("one two three", "Four five", "six", "seven eight")
    other = spelling("one two thr", "four five", "six", "seven")
    common = aligned([whole, other])
    assert isinstance(common, Aligned)
    assert common.documents.tolist() == [0, 2, 3]
    assert np.diff(common.starts).tolist() == [2, 1, 1]
    assert common.otherwise == 1
    with pytest.raises(MatryoshkaError, match="spell 3 of 4 documents in other characters"):
        aligned([whole, spelling("uno dos tres", "Four five", "SIX siete ocho", "cinco seis")])


def test_features_of_punctuation_are_told_from_those_of_words(in_pairs: Tokenised, tmp_path: Path) -> None:
    pieces = [in_pairs.vocabulary[i] for i in in_pairs.ids[: in_pairs.rows]]
    stop, article = (np.array([piece.strip() == word for piece in pieces]) for word in (b".", b"the"))
    recording = in_pairs.recording(tmp_path / "tokens", np.stack([stop, article, stop & False], 1).astype(float))
    letters = of_letters(RecordedCoder(recording, "coder-0"), in_pairs.spelled(recording).letters)
    assert letters[:2].tolist() == [0, 1]
    assert np.isnan(letters[2])


def test_documents_are_taken_in_stretches_all_over_the_text() -> None:
    sizes = np.random.default_rng(0).integers(20, 200, 5000)
    chosen = in_stretches(sizes, 100_000)
    assert sizes[chosen].sum() == pytest.approx(100_000, abs=200)
    assert np.count_nonzero(np.diff(chosen.astype(int)) == 1) >= PARTS - 1
    assert in_stretches(sizes, int(sizes.sum())).all()
    assert in_stretches(np.array([10]), 3).all(), "one at least"


def test_the_windows_of_documents_are_those_that_hold_their_tokens(tokens: Tokens) -> None:
    windows = tokens.windows("held_out")
    of_window = windows.documents(slice(None))
    sizes = windows.document_sizes
    assert sizes.sum() == tokens.meta.tokens["held_out"]
    generator = np.random.default_rng(0)
    for share in (0.02, 0.3):
        chosen = generator.random(len(sizes)) < share
        assert windows.covering(chosen).tolist() == np.flatnonzero(chosen[of_window].any(1)).tolist()
    assert windows.covering(np.ones(3, bool)).tolist() == np.flatnonzero((of_window < 3).any(1)).tolist()
