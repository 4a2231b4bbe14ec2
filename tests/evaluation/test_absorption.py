"""Absorption that is planted, of the synthetic tree in which it is known, and in a trained coder."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation import absorption
from matryoshka.evaluation.absorption import CARRIED, FRACTION, FULL, MAIN_F1, MEASURES
from matryoshka.evaluation.shared.carried import (
    ABSORBERS,
    FRACTION_COSINE,
    FULL_COSINE,
    SHARE,
    Direction,
    absorbed,
)
from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText, is_test
from matryoshka.evaluation.shared.labelled_rows import LabelledRows, as_csr, encode_labelled, read_labelled
from matryoshka.evaluation.shared.probes import NEIGHBOURS, main_latents
from matryoshka.evaluation.shared.spelling import words
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site, Wiring
from matryoshka.run import Run
from matryoshka.scores.comparison import compare
from matryoshka.scores.result import Measure, NotMeasurable, Result, Score
from matryoshka.study.hooked import HookedCoder, hook_all

READ, WRITE = Site("mlp_in", 0), Site("mlp_out", 0)
CONCEPTS, CHILDREN, TIMES, D = 4, 4, 25, 40
MAIN = np.arange(CONCEPTS)
CHILD = CONCEPTS + np.arange(CONCEPTS * CHILDREN).reshape(CONCEPTS, CHILDREN)
D_SAE = 40
"""A latent for each concept, then one for each child, then some of no meaning, the last of which never fires."""
WIDTHS = (12, D_SAE)


class World(NamedTuple):
    """Concepts with children, each a direction, and a dictionary whose latents are known."""

    concept: np.ndarray
    child: np.ndarray
    directions: np.ndarray
    """[feature, D], orthonormal; concepts and then children."""
    latents: np.ndarray
    W_dec: np.ndarray

    @property
    def y(self) -> np.ndarray:
        """1.0 of the concept and 0.7 of the child, with a little noise."""
        noise = 0.02 * np.random.default_rng(3).standard_normal((len(self.concept), D))
        of_child = self.directions[CHILD[self.concept, self.child]]
        return (self.directions[self.concept] + 0.7 * of_child + noise).astype(np.float32)

    def rows(self, y: np.ndarray | None = None, x: np.ndarray | None = None) -> LabelledRows:
        y = self.y if y is None else y.astype(np.float32)
        names = zip(self.concept.tolist(), self.child.tolist(), strict=True)
        examples = tuple(
            LabelledExample("text", None, (f"c{a}", f"k{b}"), f"{a} {b} {i}") for i, (a, b) in enumerate(names)
        )
        test = np.array([is_test(example.group) for example in examples])
        latents = sp.csr_array(self.latents.astype(np.float32))
        return LabelledRows(
            LabelledText("made", examples), y if x is None else x.astype(np.float32), y, latents, test, 0
        )

    def hooked(self, d_in: int = D) -> HookedCoder:
        """Its latents stand in `rows`, so the encoder is never asked."""
        config = CoderConfig(
            reads=(d_in,), writes=(D,), d_sae=D_SAE, widths=WIDTHS, activation={"kind": "topk", "k": 4}, skip=d_in != D
        )
        coder = SparseCoder(config)
        coder.W_dec.data = torch.from_numpy(self.W_dec.astype(np.float32))
        return HookedCoder(coder, Wiring.of([READ], [WRITE]), RowFilter(None, {}))

    def absorb(self, *pairs: tuple[int, int], rest: float = 0.0) -> "World":
        """The concept's latent keeps `rest` of itself on these children, whose own latents carry what is missing."""
        latents, W_dec = self.latents.copy(), self.W_dec.copy()
        for concept, child in pairs:
            here = (self.concept == concept) & (self.child == child)
            latents[here, concept] *= rest
            W_dec[CHILD[concept, child]] += (1 - rest) * self.directions[concept]
        return self._replace(latents=latents, W_dec=W_dec)

    def share(self, *pairs: tuple[int, int]) -> float:
        """Mean over concepts of the share of test rows that are of these children."""
        test = self.rows().test
        here = np.zeros(len(test), dtype=bool)
        for concept, child in pairs:
            here |= (self.concept == concept) & (self.child == child)
        return float(np.mean([here[test & (self.concept == concept)].mean() for concept in range(CONCEPTS)]))


