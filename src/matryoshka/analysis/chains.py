"""What becomes of features over layers: coders in the order of their layers, each matched with the next.

    link      a latent and its partner in the next coder (`correspondence`: kept or processed)
    chain     a latent, its partner, the partner's partner … while there is one; it is born where no latent of the coder
              before is its best match (newborn), or in the first coder
    length    links of a chain
    merge     a latent that is the partner of several of the coder before; split: one that several of the next have as
              theirs

Causally (`succession`), on LINKS links a pair, spread over the strengths of all: where both latents fire, the first is
removed at its written site. By how much the second falls, and how often it is silent then, beside the same of other
latents that fire on the same tokens, about as often (Laptev et al. 2025, arXiv:2502.03032). Only where the first coder
writes nothing behind what the second reads.

Without data, the pairings one to one of decoder rows, composed from coder to coder, against the pairing of the first
with the last (SAE Match, Balagansky et al. 2024, arXiv:2410.07656; decoder rows alone).

The null of lengths are chains of matches with the tokens exchanged within documents, of NULL_LATENTS latents a coder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matryoshka.analysis.corpus import Corpus
from matryoshka.analysis.correspondence import NULL_LATENTS, SEED, decoder_matches, partners
from matryoshka.analysis.directions import composed
from matryoshka.analysis.flow import Flow
from matryoshka.analysis.matching import Activity, Living, activity, exchanged, match
from matryoshka.analysis.observed import Observed, Pair
from matryoshka.analysis.profiles import profiles
from matryoshka.interventions.succession import MATCHED, REMOVED, Removal, falls, upstream
from matryoshka.progress import Progress, silent
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score, score
from matryoshka.study.reader import spread

VERSION = 1
LINKS = 64
"""Of each pair that are tried causally."""
WINDOWS = 3
"""That each of them is tried in, at most."""

_share = partial(Measure, better="neither", unit="link", paired=False, percent=True)
_removed = "Where a latent and its successor both fire and the first is removed,"
_other = "another latent that fires on the token about as often is removed"
FALL = _share("fall", meaning=f"{_removed} 1 − Σ after / Σ before of the second's activation, mean over links",
              null=_other)  # fmt: skip
DIED = _share("died", meaning=f"{_removed} the share of these tokens on which the second is silent, mean over links",
              null=_other)  # fmt: skip
LENGTH = Measure(
    "chain length",
    "neither",
    "Links from a latent forward while it has a partner, mean over the living latents of the coder",
    unit="feature",
    null="matches with the tokens exchanged within documents",
    paired=False,
)
COMPOSED = Measure(
    "composed one to one",
    "neither",
    "Share of the first coder's latents whose pairings one to one of decoder rows lead from coder to coder to the"
    " latent of the last that is their own pairing with it",
    unit="feature",
    null="1 / latents of the last",
    paired=False,
    percent=True,
)


def analyse(
    several: Sequence[Observed], matches: Sequence[Result], corpus: Corpus, progress: Progress = silent
) -> Result:
    """The chains of two coders or more, in the order in which the forward pass meets what they read; `matches`: of
    each with the next. `progress` counts trials of links. Raises NotMeasurable where two of them were not matched."""
    for name, result in zip(_names(several), matches, strict=True):
        if result.reason is not None:
            raise NotMeasurable(f"{name} was not matched: {result.reason}")
    flow = Flow.of([member.recorded.d_sae for member in several], matches)
    walk, tried, trials = Walk(), list[Tried | None](), LINKS * WINDOWS
    for i, pair in enumerate(map(Pair, several, several[1:])):

        def tell(done: int, _: int, before: int = i * trials) -> None:
            progress(before + done, len(matches) * trials)

        tried.append(_from_one_to_the_next(pair, flow, i, walk, corpus, tell))
    direct, why_not = _composed(several, matches)
    scores = [*_causal(several, tried), *_lengths(several, flow, walk), *direct]
    details = {
        "coders": [_about(member, living) for member, living in zip(several, flow.living, strict=True)],
        "pairs": [
            {"name": name, "ceiling": result.details["ceiling"], **_of_pair(flow, i, result, of)}
            for i, (name, result, of) in enumerate(zip(_names(several), matches, tried, strict=True))
        ],
        "spans": flow.spans(),
        "chains": flow.chains(),
        "lengths": [np.bincount(flow.lengths[i][flow.living[i]]).tolist() for i in range(len(matches))],
        "by chance": [np.bincount(of).tolist() for of in walk.lengths],
        "one to one": why_not,
        "profiles": profiles(several, corpus),
    }
    return Result(tuple(scores), details)


# --- from one coder to the next


def _from_one_to_the_next(
    pair: Pair, flow: Flow, i: int, walk: "Walk", corpus: Corpus, progress: Progress
) -> "Tried | None":
    """What became of the links that were tried; the chains by chance go one coder further. The activities of a pair
    are gone before those of the next are made."""
    crossing = Crossing.of(pair, *flow.links(i), flow.pearson[i])
    walk.go_on(crossing)
    return crossing.tried(corpus, progress)


class Tried(NamedTuple):
    """Links that were tried causally, the weakest first; by kind of removal what it does to the successor."""

    predecessors: Int[np.ndarray, " links"]
    successors: Int[np.ndarray, " links"]
    pearson: Float[np.ndarray, " links"]
    tokens: Int[np.ndarray, " links"]
    """On which both fire, in the windows that were tried."""
    fall: Float[np.ndarray, "kind links"]
    """Share of the successor's activation that is gone."""
    died: Float[np.ndarray, "kind links"]
    """Share of the tokens on which it is silent."""


