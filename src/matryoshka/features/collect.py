"""All features of a coder from one pass over text it was not trained on.

    1. record      the sparse latents of every window, on disk          (features/recording.py)
    2. summarise   statistics and examples, exactly, block by block     (features/summary.py)
    3. relate      cosine and co-active neighbours, parents; the direct effect on the logits
    4. store       one database file                                    (features/store.py)

The coder is frozen, and folded first: activations are in raw units, so that activation × W_dec row is what the feature
adds to the reconstruction. Killed in step 1, the next call goes on; killed later, it starts step 2 again.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.activations import SINK_FACTOR, RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.reconstruction import READ_BATCH, Placed, window_count
from matryoshka.features import recording as recordings
from matryoshka.features.feature import DENSE, FLAGS, REDUNDANT, SINGLE_TOKEN, TokenShare, summarise
from matryoshka.features.recording import Progress, Recording
from matryoshka.features.relations import BLOCK_SCORES, Partners, coactive, cosine_neighbours
from matryoshka.features.store import About, FeatureStore, Row, Writer
from matryoshka.features.summary import BLOCK_ENTRIES, Summary, Wanted
from matryoshka.features.summary import summarise as summaries
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.unembed import direct_logits, typical_scale
from matryoshka.lm.vocabulary import pieces, token_bytes

LEFT_OUT = (
    "BOS, the first token of each window, and attention sinks"
    f" (activations whose norm is more than {SINK_FACTOR:.0f} times the median)"
)
EFFECTS = 10
"""Tokens with the greatest direct effect, and as many with the least."""
LOGIT_BLOCK = 16_000_000
"""Logits in memory at once."""


class Share(NamedTuple):
    """Which share of the windows a process reads, of how many."""

    rank: int = 0
    of: int = 1


class Needs(NamedTuple):
    """Upper bounds in bytes, beside the language model and the coder."""

    memory: int
    disk: int
    """Until the store is written; the store itself is smaller."""


def needs(coder: SparseCoder, windows: Windows, tokens: int) -> Needs:
    """What a collection takes."""
    count = window_count(windows, tokens) * windows.context
    memory = 110 * BLOCK_ENTRIES + 60 * BLOCK_SCORES + 30 * count + 1000 * coder.config.d_sae
    return Needs(memory, recordings.bytes_needed(count, 1.5 * coder.config.k, coder.config.d_sae))


def record_share(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    tokens: int,
    folder: Path,
    share: Share = Share(),  # noqa: B008
    progress: Progress = lambda done, total: None,
) -> None:
    """Record a share of the windows that hold `tokens` tokens, spread evenly over the split, into `folder`; all shares
    together are the same windows in the same order, whatever their number."""
    placed = placed._replace(coder=placed.coder.fold())
    count = window_count(windows, tokens)
    needed = needs(placed.coder, windows, tokens).disk // share.of
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < needed and not folder.exists():
        raise MatryoshkaError(
            f"{folder.parent}: has {free / 1e9:.1f} GB free, the latents of {count * windows.context:,} tokens may take"
            f" {needed / 1e9:.1f} GB; give fewer --tokens"
        )
    batches = -(-count // READ_BATCH)
    first, end = (min(count, part * batches // share.of * READ_BATCH) for part in (share.rank, share.rank + 1))
    numbers = (np.arange(count) * len(windows) // count)[first:end]
    identity = {
        "coder": fingerprint(placed.coder),
        "model": [lm.info.name, lm.info.revision, str(lm.dtype)],
        "text": windows.tokens.hash,
        "split": windows.split,
        "context": windows.context,
    }
    recordings.record(lm, windows, placed, numbers, folder, identity, progress)


def collect(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    folder: Path,
    path: Path,
    text: str,
    wanted: Wanted = Wanted(),  # noqa: B008
    annotations: Callable[[], Mapping[int, tuple[str, str]]] = dict,
    progress: Progress = lambda done, total: None,
) -> FeatureStore:
    """Make the store at `path` of the recording in `folder`, which is deleted then.

    `windows`: those that were recorded. `text`: their source, in words. `annotations`: labels and notes to take over,
    asked for at the end. `progress(done, total)` counts features.
    """
    coder = placed.coder.fold()
    recording = Recording(folder, windows.context, coder.config.d_sae)
    if not recording.rows:
        raise MatryoshkaError(f"{text}: no position counts in {len(recording.tokens):,} tokens")
    vocabulary = token_bytes(lm.tokenizer)
    writer = Writer(path, vocabulary)
    try:
        numbers = _fill(writer, recording, coder, placed, lm, windows, vocabulary, wanted, progress)
        spread = _spread(recording, windows)
        tokens = recording.tokens.reshape(-1, windows.context)
        writer.windows((int(spread[i]), tokens[i]) for i in numbers)
        config = coder.config
        about = About(
            coder=fingerprint(coder),
            model=lm.info.name,
            read=str(placed.read),
            write=str(placed.write),
            activation=config.activation,
            k=config.k,
            widths=config.widths,
            context=windows.context,
            text=text,
            split=windows.split,
            windows=len(spread),
            documents=len(np.unique(recording.documents[recording.kept])),
            tokens=recording.rows,
            tokens_left_out=len(recording.tokens) - recording.rows,
            left_out=LEFT_OUT,
            largest_norms={str(site): norm for site, norm in _filter(lm, windows, placed).largest.items()},
            direct_path=placed.write.in_residual,
            collected=date.today(),
            **wanted._asdict(),
        )
        store = writer.finish(about, annotations())
    finally:
        writer.abandon()
    shutil.rmtree(folder)
    return store


def _filter(lm: LanguageModel, windows: Windows, placed: Placed) -> RowFilter:
    return RowFilter.measure(lm, windows, [placed.read, placed.write])


def fingerprint(coder: SparseCoder) -> str:
    """sha256 of a coder's tensors: what labels belong to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(coder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _spread(recording: Recording, windows: Windows) -> Int[np.ndarray, " windows"]:
    """The number within the split of each window of a recording."""
    count = len(recording.tokens) // windows.context
    return np.arange(count) * len(windows) // count


