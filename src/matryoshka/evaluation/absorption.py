"""Feature absorption: a concept is there, its own latent is silent, and the latent of something narrower carries it.

A latent for "begins with s" that fires on all such words but " stone", whose own latent points at s-ness as well, has
been absorbed there (Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507). For every concept with children ("s"
of ("s", "stone"), "animal" of ("animal", "dog")), and for every prefix of the dictionary by the latents in it alone:

1. probe: logistic regression on y, at the WRITTEN site, of training groups; its direction is the concept's. A concept
   whose probe has an F1 below MIN_PROBE_F1 on test groups is left out, for every coder of the site alike, and counted
2. main latents: one after another, as long as the F1 of a probe of them grows by more than F1_JUMP on training rows of
   CHILDREN that neither they nor the probe were chosen by
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
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.carried import ABSORBERS, SHARE, Absorbed, Direction, absorbed
from matryoshka.evaluation.concepts import Rows
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.probes import (
    Probe,
    Step,
    as_dense,
    f1,
    f1_left_out,
    fit,
    fit_activations,
    folds,
    forward,
    take,
)
from matryoshka.evaluation.scores import Measure, NotMeasurable, Result, Score, score
from matryoshka.progress import Progress, silent

MIN_PROBE_F1 = 0.6
MIN_TOLD = 0.5
"""Share of the concepts that the language model has to tell for absorption to be measurable."""
MIN_TRAIN, MIN_TEST, MIN_CHILDREN = 10, 4, 2
"""Rows of a concept in each half, children of it in training, and as many of others: with fewer it is not tried."""
F1_JUMP = 0.03
MAX_MAIN = 10
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
)
FRACTION = Measure(
    "absorption fraction",
    better="lower",
    meaning=f"A / (A + M) of what up to {ABSORBERS} other latents (A) and the main ones (M) carry of (y − b_dec) · p̂,"
    f" 0 where A is < {SHARE} of it, mean over a concept's rows, then over concepts",
    unit="concept",
    null=_NULL,
    percent=True,
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
)
MEASURES = (FULL, FRACTION, MAIN_F1, CARRIED)


class Concept(NamedTuple):
    """A concept with children, and the language model's probe of it."""

    name: str
    labels: Bool[np.ndarray, " n"]
    probe: Probe
    probe_f1: float


class Prefix(NamedTuple):
    """The first latents of a dictionary, on all rows."""

    width: int
    latents: sp.csr_array
    counts: Int[np.ndarray, " width"]
    """On how many rows each fires."""


@dataclass(frozen=True)
class Example:
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
class Found:
    """One concept in one prefix, as the result's details show it."""

    main: list[int]
    values: Values
    null: Values
    carried_by_all: float
    """By all latents of the prefix; the rest is the reconstruction's error."""
    examples: list[Example]


def absorption(rows: Rows, placed: Placed, progress: Progress = silent) -> Result:
    """Full absorption, absorption fraction and the main latents' F1 of every prefix; `progress` counts concepts, first
    their probes and then their latents.

    Raises MatryoshkaError where no concept of the labelled text has children; NotMeasurable where the language model
    does not tell enough of them, or no latent fires on any.
    """
    tried = _with_children(rows)
    concepts = []
    for name, labels in tried.items():
        probe = fit_activations(rows.y[~rows.test], labels[~rows.test])
        concepts.append(Concept(name, labels, probe, f1(probe.scores(rows.y[rows.test]), labels[rows.test])))
        progress(len(concepts), 2 * len(tried))
    told = [each for each in concepts if each.probe_f1 >= MIN_PROBE_F1]
    if len(told) < MIN_TOLD * len(concepts):
        raise NotMeasurable(_not_told(rows, placed, concepts))

    prefixes, (W_dec, target) = _prefixes(rows, placed), _decoder(rows, placed)
    found: dict[str, list[Found | None]] = {}
    for concept in told:
        counted = rows.test & concept.labels & (concept.probe.scores(rows.y) > 0)
        direction = Direction.of(concept.probe.direction, W_dec, target[counted])
        found[concept.name] = [_measure(rows, concept, prefix, counted, direction) for prefix in prefixes]
        progress(len(concepts) + len(found), len(concepts) + len(told))
    scores = tuple(_scores(rows.labelled.name, prefixes, found))
    if not scores:
        raise NotMeasurable(f"{rows.labelled.name}: no latent of this coder fires with any of {len(told)} concepts")
    return Result(scores, _details(rows, concepts, prefixes, found))


def _with_children(rows: Rows) -> dict[str, Bool[np.ndarray, " n"]]:
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
        found = len(set(children[train])), np.count_nonzero(train), np.count_nonzero(side & rows.test)
        return all(number >= least for number, least in zip(found, (MIN_CHILDREN, MIN_TRAIN, MIN_TEST), strict=True))

    found = {name: every[name] for name in parents if enough(every[name]) and enough(~every[name])}
    if not found:
        raise NotMeasurable(
            f"{rows.labelled.name}: absorption needs {MIN_TRAIN} rows of {MIN_CHILDREN} children to train on and"
            f" {MIN_TEST} to test with, of a concept and of others: none of {len(parents)} concepts has so many"
        )
    return found


def _not_told(rows: Rows, placed: Placed, concepts: Sequence[Concept]) -> str:
    told = sum(each.probe_f1 >= MIN_PROBE_F1 for each in concepts)
    best = sorted(concepts, key=lambda each: each.probe_f1, reverse=True)
    return (
        f"{rows.labelled.name}: the language model does not tell these concepts at {placed.write}: probes of {told} of"
        f" {len(concepts)} have an F1 ≥ {MIN_PROBE_F1}, {MIN_TOLD:.0%} are needed"
        f" ({', '.join(f'{each.name} {each.probe_f1:.2f}' for each in best)})"
    )