@pytest.fixture
def world() -> World:
    """Nothing is absorbed in it."""
    concept, child = np.repeat(np.indices((CONCEPTS, CHILDREN)).reshape(2, -1), TIMES, axis=1)
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.standard_normal((D, D)))[0][: CONCEPTS * (1 + CHILDREN)]
    noise = generator.standard_normal((D_SAE, D))
    W_dec = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    W_dec[: len(directions)] = directions
    W_dec[CHILD] *= 0.7
    latents = 0.05 * (generator.random((len(concept), D_SAE)) < 0.1)
    latents[:, : CHILD.max() + 1] = 0
    latents[:, -1] = 0
    rows = np.arange(len(concept))
    latents[rows, concept] = latents[rows, CHILD[concept, child]] = 1
    return World(concept, child, directions, latents, W_dec)


def the(result: Result, measure: Measure, width: int = D_SAE) -> Score:
    (found,) = [each for each in result.scores if each.measure == measure and each.width == width]
    return found


def of(result: Result, concept: str, width: int = D_SAE) -> dict:
    return result.details["concepts"][concept]["prefixes"][str(width)]


# --- planted


def test_without_absorption_there_is_none(world: World) -> None:
    result = absorption.measure(world.rows(), world.hooked())
    for width in WIDTHS:
        assert [the(result, measure, width).value for measure in (FULL, FRACTION)] == [0, 0]
        assert the(result, MAIN_F1, width).value == 1
        assert the(result, CARRIED, width).value > 0.8
        assert the(result, FULL, width).units == ("made/c0", "made/c1", "made/c2", "made/c3")
    assert [of(result, f"c{i}")["main"] for i in range(CONCEPTS)] == [[i] for i in range(CONCEPTS)]
    assert [score.measure for score in result.scores] == [*MEASURES, *MEASURES]


def test_planted_absorption_is_found_with_its_children_and_latents(world: World) -> None:
    pairs = (0, 1), (2, 3)
    result = absorption.measure(world.absorb(*pairs).rows(), world.absorb(*pairs).hooked())
    assert world.share(*pairs) > 0.05
    for measure in (FULL, FRACTION):
        assert the(result, measure).value == pytest.approx(world.share(*pairs))
        assert the(result, measure).numerator[[1, 3]].tolist() == [0, 0], "concepts that are left alone"
    examples = [(each["path"], each["latent"]) for concept in ("c0", "c2") for each in of(result, concept)["examples"]]
    assert examples == [("c0/k1", CHILD[0, 1]), ("c2/k3", CHILD[2, 3])]
    assert the(result, MAIN_F1).value < 1
    # the one of c2/k3 lies beyond the first prefix: nothing there carries what is missing
    in_first = the(result, FULL, 12).numerator
    assert in_first[0] == the(result, FULL).numerator[0] > in_first[2] == 0


def test_a_latent_of_one_child_is_no_latent_of_the_concept(world: World) -> None:
    """Though it lifts F1 by a lot, one child being a quarter of its concept: it does nothing for the other children."""
    rows = world.absorb((0, 1)).rows()
    train, labels = ~rows.test, world.concept == 0
    children = np.array(["/".join(example.path) for example in rows.labelled.examples])
    assert main_latents(rows.latents[train], labels[train], children[train].tolist()).tolist() == [0]
    # left out by words alone, some of the child's words stay, and its own latent helps with the others
    words_alone = [example.group for example in rows.labelled.examples]
    chosen = main_latents(rows.latents[train], labels[train], np.array(words_alone)[train].tolist())
    assert set(chosen.tolist()) == {0, CHILD[0, 1]}


@pytest.mark.parametrize("seed", range(3))
def test_latents_that_know_single_words_are_none_of_the_concept_either(seed: int) -> None:
    """Of thousands some fire on a few of the concept's words by chance: chosen on these, they would help with them."""
    random = np.random.default_rng(seed)
    labels = np.arange(200) < 30
    latents = (random.random((200, 3000)) < 0.02) * random.exponential(size=(200, 3000))
    latents[:, 0] = labels * (random.random(200) < 0.5)
    words_alone = [str(i) for i in range(200)]
    assert main_latents(sp.csr_array(latents), labels, words_alone).tolist() == [0]


def test_a_concept_split_into_two_general_latents_is_not_absorbed(world: World) -> None:
    """Each fires on half of the words of every child, and they are told apart from absorption."""
    half = np.arange(len(world.concept)) % 2 == 0
    latents, W_dec = world.latents.copy(), world.W_dec.copy()
    other = D_SAE - 2
    latents[:, other] = latents[:, 0] * half
    latents[half, 0] = 0
    W_dec[other] = W_dec[0]
    split = world._replace(latents=latents, W_dec=W_dec)
    result = absorption.measure(split.rows(), split.hooked())
    assert set(of(result, "c0")["main"]) == {0, other}
    assert of(result, "c0")["values"] == {
        "full": 0,
        "fraction": 0,
        "main_f1": 1,
        "carried": pytest.approx(0.9, abs=0.1),
    }