class Crossing(NamedTuple):
    """A pair of coders, what their living latents are on the tokens of both, and the links that will be tried."""

    pair: Pair
    first: Activity
    second: Activity
    predecessors: Int[np.ndarray, " links"]
    successors: Int[np.ndarray, " links"]
    pearson: Float[np.ndarray, " links"]

    @classmethod
    def of(
        cls,
        pair: Pair,
        predecessors: Int[np.ndarray, " all"],
        successors: Int[np.ndarray, " all"],
        pearson: Float[np.ndarray, " d_sae"],
    ) -> "Crossing":
        """Of all links, ordered by strength, LINKS that are spread over them."""
        sides = [member.recorded for member in pair.sides.values()]
        first, second = (activity(of, pair.rows, Living.of(of, pair.rows)) for of in sides)
        some = spread(min(len(predecessors), LINKS), len(predecessors))
        return cls(pair, first, second, predecessors[some], successors[some], pearson[predecessors[some]])

    def trials(self, corpus: Corpus) -> list[tuple[int, Removal]]:
        """(link, trial): each in WINDOWS random windows of those in which both of its latents fire together."""
        generator, rows = np.random.default_rng(SEED), np.flatnonzero(self.pair.rows)
        columns = [
            activity.of(np.searchsorted(activity.living.features, latents)).latents.tocsc()
            for activity, latents in ((self.first, self.predecessors), (self.second, self.successors))
        ]
        drawn = []
        for link, latents in enumerate(zip(self.predecessors, self.successors, strict=True)):
            a, b = (of.indices[of.indptr[link] : of.indptr[link + 1]] for of in columns)
            windows = np.unique(rows[np.intersect1d(a, b)] // self.pair.first.recorded.context)
            numbers = corpus.numbers[generator.permutation(windows)[:WINDOWS]]
            drawn += [(link, Removal(int(number), *map(int, latents))) for number in numbers]
        return drawn

    def tried(self, corpus: Corpus, progress: Progress) -> Tried | None:
        """What became of the successors; None where the first coder writes behind what the second reads."""
        first, second = self.pair.first, self.pair.second
        if not upstream(first.hooked, second.hooked) or not len(self.predecessors):
            return None
        link, trials = zip(*self.trials(corpus), strict=True)
        firings = np.bincount(first.recorded.indices, minlength=first.recorded.d_sae)
        sums = falls(corpus.lm, corpus.windows, first.hooked, second.hooked, trials, firings, progress)

        def by_link(values: np.ndarray) -> np.ndarray:
            return np.bincount(link, values, len(self.predecessors))

        before, tokens = by_link(sums.before), by_link(sums.tokens)
        used = before > 0  # read again in another batch, a weak firing may be none
        fall = np.stack([1 - by_link(after)[used] / before[used] for after in sums.after])
        died = np.stack([by_link(of)[used] / tokens[used] for of in sums.died])
        return Tried(
            self.predecessors[used], self.successors[used], self.pearson[used], tokens[used].astype(int), fall, died
        )


class Walk:
    """Chains of matches with exchanged tokens, from NULL_LATENTS latents of each coder."""

    def __init__(self) -> None:
        self.lengths: list[Int[np.ndarray, " walkers"]] = []
        self._at: list[Int[np.ndarray, " walkers"]] = []

    def go_on(self, crossing: Crossing) -> None:
        """One coder further for all that have a partner there, and a start from the first coder of the crossing."""
        starts = crossing.first.sample(NULL_LATENTS).living.features
        self._at.append(starts)
        self.lengths.append(np.zeros(len(starts), np.int64))
        numbers = crossing.first.living.features
        asked = np.flatnonzero(np.isin(numbers, np.concatenate(self._at)))
        best = match(crossing.first.of(asked), crossing.second, exchanged(crossing.pair.documents, SEED))[0]
        following = np.full(crossing.pair.first.recorded.d_sae + 1, -1)  # the last entry for those that have ended
        place = partners(best)
        following[numbers[asked]] = np.where(place < 0, -1, crossing.second.living.features[place])
        for start, at in enumerate(self._at):
            self._at[start] = following[at]
            self.lengths[start] += self._at[start] >= 0


# --- without data


def _composed(several: Sequence[Observed], matches: Sequence[Result]) -> tuple[list[Score], str | None]:
    """How far pairings composed from coder to coder agree with the direct one; or why that is not known."""
    if len(several) < 3:
        return [], "two coders leave nothing to compose"
    columns = [result.details["matches"]["A"] for result in matches]
    if not all("one to one" in of for of in columns):
        return [], next(result.details["directions"] for result in matches if result.details["directions"])
    pair = Pair(several[0], several[-1])
    living = {side: Living.of(member.recorded, pair.rows) for side, member in pair.sides.items()}
    decoders, why_not = decoder_matches(pair, living)
    if decoders is None or not decoders.paired:
        return [], why_not
    own, other = (living[side].features[decoders.paired[side]].tolist() for side in "AB")
    direct = dict(zip(own, other, strict=True))
    pairings = [{a: b for a, b in zip(of["latent"], of["one to one"], strict=True) if b is not None} for of in columns]
    led = composed(pairings)
    both = [latent for latent in direct if latent in led]
    agree = [direct[latent] == led[latent] for latent in both]
    return [score(COMPOSED, several[0].recorded.d_sae, both, agree, null=1 / len(living["B"].features))], None


# --- scores and details


def _causal(several: Sequence[Observed], tried: Sequence[Tried | None]) -> Iterator[Score]:
    """Of all pairs together, then of each."""
    width, named = several[0].recorded.d_sae, list(zip(_names(several), tried, strict=True))
    for measure, column in ((FALL, "fall"), (DIED, "died")):
        values = {name: getattr(of, column) for name, of in named if of is not None}
        units = {name: _units(of) for name, of in named if of is not None}
        if not values:
            continue
        together = np.concatenate(list(values.values()), axis=1)
        all_units = [f"{name}: {unit}" for name, of in units.items() for unit in of]
        yield score(measure, width, all_units, together[REMOVED], null=together[MATCHED].mean())
        for name, of_pair in values.items():
            own = replace(measure, name=f"{measure.name}: {name}", headline=False)
            yield score(own, width, units[name], of_pair[REMOVED], null=of_pair[MATCHED].mean())


def _lengths(several: Sequence[Observed], flow: Flow, walk: Walk) -> Iterator[Score]:
    """Of each coder but the last."""
    for i, by_chance in enumerate(walk.lengths):
        measure = replace(LENGTH, name=f"{LENGTH.name} from {several[i].name}", headline=i == 0)
        living = flow.living[i]
        yield score(measure, several[i].recorded.d_sae, living, flow.lengths[i][living], null=by_chance.mean())


def _units(tried: Tried) -> list[str]:
    return [f"{a} {b}" for a, b in zip(tried.predecessors, tried.successors, strict=True)]


def _names(several: Sequence[Observed]) -> list[str]:
    """Of the pairs."""
    return [f"{first.name} → {second.name}" for first, second in pairwise(several)]


def _about(member: Observed, living: Int[np.ndarray, " living"]) -> dict[str, Any]:
    wiring = member.hooked.wiring
    sites = {name: list(map(str, of)) for name, of in (("reads", wiring.reads), ("writes", wiring.writes))}
    return {"name": member.name, **sites, "living": len(living)}


def _of_pair(flow: Flow, i: int, matched: Result, tried: Tried | None) -> dict[str, Any]:
    """Latents of each class, merges and splits, and the links that were tried, a column each."""
    rings = matched.details["rings"]
    details = {"classes": {side: np.sum(of, 0).tolist() for side, of in rings.items()}, **flow.joints(i)}
    if tried is None:
        return details | {"tried": None}
    columns = {
        "predecessor": tried.predecessors,
        "successor": tried.successors,
        "pearson": tried.pearson,
        "tokens": tried.tokens,
        "fall": tried.fall[REMOVED],
        "fall, another removed": tried.fall[MATCHED],
        "died": tried.died[REMOVED],
        "died, another removed": tried.died[MATCHED],
    }
    return details | {"tried": {name: column.tolist() for name, column in columns.items()}}
