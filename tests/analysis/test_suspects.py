"""Pairs that point alike, and how often parents fire with a child and without it: against loops over dense tables."""

from pathlib import Path

import numpy as np
import torch
from planted import CONTEXT, latents, observed, sae

from matryoshka.analysis.ringed import RingedLatents
from matryoshka.analysis.suspects import AlikePairs, TokenTypes, alike


def test_pairs_of_two_rings_above_the_cut_are_alike() -> None:
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.31, 0, 0.95], [0.29, 0.9, 0.3], [-0.9, 0, 0.4]])
    pairs = alike(rows, np.array([0, 0, 1, 1, 2]))
    found = {*zip(pairs.parent.tolist(), pairs.child.tolist(), strict=True)}
    assert found == {(0, 2), (1, 3)}, "0 and 3 have a cosine of 0.29, 2 and 3 are of one ring"


def test_rates_are_those_of_a_loop_over_types(tmp_path: Path) -> None:
    generator, rows = np.random.default_rng(0), 40 * CONTEXT
    dense, tokens = latents(1, rows, 12, 0.3), generator.integers(0, 9, rows)
    dense[:, 10] = (tokens == 4) * 1.0  # never silent on its type
    ringed = RingedLatents.of(observed(tmp_path / "recording", dense, sae(torch.eye(12), (6, 12)), tokens))
    parent, child = (of.flatten() for of in np.meshgrid(np.arange(6), np.arange(6, 12)))
    found = TokenTypes(ringed, tokens).collapse(AlikePairs(parent, child, np.ones(36)))
    on = dense > 0
    for pair, (p, c) in enumerate(zip(parent, child, strict=True)):
        expected, with_parent = [], []
        for row in np.flatnonzero(on[:, c]):
            without = (tokens == tokens[row]) & ~on[:, c]
            if without.any():
                expected.append(on[without, p].mean())
                with_parent.append(on[row, p])
        assert found.compared[pair] == len(expected)
        if c == 10:
            assert not expected
        else:
            np.testing.assert_allclose(
                (found.expected[pair], found.coverage[pair]), (np.mean(expected), np.mean(with_parent))
            )
