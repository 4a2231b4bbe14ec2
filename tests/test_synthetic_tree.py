"""The point of Matryoshka coders, on features that are known: nested widths keep parents from being absorbed.

The margins hold with slack over seeds 0–7, where plain absorbed 0.31–0.48 and Matryoshka 0.03–0.10; those of the
hierarchy over seeds 0–3 (precision 0.83–0.96, recall 0.72–0.81). The numbers of a run are printed (pytest -s).
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from planted import CONTEXT, SITE, KnownCorpus, observed

from matryoshka.analysis.hierarchy import analyse
from matryoshka.coder.coder import SparseCoder
from matryoshka.lm.sites import Wiring
from matryoshka.study.hooked import EVERY_ROW, HookedCoder

EXAMPLE = Path(__file__).parents[1] / "examples" / "synthetic_tree.py"
SEED = 0


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example as a module; on one thread, which is all that products this small can use."""
    spec = importlib.util.spec_from_file_location("synthetic_tree", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        torch.set_num_threads(threads)
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def coders(example: ModuleType) -> dict[str, SparseCoder]:
    """Both kinds from one seed: the same weights at the start, the same tokens; only `widths` differs."""
    kinds = {"plain": example.PLAIN, "matryoshka": example.MATRYOSHKA}
    return {kind: example.train(widths, SEED, example.Tree.grow()) for kind, widths in kinds.items()}


@pytest.fixture(scope="module")
def measured(example: ModuleType, coders: dict[str, SparseCoder]) -> dict[str, dict[str, float]]:
    tree = example.Tree.grow()
    found = {kind: example.measure(coder, tree, example.MATRYOSHKA) for kind, coder in coders.items()}
    for name in found["plain"]:
        print(f"{name:16s} plain {found['plain'][name]:.3f}   Matryoshka {found['matryoshka'][name]:.3f}")
    return found


def test_children_never_fire_without_their_parent(example: ModuleType) -> None:
    tree = example.Tree.grow()
    x, truth = tree.sample(5000, torch.Generator().manual_seed(3))
    child_on = truth.children.any(dim=-1)
    assert not (child_on & ~truth.parents).any()
    assert (truth.parents & ~child_on).any(), "a parent is sometimes on alone"
    assert truth.children.sum(dim=-1).max() == 1
    on = truth.parents.sum() + truth.children.sum()
    assert on.item() / len(x) == pytest.approx(tree.l0, rel=0.05)
    # the tokens are what the truth says: directions are orthonormal, so projections are the magnitudes
    magnitudes = x @ tree.parents.T
    assert magnitudes[truth.parents].mean().item() == pytest.approx(1, abs=0.02)
    assert magnitudes[~truth.parents].abs().max() < 0.2


def test_features_must_fit_into_the_dimensions(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="50 orthogonal features do not fit into 48"):
        example.Tree.grow(parents=10, children=4, d=48)


def test_matryoshka_recovers_the_parents(measured: dict[str, dict[str, float]]) -> None:
    found = measured["matryoshka"]
    assert found["parent_cosine"] > 0.95
    assert found["in_first"] > 0.8, "parents belong into the first prefix"
    assert found["recall"] > 0.88
    assert found["absorption"] < 0.2
    assert found["false_firing"] < 0.01


def test_plain_absorbs_them(measured: dict[str, dict[str, float]]) -> None:
    plain = measured["plain"]
    assert plain["parent_cosine"] > 0.95, "the parent's direction is there: it is the firing that has holes"
    assert plain["absorption"] > 0.25
    assert plain["recall"] < 0.86


def test_nested_widths_make_the_difference(measured: dict[str, dict[str, float]]) -> None:
    """Fails if `widths` do not reach the training: the two would then be one and the same coder."""
    plain, matryoshka = measured["plain"], measured["matryoshka"]
    assert plain["absorption"] - matryoshka["absorption"] > 0.18
    assert plain["child_to_parent"] - matryoshka["child_to_parent"] > 0.15
    assert matryoshka["child_cosine"] - plain["child_cosine"] > 0.04
    assert matryoshka["fvu_12"] < 0.5 * plain["fvu_12"]


def test_the_hierarchy_of_a_trained_coder_is_the_trees(
    example: ModuleType, coders: dict[str, SparseCoder], tmp_path: Path
) -> None:
    """Of latents: each is of the feature that its decoder row is most along."""
    tree, coder = example.Tree.grow(), coders["matryoshka"]
    x, _ = tree.sample(640 * CONTEXT, torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = coder.encode(x).dense().numpy()
    hooked = HookedCoder(coder, Wiring.of([SITE], [SITE]), EVERY_ROW)
    result = analyse(observed(tmp_path / "recording", dense, hooked), KnownCorpus({SITE: x}))

    features = torch.cat([tree.parents, tree.children.flatten(0, 1)])
    of_latent = (torch.nn.functional.normalize(coder.decoder_rows(), dim=1) @ features.T).argmax(1).tolist()
    parents, children, _ = tree.children.shape
    truth = {(i // children, parents + i) for i in range(parents * children)}
    edges = result.details["edges"]
    found = [
        (of_latent[parent], of_latent[child])
        for parent, child, stands in zip(edges["parent"], edges["child"], edges["stands"], strict=True)
        if stands
    ]
    precision, recall = sum(edge in truth for edge in found) / len(found), len({*found} & truth) / len(truth)
    print(f"of a trained coder: {len(found)} edges, precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.8
    assert recall >= 0.7
