"""Our synthetic activations and their scores against SynthSAEBench's, of the same features.

    python benchmarks/synthetic.py [RUN …] [--samples 200000] [--peers DIR] [--json FILE] [--save]

Of the known features of every RUN (`matryoshka train recipes/synthsaebench-*.yaml`; none: the small recipe is trained
first, half a minute):

    law       both programs draw --samples samples of the same features. How often each is on, and its mean magnitude;
              how often both are on, of parents with their children and of features of different trees; siblings never
              are. Every such pair of numbers has a z, the difference over its standard error: where the laws are the
              same, mean z² is 1
    scores    both programs score the RUN's coders on the same samples: they have to say the same
    speed     samples a second of either, on one thread

SAELens runs in an environment of its own, made on first use in ~/.cache/matryoshka/peers (--peers; several GB).
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import HERE, OFFLINE, environment, machine, publish
from saebench import Weights
from safetensors.torch import load_file, save_file
from scipy.stats import chi2, norm
from torch import Tensor

from matryoshka import api
from matryoshka.data.forest import Forest
from matryoshka.data.synthetic import HELD_OUT, SyntheticModel
from matryoshka.evaluation.recovery import evaluate
from matryoshka.evaluation.subject import KnownBench
from matryoshka.run import Run
from matryoshka.study.hooked import hook
from matryoshka.study.opening import Known, subject_of
from matryoshka.training.recipe import Config

SMALL = HERE.parent / "recipes" / "synthsaebench-small.yaml"
PAIRS = 4000
"""Of each kind, at most."""
LEAST = 100
"""Times that something has to have been seen by both for its z."""
SCORED = 20_480
"""Samples on which coders are scored: whole batches of the peer's."""
SCORES = {
    "F1": ("classification", "f1_score"),
    "precision": ("classification", "precision"),
    "recall": ("classification", "recall"),
    "accuracy": ("classification", "accuracy"),
    "MCC": ("mcc",),
    "uniqueness": ("uniqueness",),
    "variance explained": ("explained_variance",),
    "L0": ("sae_l0",),
    "true L0": ("true_l0",),
    "silent latents": ("dead_latents",),
}
"""Our scores, and where SAELens' result has them."""


# --- the law


def pairs_of(forest: Forest, seed: int = 0) -> dict[str, Tensor]:
    """[n, 2] features of each kind of pair."""
    parents, generator = forest.parents, torch.Generator().manual_seed(seed)
    children = (parents >= 0).nonzero()[:, 0]
    siblings = children[:-1][parents[children[:-1]] == parents[children[1:]]]
    frequent = torch.randint(min(len(parents), 512), (2 * PAIRS, 2), generator=generator)
    kinds = {
        "parent and child": torch.stack([parents[children], children], 1),
        "siblings": torch.stack([siblings, siblings + 1], 1),
        "of different trees": frequent[_root(frequent[:, 0], parents) != _root(frequent[:, 1], parents)],
    }
    return {kind: pairs[:PAIRS] for kind, pairs in kinds.items()}


def _root(features: Tensor, parents: Tensor) -> Tensor:
    while (inside := parents[features] >= 0).any():
        features = torch.where(inside, parents[features], features)
    return features


