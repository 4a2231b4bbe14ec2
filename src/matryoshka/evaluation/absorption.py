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

    SAEBench                                             here
    k grows by F1 on the test words that are counted     k grows on training rows
    it grows on children that latents were chosen by:    on children left out: what tells "dog" from the rest lifts
    of few children nothing is ever absorbed             the F1 of "animal" by a lot, and does nothing for " cat"
    counts on other prompts than the probe has judged    the same rows
    a latent's share is of y · p̂                         of what latents have to carry (`carried`)
    probes by 50 epochs of Adam on bare activations,     logistic regression to its end: otherwise p̂ has to point away
    too few for their bias to leave 0                    from the mean activation, and y · p̂ is small by chance
    main latents by an L1 probe of bare latents          standardised: a latent's unit does not matter
    always resid_post, and reads where it writes         the coder's own sites
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared.carried import ABSORBERS, SHARE, Absorbed, Direction, absorbed
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.shared.labelled_rows import LabelledRows
from matryoshka.evaluation.shared.probes import Probe, as_dense, f1, fit_activations, main_latents
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
Absorption = dict[str, dict[int, dict[str, Any]]]
"""Of each concept and prefix, as JSON."""

_of_concepts = partial(Measure, unit="concept", null="other latents that fire as often in place of the main ones")
_of_target = partial(_of_concepts, of_target=True)
FULL = _of_target(
    "full absorption",
    better="lower",
    meaning="Share of a concept's rows where none of its main latents fires and one other latent carries"
    f" ≥ {SHARE} of (y − b_dec) · p̂, with p̂ the concept's probe, mean over concepts",
    percent=True,
)
FRACTION = _of_target(
    "absorption fraction",
    better="lower",
    meaning=f"A / (A + M) of what up to {ABSORBERS} other latents (A) and the main ones (M) carry of (y − b_dec) · p̂,"
    f" 0 where A is < {SHARE} of it, mean over a concept's rows, then over concepts",
    percent=True,
)
MAIN_F1 = _of_concepts(
    "F1 of main latents",
    better="higher",
    meaning='F1 = 2 · right / (said + true) on test rows of "a main latent fires", mean over concepts',
)
CARRIED = _of_target(
    "carried by main latents",
    better="higher",
    meaning="Share of (y − b_dec) · p̂ that the main latents carry, Σ / Σ over a concept's rows, mean over concepts",
    headline=False,
)
_VALUES = {"full": FULL, "fraction": FRACTION, "main_f1": MAIN_F1, "carried": CARRIED}
"""As a concept's details name them."""
MEASURES = tuple(_VALUES.values())
READS_LABELS = False
VERSION = 1


def evaluate(subject: Subject, progress: Progress = silent, text: LabelledText | None = None) -> Result:
    """Full absorption, absorption fraction and the main latents' F1 of every prefix, of first letters, or of the
    concepts of `text`; `progress` counts concepts, first their probes and then their latents.

    Raises MatryoshkaError where no concept of the labelled text has children; NotMeasurable where the language model
    does not tell enough of them, or no latent fires on any.
    """
    return measure(subject.rows(text or subject.bench.letters, progress), subject.hooked, progress)


class Concept(NamedTuple):
    """A concept with children, and the language model's probe of it."""

    name: str
    labels: Bool[np.ndarray, " n"]
    probe: Probe
    probe_f1: float

    @property
    def told(self) -> bool:
        """Whether the language model tells it."""
        return self.probe_f1 >= MIN_PROBE_F1


