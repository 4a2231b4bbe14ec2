"""Our evaluations against SAEBench's on the same activations, coders and labels.

    python benchmarks/saebench.py [RUN …] [--model MODEL [--site 8.resid_post] [--words 60]]
                                  [--peers DIR] [--json FILE] [--save]

Core, of every RUN (SAEs of resid_post): cross-entropy, KL, explained variance, cosine and L0 of the same held-out
windows, SAEBench's functions on its own loading of the language model.

Absorption of the first letter, with --model. SAEs that a text of a few hundred thousand tokens trains have no latents
for letters, so besides the RUNs (of --model, at --site) two coders are trained here, plain and Matryoshka, on the last
token of "\\n word" for all words of the model's vocabulary. Then, on prompts of --words words a letter:

    definition   SAEBench's calculator and ours are given the same probes, main latents, rows and whole (its y · p̂):
                 they have to say the same of every word
    own          each with its own probes and main latents, on the same split of the words. Where they differ, either
                 one's value with the other's whole, y · p̂ or (y − b_dec) · p̂, says how much of it comes from there

SAEBench runs in an environment of its own, made on first use in ~/.cache/matryoshka/peers (--peers; several GB).
--model takes what a recipe takes (tests/test_real.py fetches a small one). The absorption takes half an hour on two
cores, most of it reading; the core a minute a RUN.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import HERE, OFFLINE, available_threads, environment, machine, publish
from safetensors.torch import save_file
from torch import Tensor

from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.nonlinearity import BatchTopK, JumpReLU
from matryoshka.data.rowfilter import RowFilter
from matryoshka.data.stream import Batch
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation import absorption, reconstruction
from matryoshka.evaluation.absorption import FRACTION, FULL, MIN_PROBE_F1
from matryoshka.evaluation.shared.carried import Direction, absorbed
from matryoshka.evaluation.shared.labelled_rows import LabelledRows, as_csr, encode_labelled, read_labelled
from matryoshka.evaluation.shared.probes import fit_activations
from matryoshka.evaluation.shared.spelling import first_letters, words
from matryoshka.evaluation.subject import Bench
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Site, Wiring
from matryoshka.run import Run
from matryoshka.study.hooked import HookedCoder, hook_all
from matryoshka.study.opening import studied
from matryoshka.study.reader import spread_windows
from matryoshka.training.plan import Plan
from matryoshka.training.recipe import CoderSection, TrainingSection
from matryoshka.training.trainee import Trainee

D_SAE, K, STEPS, BATCH = 3072, 32, 600, 1024
TRAINED = {"plain": (D_SAE,), "Matryoshka": (D_SAE // 32, D_SAE // 8, D_SAE)}


class Weights(NamedTuple):
    """An SAE as SAEBench takes it: a JumpReLU of raw units whose decoder rows have norm 1."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, coder: SparseCoder) -> "Weights":
        match coder.activation:
            case BatchTopK():
                threshold = coder.activation.threshold.expand(coder.config.d_sae)
            case JumpReLU():
                threshold = coder.activation.theta
            case other:
                raise SystemExit(f"{type(other).__name__} has no thresholds: SAEBench takes batchtopk or jumprelu")
        norms = coder.W_dec.norm(dim=1)
        weights = (coder.W_enc * norms, coder.b_enc * norms, coder.W_dec / norms[:, None], coder.b_dec)
        return cls(*(tensor.detach().float().contiguous() for tensor in (*weights, threshold * norms)))


# --- coders that know words


def word_activations(lm: LanguageModel, site: Site) -> Tensor:
    """The activations at `site` of all words of the vocabulary, each alone in a line."""
    texts = [f"\n{word}" for found in words(lm.token_bytes).values() for word in found]
    tokens = [lm.tokens(text)[0] for text in texts]
    length = min(map(len, tokens))
    whole = torch.stack([each for each in tokens if len(each) == length])
    return torch.cat([lm.read(part, [site])[site][:, -1].float().cpu() for part in whole.split(256)])


