"""Prompts for the first letter: of the model's own words, each a token, none of them in its own examples."""

import re
from collections import Counter

import pytest

from matryoshka.data.tokens import Tokens
from matryoshka.evaluation.absorption import measure
from matryoshka.evaluation.shared.labelled import is_test
from matryoshka.evaluation.shared.labelled_rows import encode_labelled, read_labelled
from matryoshka.evaluation.shared.spelling import MIN_WORDS, SHOTS, first_letters, words
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.hooked import hook_all

LINE = re.compile(r" ([a-z]{3,}) has the first letter: ([A-Z])")


def test_words_are_whole_tokens_with_their_space_in_the_order_of_the_vocabulary() -> None:
    tokens = [b" the", b"the", b" The", b" of", b" stone", b" don't", b" to\xc3\xa9", b"", b" tree", b" the", b" 1st"]
    assert words(tokens) == {"t": [" the", " tree"], "s": [" stone"]}


def test_each_word_is_one_token_at_the_end_of_its_prompt(lm: LanguageModel) -> None:
    labelled = first_letters(lm, 30)
    for example in labelled.examples:
        assert example.span is not None
        start, end = example.span
        assert end == len(example.text)
        assert example.path == (example.text[start], example.text[start:end])
        assert example.group == example.path[1]
        ids = lm.tokenizer(example.text, add_special_tokens=False)["input_ids"]
        assert lm.token_bytes[ids[-1]] == f" {example.group}".encode()


def test_examples_before_it_are_other_words_with_their_letters(lm: LanguageModel) -> None:
    labelled = first_letters(lm, 30)
    known = {example.group for example in labelled.examples}
    shown: Counter[str] = Counter()
    for example in labelled.examples:
        *lines, last = example.text.removeprefix("\n").split("\n")
        assert last == f" {example.group}"
        found = [LINE.fullmatch(line) for line in lines]
        pairs = [(match[1], match[2]) for match in found if match is not None]
        assert len(pairs) == len({word for word, _ in pairs}) == SHOTS
        assert all(word[0].upper() == letter for word, letter in pairs)
        assert example.group not in {word for word, _ in pairs}
        shown.update(word for word, _ in pairs)
    assert shown.keys() <= known
    assert shown.most_common(1)[0][1] < len(labelled.examples) / 4, "drawn anew for each"


def test_letters_weigh_alike_and_words_repeat(lm: LanguageModel) -> None:
    labelled = first_letters(lm, 30)
    counts = Counter(example.path[0] for example in labelled.examples)
    assert set(counts.values()) <= set(range(MIN_WORDS, 31))
    assert counts["s"] == 30
    assert len(counts) >= 15
    groups = [example.group for example in labelled.examples]
    assert len(set(groups)) == len(groups)
    assert 0.2 < sum(map(is_test, groups)) / len(groups) < 0.4
    assert first_letters(lm, 30) == labelled


def test_too_small_a_vocabulary_is_not_measurable(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [f" {letter}{a}{b}".encode() for letter in "abc" for a in "aeiou" for b in "klmnp"] + [b" zoo"]
    monkeypatch.setitem(lm.__dict__, "token_bytes", few)
    message = r"needs 20 words that are single tokens of each of 10 letters; .* so many of 3, and 76 words in all"
    with pytest.raises(NotMeasurable, match=message):
        first_letters(lm)


def test_the_bundled_model_cannot_spell_and_says_so(lm: LanguageModel, tokens: Tokens, trained: Run) -> None:
    [hooked] = hook_all([trained.coder], lm, tokens.windows("held_out"))
    with pytest.raises(
        NotMeasurable, match=r"does not tell these concepts at 1.mlp_out: probes of \d of \d+ .*a 0\.\d\d"
    ):
        measure(encode_labelled(hooked, read_labelled(lm, [hooked], first_letters(lm, 25))), hooked)