@pytest.mark.parametrize("rest", [0.3, 0.6])
def test_partial_absorption_is_a_fraction(world: World, rest: float) -> None:
    """The concept's latent still fires, with `rest` of its value; the child's carries the others, if that is enough."""
    pairs = ((0, 1),)
    partly = world.absorb(*pairs, rest=rest)
    result = absorption.measure(partly.rows(), partly.hooked())
    assert the(result, FULL).value == 0
    expected = (1 - rest) * world.share(*pairs) if 1 - rest >= SHARE else 0
    assert the(result, FRACTION).value == pytest.approx(expected, abs=0.02)


def test_the_null_is_of_latents_that_fire_as_often(world: World) -> None:
    """In a dictionary with a latent for each concept other latents in its place leave all to be carried by it."""
    result = absorption.measure(world.rows(), world.hooked())
    for measure in (FULL, FRACTION):
        assert the(result, measure).null > 0.85, "less only where a child's own latent is drawn"
    assert the(result, MAIN_F1).null == pytest.approx(0, abs=0.3)
    assert the(result, CARRIED).null == pytest.approx(0, abs=0.05)


def test_the_null_takes_the_nearest_in_firing_and_never_the_main_ones(world: World) -> None:
    latents = world.latents.copy()
    latents[np.flatnonzero(world.concept == 1)[:3], 0] = 0.01  # more often than the other concepts' latents
    copies = [CHILD[1, 0], *range(CHILD.max() + 1, D_SAE - 1)]
    assert len(copies) == NEIGHBOURS
    latents[:, copies] = latents[:, [0]]
    result = absorption.measure(world._replace(latents=latents).rows(), world.hooked())
    assert of(result, "c0")["main"] == [0]
    assert of(result, "c0")["null"]["full"] == 0, "what fires as often is always there too"


def test_a_dictionary_without_the_concept_scores_like_its_null(world: World) -> None:
    """Noise is never "absorbed": the best of scores, which the null, F1 and what is carried give away."""
    noise = 0.5 * (np.random.default_rng(9).random(world.latents.shape) < 0.1)
    untrained = world._replace(latents=noise)
    result = absorption.measure(untrained.rows(), untrained.hooked())
    assert the(result, FULL).value < 0.15
    assert the(result, FULL).value == pytest.approx(the(result, FULL).null, abs=0.1)
    assert the(result, MAIN_F1).value < 0.5
    assert abs(the(result, CARRIED).value) < 0.1


def test_a_latent_that_fires_on_everything_hides_absorption_but_not_its_f1(world: World) -> None:
    absorbing = world.absorb((0, 1))
    latents = absorbing.latents.copy()
    latents[:, 0] += 0.01
    result = absorption.measure(absorbing._replace(latents=latents).rows(), absorbing.hooked())
    assert of(result, "c0")["values"]["full"] == 0
    assert of(result, "c0")["values"]["main_f1"] < 0.5
    assert of(result, "c0")["values"]["fraction"] > 0.15, "the fraction looks at what is carried"


def test_units_of_latents_do_not_matter(world: World) -> None:
    absorbing = world.absorb((0, 1), (2, 3))
    expected = absorption.measure(absorbing.rows(), absorbing.hooked())
    factors = 10 ** np.random.default_rng(4).uniform(-1, 1, D_SAE)
    rescaled = absorbing._replace(latents=absorbing.latents * factors, W_dec=absorbing.W_dec / factors[:, None])
    hooked = rescaled.hooked()
    offset = np.full(D, 0.3, dtype=np.float32)
    hooked.coder.b_dec.data = torch.from_numpy(offset)
    result = absorption.measure(rescaled.rows(y=absorbing.y + offset), hooked)
    for measure in MEASURES:
        assert the(result, measure).value == pytest.approx(the(expected, measure).value, abs=1e-3)


