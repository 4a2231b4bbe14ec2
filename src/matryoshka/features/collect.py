"""All features of a coder from one pass over text it was not trained on.

    1. record      the sparse latents of every window, on disk          (features/recording.py)
    2. summarise   statistics and examples, exactly, block by block     (features/summary.py)
    3. relate      cosine and co-active neighbours, parents; the direct effect on the logits
    4. store       one database file                                    (features/store.py)

The coder is frozen, and folded first: activations are in raw units, so that activation × W_dec row is what the feature
adds to the reconstruction. Killed in step 1, the next call goes on; killed later, it starts step 2 again.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.activations import SINK_FACTOR, RowFilter
from matryoshka.data.tokens import Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.identity import fingerprint
from matryoshka.evaluation.placed import READ_BATCH, Placed, spread, window_count
from matryoshka.features import recording as recordings
from matryoshka.features.feature import DENSE, FLAGS, REDUNDANT, SINGLE_TOKEN, TokenShare, summarise
from matryoshka.features.recording import Recording
from matryoshka.features.relations import BLOCK_SCORES, Partners, coactive, cosine_neighbours
from matryoshka.features.schema import About
from matryoshka.features.store import FeatureStore
from matryoshka.features.summary import BLOCK_ENTRIES, Summary, Wanted
from matryoshka.features.summary import summarise as summaries
from matryoshka.features.writer import Row, Writer
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.unembed import direct_logits, typical_scale
from matryoshka.lm.vocabulary import alone
from matryoshka.progress import Progress, silent

LEFT_OUT = (
    "BOS, the first token of each window, and attention sinks"
    f" (activations whose norm is more than {SINK_FACTOR:.0f} times the median)"
)
EFFECTS = 10
"""Tokens with the greatest direct effect, and as many with the least."""
LOGIT_BLOCK = 16_000_000
"""Logits in memory at once."""


class Needs(NamedTuple):
    """Upper bounds in bytes, beside the language model and the coder."""

    memory: int
    disk: int
    """Until the store is written; the store itself is smaller."""


def needs(coder: SparseCoder, windows: Windows, tokens: int) -> Needs:
    """What a collection takes."""
    count = window_count(windows, tokens) * windows.context
    memory = 170 * BLOCK_ENTRIES + 60 * BLOCK_SCORES + 30 * count + 1000 * coder.config.d_sae
    return Needs(memory, recordings.bytes_needed(count, 1.5 * coder.config.k, coder.config.d_sae))


def record_share(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    tokens: int,
    folder: Path,
    world: World = World(),  # noqa: B008
    progress: Progress = silent,
) -> None:
    """Record this process's share of the windows that hold `tokens` tokens, spread evenly over the split, into
    `folder`; all shares together are the same windows in the same order, whatever their number."""
    placed = placed._replace(coder=placed.coder.fold())
    count = window_count(windows, tokens)
    needed = needs(placed.coder, windows, tokens).disk // world.size
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < needed and not folder.exists():
        raise MatryoshkaError(
            f"{folder.parent}: has {free / 1e9:.1f} GB free, the latents of {count * windows.context:,} tokens may take"
            f" {needed / 1e9:.1f} GB; give fewer --tokens"
        )
    batches = -(-count // READ_BATCH)
    first, end = (min(count, part * batches // world.size * READ_BATCH) for part in (world.rank, world.rank + 1))
    numbers = spread(count, len(windows))[first:end]
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
    progress: Progress = silent,
) -> FeatureStore:
    """Make the store at `path` of the recording in `folder`, which is deleted then.

    `windows`: those that were recorded. `text`: their source, in words. `annotations`: labels and notes to take over,
    asked for at the end. `progress(done, total)` counts features.
    """
    coder = placed.coder.fold()
    recording = Recording(folder, windows.context, coder.config.d_sae)
    if not recording.rows:
        raise MatryoshkaError(f"{text}: no position counts in {len(recording.tokens):,} tokens")
    config, vocabulary = coder.config, lm.token_bytes
    numbers = spread(len(recording.tokens) // windows.context, len(windows))
    known = _Dictionary(
        rings=np.searchsorted(config.widths, np.arange(config.d_sae), side="right"),
        count=np.bincount(recording.indices, minlength=config.d_sae),
        dead=coder.dead(coder.metadata.get("dead_after_tokens", 1)).cpu().numpy(),
        cosine=cosine_neighbours(coder.W_dec),
        logits=_effects(lm, windows, placed, coder.W_dec, len(vocabulary)),
        texts=[alone(token) for token in vocabulary],
    )
    writer = Writer(path, vocabulary)
    try:
        used = _fill(writer, recording, numbers, known, config.widths, wanted, progress)
        tokens = recording.tokens.reshape(-1, windows.context)
        writer.windows((int(numbers[i]), tokens[i]) for i in used)
        about = _about(lm, windows, placed, recording, coder, text, wanted)
        store = writer.finish(about, annotations())
    finally:
        writer.abandon()
    shutil.rmtree(folder)
    return store


def _about(
    lm: LanguageModel,
    windows: Windows,
    placed: Placed,
    recording: Recording,
    coder: SparseCoder,
    text: str,
    wanted: Wanted,
) -> About:
    config = coder.config
    largest = RowFilter.measure(lm, windows, [placed.read, placed.write]).largest
    return About(
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
        windows=len(recording.tokens) // windows.context,
        documents=len(np.unique(recording.documents[recording.kept])),
        tokens=recording.rows,
        tokens_left_out=len(recording.tokens) - recording.rows,
        left_out=LEFT_OUT,
        largest_norms={str(site): norm for site, norm in largest.items()},
        direct_path=placed.write.in_residual,
        collected=date.today(),
        **wanted._asdict(),
    )


@dataclass(frozen=True)
class _Dictionary:
    """What is known of all features before the first block."""

    rings: Int[np.ndarray, " d_sae"]
    count: Int[np.ndarray, " d_sae"]
    dead: Bool[np.ndarray, " d_sae"]
    cosine: Partners
    logits: Iterator[tuple[np.ndarray, np.ndarray]]
    """Of each feature, in order."""
    texts: Sequence[str]
    """Of each token alone."""


def _fill(
    writer: Writer,
    recording: Recording,
    numbers: Int[np.ndarray, " windows"],
    known: _Dictionary,
    widths: Sequence[int],
    wanted: Wanted,
    progress: Progress,
) -> Int[np.ndarray, " used"]:
    """Write all features; the windows, by their place in the recording, that their examples lie in."""
    used = np.zeros(len(numbers), bool)
    for summary in summaries(recording, wanted):
        partners, parents = coactive(recording, widths, known.count, summary.first, summary.sample)
        writer.features(_rows(summary, recording, numbers, known, partners))
        child, rank = np.nonzero(parents.other >= 0)
        found = child + summary.first, parents.other[child, rank], parents.value[child, rank]
        writer.parents(zip(*(each.tolist() for each in found), strict=True))
        used[summary.examples.place // recording.context] = True
        progress(summary.first + len(summary.count), recording.d_sae)
    return np.flatnonzero(used)


def _rows(
    summary: Summary,
    recording: Recording,
    numbers: Int[np.ndarray, " windows"],
    known: _Dictionary,
    partners: Partners,
) -> Iterator[Row]:
    examples, n = summary.examples, len(summary.count)
    bounds = np.searchsorted(examples.feature, summary.first + np.arange(n + 1)).tolist()
    columns = {
        "example_group": examples.group,
        "example_window": numbers[examples.place // recording.context],
        "example_document": recording.documents[examples.place],
        "example_peak": examples.place % recording.context,
    }
    for i in range(n):
        index = summary.first + i
        tokens = _top_tokens(summary, i, known.texts)
        near = known.cosine.other[index] >= 0
        similarity = known.cosine.value[index][near]
        together = partners.other[i] >= 0
        logit_tokens, logit_effects = next(known.logits)
        start, end = bounds[i : i + 2]
        offsets = examples.offsets[start : end + 1]
        yield Row(
            index=index,
            statistics=_statistics(summary, i, int(known.rings[index]), recording.rows, similarity),
            flags=_flags(summary, i, bool(known.dead[index]), recording.rows, tokens, similarity),
            summary=summarise(tokens),
            tokens="".join(each.token for each in tokens),
            arrays={
                "histogram": summary.histogram[i],
                "range": np.array([summary.min[i], summary.max[i]]),
                "limits": summary.limits[i] if tokens else np.empty(0),
                "top_tokens": summary.top_tokens[i][: len(tokens)],
                "top_counts": summary.top_counts[i][: len(tokens)],
                "top_shares": summary.top_shares[i][: len(tokens)],
                **{name: column[start:end] for name, column in columns.items()},
                "example_offsets": offsets - offsets[0],
                "positions": examples.positions[offsets[0] : offsets[-1]],
                "values": examples.values[offsets[0] : offsets[-1]],
                "cosine_other": known.cosine.other[index][near],
                "cosine_value": similarity,
                "coactive_other": partners.other[i][together],
                "coactive_value": partners.value[i][together],
                "logit_tokens": logit_tokens,
                "logit_effects": logit_effects,
            },
        )


def _top_tokens(summary: Summary, i: int, texts: Sequence[str]) -> list[TokenShare]:
    tokens, shares, counts = (
        table[i].tolist() for table in (summary.top_tokens, summary.top_shares, summary.top_counts)
    )
    return [TokenShare(texts[int(t)], share, n) for t, share, n in zip(tokens, shares, counts, strict=True) if t >= 0]


def _statistics(
    summary: Summary, i: int, ring: int, rows: int, similarity: Float[np.ndarray, " near"]
) -> dict[str, float | int | None]:
    """What one sorts by; None where a feature that never fires has none."""
    count = int(summary.count[i])
    where_it_fires = {
        "mean": summary.mean,
        "mean_square": summary.mean_square,
        "max": summary.max,
        "entropy": summary.entropy,
        "first": summary.first_position,
    }
    return {
        "ring": ring,
        "count": count,
        "density": count / rows,
        **{name: float(numbers[i]) if count else None for name, numbers in where_it_fires.items()},
        "cosine": float(similarity[0]) if len(similarity) else None,
    }


def _flags(
    summary: Summary, i: int, dead: bool, rows: int, tokens: Sequence[TokenShare], similarity: np.ndarray
) -> int:
    """FLAGS as bits."""
    silent = not summary.count[i]
    holds = {
        "silent": silent,
        "dead": silent and dead,
        "dense": summary.count[i] / rows > DENSE,
        "single-token": not silent and tokens[0].share >= SINGLE_TOKEN,
        "redundant": len(similarity) > 0 and similarity[0] > REDUNDANT,
    }
    return sum(1 << bit for bit, name in enumerate(FLAGS) if holds[name])


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
