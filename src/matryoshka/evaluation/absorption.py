"""Feature absorption: a concept is there, its own latent is silent, and the latent of something narrower carries it.

A latent for "begins with s" that fires on all such words but " stone", whose own latent points at s-ness as well, has
been absorbed there (Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507). For every concept with children ("s"
of ("s", "stone"), "animal" of ("animal", "dog")), and for every prefix of the dictionary by the latents in it alone:

1. probe: logistic regression on y, at the WRITTEN site, of training groups; its direction is the concept's. A concept
   whose probe has an F1 below MIN_PROBE_F1 on test groups is left out, for every coder of the site alike, and counted
2. main latents: one after another, as long as they help on CHILDREN that they were not chosen by (`main_latents`)
3. absorption (`carried`) on the test rows of the concept that the probe says yes to; mean over rows, then over concepts

The null takes other latents that fire as often for the main ones: the score of a dictionary that has no latent for the
concept. A coder is shown to have some where it lies well below. Untrained dictionaries have the best scores of all, and
nulls just as good; a main latent that fires everywhere is never absorbed, and has a low F1, which stands beside.

Where SAEBench 0.6 is unsound, this departs from it:

    SAEBench                                               here
    k grows by F1 on the test words that absorption is     k grows on training rows
    then counted on
    it grows by F1 on children that latents were chosen    on children left out: what tells "dog" from the rest lifts
    by, so where children are few their own latents        the F1 of "animal" by a lot, and does nothing for " cat"
    become main ones, and nothing is ever absorbed
    counts on new random prompts, with the verdicts of     the same rows
    the probe on others
    a latent's share is of y · p̂                           of what latents have to carry (`carried`)
    probes by 50 epochs of Adam on bare activations,       logistic regression to its end: otherwise p̂ has to point away
    too few for their bias to leave 0                      from the mean activation, and y · p̂ is small by chance
    main latents by an L1 probe of bare latents            standardised: a latent's unit does not matter
    always resid_post, and reads where it writes           the coder's own sites
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int

from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared.carried import ABSORBERS, SHARE, Absorbed, Direction, absorbed
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.main_latents import main_latents
from matryoshka.evaluation.shared.probes import (
    Probe,
    as_dense,
    f1,
    fit_activations,
    take,
)
from matryoshka.evaluation.subject import Subject
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.hooked import HookedCoder

MIN_PROBE_F1 = 0.6
MIN_TOLD = 0.5
"""Share of the concepts that the language model has to tell for absorption to be measurable."""
MIN_TRAIN, MIN_TEST, MIN_CHILDREN = 10, 4, 2
"""Rows of a concept in each half, children of it in training, and as many of others: with fewer it is not tried."""
DRAWS = 20
"""Of other latents for the null."""
EXAMPLES = 10

_NULL = "other latents that fire as often in place of the main ones"
FULL = Measure(
    "full absorption",
    better="lower",
    meaning="Share of a concept's rows where none of its main latents fires and one other latent carries"
    f" ≥ {SHARE} of (y − b_dec) · p̂, with p̂ the concept's probe, mean over concepts",
    unit="concept",
    null=_NULL,
    percent=True,
    of_target=True,
)
FRACTION = Measure(
    "absorption fraction",
    better="lower",
    meaning=f"A / (A + M) of what up to {ABSORBERS} other latents (A) and the main ones (M) carry of (y − b_dec) · p̂,"
    f" 0 where A is < {SHARE} of it, mean over a concept's rows, then over concepts",
    unit="concept",
    null=_NULL,
    percent=True,
    of_target=True,
)
MAIN_F1 = Measure(
    "F1 of main latents",
    better="higher",
    meaning='F1 = 2 · right / (said + true) on test rows of "a main latent fires", mean over concepts',
    unit="concept",
    null=_NULL,
)
CARRIED = Measure(
    "carried by main latents",
    better="higher",
    meaning="Share of (y − b_dec) · p̂ that the main latents carry, Σ / Σ over a concept's rows, mean over concepts",
    unit="concept",
    null=_NULL,
    headline=False,
    of_target=True,
)
MEASURES = (FULL, FRACTION, MAIN_F1, CARRIED)
READS_LABELS = False


def evaluate(subject: Subject, progress: Progress = silent, text: LabelledText | None = None) -> Result:
    """Full absorption, absorption fraction and the main latents' F1 of every prefix, of first letters, or of the
    concepts of `text`; `progress` counts concepts, first their probes and then their latents.

    Raises MatryoshkaError where no concept of the labelled text has children; NotMeasurable where the language model
    does not tell enough of them, or no latent fires on any.
    """
    return measure(subject.rows(text or subject.letters, progress), subject.hooked, progress)


class Concept(NamedTuple):
    """A concept with children, and the language model's probe of it."""

    name: str
    labels: Bool[np.ndarray, " n"]
    probe: Probe
    probe_f1: float


