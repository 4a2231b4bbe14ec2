"""Documents → token ids, in batches of bounded size."""

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from matryoshka.errors import MatryoshkaError

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1024, 2**20
"""Of one call of the tokenizer, which takes some 150 bytes a character. A longer document is tokenised in pieces."""
Encoded = tuple[str, Int[np.ndarray, " tokens"]]
"""A document, and its ids."""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 in hex of the backend's JSON, without the truncation and padding that a call may leave in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MatryoshkaError(f"{type(tokenizer).__name__} is not a fast tokenizer (backed by `tokenizers`)")
    described = json.loads(backend.to_str())
    for passing in ("truncation", "padding"):
        described.pop(passing, None)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Generator[Encoded, None, None]:
    """Each text with its ids, without BOS and the like; texts without a token are left out."""
    for batch in _batches(texts):
        if len(batch) == 1:
            documents = [np.concatenate([_ids([piece], tokenizer)[0] for piece in _pieces(batch[0])])]
        else:
            documents = _ids(batch, tokenizer)
        yield from ((text, ids) for text, ids in zip(batch, documents, strict=True) if len(ids))


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Int[np.ndarray, " tokens"]]:
    output = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # "<|endoftext|>" in a document is text, not the token
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [np.array(ids, dtype=np.uint32) for ids in output["input_ids"]]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts of together at most _BATCH_CHARACTERS, or one that has more."""
    batch, characters = [], 0
    for text in texts:
        if batch and (len(batch) == _BATCH_DOCUMENTS or characters + len(text) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most _BATCH_CHARACTERS, cut before the last space or line's end that is in one."""
    start = 0
    while len(text) - start > _BATCH_CHARACTERS:
        end = start + _BATCH_CHARACTERS
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        cut = end if cut <= start else cut
        yield text[start:cut]
        start = cut
    yield text[start:]