def measure(rows: LabelledRows, hooked: HookedCoder, progress: Progress = silent) -> Result:
    """The same of text that has been read."""
    concepts, widths = _concepts(rows, progress), hooked.coder.widths
    told = [concept for concept in concepts if concept.told]
    if len(told) < MIN_TOLD * len(concepts):
        raise NotMeasurable(_not_told(rows, hooked, concepts))

    W_dec, target = _decoder(rows, hooked)
    absorption: Absorption = {}
    for concept in told:
        counted = rows.test & concept.labels & (concept.probe.scores(rows.y) > 0)
        direction = Direction.of(concept.probe.direction, W_dec, target[counted])
        measured = {width: _row(rows, concept, width, counted, direction) for width in widths}
        absorption[concept.name] = {width: row for width, row in measured.items() if row is not None}
        progress(len(concepts) + len(absorption), len(concepts) + len(told))
    scores = tuple(_scores(rows.labelled.name, widths, absorption))
    if not scores:
        raise NotMeasurable(f"{rows.labelled.name}: no latent of this coder fires with any of {len(told)} concepts")
    details = {
        "rows": len(rows.test),
        "dropped": rows.dropped,
        "never_fired": rows.silent(widths),
        "without_latents": {
            str(width): [name for name, prefixes in absorption.items() if width not in prefixes] for width in widths
        },
        "not_told": {concept.name: concept.probe_f1 for concept in concepts if not concept.told},
        "concepts": {
            concept.name: {
                "probe_f1": concept.probe_f1,
                "prefixes": {str(width): row for width, row in absorption[concept.name].items()},
            }
            for concept in told
        },
    }
    return Result(scores, details)


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
    every, children = rows.labelled.concepts(), np.array(rows.labelled.paths)

    def enough(side: Bool[np.ndarray, " n"]) -> bool:
        train = side & ~rows.test
        rows_enough = train.sum() >= MIN_TRAIN and (side & rows.test).sum() >= MIN_TEST
        return bool(rows_enough) and len(set(children[train])) >= MIN_CHILDREN

    tried = {name: every[name] for name in parents if enough(every[name]) and enough(~every[name])}
    if not tried:
        raise NotMeasurable(
            f"{rows.labelled.name}: absorption needs {MIN_TRAIN} rows of {MIN_CHILDREN} children to train on and"
            f" {MIN_TEST} to test with, of a concept and of others: none of {len(parents)} concepts has so many"
        )
    return tried


def _not_told(rows: LabelledRows, hooked: HookedCoder, concepts: Sequence[Concept]) -> str:
    where, told = " + ".join(map(str, hooked.wiring.writes)), sum(concept.told for concept in concepts)
    best = sorted(concepts, key=lambda concept: concept.probe_f1, reverse=True)
    return (
        f"{rows.labelled.name}: the language model does not tell these concepts at {where}: probes of {told} of"
        f" {len(concepts)} have an F1 ≥ {MIN_PROBE_F1}, {MIN_TOLD:.0%} are needed"
        f" ({', '.join(f'{concept.name} {concept.probe_f1:.2f}' for concept in best)})"
    )


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


def _row(
    rows: LabelledRows, concept: Concept, width: int, counted: Bool[np.ndarray, " n"], direction: Direction
) -> dict[str, Any] | None:
    """As JSON; None if the prefix has no latent that fires more with the concept than without."""
    latents, train, paths = rows.latents[:, :width], ~rows.test, rows.labelled.paths
    main = main_latents(latents[train], concept.labels[train], list(compress(paths, train)))
    if not len(main):
        return None
    whole = direction.whole.sum()

    def values(chosen: Int[np.ndarray, " chosen"], part: Absorbed) -> list[float]:
        main_f1 = f1(latents[rows.test][:, chosen].toarray().sum(1), concept.labels[rows.test])
        return [float(part.full.mean()), float(part.fraction.mean()), main_f1, float(part.by_main.sum() / whole)]

    real, fires = absorbed(latents[counted], direction, main), np.bincount(latents.indices, minlength=width)
    random = np.random.default_rng(0)
    stand_ins = [as_dense(fires, main, random) for _ in range(DRAWS)]
    nulls = [values(others, absorbed(latents[counted], direction, others)) for others in stand_ins]
    return {
        "main": main.tolist(),
        "values": dict(zip(_VALUES, values(main, real), strict=True)),
        "null": dict(zip(_VALUES, np.mean(nulls, axis=0).tolist(), strict=True)),
        # by all latents of the prefix; the rest is the reconstruction's error
        "carried_by_all": float(real.by_all.sum() / whole),
        "examples": _examples(real, direction.whole, list(compress(paths, counted))),
    }


def _examples(real: Absorbed, whole: Float[np.ndarray, " rows"], paths: list[str]) -> list[dict[str, Any]]:
    """Of the rows that are fully absorbed the first of each path and latent, with what this carries of the whole."""
    first: dict[tuple[str, int], dict[str, Any]] = {}
    for i in np.flatnonzero(real.full).tolist():
        path, latent = paths[i], int(real.latent[i])
        first.setdefault((path, latent), {"path": path, "latent": latent, "share": float(real.by_latent[i] / whole[i])})
    return list(first.values())[:EXAMPLES]


# --- all concepts


def _scores(labelled: str, widths: Sequence[int], absorption: Absorption) -> Iterator[Score]:
    for width in widths:
        rows = {f"{labelled}/{name}": prefixes[width] for name, prefixes in absorption.items() if width in prefixes}
        if rows:
            nulls = np.mean([[*row["null"].values()] for row in rows.values()], axis=0)
            for (name, measure), null in zip(_VALUES.items(), nulls, strict=True):
                yield score(measure, width, rows, [row["values"][name] for row in rows.values()], null=null)
