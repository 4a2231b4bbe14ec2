"""Labelled text read through a language model, once for all coders, and through each coder.

1. an example's tokens stand behind BOS, as the text of training does
2. with a span, its row is the activation at the last token that holds any of the span: a causal model has read the
   whole of it there; without, the mean over all positions of the text, of activations and latents alike
3. positions that are no rows of the coder's (BOS, a first token, sinks) count in neither
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matryoshka.coder.latents import Latents
from matryoshka.data.rowfilter import RowFilter
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared.labelled import LabelledText, is_test
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import NotMeasurable
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Text, read

BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding included."""


class LabelledActivations(NamedTuple):
    """The places of a labelled text that rows are made of, as the language model has them, for whatever coder."""

    labelled: LabelledText
    activations: dict[Site, Float[Tensor, "places d"]]
    kept: dict[RowFilter, Bool[Tensor, " places"]]
    """By each coder's filter, the places that count."""
    example: Int[np.ndarray, " places"]
    """Whose place it is."""


class LabelledRows(NamedTuple):
    """A labelled text read through the language model and a coder; row i is example i."""

    labelled: LabelledText
    """Without the examples that no kept position remained of."""
    x: Float[np.ndarray, "n d_in"]
    """Raw activations where the coder reads, float32."""
    y: Float[np.ndarray, "n d_out"]
    """And where it writes."""
    latents: sp.csr_array
    """[n, d_sae], the entries of a row in order: times the decoder rows they are in the raw units of y."""
    test: Bool[np.ndarray, " n"]
    dropped: int
    """Examples that no kept position remained of."""

    def silent(self, widths: Sequence[int]) -> dict[str, int]:
        """How many latents of each prefix fire on no row, and so are in no probe."""
        fired = np.unique(self.latents.indices)
        return {str(width): width - int(np.searchsorted(fired, width)) for width in widths}


def read_labelled(
    lm: LanguageModel, coders: Sequence[HookedCoder], labelled: LabelledText, progress: Progress = silent
) -> LabelledActivations:
    """All examples, shortest first, in batches, once for all coders; `progress(done, total)` counts them.

    A text longer than the model's context loses its end where it has no span, otherwise its beginning. Raises
    MatryoshkaError for a span longer than the context.
    """
    prompts = _prompts(lm, labelled)
    filters = {hooked.keep: hooked for hooked in coders}
    of_sites, of_filters, examples, done = defaultdict(list), defaultdict(list), [], 0
    for rows in read(lm, _texts(prompts), coders):
        assert rows.text.asked is not None
        wanted = torch.from_numpy(rows.text.asked).to(lm.device)
        for site, values in rows.activations.items():
            of_sites[site].append(values[wanted])
        for keep, hooked in filters.items():
            of_filters[keep].append(rows.kept(hooked)[wanted])
        examples.append(np.repeat(rows.text.numbers, rows.text.asked.sum(1)))
        progress(done := done + len(rows.tokens), len(prompts))
    activations, kept = ({key: torch.cat(part) for key, part in parts.items()} for parts in (of_sites, of_filters))
    return LabelledActivations(labelled, activations, kept, np.concatenate(examples))


@torch.no_grad()
def encode_labelled(hooked: HookedCoder, text: LabelledActivations) -> LabelledRows:
    """What a coder makes of it. Raises NotMeasurable if no example is left."""
    kept, wiring = text.kept[hooked.keep], hooked.wiring
    example = text.example[kept.cpu().numpy()]
    counts = np.bincount(example, minlength=len(text.labelled.examples))
    left = counts > 0
    if not left.any():
        name = text.labelled.name
        raise NotMeasurable(f"{name}: no position of its {len(left)} examples is one that the coder is for")
    # takes the mean of the rows of each example
    weights = (1 / counts[example]).astype(np.float32)
    mean = sp.csr_array((weights, (example, np.arange(len(example)))), shape=(len(counts), len(example)))[left]
    examples = tuple(compress(text.labelled.examples, left))
    x, y = (torch.cat([text.activations[site][kept] for site in sites], -1) for sites in (wiring.reads, wiring.writes))
    latents = sp.vstack([as_csr(hooked.coder.encode(part)) for part in x.split(BATCH_TOKENS)], format="csr")
    means = sp.csr_array(mean @ latents)
    means.sort_indices()
    x, y = (mean @ activations.float().cpu().numpy() for activations in (x, y))
    test = np.array([is_test(example.group) for example in examples])
    return LabelledRows(replace(text.labelled, examples=examples), x, y, means, test, int((~left).sum()))


# --- prompts


class _Prompt(NamedTuple):
    """The tokens of one example, and the position that its row is at (None: all of them)."""

    ids: list[int]
    position: int | None


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
        start, end = example.span
        holding = [i for i, (first, last) in enumerate(offsets) if max(first, start) < min(last, end)]
        if holding and (length := holding[-1] + 1 - holding[0]) > room:
            raise MatryoshkaError(
                f"{labelled.name}, example {number}: its span of {length} tokens does not fit into the context"
                f" of {lm.info.name}, {room} tokens"
            )
        # what follows the span cannot reach its row
        ids = before + ids[: holding[-1] + 1][-room:] if holding else before
        prompts.append(_Prompt(ids, len(ids) - 1))
    return prompts


def _texts(prompts: Sequence[_Prompt]) -> Iterator[Text]:
    """Batches of prompts ascending in length, as many at once as BATCH_TOKENS allow."""
    batches: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids)):
        if not batches or (len(batches[-1]) + 1) * len(prompts[i].ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return (_padded(batch, prompts) for batch in batches)


def _padded(batch: Sequence[int], prompts: Sequence[_Prompt]) -> Text:
    """Prompts side by side. Padding stands behind them, where a causal model never looks back from; what is asked for
    are the positions that make up each example's row."""
    longest = max(1, *(len(prompts[i].ids) for i in batch))
    tokens = np.zeros((len(batch), longest), np.int64)
    asked = np.zeros((len(batch), longest), bool)
    for row, i in enumerate(batch):
        ids, position = prompts[i]
        tokens[row, : len(ids)] = ids
        asked[row, slice(0, len(ids)) if position is None else position] = len(ids) > 0
    numbers = np.array(batch)
    return Text(tokens, np.repeat(numbers[:, None], longest, axis=1), numbers, asked)


def as_csr(latents: Latents) -> sp.csr_array:
    """The active latents of each row, float32."""
    parts = tuple(part.detach().cpu().numpy() for part in (latents.values.float(), latents.indices, latents.offsets))
    active = sp.csr_array(parts, shape=(latents.pattern.batch, latents.d_sae))
    active.eliminate_zeros()
    return active
