"""The shipped label sets: that they say what they claim to, and that nothing trivial solves them."""

from collections import Counter

import numpy as np
import pytest

from matryoshka.data.documents import documents
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import is_held_out
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.shared.labels import PASSAGE, shipped
from matryoshka.evaluation.shared.probes import balanced_accuracy, fit

SETS = {each.name: each for each in shipped()}


def words(labelled: LabelledText) -> list[str]:
    return [example.text[slice(*example.span)] if example.span else example.text for example in labelled.examples]


def solved(features: np.ndarray, labels: np.ndarray, groups: list[str]) -> float:
    """Balanced accuracy of a probe of these features, on groups that it is not fitted to: five turns."""
    turn = np.array([sorted(set(groups)).index(group) % 5 for group in groups])
    scores = np.zeros(len(labels))
    for i in range(5):
        scores[turn == i] = fit(features[turn != i], labels[turn != i]).scores(features[turn == i])
    return balanced_accuracy(scores, labels)


def test_there_are_four_sets_of_several_hundred_examples() -> None:
    assert list(SETS) == ["genre", "kind", "number", "tense"]
    assert all(400 < len(labelled.examples) < 1200 for labelled in SETS.values())


@pytest.mark.parametrize("name", ["kind", "number", "tense"])
def test_no_example_is_there_twice_and_none_has_two_labels(name: str) -> None:
    seen = Counter((example.text, example.span) for example in SETS[name].examples)
    assert max(seen.values()) == 1


@pytest.mark.parametrize(("name", "concept"), [("number", "plural"), ("tense", "past")])
def test_forms_differ_in_the_word_alone(name: str, concept: str) -> None:
    """Around the word stand the same texts in both classes, as often, and both forms of a word are of one group."""
    contexts: dict[bool, Counter] = {True: Counter(), False: Counter()}
    groups: dict[bool, set[str]] = {True: set(), False: set()}
    for example in SETS[name].examples:
        assert example.span is not None
        start, end = example.span
        marked = example.path == (concept,)
        contexts[marked][(example.text[:start], example.text[end:])] += 1
        groups[marked].add(example.group)
    assert contexts[True] == contexts[False]
    assert groups[True] == groups[False]


@pytest.mark.parametrize("name", list(SETS))
def test_length_does_not_solve_a_set(name: str) -> None:
    found = words(SETS[name])
    lengths = np.array([[len(word)] for word in found], dtype=float)
    groups = [example.group for example in SETS[name].examples]
    for concept, labels in SETS[name].concepts().items():
        if "/" not in concept:
            assert solved(lengths, labels, groups) < 0.65, concept


@pytest.mark.parametrize(("name", "ending", "least"), [("number", "s", 0.85), ("tense", "ed", 0.75)])
def test_endings_do_not_solve_a_set(name: str, ending: str, least: float) -> None:
    ends = np.array([[word.endswith(ending)] for word in words(SETS[name])], dtype=float)
    labels = next(iter(SETS[name].concepts().values()))
    assert solved(ends, labels, [example.group for example in SETS[name].examples]) < least


def test_every_kind_has_as_many_words_of_each_length() -> None:
    lengths: dict[str, Counter] = {}
    for kind, word in {example.path for example in SETS["kind"].examples}:
        # three letters or four, five, six, seven, more
        lengths.setdefault(kind, Counter())[min(8, max(4, len(word)))] += 1
    assert len(lengths) == 10
    assert all(each == Counter({4: 8, 5: 6, 6: 6, 7: 4, 8: 3}) for each in lengths.values())


def test_passages_are_of_held_out_documents() -> None:
    held_out = [" ".join(text.split()) for text in documents(TextConfig()) if is_held_out(text, TextConfig().held_out)]
    examples = SETS["genre"].examples
    assert Counter(example.path for example in examples) == {("sotu",): 150, ("kjv",): 150, ("austen",): 150}
    for example in examples[::9]:
        assert any(example.text in text for text in held_out)
    assert all(PASSAGE - 25 < len(example.text) <= PASSAGE for example in examples)