def test_what_no_latent_carries_is_no_part_of_the_whole(world: World) -> None:
    """b_dec along the concept's direction: of y · p̂ the absorbing latent carries less than it takes to count."""
    absorbing = world.absorb((0, 1))
    offset = 5 * world.directions[0].astype(np.float32)
    hooked = absorbing.hooked()
    hooked.coder.b_dec.data = torch.from_numpy(offset)
    result = absorption.measure(absorbing.rows(y=absorbing.y + offset), hooked)
    assert of(result, "c0")["values"]["full"] == pytest.approx(CONCEPTS * world.share((0, 1)))


def test_a_skip_transcoder_is_measured_where_it_writes(world: World) -> None:
    """What it reads has other dimensions; what its skip connection writes is no part of the whole either."""
    absorbing = world.absorb((0, 1))
    x = 1 + 0.01 * np.random.default_rng(6).standard_normal((len(world.concept), 7))
    skip = np.outer(np.full(7, 5 / 7), world.directions[0])
    hooked = absorbing.hooked(d_in=7)
    assert hooked.coder.W_skip is not None
    hooked.coder.W_skip.data = torch.from_numpy(skip.astype(np.float32))
    result = absorption.measure(absorbing.rows(y=absorbing.y + x @ skip, x=x), hooked)
    assert of(result, "c0")["values"]["full"] == pytest.approx(CONCEPTS * world.share((0, 1)))
    assert [each["path"] for each in of(result, "c0")["examples"]] == ["c0/k1"]


def test_swapped_decoder_rows_carry_nothing(world: World) -> None:
    absorbing = world.absorb((0, 1), (2, 3))
    swapped = absorbing._replace(W_dec=np.roll(absorbing.W_dec, 1, axis=0))
    result = absorption.measure(swapped.rows(), swapped.hooked())
    assert the(result, FULL).value == 0
    assert the(result, CARRIED).value < 0.1


def test_dead_latents_are_counted_and_never_main(world: World) -> None:
    result = absorption.measure(world.rows(), world.hooked())
    assert result.details["never_fired"] == {
        str(width): int((world.latents[:, :width] == 0).all(0).sum()) for width in WIDTHS
    }
    assert result.details["never_fired"][str(D_SAE)] >= 1
    latents = world.latents.copy()
    latents[:, 0] = latents[:, CHILD[0]] = 0  # nothing knows of concept 0 any longer
    latents[world.concept == 0] = 0
    ignorant = world._replace(latents=latents)
    result = absorption.measure(ignorant.rows(), ignorant.hooked())
    assert result.details["without_latents"][str(D_SAE)] == ["c0"]
    assert "made/c0" not in the(result, FULL).units, "never a perfect score"


def test_a_dead_dictionary_is_not_measurable(world: World) -> None:
    dead = world._replace(latents=np.zeros_like(world.latents))
    with pytest.raises(NotMeasurable, match="no latent of this coder fires with any of 4 concepts"):
        absorption.measure(dead.rows(), dead.hooked())


def test_coders_are_compared_concept_by_concept_and_numbers_repeat(world: World) -> None:
    absorbing = world.absorb(*((i, 1) for i in range(CONCEPTS)))
    seen: list[tuple[int, int]] = []
    result = absorption.measure(absorbing.rows(), absorbing.hooked(), lambda done, total: seen.append((done, total)))
    assert seen == [(i, 2 * CONCEPTS) for i in range(1, 2 * CONCEPTS + 1)]
    again = absorption.measure(absorbing.rows(), absorbing.hooked())
    assert again.details == result.details
    difference = compare(the(result, FULL), the(absorption.measure(world.rows(), world.hooked()), FULL))
    assert not difference.inside_noise
    assert difference.difference == pytest.approx(the(result, FULL).value)


# --- what is refused


def test_labels_without_children_are_refused(world: World) -> None:
    rows = world.rows()
    flat = tuple(example._replace(path=example.path[:1]) for example in rows.labelled.examples)
    with pytest.raises(
        MatryoshkaError, match=r'made: absorption is of concepts with children, as .*\["animal", "dog"\]'
    ):
        absorption.measure(rows._replace(labelled=LabelledText("made", flat)), world.hooked())


def test_too_few_rows_are_not_measurable(world: World) -> None:
    rows = world.rows()
    three_tested = np.zeros_like(rows.test)
    for concept in range(CONCEPTS):
        three_tested[np.flatnonzero(world.concept == concept)[:3]] = True
    for test in (three_tested, np.ones_like(rows.test)):
        with pytest.raises(NotMeasurable, match=r"needs 10 rows of 2 children .* none of 4 concepts"):
            absorption.measure(rows._replace(test=test), world.hooked())