def _fill(
    writer: Writer,
    recording: Recording,
    coder: SparseCoder,
    placed: Placed,
    lm: LanguageModel,
    windows: Windows,
    vocabulary: Sequence[bytes],
    wanted: Wanted,
    progress: Progress,
) -> list[int]:
    """Write all features; the windows (by their place in the recording) that their examples lie in."""
    config, spread = coder.config, _spread(recording, windows)
    rings = np.searchsorted(config.widths, np.arange(config.d_sae), side="right")
    count = np.bincount(recording.indices, minlength=config.d_sae)
    cosine = cosine_neighbours(coder.W_dec)
    dead = coder.dead(coder.metadata.get("dead_after_tokens", 1)).cpu().numpy()
    logits = _effects(lm, windows, placed, coder.W_dec, len(vocabulary))
    used: set[int] = set()
    for summary in summaries(recording, wanted):
        partners, parents = coactive(recording, config.widths, count, summary.first, summary.sample)
        rows = _rows(summary, recording, rings, spread, cosine, partners, dead, logits, vocabulary)
        writer.features(rows)
        writer.parents(
            (summary.first + i, int(other), float(value))
            for i, pairs in enumerate(zip(parents.other, parents.value, strict=True))
            for other, value in zip(*pairs, strict=True)
            if other >= 0
        )
        used.update((np.unique(summary.examples.place // windows.context)).tolist())
        progress(summary.first + len(summary.count), config.d_sae)
    return sorted(used)


def _rows(
    summary: Summary,
    recording: Recording,
    rings: np.ndarray,
    spread: np.ndarray,
    cosine: Partners,
    partners: Partners,
    dead: np.ndarray,
    logits: Iterator[tuple[np.ndarray, np.ndarray]],
    vocabulary: Sequence[bytes],
) -> Iterator[Row]:
    examples, n = summary.examples, len(summary.count)
    bounds = np.searchsorted(examples.feature, summary.first + np.arange(n + 1))
    window = examples.place // recording.context
    columns = {
        "example_group": examples.group.astype(np.uint8),
        "example_window": spread[window].astype(np.int32),
        "example_document": recording.documents[examples.place].astype(np.int32),
        "example_peak": (examples.place % recording.context).astype(np.int32),
    }
    for i in range(n):
        f, (start, end) = summary.first + i, bounds[i : i + 2]
        inside = slice(examples.offsets[start], examples.offsets[end])
        known = summary.top_tokens[i] >= 0
        shares = [
            TokenShare(pieces([token], vocabulary)[0], share, count)
            for token, share, count in zip(
                summary.top_tokens[i][known].tolist(),
                summary.top_shares[i][known].tolist(),
                summary.top_counts[i][known].tolist(),
                strict=True,
            )
        ]
        fires = bool(summary.count[i])
        density = summary.count[i] / recording.rows
        near = cosine.other[f] >= 0
        similarity = cosine.value[f][near]
        set_ = {
            "silent": not fires,
            "dead": not fires and dead[f],
            "dense": density > DENSE,
            "single-token": fires and shares[0].share >= SINGLE_TOKEN,
            "redundant": bool(len(similarity)) and similarity[0] > REDUNDANT,
        }
        together = partners.other[i] >= 0
        tokens, effects = next(logits)
        yield Row(
            index=f,
            statistics={
                "ring": int(rings[f]),
                "count": int(summary.count[i]),
                "density": float(density),
                **{
                    name: float(numbers[i]) if fires else None
                    for name, numbers in (
                        ("mean", summary.mean),
                        ("mean_square", summary.mean_square),
                        ("max", summary.max),
                        ("entropy", summary.entropy),
                        ("first", summary.first_position),
                    )
                },
                "cosine": float(similarity[0]) if len(similarity) else None,
            },
            flags=sum(bool(set_[name]) << bit for bit, name in enumerate(FLAGS)),
            summary=summarise(shares),
            tokens="".join(each.token for each in shares),
            arrays={
                "histogram": summary.histogram[i].astype(np.int32),
                "range": np.array([summary.min[i], summary.max[i]], np.float64),
                "limits": summary.limits[i].astype(np.float32) if fires else np.empty((0, 2), np.float32),
                "top_tokens": summary.top_tokens[i][known].astype(np.int32),
                "top_counts": summary.top_counts[i][known].astype(np.int32),
                "top_shares": summary.top_shares[i][known].astype(np.float32),
                **{name: numbers[start:end] for name, numbers in columns.items()},
                "example_offsets": (examples.offsets[start : end + 1] - examples.offsets[start]).astype(np.int32),
                "positions": examples.positions[inside].astype(np.uint16),
                "values": examples.values[inside].astype(np.float32),
                "cosine_other": cosine.other[f][near].astype(np.int32),
                "cosine_value": similarity.astype(np.float32),
                "coactive_other": partners.other[i][together].astype(np.int32),
                "coactive_value": partners.value[i][together].astype(np.float32),
                "logit_tokens": tokens,
                "logit_effects": effects,
            },
        )


def _effects(
    lm: LanguageModel, windows: Windows, placed: Placed, W_dec: Float[Tensor, "d_sae d_out"], tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, effects) of each feature: the EFFECTS tokens it raises most, then those it lowers most; empty where
    the written site has no direct path to the logits. `tokens`: in the vocabulary."""
    if not placed.write.in_residual:
        for _ in W_dec:
            yield np.empty(0, np.int32), np.empty(0, np.float32)
        return
    last = Site("resid_post", lm.info.n_layers - 1)
    some = torch.from_numpy(windows[:READ_BATCH]).to(lm.device)
    read = lm.read(some, [last])
    scale = typical_scale(lm, read[last][RowFilter.measure(lm, windows, [last])(some, read)])
    for rows in W_dec.split(max(1, LOGIT_BLOCK // lm.info.d_vocab)):
        logits = direct_logits(lm, rows, scale)[:, :tokens]  # a padded unembedding knows more than the tokenizer
        n = min(EFFECTS, logits.shape[1])
        top, bottom = logits.topk(n), logits.topk(n, largest=False)
        found = torch.cat([top.indices, bottom.indices], 1), torch.cat([top.values, bottom.values], 1)
        yield from zip(found[0].int().cpu().numpy(), found[1].float().cpu().numpy(), strict=True)
