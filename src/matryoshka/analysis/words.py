"""The words of a text, which tokens of any vocabulary spell: on them coders of different language models are compared.

    word     a maximal run of characters other than white space (`str.isspace`), within one document
    token    touches every word that a byte of it lies in: none where it is nothing but white space, mostly one
    latent   its value at a word is the largest that it has on a row whose token touches the word
    row      a word counts for a coder if one of its tokens does: BOS, first tokens and sinks are no rows

1. `spelled`: from the bytes of a recording's tokens the words of each document, and those that each token touches
2. `aligned`: the words that several recordings of one text have in common, document by document. The last document of
   either may be cut; one that is spelt otherwise (by a tokenizer that changes characters) is left out, and counted
3. `pooled`: the recordings' latents on these words, as one recording whose places are words
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from matryoshka.coder.latents import Latents, Pattern
from matryoshka.errors import MatryoshkaError
from matryoshka.progress import Progress, silent
from matryoshka.study.recorder import CoderRows, Recorder
from matryoshka.study.recording import Head, RecordedCoder, Recording, read_head

VERSION = 1
"""Raised whenever the same recordings would give other words or values."""
POOLED = 1 << 15
"""Words that are pooled at once, in whole documents."""
LEAST_ALIKE = 0.5
"""Share of the documents that have to be spelt alike."""


class Spelled(NamedTuple):
    """A recording's places, as parts of words."""

    words: Mapping[int, list[str]]
    """Of each document, by its number."""
    first: Int[np.ndarray, " places"]
    """Number within its document of the first word that each place's token touches."""
    touched: Int[np.ndarray, " places"]
    """How many words it touches."""
    letters: Bool[np.ndarray, " places"]
    """Whether there is a letter or a digit among its characters."""


class Aligned(NamedTuple):
    """The words that several recordings have in common."""

    documents: Int[np.ndarray, " documents"]
    """Ascending."""
    starts: Int[np.ndarray, " documents_plus_1"]
    """The words of document i are numbered `starts[i]` to `starts[i + 1]`."""
    hashes: Int[np.ndarray, " words"]
    """CRC-32 of each word."""
    otherwise: int
    """Documents that are spelt otherwise by one of the vocabularies."""


class Pass(NamedTuple):
    """What one language model's pass over the text has left: its recording, how that is spelt, and its coders."""

    recording: Recording
    spelled: Spelled
    coders: Mapping[str, RecordedCoder]
    """By the keys that they have among the words."""


def spelled(recording: Recording, vocabulary: Sequence[bytes], documents: Bool[np.ndarray, " documents"]) -> Spelled:
    """The words of these documents. `vocabulary`: the bytes that each id stands for, none for BOS and separators."""
    of_place, places = np.asarray(recording.documents), len(recording.documents)
    first, count, letters = np.zeros(places, np.int64), np.zeros(places, np.int64), np.zeros(places, bool)
    edges = np.flatnonzero(np.diff(of_place, prepend=-1, append=-1))
    words = {}
    for start, end in pairwise(edges.tolist()):
        document = of_place[start]
        if document < len(documents) and documents[document]:
            pieces = [vocabulary[number] for number in recording.tokens[start:end].tolist()]
            words[document], first[start:end], count[start:end], letters[start:end] = _spell(pieces)
    return Spelled(words, first, count, letters)