def _prefixes(rows: Rows, placed: Placed) -> list[Prefix]:
    parts = [(width, rows.latents[:, :width]) for width in placed.coder.config.widths]
    return [Prefix(width, part, np.bincount(part.indices, minlength=width)) for width, part in parts]


def _decoder(rows: Rows, placed: Placed) -> tuple[Float[np.ndarray, "d_sae d_out"], Float[np.ndarray, "n d_out"]]:
    """W_dec in raw units, and what latents × W_dec are to add up to: y − b_dec − x W_skip."""
    coder = placed.coder.fold()
    W_dec, b_dec = (each.detach().float().cpu().numpy() for each in (coder.W_dec, coder.b_dec))
    skipped = 0 if coder.W_skip is None else rows.x @ coder.W_skip.detach().float().cpu().numpy()
    return W_dec, rows.y - b_dec - skipped


# --- one concept in one prefix


def _measure(
    rows: Rows, concept: Concept, prefix: Prefix, counted: Bool[np.ndarray, " n"], direction: Direction
) -> Found | None:
    """None if the prefix has no latent that fires more with the concept than without."""
    children = ["/".join(example.path) for example in rows.labelled.examples]
    train = np.flatnonzero(~rows.test)
    main = main_latents(prefix.latents[train], concept.labels[train], [children[i] for i in train])
    if not len(main):
        return None
    latents, whole = prefix.latents[counted], direction.whole.sum()

    def values(chosen: Int[np.ndarray, " chosen"], found: Absorbed) -> Values:
        main_f1 = f1(take(prefix.latents[rows.test], chosen).sum(1), concept.labels[rows.test])
        return Values(
            float(found.full.mean()), float(found.fraction.mean()), main_f1, float(found.by_main.sum() / whole)
        )

    real = absorbed(latents, direction, main)
    random = np.random.default_rng(0)
    stand_ins = [as_dense(prefix.counts, main, random) for _ in range(DRAWS)]
    nulls = [astuple(values(each, absorbed(latents, direction, each))) for each in stand_ins]
    return Found(
        main.tolist(),
        values(main, real),
        Values(*np.mean(nulls, axis=0).tolist()),
        float(real.by_all.sum() / whole),
        _examples(real, direction.whole, [children[i] for i in np.flatnonzero(counted)]),
    )


def main_latents(
    latents: sp.csr_array, labels: Bool[np.ndarray, " n"], children: Sequence[str]
) -> Int[np.ndarray, " main"]:
    """The latents of a concept, best first, from training rows alone: as many as help on children left out.

    `children`: what each row is in particular, be it of the concept or not. Empty if no latent fires more with the
    concept than without.
    """
    parts, main, best = folds(children, labels), np.empty(0, dtype=np.int64), np.full(2, -np.inf)
    every = forward(latents, labels)
    others = zip(*(forward(latents[~part], labels[~part]) for part in parts), strict=False)
    for step, without in islice(zip(every, others, strict=False), MAX_MAIN):
        # the first says whether as many latents help that were chosen without the children they are to help on, the
        # second whether these very latents do: that of a left-out child would not
        same = [Step(step.latents, fit(take(latents[~part], step.latents), labels[~part])) for part in parts]
        reached = np.array([f1_left_out(latents, labels, parts, steps) for steps in (without, same)])
        if (reached <= best + F1_JUMP).any():
            break
        main, best = step.latents, reached
    return main


def _examples(found: Absorbed, whole: Float[np.ndarray, " rows"], paths: list[str]) -> list[Example]:
    first: dict[tuple[str, int], Example] = {}
    for i in np.flatnonzero(found.full).tolist():
        example = Example(paths[i], int(found.latent[i]), float(found.by_latent[i] / whole[i]))
        first.setdefault((example.path, example.latent), example)
    return list(first.values())[:EXAMPLES]


# --- all concepts


def _scores(labelled: str, prefixes: Sequence[Prefix], found: Mapping[str, list[Found | None]]) -> Iterator[Score]:
    for i, prefix in enumerate(prefixes):
        here = {f"{labelled}/{name}": each[i] for name, each in found.items()}
        with_latents = {name: each for name, each in here.items() if each is not None}
        if with_latents:
            values, nulls = (
                np.array([astuple(getattr(each, which)) for each in with_latents.values()])
                for which in ("values", "null")
            )
            for measure, of_measure, null in zip(MEASURES, values.T, nulls.mean(0), strict=True):
                yield score(measure, prefix.width, with_latents, of_measure, null=float(null))


def _details(
    rows: Rows, concepts: Sequence[Concept], prefixes: Sequence[Prefix], found: Mapping[str, list[Found | None]]
) -> dict[str, Any]:
    widths = [str(prefix.width) for prefix in prefixes]
    return {
        "rows": len(rows.test),
        "dropped": rows.dropped,
        "never_fired": {str(each.width): int((each.counts == 0).sum()) for each in prefixes},
        "without_latents": {
            width: [name for name, each in found.items() if each[i] is None] for i, width in enumerate(widths)
        },
        "not_told": {each.name: each.probe_f1 for each in concepts if each.name not in found},
        "concepts": {
            each.name: {
                "probe_f1": each.probe_f1,
                "prefixes": {
                    width: asdict(one) for width, one in zip(widths, found[each.name], strict=True) if one is not None
                },
            }
            for each in concepts
            if each.name in found
        },
    }
