"""Label sets for any English model, made offline: what a word's form or meaning, or a passage's style, says.

    genre    whose a passage is: the Bible, presidents' addresses, Austen's novels. Style and matter, of passages of
             equal length out of documents that are held out of training by default
    kind     what sort of thing a noun names (animal, tool, …): its meaning, in sentences that suit any. Every kind has
             as many words of each length, or parts of the body would be told by their short names
    number   plural against singular of the same nouns, after the same words. Many singulars end in s (glass, princess)
             and many plurals do not (men, mice), so that a plural is more than an s
    tense    past against present of the same verbs, after the same words. Most pasts do not end in -ed, and some
             presents do

Each word or document is in one half alone. A word's row is read at its last token, so only what stands before it and
the word itself can tell, and what stands before it is the same in both classes.
"""

import gzip
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from matryoshka.data.documents import BUNDLED
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import is_held_out
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText

PASSAGE = 140
"""Characters, at most, of a passage of whole words."""
PASSAGES = 150
"""Of each genre."""

NOUN_CARRIERS = (
    "They spoke of the {} again.",
    "He had thought about the other {} before.",
    "It came from my {} at last.",
)
VERB_CARRIERS = ("They {} as others do.", "In that place the people {} when it is time.", "We all {} there.")
KIND_CARRIERS = ("They spoke of the {} again.", "She thought about the {} before she answered.")


def shipped() -> list[LabelledText]:
    """The four sets of the module's docstring."""
    return [
        LabelledText("genre", tuple(_passages())),
        LabelledText("kind", tuple(_kinds())),
        LabelledText("number", tuple(_forms("number.txt", NOUN_CARRIERS, ("singular", "plural")))),
        LabelledText("tense", tuple(_forms("tense.txt", VERB_CARRIERS, ("present", "past")))),
    ]


def _kinds() -> Iterator[LabelledExample]:
    for kind, words in (line.split(": ") for line in _lines("kind.txt")):
        for word in words.split():
            yield from _in(KIND_CARRIERS, word, (kind, word), word)


def _forms(file: str, carriers: tuple[str, ...], labels: tuple[str, str]) -> Iterator[LabelledExample]:
    """The second form of each word first: the concept that is marked (plural, past) is the one that is probed for."""
    for line in _lines(file):
        lemma, marked = line.split()
        yield from _in(carriers, marked, labels[1:], lemma)
        yield from _in(carriers, lemma, labels[:1], lemma)


def _in(carriers: tuple[str, ...], word: str, path: tuple[str, ...], group: str) -> Iterator[LabelledExample]:
    for carrier in carriers:
        start = carrier.index("{}")
        yield LabelledExample(carrier.format(word), (start, start + len(word)), path, group)


def _passages() -> Iterator[LabelledExample]:
    """Evenly spread over the bundled held-out documents of each source."""
    by_source: dict[str, list[LabelledExample]] = {}
    with gzip.open(BUNDLED, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if is_held_out(row["text"], TextConfig().held_out):
                source, group = row["source"], f"{row['source']}: {row['title']}"
                passages = textwrap.wrap(row["text"], PASSAGE)[:-1]
                by_source.setdefault(source, []).extend(
                    LabelledExample(passage, None, (source,), group) for passage in passages
                )
    for passages in by_source.values():
        count = min(PASSAGES, len(passages))
        yield from (passages[i * len(passages) // count] for i in range(count))


def _lines(file: str) -> Iterable[str]:
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