def test_what_the_model_does_not_tell_is_not_measurable(world: World) -> None:
    noise = np.random.default_rng(2).standard_normal(world.y.shape)
    with pytest.raises(
        NotMeasurable, match=r"does not tell these concepts at 0.mlp_out: probes of 0 of 4 .*c\d 0\.\d\d"
    ):
        absorption.measure(world.rows(y=noise), world.hooked())


def test_concepts_that_the_model_does_not_tell_are_left_out_and_named(world: World) -> None:
    """The same for every coder, since it is a matter of the model."""
    y = world.y.copy()
    alike = world.concept >= 2  # the last two look the same
    y[alike] = np.random.default_rng(2).standard_normal((int(alike.sum()), D))
    result = absorption.measure(world.rows(y=y), world.hooked())
    assert set(result.details["not_told"]) == {"c2", "c3"}
    assert the(result, FULL).units == ("made/c0", "made/c1")


# --- the definition


def by_hand(latents: np.ndarray, direction: Direction, main: list[int]) -> list[tuple[bool, float]]:
    """Row by row, as the definition reads."""
    found = []
    for row, whole in zip(latents, direction.whole, strict=True):
        carried = row * direction.along
        top = int(np.argmax(carried))
        silent = not any(row[j] > 0 for j in main)
        full = silent and whole > 0 and direction.cosines[top] >= FULL_COSINE and carried[top] >= SHARE * whole
        others = [
            carried[j]
            for j in range(len(row))
            if j not in main and carried[j] > 0 and direction.cosines[j] >= FRACTION_COSINE
        ]
        a, m = sum(sorted(others, reverse=True)[:ABSORBERS]), sum(carried[j] for j in main)
        if whole <= 0 or m >= whole or a < SHARE * whole:
            fraction = 0.0
        elif m <= 0:
            fraction = 1.0
        else:
            a = min(a, whole - m)
            fraction = a / (a + m)
        found.append((full, fraction))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_definition_against_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, width = 60, 25
    latents = random.exponential(size=(n, width)) * (random.random((n, width)) < 0.25)
    latents[0] = 0
    cosines = random.uniform(-0.2, 0.5, width)
    direction = Direction(cosines * random.uniform(0.5, 2, width), cosines, random.normal(0.5, 0.7, n))
    main = random.choice(width, 3 + seed % 3, replace=False)
    given = in_disorder(sp.csr_array(latents), random)
    before = given.copy()
    result = absorbed(given, direction, main)
    expected = by_hand(latents, direction, main.tolist())
    assert result.full.tolist() == [full for full, _ in expected]
    assert result.fraction == pytest.approx([fraction for _, fraction in expected])
    assert len({fraction for _, fraction in expected}) > 3, "not all of them trivial"
    assert result.by_all == pytest.approx((latents * direction.along).sum(1))
    assert result.by_main == pytest.approx((latents * direction.along)[:, main].sum(1))
    assert np.array_equal(given.indices, before.indices), "what is given stays as it was"
    assert np.array_equal(given.data, before.data)


def in_disorder(latents: sp.csr_array, random: np.random.Generator) -> sp.csr_array:
    """The same, the entries of each row in any order, as a product of sparse matrices leaves them."""
    rows = np.repeat(np.arange(latents.shape[0]), np.diff(latents.indptr))
    order = np.lexsort((random.random(latents.nnz), rows))
    found = sp.csr_array((latents.data[order], latents.indices[order], latents.indptr), shape=latents.shape)
    assert not found.has_sorted_indices
    return found


def test_the_order_of_entries_does_not_matter(world: World) -> None:
    rows = world.rows()
    random = np.random.default_rng(1)
    scrambled = absorption.measure(rows._replace(latents=in_disorder(rows.latents, random)), world.hooked())
    assert scrambled.details == absorption.measure(rows, world.hooked()).details