class FirstLatents(NamedTuple):
    """The first latents of a dictionary, on all rows."""

    width: int
    latents: sp.csr_array
    counts: Int[np.ndarray, " width"]
    """On how many rows each fires."""


@dataclass(frozen=True)
class AbsorbedRow:
    """Of the rows that are fully absorbed: the first of each path and latent."""

    path: str
    latent: int
    share: float
    """What the latent carries of the whole."""


@dataclass(frozen=True)
class Values:
    """What the measures are of one concept, in their order."""

    full: float
    fraction: float
    main_f1: float
    carried: float


@dataclass(frozen=True)
class ConceptAbsorption:
    """One concept in one prefix, as the result's details show it."""

    main: list[int]
    values: Values
    null: Values
    carried_by_all: float
    """By all latents of the prefix; the rest is the reconstruction's error."""
    examples: list[AbsorbedRow]


def measure(rows: LabelledRows, hooked: HookedCoder, progress: Progress = silent) -> Result:
    """The same of text that has been read."""
    concepts = _concepts(rows, progress)
    told = [concept for concept in concepts if concept.probe_f1 >= MIN_PROBE_F1]
    if len(told) < MIN_TOLD * len(concepts):
        raise NotMeasurable(_not_told(rows, hooked, concepts))

    prefixes, (W_dec, target) = _prefixes(rows, hooked), _decoder(rows, hooked)
    absorption: dict[str, list[ConceptAbsorption | None]] = {}
    for concept in told:
        counted = rows.test & concept.labels & (concept.probe.scores(rows.y) > 0)
        direction = Direction.of(concept.probe.direction, W_dec, target[counted])
        absorption[concept.name] = [_measure(rows, concept, prefix, counted, direction) for prefix in prefixes]
        progress(len(concepts) + len(absorption), len(concepts) + len(told))
    scores = tuple(_scores(rows.labelled.name, prefixes, absorption))
    if not scores:
        raise NotMeasurable(f"{rows.labelled.name}: no latent of this coder fires with any of {len(told)} concepts")
    return Result(scores, _details(rows, concepts, prefixes, absorption))


def _concepts(rows: LabelledRows, progress: Progress) -> list[Concept]:
    """Those that are tried, and their probes; half of the way."""
    tried, concepts = _with_children(rows), []
    for name, labels in tried.items():
        probe = fit_activations(rows.y[~rows.test], labels[~rows.test])
        concepts.append(Concept(name, labels, probe, f1(probe.scores(rows.y[rows.test]), labels[rows.test])))
        progress(len(concepts), 2 * len(tried))
    return concepts


def _with_children(rows: LabelledRows) -> dict[str, Bool[np.ndarray, " n"]]:
    """The concepts that have children, and enough rows on either side of either half."""
    paths = [example.path for example in rows.labelled.examples]
    parents = sorted({"/".join(path[:depth]) for path in paths for depth in range(1, len(path))})
    if not parents:
        raise MatryoshkaError(
            f'{rows.labelled.name}: absorption is of concepts with children, as "animal" of "path": ["animal", "dog"];'
            " here no path has more than one concept"
        )
    every, children = rows.labelled.concepts(), np.array(["/".join(path) for path in paths])

    def enough(side: Bool[np.ndarray, " n"]) -> bool:
        train = side & ~rows.test
        counts = len(set(children[train])), np.count_nonzero(train), np.count_nonzero(side & rows.test)
        return all(number >= least for number, least in zip(counts, (MIN_CHILDREN, MIN_TRAIN, MIN_TEST), strict=True))

    tried = {name: every[name] for name in parents if enough(every[name]) and enough(~every[name])}
    if not tried:
        raise NotMeasurable(
            f"{rows.labelled.name}: absorption needs {MIN_TRAIN} rows of {MIN_CHILDREN} children to train on and"
            f" {MIN_TEST} to test with, of a concept and of others: none of {len(parents)} concepts has so many"
        )
    return tried


def _not_told(rows: LabelledRows, hooked: HookedCoder, concepts: Sequence[Concept]) -> str:
    where = " + ".join(map(str, hooked.wiring.writes))
    told = sum(concept.probe_f1 >= MIN_PROBE_F1 for concept in concepts)
    best = sorted(concepts, key=lambda concept: concept.probe_f1, reverse=True)
    return (
        f"{rows.labelled.name}: the language model does not tell these concepts at {where}: probes of {told} of"
        f" {len(concepts)} have an F1 ≥ {MIN_PROBE_F1}, {MIN_TOLD:.0%} are needed"
        f" ({', '.join(f'{concept.name} {concept.probe_f1:.2f}' for concept in best)})"
    )