def train(x: Tensor, site: Site, widths: Sequence[int]) -> SparseCoder:
    """A BatchTopK SAE of these rows, taken at random over and over, folded."""
    config = CoderConfig(
        reads=(x.shape[1],),
        writes=(x.shape[1],),
        d_sae=D_SAE,
        widths=tuple(widths),
        activation={"kind": "batchtopk", "k": K},
    )
    section = CoderSection(read=str(site), d_sae=D_SAE, widths=tuple(widths), k=K)
    training = TrainingSection(tokens=STEPS * BATCH, batch=BATCH, lr=2e-3, dead_after_tokens=100_000)
    random = torch.Generator().manual_seed(0)
    plan = Plan("coder", section, Wiring.of([site], [site]), config)
    trainee = Trainee(plan, SparseCoder(config).initialise(0, tied=True), training, STEPS)
    first = x[:4096]
    trainee.calibrate(Batch({site: first}, torch.arange(len(first))))
    for step in range(STEPS):
        rows = x[torch.randint(len(x), (BATCH,), generator=random)]
        trainee.step(Batch({site: rows}, torch.arange(BATCH)), step, measure=False)
    return trainee.folded()


# --- absorption


def _norms(coder: SparseCoder) -> np.ndarray:
    """Of the decoder's rows."""
    return coder.decoder_rows().norm(dim=1).float().cpu().numpy()


def absorption_agreement(hooked: HookedCoder, rows: LabelledRows, python: Path) -> dict[str, Any]:
    """Both sides on the same rows, for the whole dictionary."""
    result = absorption.measure(rows, hooked)
    ours = {score.measure: score for score in result.scores if score.width == hooked.coder.config.d_sae}
    width = str(hooked.coder.config.d_sae)
    found = {letter: each["prefixes"][width] for letter, each in result.details["concepts"].items()}
    letters = sorted(rows.labelled.concepts().keys() & set("abcdefghijklmnopqrstuvwxyz"))
    word = np.array([example.group for example in rows.labelled.examples])
    letter = np.array([example.path[0] for example in rows.labelled.examples])

    weights, latents = Weights.of(hooked.coder), rows.latents.multiply(_norms(hooked.coder)).tocsr()
    directions = torch.zeros(len(letters), rows.y.shape[1])
    chosen, said = {}, {}
    for name in found:
        probe = fit_activations(rows.y[~rows.test], letter[~rows.test] == name)
        counted = rows.test & (letter == name) & (probe.scores(rows.y) > 0)
        # SAEBench's whole: the projection of y itself
        direction = Direction.of(probe.direction, weights.W_dec.numpy(), rows.y[counted])
        values = absorbed(latents[counted], direction, np.array(found[name]["main"]))
        directions[letters.index(name)] = torch.from_numpy(probe.direction)
        chosen[name] = word[counted].tolist()
        said |= dict(zip(chosen[name], zip(values.fraction.tolist(), values.full.tolist(), strict=True), strict=True))

    given = {"x": torch.from_numpy(rows.x), "test": torch.from_numpy(rows.test), "directions": directions}
    about = {
        "words": word.tolist(),
        "letter": letter.tolist(),
        "letters": letters,
        "rows": chosen,
        "main": {name: each["main"] for name, each in found.items()},
    }
    theirs = ask("absorption", given | weights._asdict(), about, python)
    return {
        "rows": len(said),
        "latents": {"ours": float(latents.sum(dtype=np.float64)), "theirs": theirs["latents"]},
        "definition": _definition(said, theirs["definition"]),
        "ours": {
            "letters": len(found),
            "fraction": ours[FRACTION].value,
            "full": ours[FULL].value,
            "nulls": {"fraction": ours[FRACTION].null, "full": ours[FULL].null},
            "fraction_of_y": _mean_over_letters(chosen, said, 0),
            "full_of_y": _mean_over_letters(chosen, said, 1),
            "main": statistics.mean(len(each["main"]) for each in found.values()),
        },
        "theirs": _their_means(theirs["own"]),
        "by_letter": {name: {"ours": each["values"], "theirs": theirs["own"][name]} for name, each in found.items()},
    }


