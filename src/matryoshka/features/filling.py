"""A store filled from a recording: block by block of features, from summaries, relations and direct effects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from matryoshka.features.feature import TokenShare, flag_bits, summarise
from matryoshka.features.relations import Partners, coactive
from matryoshka.features.summary import Summary, Wanted
from matryoshka.features.summary import summarise as summaries
from matryoshka.features.writer import Row, Writer
from matryoshka.progress import Progress
from matryoshka.study.recording import RecordedCoder


@dataclass(frozen=True)
class Dictionary:
    """What is known of all features before the first block."""

    widths: Sequence[int]
    count: Int[np.ndarray, " d_sae"]
    """On how many tokens each fires."""
    dead: Bool[np.ndarray, " d_sae"]
    cosine: Partners
    effects: Iterator[tuple[np.ndarray, np.ndarray]]
    """Of each feature, in order: tokens, and what it does to their logits."""
    texts: Sequence[str]
    """Of each token alone."""

    @property
    def rings(self) -> Int[np.ndarray, " d_sae"]:
        """The ring of each feature."""
        return np.searchsorted(self.widths, np.arange(len(self.count)), side="right")


def fill(
    writer: Writer,
    recorded: RecordedCoder,
    numbers: Int[np.ndarray, " windows"],
    known: Dictionary,
    wanted: Wanted,
    progress: Progress,
) -> None:
    """Write all features, and the windows that their examples lie in; `numbers` are the recorded windows' own."""
    used = np.zeros(len(numbers), bool)
    rings = known.rings
    for summary in summaries(recorded, wanted):
        partners, parents = coactive(recorded, known.widths, known.count, summary.first, summary.sample)
        writer.features(_rows(summary, recorded, numbers, known, rings, partners))
        child, rank = np.nonzero(parents.other >= 0)
        relations = child + summary.first, parents.other[child, rank], parents.value[child, rank]
        writer.parents(zip(*(column.tolist() for column in relations), strict=True))
        used[summary.examples.place // recorded.context] = True
        progress(summary.first + len(summary.count), recorded.d_sae)
    tokens = recorded.tokens.reshape(-1, recorded.context)
    writer.windows((int(numbers[window]), tokens[window]) for window in np.flatnonzero(used))


def _rows(
    summary: Summary,
    recorded: RecordedCoder,
    numbers: Int[np.ndarray, " windows"],
    known: Dictionary,
    rings: Int[np.ndarray, " d_sae"],
    partners: Partners,
) -> Iterator[Row]:
    examples, n = summary.examples, len(summary.count)
    bounds = np.searchsorted(examples.feature, summary.first + np.arange(n + 1)).tolist()
    columns = {
        "example_group": examples.group,
        "example_window": numbers[examples.place // recorded.context],
        "example_document": recorded.documents[examples.place],
        "example_peak": examples.place % recorded.context,
    }
    for i in range(n):
        index = summary.first + i
        tokens = _top_tokens(summary, i, known.texts)
        near = known.cosine.other[index] >= 0
        similarity = known.cosine.value[index][near]
        together = partners.other[i] >= 0
        logit_tokens, logit_effects = next(known.effects)
        start, end = bounds[i : i + 2]
        offsets = examples.offsets[start : end + 1]
        yield Row(
            index=index,
            statistics=_statistics(summary, i, int(rings[index]), recorded.rows, similarity),
            flags=_flags(summary, i, bool(known.dead[index]), recorded.rows, tokens, similarity),
            summary=summarise(tokens),
            tokens="".join(share.token for share in tokens),
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
    return [
        TokenShare(texts[int(token)], share, count)
        for token, share, count in zip(tokens, shares, counts, strict=True)
        if token >= 0
    ]


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
    return flag_bits(
        density=summary.count[i] / rows,
        dead=dead,
        token_share=tokens[0].share if tokens else 0.0,
        cosine=similarity[0] if len(similarity) else 0.0,
    )