def _prefixes(rows: LabelledRows, hooked: HookedCoder) -> list[FirstLatents]:
    parts = [(width, rows.latents[:, :width]) for width in hooked.coder.widths]
    return [FirstLatents(width, part, np.bincount(part.indices, minlength=width)) for width, part in parts]


@torch.no_grad()
def _decoder(
    rows: LabelledRows, hooked: HookedCoder
) -> tuple[Float[np.ndarray, "d_sae d_out"], Float[np.ndarray, "n d_out"]]:
    """W_dec, and what latents × W_dec are to add up to: y − b_dec − x W_skip."""
    coder = hooked.coder
    x, y = (torch.from_numpy(part).to(coder.device) for part in (rows.x, rows.y))
    W_dec, target = (part.float().cpu().numpy() for part in (coder.decoder_rows(), coder.to_explain(x, y)))
    return W_dec, target


# --- one concept in one prefix


def _measure(
    rows: LabelledRows, concept: Concept, prefix: FirstLatents, counted: Bool[np.ndarray, " n"], direction: Direction
) -> ConceptAbsorption | None:
    """None if the prefix has no latent that fires more with the concept than without."""
    children = ["/".join(example.path) for example in rows.labelled.examples]
    train = np.flatnonzero(~rows.test)
    main = main_latents(prefix.latents[train], concept.labels[train], [children[i] for i in train])
    if not len(main):
        return None
    latents, whole = prefix.latents[counted], direction.whole.sum()

    def values(chosen: Int[np.ndarray, " chosen"], rows_absorbed: Absorbed) -> Values:
        main_f1 = f1(take(prefix.latents[rows.test], chosen).sum(1), concept.labels[rows.test])
        return Values(
            float(rows_absorbed.full.mean()),
            float(rows_absorbed.fraction.mean()),
            main_f1,
            float(rows_absorbed.by_main.sum() / whole),
        )

    real = absorbed(latents, direction, main)
    random = np.random.default_rng(0)
    stand_ins = [as_dense(prefix.counts, main, random) for _ in range(DRAWS)]
    nulls = [astuple(values(others, absorbed(latents, direction, others))) for others in stand_ins]
    return ConceptAbsorption(
        main.tolist(),
        values(main, real),
        Values(*np.mean(nulls, axis=0).tolist()),
        float(real.by_all.sum() / whole),
        _examples(real, direction.whole, [children[i] for i in np.flatnonzero(counted)]),
    )


def _examples(real: Absorbed, whole: Float[np.ndarray, " rows"], paths: list[str]) -> list[AbsorbedRow]:
    first: dict[tuple[str, int], AbsorbedRow] = {}
    for i in np.flatnonzero(real.full).tolist():
        example = AbsorbedRow(paths[i], int(real.latent[i]), float(real.by_latent[i] / whole[i]))
        first.setdefault((example.path, example.latent), example)
    return list(first.values())[:EXAMPLES]


# --- all concepts


def _scores(
    labelled: str, prefixes: Sequence[FirstLatents], absorption: Mapping[str, list[ConceptAbsorption | None]]
) -> Iterator[Score]:
    for i, prefix in enumerate(prefixes):
        here = {f"{labelled}/{name}": prefixed[i] for name, prefixed in absorption.items()}
        with_latents = {name: concept for name, concept in here.items() if concept is not None}
        if with_latents:
            values, nulls = (
                np.array([astuple(getattr(concept, which)) for concept in with_latents.values()])
                for which in ("values", "null")
            )
            for measure, of_measure, null in zip(MEASURES, values.T, nulls.mean(0), strict=True):
                yield score(measure, prefix.width, with_latents, of_measure, null=float(null))


def _details(
    rows: LabelledRows,
    concepts: Sequence[Concept],
    prefixes: Sequence[FirstLatents],
    absorption: Mapping[str, list[ConceptAbsorption | None]],
) -> dict[str, Any]:
    widths = [str(prefix.width) for prefix in prefixes]
    return {
        "rows": len(rows.test),
        "dropped": rows.dropped,
        "never_fired": {str(prefix.width): int((prefix.counts == 0).sum()) for prefix in prefixes},
        "without_latents": {
            width: [name for name, prefixed in absorption.items() if prefixed[i] is None]
            for i, width in enumerate(widths)
        },
        "not_told": {concept.name: concept.probe_f1 for concept in concepts if concept.name not in absorption},
        "concepts": {
            concept.name: {
                "probe_f1": concept.probe_f1,
                "prefixes": {
                    width: asdict(one)
                    for width, one in zip(widths, absorption[concept.name], strict=True)
                    if one is not None
                },
            }
            for concept in concepts
            if concept.name in absorption
        },
    }
