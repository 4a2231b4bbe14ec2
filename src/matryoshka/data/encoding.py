"""Documents → token ids, in batches of bounded size."""

import hashlib
import json
import time
from collections.abc import Generator, Iterable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from matryoshka.errors import MatryoshkaError

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1024, 2**20  # of one call of the tokenizer: bounds the memory


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 in hex of the backend's JSON, without the truncation and padding that a call may leave in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MatryoshkaError(f"{type(tokenizer).__name__} is not a fast tokenizer (backed by `tokenizers`)")
    described = json.loads(backend.to_str())
    for passing in ("truncation", "padding"):
        described.pop(passing, None)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[int]]]:
    """Each text with its ids, without BOS and the like; texts without a token are left out."""
    for batch in _batches(texts):
        output = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,  # "<|endoftext|>" in a document is text, not the token
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        yield from ((text, ids) for text, ids in zip(batch, output["input_ids"], strict=True) if ids)


def with_progress(
    pairs: Iterable[tuple[str, list[int]]], progress: bool
) -> Generator[tuple[str, list[int]], None, None]:
    """Passes texts and ids on, and shows their number and tokens a second on a terminal if `progress`."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal), transient=True) as bar:
        task = bar.add_task("tokenising")
        started, tokens = time.monotonic(), 0
        for number, (text, ids) in enumerate(pairs, 1):
            yield text, ids
            tokens += len(ids)
            if number % 100 == 0:
                rate = tokens / (time.monotonic() - started)
                shown = f"tokenising: {number:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s"
                bar.update(task, description=shown)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
