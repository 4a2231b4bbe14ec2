"""Labelled text: which concept is meant where, read through a language model and a coder.

    {"text": "They fed the dog at noon.", "span": [13, 16], "path": ["animal", "dog"]}      one line an example

1. an example's tokens stand behind BOS, as the text of training does
2. with a span, its row is the activation at the last token that holds any of the span: a causal model has read the
   whole of it there; without, the mean over all positions of the text, of activations and latents alike
3. positions that training leaves out (BOS, a first token, sinks) count in neither
4. a hash of an example's group alone decides whether it is a test row: no word or document is in both halves
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.latents import Latents
from matryoshka.data.activations import SINK_FACTOR, RowFilter
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.scores import NotMeasurable
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress, silent

TEST_SHARE = 0.3
BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding included."""
SINK_SAMPLE = 256
"""Examples whose norms say what an ordinary norm is."""
FIELDS = ("text", "span", "path", "label", "group")


class Example(NamedTuple):
    """One labelled text, or one labelled place in it."""

    text: str
    span: tuple[int, int] | None
    """Characters [start, end); None: the whole text."""
    path: tuple[str, ...]
    """From the general concept to the particular one: ("animal", "dog")."""
    group: str
    """What must not lie in both halves: the word or the document."""


@dataclass(frozen=True)
class LabelledText:
    """A set of examples; concepts of different sets are never set against each other."""

    name: str
    examples: tuple[Example, ...]

    def concepts(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """The examples that each concept holds of, general concepts of a path included ("animal", "animal/dog")."""
        holds: dict[str, Bool[np.ndarray, " n"]] = {}
        for i, example in enumerate(self.examples):
            for depth in range(1, len(example.path) + 1):
                name = "/".join(example.path[:depth])
                holds.setdefault(name, np.zeros(len(self.examples), dtype=bool))[i] = True
        return holds


class Rows(NamedTuple):
    """A labelled text read through the language model and the coder; row i is example i."""

    labelled: LabelledText
    """Without the examples that no kept position remained of."""
    x: Float[np.ndarray, "n d_in"]
    """Raw activations at the site that the coder reads, float32."""
    y: Float[np.ndarray, "n d_out"]
    """And at the site that it writes."""
    latents: sp.csr_array
    """[n, d_sae], of the folded coder, the entries of a row in order: times its W_dec they are in the raw units of
    y."""
    test: Bool[np.ndarray, " n"]
    dropped: int
    """Examples that no kept position remained of."""


def is_test(group: str) -> bool:
    """Whether all examples of this group are test rows: TEST_SHARE of the groups are."""
    # not the hash that holds documents out of training, or all of those would fall on one side
    digest = hashlib.sha256(f"test {group}".encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


# --- the user's own


def load(file: Path) -> LabelledText:
    """The examples of a JSONL file, named after it: {"text", "span"?, "path" or "label", "group"?} a line.

    `label` is a path of one concept. Without `group` it is the span's text, or the whole text where there is no span.
    Raises MatryoshkaError with file and line for whatever is not of that form.
    """
    file = Path(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise MatryoshkaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise MatryoshkaError(f"{file}: labelled text cannot be read: {error.strerror}") from error
    examples = tuple(_example(line, f"{file}:{i}") for i, line in enumerate(lines, 1) if line.strip())
    if len(found := {example.path[0] for example in examples}) < 2:
        what = f"all are of {found.pop()!r}" if found else "there are none"
        raise MatryoshkaError(f"{file}: labelled text needs examples of at least two concepts, {what}")
    return LabelledText(file.stem, examples)


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise MatryoshkaError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(row, dict):
        raise MatryoshkaError(f'{where}: expected an object {{"text", "path", …}}, found {type(row).__name__}')
    for field in row:
        if field not in FIELDS:
            raise MatryoshkaError(f"{where}: unknown field {field!r}{did_you_mean(field, FIELDS)}")
    text = _text(row, "text", where)
    span = _span(row["span"], text, where) if row.get("span") is not None else None
    subject = text if span is None else text[slice(*span)]
    group = _text(row, "group", where) if row.get("group") is not None else subject.casefold()
    return Example(text, span, _path(row, where), group)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    """Lone surrogates, which tokenizers refuse, become `?`, as in the text of training."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise MatryoshkaError(f"{where}: field {field!r} must be text, found {json.dumps(value)}")
    return value.encode("utf-8", errors="replace").decode("utf-8")


def _span(value: object, text: str, where: str) -> tuple[int, int]:
    match value:
        case [int(start), int(end)] if 0 <= start < end <= len(text) and text[start:end].strip():
            return start, end
    raise MatryoshkaError(
        f"{where}: span {json.dumps(value)} must be [start, end), characters of the text that are not all spaces;"
        f" the text has {len(text)}"
    )


def _path(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if (row.get("path") is None) == (row.get("label") is None):
        raise MatryoshkaError(f'{where}: expected either "path": ["animal", "dog"] or "label": "animal"')
    path = [row["label"]] if row.get("path") is None else row["path"]
    if not isinstance(path, list) or not path or not all(isinstance(part, str) and part.strip() for part in path):
        raise MatryoshkaError(f"{where}: a path is a list of one or more names, found {json.dumps(path)}")
    if wrong := [part for part in path if "/" in part]:
        raise MatryoshkaError(f'{where}: {wrong[0]!r} holds a "/", which stands between the concepts of a path')
    return tuple(path)


# --- through the language model and the coder


class _Prompt(NamedTuple):
    """The tokens of one example, and the position that its row is at (None: all of them)."""

    ids: list[int]
    position: int | None


class Activations(NamedTuple):
    """The positions of a labelled text that count, as the language model has them: whatever coder reads them."""

    labelled: LabelledText
    """Without the examples that no kept position remained of."""
    x: Float[Tensor, "positions d_in"]
    y: Float[Tensor, "positions d_out"]
    mean: sp.csr_array
    """[n, positions]: takes the mean of each example's."""
    dropped: int


def read(lm: LanguageModel, placed: Placed, labelled: LabelledText, progress: Progress = silent) -> Rows:
    """All examples through the language model and the coder: `activations`, then `encode`."""
    return encode(placed.coder, activations(lm, placed.read, placed.write, labelled, progress))


def activations(
    lm: LanguageModel, read: Site, write: Site, labelled: LabelledText, progress: Progress = silent
) -> Activations:
    """All examples, shortest first, in batches; `progress(done, total)` counts them.

    A text longer than the model's context loses its end where it has no span, otherwise its beginning. Raises
    MatryoshkaError for a span longer than the context, NotMeasurable if no example is left.
    """
    prompts = _prompts(lm, labelled)
    keep = _row_filter(lm, [read, write], prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    xs, ys, counts = [], [], []
    for batch in _batches(order, prompts):
        padded = _padded([prompts[i] for i in batch], lm.device)
        found = lm.read(padded.tokens, [read, write])
        kept = padded.wanted & keep(padded.tokens, found)
        xs.append(found[read][kept])
        ys.append(found[write][kept])
        counts += kept.sum(1).tolist()
        progress(len(counts), len(prompts))
    mean = _means(np.array(counts))[np.argsort(order)]
    left = np.diff(mean.indptr) > 0
    if not left.any():
        raise NotMeasurable(f"{labelled.name}: no position of its {len(left)} examples is one that the coder is for")
    examples = tuple(example for example, kept in zip(labelled.examples, left, strict=True) if kept)
    return Activations(
        replace(labelled, examples=examples), torch.cat(xs), torch.cat(ys), mean[left], int((~left).sum())
    )


@torch.no_grad()
def encode(coder: SparseCoder, found: Activations) -> Rows:
    """What the coder makes of these activations."""
    folded = coder.fold().eval()
    latents = sp.vstack([as_csr(folded.encode(x)) for x in found.x.split(BATCH_TOKENS)], format="csr")
    x, y = (each.float().cpu().numpy() for each in (found.x, found.y))
    test = np.array([is_test(example.group) for example in found.labelled.examples])
    means = sp.csr_array(found.mean @ latents)
    means.sort_indices()
    return Rows(found.labelled, found.mean @ x, found.mean @ y, means, test, found.dropped)


def _prompts(lm: LanguageModel, labelled: LabelledText) -> list[_Prompt]:
    if not getattr(lm.tokenizer, "is_fast", False):
        raise MatryoshkaError(f"tokenizer {type(lm.tokenizer).__name__}: only fast ones say where their tokens lie")
    output = lm.tokenizer(
        [example.text for example in labelled.examples],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    before = [] if lm.bos is None else [lm.bos]
    room = lm.info.context - len(before)
    prompts = []
    rows = zip(labelled.examples, output["input_ids"], output["offset_mapping"], strict=True)
    for number, (example, ids, offsets) in enumerate(rows, 1):
        if example.span is None:
            prompts.append(_Prompt(before + ids[:room], None))
            continue
        holding = _tokens_of(example.span, offsets)
        if len(holding) > room:
            raise MatryoshkaError(
                f"{labelled.name}, example {number}: its span of {len(holding)} tokens does not fit into the context"
                f" of {lm.info.name}, {room} tokens"
            )
        # what follows the span cannot reach its row
        ids = before + ids[: holding[-1] + 1][-room:] if holding else before
        prompts.append(_Prompt(ids, len(ids) - 1))
    return prompts


def _tokens_of(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> range:
    """The tokens that hold a character of the span, from the first to the last of them."""
    start, end = span
    inside = [i for i, (first, last) in enumerate(offsets) if max(first, start) < min(last, end)]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def _batches(order: Iterable[int], prompts: Sequence[_Prompt]) -> Iterator[list[int]]:
    """Numbers of prompts in this order, ascending in length, as many at once as BATCH_TOKENS allow."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(prompts[i].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class _Padded(NamedTuple):
    """Prompts side by side. Padding stands behind them, where a causal model never looks back from."""

    tokens: Int[Tensor, "batch position"]
    real: Bool[Tensor, "batch position"]
    wanted: Bool[Tensor, "batch position"]
    """The positions that make up each example's row."""


def _padded(prompts: Sequence[_Prompt], device: torch.device) -> _Padded:
    longest = max(1, *(len(prompt.ids) for prompt in prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    real, wanted = torch.zeros(2, len(prompts), longest, dtype=torch.bool)
    for i, (ids, position) in enumerate(prompts):
        tokens[i, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        real[i, : len(ids)] = True
        wanted[i, slice(0, len(ids)) if position is None else position] = True
    return _Padded(tokens.to(device), real.to(device), (wanted & real).to(device))


def _row_filter(lm: LanguageModel, sites: Sequence[Site], prompts: Sequence[_Prompt]) -> RowFilter:
    """Which positions count, by the norms of some of these texts."""
    norms: dict[Site, list[Tensor]] = {site: [] for site in sites}
    some = sorted(range(0, len(prompts), -(-len(prompts) // SINK_SAMPLE)), key=lambda i: len(prompts[i].ids))
    for batch in _batches(some, prompts):
        padded = _padded([prompts[i] for i in batch], lm.device)
        for site, found in lm.read(padded.tokens, sites).items():
            norms[site].append(found[:, 1:][padded.real[:, 1:]].float().norm(dim=-1))
    return RowFilter(lm.bos, {site: SINK_FACTOR * torch.cat(each).median().item() for site, each in norms.items()})


def _means(counts: Int[np.ndarray, " batch"]) -> sp.csr_array:
    """[batch, rows]: takes the mean of the first counts[0] rows, of the next counts[1] …"""
    offsets = np.concatenate([[0], counts.cumsum()])
    weights = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
    return sp.csr_array((weights, np.arange(offsets[-1]), offsets), shape=(len(counts), int(offsets[-1])))


def as_csr(latents: Latents) -> sp.csr_array:
    """The active latents of each row, float32."""
    values, indices, offsets = (
        each.detach().cpu().numpy() for each in (latents.values.float(), latents.indices, latents.offsets)
    )
    found = sp.csr_array((values, indices, offsets), shape=(latents.pattern.batch, latents.d_sae))
    found.eliminate_zeros()
    return found