def _definition(ours: dict[str, tuple[float, bool]], theirs: dict[str, tuple[float, bool]]) -> dict[str, float]:
    """How far the two differ in what they say of each word."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"the two were not asked about the same words: {ours.keys() ^ theirs.keys()}")
    return {
        "words": len(ours),
        "fractions_above_0": sum(each[0] > 0 for each in ours.values()),
        "full": sum(each[1] for each in ours.values()),
        "largest_difference": max(abs(ours[word][0] - theirs[word][0]) for word in ours),
        "full_differs": sum(ours[word][1] != theirs[word][1] for word in ours),
    }


def _mean_over_letters(chosen: dict[str, list[str]], said: dict[str, tuple[float, bool]], which: int) -> float:
    return statistics.mean(statistics.mean(float(said[word][which]) for word in found) for found in chosen.values())


def _their_means(own: dict[str, dict[str, Any]]) -> dict[str, float]:
    """As SAEBench's main program reports them: of the letters whose probe is good enough."""
    counted = [each for each in own.values() if each["probe_f1"] > MIN_PROBE_F1 and "rows" in each]
    names = ("fraction", "full", "fraction_less_b_dec", "full_less_b_dec")
    return {
        "letters": len(counted),
        "main": statistics.mean(len(each["main"]) for each in counted),
        **{name: statistics.mean(each[name] for each in counted) for name in names},
    }


def ask(what: str, given: dict[str, Tensor], about: dict[str, Any], python: Path) -> dict[str, Any]:
    """SAEBench's answer, from a process in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(given, Path(folder) / "given.safetensors")
        (Path(folder) / "given.json").write_text(json.dumps(about))
        command = [python, HERE / "peers" / "with_saebench.py", what, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | OFFLINE)
        if done.returncode:
            raise SystemExit(f"{done.stderr[-3000:]}\nSAEBench failed: its last words are above")
    return json.loads(done.stdout.splitlines()[-1])


# --- core

TOKENS, BATCH_WINDOWS = 8192, 16
CORE = {
    "CE, clean": "ce_loss_without_sae",
    "CE, reconstructed": "ce_loss_with_sae",
    "CE, zeros": "ce_loss_with_ablation",
    "CE recovered (zero)": "ce_loss_score",
    "KL recovered (zero)": "kl_div_score",
    "explained variance, as SAEBench has it": "explained_variance",
    "1 − FVU": "explained_variance",
    "cosine": "cossim",
    "L0": "l0",
}
"""Our numbers, and SAEBench's names for them."""


def core_agreement(path: Path, python: Path, export: Path | None = None) -> dict[str, dict[str, float]]:
    """{"ours": …, "theirs": …}, each by CORE's names, for the whole dictionary; theirs of our weights, or of an export
    of them that SAELens loads."""
    run = Run.open(path)
    its = studied(run.coder)
    lm = its.open_lm("cpu")
    windows = its.open_tokens(lm.vocabulary).windows("held_out")
    [hooked] = hook_all([run.coder], lm, windows)
    [site, *others] = hooked.wiring.sites
    if others or site.kind != "resid_post":
        raise MatryoshkaError(f"{path}: SAEBench takes SAEs of resid_post, this one is {hooked.wiring}")
    [subject] = Bench(lm, windows, [hooked], TOKENS).subjects()
    found = reconstruction.evaluate(subject)
    about = {
        "folder": str(lm.info.folder or lm.info.name),
        "blocks": lm.info.family.blocks,
        "layer": site.layer,
        "bos": lm.bos,
        "batch": BATCH_WINDOWS,
        "export": None if export is None else str(export),
    }
    given = {"windows": torch.from_numpy(windows[spread_windows(windows, TOKENS)])}
    weights = Weights.of(hooked.coder)._asdict() if export is None else {}
    theirs = ask("core", given | weights, about, python)
    ours = {
        "CE, clean": found.details["ce_clean"],
        "CE, reconstructed": found.values("CE")[-1],
        "CE, zeros": found.details["ce_zero"],
        "explained variance, as SAEBench has it": found.details["explained_variance_saebench"][-1],
        "1 − FVU": 1 - found.values("FVU")[-1],
        **{name: found.values(name)[-1] for name in ("CE recovered (zero)", "KL recovered (zero)", "cosine", "L0")},
    }
    return {"ours": {name: ours[name] for name in CORE}, "theirs": {name: theirs[key] for name, key in CORE.items()}}


