"""The words of a language model's vocabulary, and its activations where it reads them.

    alone   BOS, the word                                                                row: the word's token
    list    "\\n heart has the first letter: H\\n … \\n stone has the first letter: S …"     row: the token of each word

1. words are tokens of three or more small letters, with a space before them or without, in the order of the
   vocabulary, which puts frequent ones first
2. a list is SAEBench's prompt, read at every line from the SHOTS-th on: a causal model's row there is that of a prompt
   that ends with the word. So a row costs some twelve tokens and not ninety, and has SHOTS words with answers before
   it, or up to ROWS - 1 more, drawn at random; every word is in one such row
3. where a tokenizer does not make the one token of a word that its vocabulary has, the word has no row in a list

A model whose texts begin without BOS reads a word alone behind what stands between its documents: at the first
position of all there would be nothing but its attention sink.
"""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from matryoshka.evaluation.shared.labelled import is_test
from matryoshka.evaluation.shared.spelling import SHOTS
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import progress_bar

LINE = "\n{word} has the first letter: {answer}"
ROWS = 20
"""Of a list."""
BATCH_TOKENS = 4096
SEED = 0
"""Of the order of the words in lists."""
PROMPTS = ("alone", "list")
_WORD = re.compile(rb" ?[a-z]{3,}")


class Word(NamedTuple):
    """A token of the vocabulary."""

    text: str
    """With its space, if it has one."""
    token: int

    @property
    def letter(self) -> str:
        return self.text.strip()[0]

    @property
    def is_test(self) -> bool:
        """By the word alone: with a space and without it is on the same side."""
        return is_test(self.text.strip())


class Sequences(NamedTuple):
    """Tokens that go through the model together, and the words whose rows are read there."""

    tokens: Int[Tensor, "batch position"]
    asked: Bool[Tensor, "batch position"]
    words: list[int]
    """Their numbers, in the order of `asked`."""


class SpeltRows(NamedTuple):
    """Activations at resid_post of each layer that was read."""

    word: Int[Tensor, " rows"]
    """Its number."""
    layers: dict[int, Float[Tensor, "rows d_model"]]


def vocabulary_words(vocabulary: Sequence[bytes], count: int) -> list[Word]:
    """The first `count` words of a vocabulary."""
    tokens = {token: number for number, token in reversed(list(enumerate(vocabulary))) if _WORD.fullmatch(token)}
    by_number = sorted(tokens.items(), key=lambda item: item[1])
    return [Word(token.decode(), number) for token, number in by_number[:count]]


def read_words(lm: LanguageModel, words: Sequence[Word], prompt: str, layers: Sequence[int], file: Path) -> SpeltRows:
    """What `file` holds, which is written if it is not there: one pass of the model, whatever the number of layers."""
    if not file.exists():
        sequences = list(_alone(lm, words) if prompt == "alone" else _lists(lm, words))
        numbers = torch.tensor([number for part in sequences for number in part.words])
        with progress_bar(f"reading {len(numbers)} words, {prompt}") as update:
            parts = []
            for done, part in enumerate(sequences):
                activations = lm.read(part.tokens, [Site("resid_post", layer) for layer in layers])
                parts.append({str(site.layer): x[part.asked] for site, x in activations.items()})
                update(done + 1, len(sequences))
        rows = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(rows | {"word": numbers}, file)
    stored = load_file(file)
    word = stored.pop("word")
    return SpeltRows(word, {int(layer): x.float() for layer, x in stored.items()})


def _alone(lm: LanguageModel, words: Sequence[Word]) -> Iterator[Sequences]:
    before = lm.separator if lm.bos is None else lm.bos
    tokens = torch.tensor([[before, word.token] for word in words])
    numbers = torch.arange(len(words))
    for part, its in zip(tokens.split(BATCH_TOKENS // 2), numbers.split(BATCH_TOKENS // 2), strict=True):
        yield Sequences(part, torch.tensor([[False, True]]).expand(part.shape), its.tolist())


def _lists(lm: LanguageModel, words: Sequence[Word]) -> Iterator[Sequences]:
    order = random.Random(SEED).sample(range(len(words)), len(words))
    lists = []
    for start in range(0, len(order), ROWS):
        # those of the list before, of the first list those of the last
        shots = [order[number] for number in range(start - SHOTS, start)]
        lists.append(_list(lm, words, [*shots, *order[start : start + ROWS]]))
    size = max(1, BATCH_TOKENS // max(len(one.tokens[0]) for one in lists))
    for start in range(0, len(lists), size):
        yield _side_by_side(lists[start : start + size])


def _list(lm: LanguageModel, words: Sequence[Word], numbers: Sequence[int]) -> Sequences:
    """One sequence of these words; the rows are those of all but the first SHOTS."""
    text, spans = "", []
    for number in numbers:
        word = words[number].text
        start = len(text) + 1 + word.startswith(" ")
        spans.append((start, start + len(word.strip())))
        text += LINE.format(word=word, answer=words[number].letter.upper())
    output = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    before = [] if lm.bos is None else [lm.bos]
    tokens = torch.tensor([before + output["input_ids"]])
    asked, found = torch.zeros_like(tokens, dtype=torch.bool), []
    position = 0
    for number, (start, end) in list(zip(numbers, spans, strict=True))[SHOTS:]:
        while output["offset_mapping"][position][1] <= start:
            position += 1
        if output["input_ids"][position] == words[number].token and output["offset_mapping"][position][1] == end:
            asked[0, len(before) + position] = True
            found.append(number)
    return Sequences(tokens, asked, found)


def _side_by_side(lists: Sequence[Sequences]) -> Sequences:
    """Padded at the end, where a causal model never looks back from."""
    length = max(one.tokens.shape[1] for one in lists)
    tokens, asked = (
        torch.cat([torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in parts])
        for parts in ([one.tokens for one in lists], [one.asked for one in lists])
    )
    return Sequences(tokens, asked, [number for one in lists for number in one.words])