# --- the tree, in which absorption is known


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """examples/synthetic_tree.py, on one thread."""
    file = Path(__file__).parents[2] / "examples" / "synthetic_tree.py"
    spec = importlib.util.spec_from_file_location("synthetic_tree_of_absorption", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec.loader.exec_module(loaded)
        yield loaded
    finally:
        torch.set_num_threads(threads)
        del sys.modules[spec.name]


class OfTree(NamedTuple):
    """A coder of the tree, and tokens that a single parent is on in."""

    coder: SparseCoder
    rows: LabelledRows
    silent: float
    """Share of test tokens where the latent along the parent's direction is silent, mean over parents."""

    def measured(self) -> Result:
        return absorption.measure(self.rows, HookedCoder(self.coder, Wiring.of([READ], [READ]), RowFilter(None, {})))


def of_tree(example: ModuleType, widths: tuple[int, ...]) -> OfTree:
    tree = example.Tree.grow()
    coder = example.train(widths, 0, tree, steps=700)
    x, truth = tree.sample(8000, torch.Generator().manual_seed(5))
    alone = truth.parents.sum(1) == 1
    x, parent, children = x[alone], truth.parents[alone].int().argmax(1).numpy(), truth.children[alone]
    child = [on[p].nonzero().flatten().tolist() for on, p in zip(children, parent, strict=True)]
    examples = tuple(
        LabelledExample("token", None, (f"parent{p}", *(f"child{c}" for c in on)), str(i))
        for i, (p, on) in enumerate(zip(parent.tolist(), child, strict=True))
    )
    test = np.array([is_test(each.group) for each in examples])
    with torch.no_grad():
        latents = as_csr(coder.encode(x))
    own = (tree.parents @ F.normalize(coder.W_dec, dim=1).T).argmax(1).numpy()
    silent = latents.toarray()[np.arange(len(parent)), own[parent]] == 0
    known = float(np.mean([silent[test & (parent == p)].mean() for p in range(len(own))]))
    return OfTree(coder, LabelledRows(LabelledText("tree", examples), x.numpy(), x.numpy(), latents, test, 0), known)


@pytest.fixture(scope="module")
def plain(example: ModuleType) -> OfTree:
    return of_tree(example, example.PLAIN)


@pytest.fixture(scope="module")
def matryoshka(example: ModuleType) -> OfTree:
    return of_tree(example, example.MATRYOSHKA)


def test_the_tree_s_known_absorption_is_what_is_measured(plain: OfTree, matryoshka: OfTree) -> None:
    for each in (plain, matryoshka):
        result = each.measured()
        print(f"{each.coder.config.widths}: known {each.silent:.3f}, measured {the(result, FULL, 40).value:.3f}")
        assert the(result, FULL, 40).value == pytest.approx(each.silent, abs=0.02)
        # it counts the tokens too where the parent's latent still fires, for less than its share
        assert each.silent - 0.02 < the(result, FRACTION, 40).value < each.silent + 0.1
        assert the(result, FULL, 40).null > 0.9
    assert plain.silent > 3 * matryoshka.silent > 0
    difference = compare(the(plain.measured(), FULL, 40), the(matryoshka.measured(), FULL, 40))
    assert difference.low > 0, "plain absorbs more, beyond the spread over parents"


def test_the_tree_with_decoder_rows_swapped(plain: OfTree) -> None:
    """The parents still are silent on the same tokens, but nothing is carried by anyone in their place."""
    coder = SparseCoder(plain.coder.config)
    coder.load_state_dict(plain.coder.state_dict())
    coder.W_dec.data = coder.W_dec.data.roll(1, 0)
    result = plain._replace(coder=coder).measured()
    assert the(result, FULL, 40).value < 0.02
    assert the(result, CARRIED, 40).value < 0.2


# --- a real coder


def test_a_trained_transcoder_and_a_concept_that_the_model_tells(
    lm: LanguageModel, tokens: Tokens, trained: Run
) -> None:
    """Letters that words begin with it does not tell; whether they are capital ones it does."""
    [hooked] = hook_all([trained.coder], lm, tokens.windows("held_out"))
    capital = {token.decode()[1:] for token in lm.token_bytes if token[:1] == b" " and token[1:].isalpha()}
    small = [word[1:] for found in words(lm.token_bytes).values() for word in found if word[1:].capitalize() in capital]
    examples = tuple(
        LabelledExample(f"They saw {text} again", (9, 9 + len(text)), (concept, word), word)
        for word in small[:150]
        for concept, text in (("small", word), ("capital", word.capitalize()))
    )
    rows = encode_labelled(hooked, read_labelled(lm, [hooked], LabelledText("case", examples)))
    result = absorption.measure(rows, hooked)
    assert [score.width for score in result.scores] == [width for width in (32, 96, 256) for _ in MEASURES]
    assert the(result, FULL, 256).units == ("case/capital", "case/small")
    for width in (32, 96, 256):
        for measure in (FULL, FRACTION, MAIN_F1):
            score = the(result, measure, width)
            assert 0 <= score.value <= 1
            assert score.null is not None
            assert 0 <= score.null <= 1
    assert the(result, MAIN_F1, 256).value > the(result, MAIN_F1, 256).null