# --- the program


def measure(given: argparse.Namespace) -> dict[str, Any]:
    python = environment("saebench", given.peers)
    core = {str(path): core_agreement(path, python) for path in given.runs}
    about = {"machine": machine("cpu", available_threads()), "core": core}
    return about | (measure_absorption(given, python) if given.model else {})


def measure_absorption(given: argparse.Namespace, python: Path) -> dict[str, Any]:
    site, lm = Site.parse(given.site), load(given.model, device="cpu")
    x = word_activations(lm, site)
    coders = {f"{name}, on words": train(x, site, widths) for name, widths in TRAINED.items()}
    coders |= {str(run): SparseCoder.load(run) for run in given.runs}
    labelled, rows = first_letters(lm, given.words), None
    results = {}
    for name, coder in coders.items():
        hooked = HookedCoder(coder, Wiring.of([site], [site]), RowFilter(lm.bos, {}))
        if rows is None:
            rows = encode_labelled(hooked, read_labelled(lm, [hooked], labelled))
        latents = as_csr(hooked.coder.encode(torch.from_numpy(rows.x)))
        results[name] = absorption_agreement(hooked, rows._replace(latents=latents), python)
        print(name, json.dumps(results[name]["definition"]), flush=True)
    return {"model": Path(given.model).name, "site": str(site), "absorption": results}


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    lines = ["# Ours and SAEBench 0.6.0's", ""]
    for path, each in results["core"].items():
        lines += [f"## Core: {path}", "", "| | ours | SAEBench |", "|---|---|---|"]
        lines += [f"| {name} | {each['ours'][name]:.5f} | {each['theirs'][name]:.5f} |" for name in CORE] + [""]
    return "\n".join(lines + (_absorption_lines(results) if "absorption" in results else [])) + "\n"


def _absorption_lines(results: dict[str, Any]) -> list[str]:
    lines = [
        f"## Absorption: {results['model']}, {results['site']}",
        "",
        "| SAE | words | fractions > 0 | largest difference | full | they differ |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in results["absorption"].items():
        same = each["definition"]
        lines.append(
            f"| {name} | {same['words']} | {same['fractions_above_0']} | {same['largest_difference']:.1e} |"
            f" {same['full']} | {same['full_differs']} |"
        )
    lines += [
        "",
        "| SAE | | ours | null | ours, of y | SAEBench | SAEBench, of y − b_dec |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in results["absorption"].items():
        ours, theirs = each["ours"], each["theirs"]
        for kind in ("fraction", "full"):
            values = ours[kind], ours["nulls"][kind], ours[f"{kind}_of_y"], theirs[kind], theirs[f"{kind}_less_b_dec"]
            lines.append(f"| {name} | {kind} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        lines.append(f"| {name} | main latents a letter | {ours['main']:.1f} | | | {theirs['main']:.1f} | |")
        lines.append(f"| {name} | letters | {ours['letters']} | | | {theirs['letters']} | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="runs of SAEs of resid_post")
    parser.add_argument("--model", help="language model of the absorption")
    parser.add_argument("--site", default="8.resid_post")
    parser.add_argument("--words", type=int, default=60, help="words of a letter")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "matryoshka" / "peers", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-saebench.json and .md")
    given = parser.parse_args()
    try:
        results = measure(given)
    except MatryoshkaError as error:
        raise SystemExit(str(error)) from error
    publish(results, markdown(results), given.json, given.save, "-saebench")


if __name__ == "__main__":
    main()