def our_sums(model: SyntheticModel, samples: int, pairs: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What peers/with_synthetic.py sums, of our samples, and the seconds for drawing them."""
    count, d = model.config.features, model.config.dimension
    sums = {name: torch.zeros(count, dtype=torch.float64) for name in ("on", "magnitude", "square")}
    sums |= {"pairs": torch.zeros(len(pairs), dtype=torch.float64)}
    sums |= {name: torch.zeros(d, dtype=torch.float64) for name in ("x", "x_square")}
    wall = processor = 0.0
    parts = model.draw(samples, HELD_OUT, 1)
    while True:
        started, used = time.perf_counter(), time.process_time()
        part = next(parts, None)
        wall, processor = wall + time.perf_counter() - started, processor + time.process_time() - used
        if part is None:
            return sums, {"seconds": wall, "processor_seconds": processor}
        magnitudes, x = part.magnitudes.double(), part.x.double()
        on = torch.zeros(len(x), count, dtype=torch.bool)
        on[part.rows, part.features] = True
        for name, values in (("on", torch.ones_like(magnitudes)), ("magnitude", magnitudes), ("square", magnitudes**2)):
            sums[name].index_add_(0, part.features, values)
        sums["pairs"] += (on[:, pairs[:, 0]] & on[:, pairs[:, 1]]).sum(0)
        sums["x"] += x.sum(0)
        sums["x_square"] += x.square().sum(0)


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor], kinds: dict[str, Tensor]) -> dict[str, Tensor]:
    """z of everything that both programs summed over as many samples."""
    often = (ours["on"] >= LEAST) & (theirs["on"] >= LEAST)
    a, b = ({name: sums[name][often] for name in ("on", "magnitude", "square")} for sums in (ours, theirs))
    means, variances = zip(*(_moments(sums) for sums in (a, b)), strict=True)
    spread = (variances[0] / a["on"] + variances[1] / b["on"]).sqrt()
    z = {"how often a feature is on": _of_counts(a["on"], b["on"]), "mean magnitude": (means[0] - means[1]) / spread}
    start = 0
    for kind, pairs in kinds.items():
        some = slice(start, start := start + len(pairs))
        both = _of_counts(ours["pairs"][some], theirs["pairs"][some])
        z[f"how often both are on: {kind}"] = both[(ours["pairs"][some] + theirs["pairs"][some]) >= 2 * LEAST]
    return z


def _of_counts(a: Tensor, b: Tensor) -> Tensor:
    """Of two counts of rare events."""
    return (a - b) / (a + b).clamp(min=1).sqrt()


def _moments(sums: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    mean = sums["magnitude"] / sums["on"]
    return mean, sums["square"] / sums["on"] - mean**2


def law(model: SyntheticModel, samples: int, python: Path) -> dict[str, Any]:
    """z of either program's samples, and their speed."""
    kinds, forest = pairs_of(model.forest), model.forest
    pairs = torch.cat(list(kinds.values()))
    given = {name: values.contiguous() for name, values in forest._asdict().items()} | {"pairs": pairs}
    about = {"hierarchy": hierarchy(model), "samples": samples, "sparse": False}
    theirs, seconds = ask("draw", given, about, python)
    _, sparse_seconds = ask("draw", given, about | {"samples": 20 * 1024, "sparse": True}, python)
    ours, our_seconds = our_sums(model, samples, pairs)
    sibling_pairs = slice(len(kinds["parent and child"]), len(kinds["parent and child"]) + len(kinds["siblings"]))
    means = torch.stack([ours["x"], theirs["x"]]) / samples
    squares = torch.stack([ours["x_square"], theirs["x_square"]]) / samples
    return {
        "z": {what: _summary(z) for what, z in differences(ours, theirs, kinds).items() if len(z)},
        "siblings_on_together": [int(sums["pairs"][sibling_pairs].sum()) for sums in (ours, theirs)],
        "features_on": [float(sums["on"].sum()) / samples for sums in (ours, theirs)],
        "norm_of_mean": means.norm(dim=1).tolist(),
        "mean_square": squares.sum(1).tolist(),
        "samples_a_second": {
            "ours": {name: samples / value for name, value in our_seconds.items()},
            "SAELens": {name: samples / value for name, value in seconds.items()},
            "SAELens, sparse tensors": {name: 20 * 1024 / value for name, value in sparse_seconds.items()},
        },
    }


def _summary(z: Tensor) -> dict[str, float]:
    """`p`: how likely so large a Σz² and so large a |z| are where the laws are the same and all z independent."""
    n, largest = len(z), z.abs().max().item()
    return {
        "n": n,
        "mean_square": z.square().mean().item(),
        "largest": largest,
        "p_sum": float(chi2.sf(z.square().sum().item(), n)),
        "p_largest": float(1 - (1 - 2 * norm.sf(largest)) ** n),
    }


def hierarchy(model: SyntheticModel) -> dict[str, Any]:
    """The forest as SAELens writes it."""
    config, inside = model.config, sum(model.config.levels)
    nodes = [
        {
            "feature_index": feature,
            "mutually_exclusive_children": config.exclusive and feature < inside - config.levels[-1],
            "scale_children_by_parent": feature < inside - config.levels[-1],
            "feature_id": None,
            "children": [],
        }
        for feature in range(inside)
    ]
    for feature, parent in enumerate(model.forest.parents[:inside].tolist()):
        if parent >= 0:
            nodes[parent]["children"].append(nodes[feature])
    return {"roots": nodes[: config.trees]}


# --- the scores


def scores(member: Run, model: SyntheticModel, python: Path) -> dict[str, dict[str, float]]:
    """{"ours": …, "SAELens": …} of one coder, on the same samples."""
    hooked = hook(member.coder, model)
    [subject] = KnownBench(model, [hooked], SCORED).subjects()
    found = evaluate(subject)
    parts = list(model.draw(SCORED, HELD_OUT))
    starts = torch.tensor([0, *(len(part.x) for part in parts)]).cumsum(0)
    entries = {
        "rows": torch.cat([part.rows + start for part, start in zip(parts, starts, strict=False)]),
        "features": torch.cat([part.features for part in parts]),
        "magnitudes": torch.cat([part.magnitudes for part in parts]),
    }
    known = {"directions": model.forest.directions, "bias": model.forest.bias}
    given = entries | known | Weights.of(hooked.coder)._asdict()
    _, theirs = ask("scores", given, {"samples": SCORED}, python)
    values = {score.measure.name: score.value for score in found.scores if score.width == subject.widths[-1]}
    details = {name: found.details[name] for name in ("precision", "recall", "accuracy")}
    ours = values | details | {
        "true L0": found.details["true_l0"],
        "silent latents": values["silent"] * subject.widths[-1],
    }  # fmt: skip
    return {
        "ours": {name: ours[name] for name in SCORES},
        "SAELens": {
            name: theirs[path[0]] if len(path) == 1 else theirs[path[0]][path[1]] for name, path in SCORES.items()
        },
    }


def ask(what: str, given: dict[str, Tensor], about: dict[str, Any], python: Path) -> tuple[dict[str, Tensor], Any]:
    """SAELens' answer, from a process of one thread in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: values.contiguous() for name, values in given.items()}, Path(folder) / "given.safetensors")
        (Path(folder) / "given.json").write_text(json.dumps(about))
        command = [python, HERE / "peers" / "with_synthetic.py", what, folder]
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | OFFLINE | one_thread
        )
        if done.returncode:
            raise SystemExit(f"{done.stderr[-3000:]}\nSAELens failed: its last words are above")
        return load_file(Path(folder) / "answer.safetensors"), json.loads(done.stdout.splitlines()[-1])


# --- the program


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    python = environment("saelens", given.peers)
    runs = given.runs or [api.train(Config.load(SMALL), folder / "small").path]
    results = {}
    for run in map(Run, runs):
        members = run.trained()
        known = subject_of(members[0].coder)
        if not isinstance(known, Known):
            raise SystemExit(f"{run.path}: is of no synthetic features")
        model = SyntheticModel(known.synthetic, torch.device("cpu"))
        results[known.synthetic.name] = {
            "law": law(model, given.samples // 1024 * 1024, python),
            "scores": {member.path.name: scores(member, model, python) for member in members},
        }
    return {"machine": machine("cpu", 1), "samples": given.samples, "models": results}


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    lines = ["# Ours and SynthSAEBench's (SAELens 6.54.12)", ""]
    for name, of_model in results["models"].items():
        the_law = of_model["law"]
        lines += [f"## {name}: {results['samples']:,} samples of either", ""]
        lines += ["| | n | mean z² | p | largest z | p |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {what} | {z['n']:,} | {z['mean_square']:.3f} | {z['p_sum']:.2f} | {z['largest']:.2f} |"
            f" {z['p_largest']:.2f} |"
            for what, z in the_law["z"].items()
        ]
        lines += ["", "| | ours | SAELens |", "|---|---|---|"]
        for what in ("features_on", "siblings_on_together", "norm_of_mean", "mean_square"):
            lines.append(f"| {what.replace('_', ' ')} | " + " | ".join(f"{x:.4f}" for x in the_law[what]) + " |")
        lines += ["", "| samples a second, one thread | by the clock | by the processor's time |", "|---|---|---|"]
        for who, rates in the_law["samples_a_second"].items():
            lines.append(f"| {who} | {rates['seconds']:,.0f} | {rates['processor_seconds']:,.0f} |")
        for coder, both in of_model["scores"].items():
            lines += ["", f"| {coder} | ours | SAELens | difference |", "|---|---|---|---|"]
            for score, ours in both["ours"].items():
                theirs = both["SAELens"][score]
                lines.append(f"| {score} | {ours:.6f} | {theirs:.6f} | {abs(ours - theirs):.1e} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="runs of coders of synthetic activations")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "matryoshka" / "peers", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-synthetic.json and .md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(given, Path(folder))
    publish(results, markdown(results), given.json, given.save, "-synthetic")


if __name__ == "__main__":
    main()