def _spell(
    pieces: Sequence[bytes],
) -> tuple[list[str], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The words of tokens with these bytes; of each token the first word that it touches, how many, and whether it has
    letters. Bytes that are no UTF-8 are characters of their own."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    distinct, which = np.unique(codes, return_inverse=True)
    space, letter, size = (
        np.array([of(chr(code)) for code in distinct], kind)[which]
        for of, kind in ((str.isspace, bool), (str.isalnum, bool), (_bytes, np.int64))
    )
    word = np.where(space, -1, np.cumsum(~space & np.concatenate([[True], space[:-1]])) - 1)
    of_byte, letter_of_byte = np.repeat(word, size), np.repeat(letter, size)
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    some = lengths > 0
    starts = (np.cumsum(lengths) - lengths)[some]
    first, count, letters = (
        np.zeros(len(pieces), np.int64),
        np.zeros(len(pieces), np.int64),
        np.zeros(len(pieces), bool),
    )
    if len(starts):
        last = np.maximum.reduceat(of_byte, starts)
        lowest = np.minimum.reduceat(np.where(of_byte < 0, len(of_byte), of_byte), starts)
        first[some], count[some] = np.where(last < 0, 0, lowest), np.where(last < 0, 0, last - lowest + 1)
        letters[some] = np.logical_or.reduceat(letter_of_byte, starts)
    return text.split(), first, count, letters


def _bytes(character: str) -> int:
    return len(character.encode("utf-8", "surrogateescape"))


def aligned(several: Sequence[Spelled]) -> Aligned:
    """The words that all have in common. Raises MatryoshkaError where less than LEAST_ALIKE of the documents are spelt
    alike: then it is not the same text."""
    documents, lengths, hashes, otherwise = [], [], [], 0
    there = sorted(set.intersection(*(set(spelling.words) for spelling in several)))
    for document in there:
        words = [spelling.words[document] for spelling in several]
        shortest = min(words, key=len)
        alike = min(_common(shortest, other) for other in words)
        if shortest and alike < max(1, len(shortest) - 1):  # the last word of one that is cut may be cut itself
            otherwise += 1
        elif alike:
            documents.append(document)
            lengths.append(alike)
            hashes += [crc32(word.encode("utf-8", "surrogateescape")) for word in shortest[:alike]]
    if otherwise > (1 - LEAST_ALIKE) * len(there) or not documents:
        raise MatryoshkaError(
            f"the language models' tokens spell {otherwise} of {len(there)} documents in other characters: features are"
            " compared on words that both can spell"
        )
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Aligned(np.array(documents, np.int64), starts, np.array(hashes, np.int64), otherwise)


def _common(shorter: list[str], longer: list[str]) -> int:
    """How many words both begin with."""
    if longer[: len(shorter)] == shorter:
        return len(shorter)
    return next(i for i, word in enumerate(shorter) if word != longer[i])


def pooled(passes: Sequence[Pass], words: Aligned, folder: Path, progress: Progress = silent) -> Recording:
    """The coders' latents on these words, a word a place, in `folder`; made now where they are not there. `progress`
    counts documents."""
    sizes = {key: coder.d_sae for read in passes for key, coder in read.coders.items()}
    of = {"words": VERSION, "of": [read.recording.head.of for read in passes]}
    asked = Head(of=of, context=1, total=len(words.hashes), coders=sizes, columns={})
    present = read_head(folder)
    if present is None or not present.holds(asked):
        recorder = Recorder(folder, asked)
        try:
            done = int(np.searchsorted(words.starts, recorder.windows))
            for documents in _blocks(words, done):
                _append(recorder, passes, words, documents)
                progress(documents.stop, len(words.documents))
            recorder.commit()
        finally:
            recorder.close()
    return Recording(folder)


def _blocks(words: Aligned, start: int) -> Iterator[slice]:
    """Documents of some POOLED words, at least one."""
    while start < len(words.documents):
        end = int(np.searchsorted(words.starts, words.starts[start] + POOLED, side="right")) - 1
        yield slice(start, end := max(end, start + 1))
        start = end


def _append(recorder: Recorder, passes: Sequence[Pass], words: Aligned, documents: slice) -> None:
    numbers = slice(*words.starts[[documents.start, documents.stop]].tolist())
    made = {}
    for read in passes:
        places, first, count = _touched(read, words, documents)
        for key, coder in read.coders.items():
            made[key] = _largest(coder, places, first, count, numbers.stop - numbers.start)
    of_word = np.repeat(words.documents[documents], np.diff(words.starts[documents.start : documents.stop + 1]))
    recorder.append(words.hashes[numbers, None], of_word[:, None], made)


def _touched(
    read: Pass, words: Aligned, documents: slice
) -> tuple[slice, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The places of these documents; of each the first word that it touches, counted from the first of these documents,
    and how many, of those that are aligned."""
    of_place, chosen = np.asarray(read.recording.documents), words.documents[documents]
    places = slice(int(np.searchsorted(of_place, chosen[0])), int(np.searchsorted(of_place, chosen[-1], side="right")))
    number = np.searchsorted(chosen, of_place[places]).clip(max=len(chosen) - 1)
    starts = words.starts[documents.start : documents.stop + 1]
    first = read.spelled.first[places]
    room = np.where(chosen[number] == of_place[places], np.diff(starts)[number] - first, 0)
    return places, starts[number] - starts[0] + first, read.spelled.touched[places].clip(0, room.clip(0))


def _largest(
    coder: RecordedCoder, places: slice, first: Int[np.ndarray, " n"], count: Int[np.ndarray, " n"], size: int
) -> CoderRows:
    """Of the coder's latents at these places the largest values on each of `size` words."""
    kept = np.zeros(size, bool)
    kept[_each(first, np.where(coder.kept[places], count, 0))[1]] = True
    active = np.maximum(coder.counts[places], 0)
    entries = slice(coder.offsets[places.start], coder.offsets[places.stop])
    entry, word = _each(np.repeat(first, active), np.repeat(count, active))
    keys = word * coder.d_sae + coder.indices[entries][entry]
    order = np.argsort(keys, kind="stable")
    distinct = np.flatnonzero(np.diff(keys[order], prepend=-1))
    values = coder.values[entries][entry][order]
    largest = np.maximum.reduceat(values, distinct) if len(distinct) else values
    row, latent = np.divmod(keys[order][distinct], coder.d_sae)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=size)[kept])])
    pattern = Pattern(torch.from_numpy(latent), torch.from_numpy(offsets), coder.d_sae)
    none = np.zeros((size, 1), bool)
    return CoderRows(kept[:, None], none, Latents(pattern, torch.from_numpy(largest)))


def _each(first: Int[np.ndarray, " n"], count: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """(i, word) for every word from first[i] on, count[i] of them."""
    number = np.repeat(np.arange(len(first)), count)
    return number, first[number] + np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)


def of_letters(coder: RecordedCoder, letters: Bool[np.ndarray, " places"]) -> Float[np.ndarray, " d_sae"]:
    """Of each latent the share of its rows whose tokens have a letter or a digit; NaN of a silent one."""
    lettered = np.repeat(letters, np.maximum(coder.counts, 0))
    total, own = (np.bincount(indices, minlength=coder.d_sae) for indices in (coder.indices, coder.indices[lettered]))
    with np.errstate(invalid="ignore"):
        return own / total
