"""Coders of several language models, or of several windows, on the words of one text.

    1. one text      the same documents for all, each tokenised by its model's own vocabulary
    2. one pass      for each model, of the windows that hold the same documents: a recording of its own
    3. words         what the tokens of all spell (`words`): a recording whose places are words, which every pair of
                     coders is matched on, two of one model as well

The documents are taken in PARTS stretches, spread over the held-out text, so that few windows hold others besides.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matryoshka.analysis import words
from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.joint import Joint, refuse_other_text
from matryoshka.analysis.observed import Observed, Pair
from matryoshka.lm.vocabulary import token_bytes
from matryoshka.progress import progress_bar
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.opening import AnotherText, Studied, studied
from matryoshka.study.recording import RecordedCoder, Recording

logger = logging.getLogger("matryoshka")
PARTS = 16


class Of(NamedTuple):
    """Where a coder is: which model's, and its number among that model's coders."""

    model: int
    number: int


def joined(members: Sequence[Run], text: AnotherText | None, tokens: int, recording: Path, device: str) -> Joint:
    """The coders on the same tokens where they are of one language model and its windows, else on the same words."""
    read = {_reading(studied(member.coder, text)) for member in members}
    return (Joint if len(read) == 1 else Across)(members, text, tokens, recording, device)


def _reading(wish: Studied) -> str:
    """The same for coders that read the same tokens of a text."""
    card = wish.card
    return f"{card.model.model_dump_json()} {wish.text.context} {card.prepend_bos}"


class Across(Joint):
    """Coders of several models that are studied together: their places are words, and each model has a Joint."""

    refuse = staticmethod(refuse_other_text)

    def __init__(
        self, members: Sequence[Run], text: AnotherText | None, tokens: int, recording: Path, device: str = "auto"
    ) -> None:
        """`tokens`: how much held-out text to read, as the first coder's model counts it. `recording`: the folder of
        the words' recording; those of the models stand beside it. Raises MatryoshkaError for coders of different texts,
        and for a vocabulary whose tokens are not known to be characters."""
        super().__init__(members, text, tokens, recording, device)
        groups: dict[str, list[int]] = {}
        self._places = []
        for i, wish in enumerate(self.studied):
            group = groups.setdefault(_reading(wish), [])
            self._places.append(Of(list(groups).index(_reading(wish)), len(group)))
            group.append(i)
        self.joints = [
            Joint([members[i] for i in group], text, tokens, self._folder(key), device, choose=self._windows)
            for key, group in groups.items()
        ]
        self.corpus = self.joints[0].corpus
        self._spelt = [_spelt(joint.corpus) for joint in self.joints]

    def _folder(self, reading: str) -> Path:
        """Of the recording of one model."""
        return self._recording.with_name(f"{self._recording.name}-{sha256(reading.encode()).hexdigest()[:8]}")

    @cached_property
    def documents(self) -> Bool[np.ndarray, " documents"]:
        """Which held-out documents are read."""
        sizes = [joint.corpus.windows.document_sizes for joint in self.joints]
        known = min(len(of_model) for of_model in sizes)  # of a text that is read as far as needed one may know more
        return in_stretches(sizes[0][:known], self.corpus.tokens)

    def _windows(self, corpus: Corpus) -> Int[np.ndarray, " n"]:
        return corpus.windows.covering(self.documents)

    @cached_property
    def coders(self) -> list[HookedCoder]:
        return [self.joints[model].coders[number] for model, number in self._places]

    @cached_property
    def spellings(self) -> list[words.Spelled]:
        """Of each model, how the tokens of its recording spell the documents."""
        return [
            words.spelled(joint.recording, spelt, self.documents)
            for joint, spelt in zip(self.joints, self._spelt, strict=True)
        ]

    @cached_property
    def recording(self) -> Recording:
        """Of all coders on the words that all models spell; each model's tokens are read now where they were not."""
        passes = [
            words.Pass(joint.recording, spelling, self._recorded(model))
            for model, (joint, spelling) in enumerate(zip(self.joints, self.spellings, strict=True))
        ]
        common = words.aligned(self.spellings)
        if common.otherwise:
            logger.warning(
                "%d documents are left out: not all models spell them in the same characters", common.otherwise
            )
        with progress_bar("pooling tokens to words") as update:
            return words.pooled(passes, common, self._recording, update)

    def _recorded(self, model: int) -> dict[str, RecordedCoder]:
        """The coders of a model on its own tokens, by their keys among the words."""
        joint = self.joints[model]
        return {_key(model, hooked): joint.recording.of(hooked) for hooked in joint.coders}

    def found(self, name: str, number: int) -> Result:
        """As of a coder that is studied alone with its model's others: on tokens."""
        model, place = self._places[number]
        return self.joints[model].found(name, place)

    def chained(self, matches: Sequence[Result], folder: Path) -> Result:
        """None: words have no layers that follow one another."""
        return Result((), reason="chains go from layer to layer of one language model, on its own tokens")

    def _observed(self, number: int) -> Observed:
        hooked = self.coders[number]
        key = _key(self._places[number].model, hooked)
        return Observed(self.names[number], hooked, RecordedCoder(self.recording, key))

    def _pair(self, first: int, second: int) -> Pair:
        a, b = (self.studied[number].card.model for number in (first, second))
        of_one = (a.name, a.revision) == (b.name, b.revision)
        return (
            super()
            ._pair(first, second)
            ._replace(
                places="words",
                no_cosine=None if of_one else "they are of different language models, which share no basis",
                letters={side: self._letters(number) for side, number in zip("AB", (first, second), strict=True)},
            )
        )

    def _letters(self, number: int) -> Float[np.ndarray, " d_sae"]:
        model, _ = self._places[number]
        recorded = self._recorded(model)[_key(model, self.coders[number])]
        return words.of_letters(recorded, self.spellings[model].letters)

    def _identity(self, version: int, *numbers: int) -> dict[str, Any]:
        """All that a result on these coders depends on, each on its model's tokens, and who spells the words."""
        corpora = [joint.corpus for joint in self.joints]
        return {
            "words": words.VERSION,
            "names": [self.names[i] for i in numbers],
            "texts": [[corpus.windows.tokens.hash, corpus.windows.context] for corpus in corpora],
            "coders": [
                self.joints[model]._identity(version, place) for model, place in (self._places[i] for i in numbers)
            ],
        }


def _key(model: int, hooked: HookedCoder) -> str:
    """Of a coder among the words: one coder may be studied in windows of two lengths."""
    return f"{model}-{hooked.key}"


def _spelt(corpus: Corpus) -> list[bytes]:
    """The bytes that each token stands for in a text: those that frame texts for none."""
    vocabulary = corpus.vocabulary
    spelt = token_bytes(vocabulary.tokenizer)
    for frame in (vocabulary.bos, vocabulary.separator):
        if frame is not None:
            spelt[frame] = b""
    return spelt


def in_stretches(sizes: Int[np.ndarray, " documents"], tokens: int) -> Bool[np.ndarray, " documents"]:
    """Documents of these sizes that hold some `tokens` tokens in all, or all, in PARTS stretches, spread evenly: from
    the beginning of each part of the text on, until there are as many tokens as are its share."""
    starts, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    wanted = tokens * (starts * PARTS // total + 1) / PARTS
    chosen, taken = np.zeros(len(sizes), bool), 0
    for document, size in enumerate(sizes.tolist()):
        if taken < wanted[document]:
            chosen[document], taken = True, taken + size
    return chosen
