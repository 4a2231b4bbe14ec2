"""What a run has saved of its training and its evaluation, checked, in the form that figures are drawn from."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from matryoshka.errors import MatryoshkaError
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import load

DRAWN = ("FVU", "CE recovered", "CE recovered (zero)")
"""Scores of the reconstruction that are drawn, by name: what measures them imports torch."""


class Curves(NamedTuple):
    """metrics.jsonl in columns; `tokens` counts training's."""

    tokens: np.ndarray
    """[n]"""
    fvu: np.ndarray
    """[n, prefix], of the batch at that point"""
    l0: np.ndarray
    """[n]"""
    dead: np.ndarray
    """[n], share"""
    held_out_tokens: np.ndarray
    """[m]; m is 0 if held-out text was not measured yet"""
    held_out_fvu: np.ndarray
    """[m, prefix]"""
    held_out_l0: np.ndarray
    """[m]"""


def read_metrics(run: Run) -> Curves:
    """The run's metrics.jsonl. Raises MatryoshkaError if there is no record of training in it, or what is no record."""
    training, held_out = [], []
    for number, record in enumerate(_records(run), start=1):
        try:
            row = (float(record["step"]), float(record["l0"]), [float(value) for value in record["fvu"]])
            if record.get("held_out"):
                held_out.append(row)
            else:
                training.append((*row, float(record["tokens"]), float(record["dead"])))
        except (ValueError, TypeError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            raise MatryoshkaError(f"{run.metrics}: line {number} is no record of training ({why})") from None
    if not training and not run.config_file.is_file():
        raise MatryoshkaError(f"{run.path}: was not trained here, so there is no training to draw")
    if not training:
        raise MatryoshkaError(
            f"{run.metrics}: no record of training yet; matryoshka train writes them, and goes on after a stop with:"
            f" matryoshka resume {run.path}"
        )
    if len(prefixes := {len(row[2]) for row in (*training, *held_out)}) > 1:
        raise MatryoshkaError(f"{run.metrics}: expected one number of prefixes in all lines, found {sorted(prefixes)}")
    steps, l0, fvu, tokens, dead = (np.array(column) for column in zip(*training, strict=True))
    held_out_fvu = np.array([row[2] for row in held_out]).reshape(len(held_out), fvu.shape[1])
    held_out_steps, held_out_l0 = np.array([row[:2] for row in held_out]).reshape(len(held_out), 2).T
    batch = tokens[0] / steps[0]
    return Curves(tokens, fvu, l0, dead, held_out_steps * batch, held_out_fvu, held_out_l0)


def _records(run: Run) -> list[Any]:
    """The lines of metrics.jsonl; half a line at its end, as a kill leaves it, is left out."""
    try:
        lines = run.metrics.read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise MatryoshkaError(f"{run.metrics}: line {number} is damaged ({error})") from None
    return records


def read_results(run: Run, prefixes: int) -> Result:
    """The run's evaluation/reconstruction.json, with one number a prefix. Raises MatryoshkaError otherwise."""
    results, file = load(run.evaluation, "reconstruction").result, run.evaluation / "reconstruction.json"
    lengths = {name: len(results.of(name)) for name in DRAWN}
    if {*lengths.values()} != {prefixes}:
        raise MatryoshkaError(
            f"{file}: not the results of this coder (prefixes: {lengths}, {run.metrics.name} has {prefixes});"
            f" run: matryoshka eval {run.path} --overwrite"
        )
    return results


def checked(density: np.ndarray, widths: Sequence[int], run: Run) -> np.ndarray:
    """`density` in float64, if it is one share for each feature."""
    density = np.asarray(density, dtype=np.float64)
    if density.shape != (widths[-1],):
        why = f"densities of shape {list(density.shape)} for {widths[-1]:,} features"
    elif not ((density >= 0) & (density <= 1)).all():
        why = "densities that are no shares from 0 to 1"
    else:
        return density
    raise MatryoshkaError(f"{run.path}: {why}; collect them again: matryoshka features {run.path}")
