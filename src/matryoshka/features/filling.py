"""A store filled from a recording: block by block of features, from summaries, relations and direct effects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from matryoshka.features.feature import flag_bits, summarise, top_tokens
from matryoshka.features.relations import Partners, coactive
from matryoshka.features.schema import STATISTICS
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
    for summary in summaries(recorded, wanted):
        partners, parents = coactive(recorded, known.widths, known.count, summary.first, summary.sample)
        writer.features(_rows(summary, recorded, numbers, known, partners))
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
    partners: Partners,
) -> Iterator[Row]:
    examples, indices = summary.examples, summary.first + np.arange(len(summary.count))
    rings = np.searchsorted(known.widths, indices, side="right")
    bounds = np.searchsorted(examples.feature, np.append(indices, indices[-1] + 1))
    columns = {
        "example_group": examples.group,
        "example_window": numbers[examples.place // recorded.context],
        "example_document": recorded.documents[examples.place],
        "example_peak": examples.place % recorded.context,
    }
    where_it_fires = (summary.mean, summary.mean_square, summary.max, summary.entropy, summary.first_position)
    for i, index in enumerate(indices.tolist()):
        count, (start, end) = int(summary.count[i]), bounds[i : i + 2]
        top = summary.top_tokens[i] >= 0
        arrays = {name: getattr(summary, name)[i][top] for name in ("top_tokens", "top_counts", "top_shares")}
        arrays |= known.cosine.of(index, "cosine") | partners.of(i, "coactive")
        arrays["logit_tokens"], arrays["logit_effects"] = next(known.effects)
        offsets = examples.offsets[start : end + 1]
        arrays |= {name: column[start:end] for name, column in columns.items()}
        arrays |= {
            "example_offsets": offsets - offsets[0],
            "positions": examples.positions[offsets[0] : offsets[-1]],
            "values": examples.values[offsets[0] : offsets[-1]],
            "histogram": summary.histogram[i],
            "range": np.array([summary.min[i], summary.max[i]]),
            "limits": summary.limits[i] if count else np.empty(0),
        }
        tokens = top_tokens(arrays, known.texts.__getitem__)
        nearest = float(arrays["cosine_value"][0]) if len(arrays["cosine_value"]) else None
        density, numbers_of = count / recorded.rows, [float(column[i]) if count else None for column in where_it_fires]
        yield Row(
            index=index,
            statistics=dict(zip(STATISTICS, (int(rings[i]), count, density, *numbers_of, nearest), strict=True)),
            flags=flag_bits(density, bool(known.dead[index]), tokens[0].share if tokens else 0.0, nearest or 0.0),
            summary=summarise(tokens),
            tokens="".join(share.token for share in tokens),
            arrays=arrays,
        )
