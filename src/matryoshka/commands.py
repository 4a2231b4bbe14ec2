"""The product's verbs, for Python and the command line alike.

train(config) → Run       from text and a language model to trained, measured coders
resume(path) → Run        go on from the last checkpoint, bit for bit
tokenise(config)          the tokens alone
memory(config)            what training would hold in memory
steer(path, feature)      what the model writes with a feature held at a level, and without
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from matryoshka import assembly, suite
from matryoshka.data.documents import check_source
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.held_out import activation_metrics
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.steering import PROMPT, STRENGTH, TEMPERATURE, TOKENS, Steered, measure_unit
from matryoshka.evaluation.steering import steer as steer_text
from matryoshka.files import write_text
from matryoshka.lm.model import (
    DTYPES,
    LanguageModel,
    ModelInfo,
    describe,
    load_vocabulary,
    resolve_device,
)
from matryoshka.lm.shape import shape
from matryoshka.progress import progress_bar
from matryoshka.run import Run
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.config import Config, TokensConfig
from matryoshka.training.log import JsonLines, Record, Sink, TensorBoard, Wandb
from matryoshka.training.memory import Item, estimate
from matryoshka.training.plan import Plan, check, resolve
from matryoshka.training.train import train as run_loop
from matryoshka.training.trainee import Trainee

logger = logging.getLogger("matryoshka")


def train(config: Config, out: str | Path | None = None, overwrite: bool = False) -> Run:
    """Train the coders of `config`, measure them on held-out text and save all of it in a new run.

    `out` is the run's folder (default: runs/<sae|transcoder>/<base model>/<name>). Raises MatryoshkaError for what
    cannot be, before anything is loaded or written; `Interrupted` after a signal.
    """
    info, plans = check(config)
    config = resolve(config, info)
    path = Path(out) if out else default_folder(config, info, plans)
    Run.refuse_existing(path, overwrite)
    lm = assembly.open_lm(config.model)
    tokens = assembly.open_tokens(config.text, lm.vocabulary)
    run = Run.create(path, config.to_yaml(), [each.label for each in plans], overwrite)
    for each in plans:
        if run.member(each.label) != run:
            alone = config.model_copy(update={"coder": each.section, "variants": ()})
            write_text(run.member(each.label).config_file, alone.to_yaml())
    write_text(run.provenance, json.dumps(assembly.provenance(lm, tokens), indent=2) + "\n")
    return _run(run, config, lm, tokens, plans, resumed=None)


def resume(path: str | Path) -> Run:
    """Go on with an interrupted run from its last checkpoint, to the same result as if it had never stopped.

    Raises MatryoshkaError if there is nothing to resume, or if the text has changed since.
    """
    run = Run.open(path)
    config = Config.load(run.config_file)
    _, plans = check(config)
    folder = checkpoint.latest(run.checkpoints)
    lm = assembly.open_lm(config.model)
    tokens = assembly.open_tokens(config.text, lm.vocabulary)
    before = json.loads(run.provenance.read_text(encoding="utf-8"))["tokens"]["hash"]
    if before != tokens.hash:
        raise MatryoshkaError(
            f"{path}: was trained on tokens {before}, but {config.text.source} now gives {tokens.hash}"
        )
    return _run(run, config, lm, tokens, plans, resumed=folder)


def _run(run: Run, config: Config, lm: LanguageModel, tokens: Tokens, plans: list[Plan], resumed: Path | None) -> Run:
    """The loop, then the trained coders and their measures."""
    keep_freed_memory()
    stream = assembly.open_stream(config, lm, tokens, plans)
    trainees = assembly.new_trainees(config, plans, lm.device, lm.info)
    state: dict[str, Any] = {"step": 0, "best": {}}
    if resumed is not None:
        state = checkpoint.load(resumed, trainees)
        stream.load_state_dict(state["stream"])
    else:
        assembly.calibrate(trainees, stream)
    sinks = [_sinks(run, config, each, state["step"], len(plans)) for each in plans]
    held_out = tokens.windows("held_out")
    evaluate = partial(_held_out_metrics, lm, held_out, config.evaluation.tokens)

    def keep_best(trainee: Trainee) -> None:
        trainee.coder.save(run.member(trainee.plan.label).best)

    try:
        run_loop(config, trainees, stream, run.checkpoints, sinks, evaluate, keep_best, state)
    finally:
        stream.close()
        for sink in (sink for each in sinks for sink in each):
            sink.close()
    for trainee in trainees:
        member = run.member(trainee.plan.label)
        trainee.coder.metadata["tokens"] = config.steps * config.training.batch
        trainee.coder.metadata["tokens_left_out"] = stream.tokens_left_out
        trainee.coder.save(member.coder)
        suite.measured(member, suite.Bench(config, ready=(lm, held_out)), ["reconstruction"])
    return run


def _held_out_metrics(lm: LanguageModel, windows: Windows, tokens: int, trainees: Sequence[Trainee]) -> list[Record]:
    return activation_metrics(lm, windows, [Placed(t.coder, t.plan.read, t.plan.write) for t in trainees], tokens)


def tokenise(config: TokensConfig) -> Tokens:
    """Only the tokens of a text for a model's tokenizer; loads no weights."""
    check_source(config.text)
    vocabulary = load_vocabulary(describe(config.model.name, config.model.revision))
    return assembly.open_tokens(config.text, vocabulary)


def memory(config: Config) -> list[Item]:
    """What training `config` would hold in memory, in upper bounds; loads no weights."""
    info, plans = check(config)
    device = resolve_device(config.model.device)
    lm = shape(info)
    if config.model.dtype == "auto":
        itemsize = torch.float32.itemsize if device.type == "cpu" else lm.bytes_a_parameter
    else:
        itemsize = DTYPES[config.model.dtype].itemsize
    return estimate(config, plans, info, lm, itemsize, chunks=2 if assembly.reads_ahead(device) else 1)


def steer(
    path: str | Path,
    feature: int,
    strength: float = STRENGTH,
    prompt: str = PROMPT,
    tokens: int = TOKENS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> Steered:
    """What the language model of a run writes after `prompt` with `feature` held at `strength` times its maximum on
    held-out text, and what without.

    Raises MatryoshkaError if the run has several coders, and for whatever `steering.steer` refuses.
    """
    run = Run.sole(path)
    config = Config.load(run.config_file)
    lm = assembly.open_lm(config.model)
    placed = Placed.load(run.coder, lm)
    held_out = assembly.open_tokens(config.text, lm.vocabulary).windows("held_out")
    with progress_bar("reading held-out text for the feature's maximum") as update:
        unit = measure_unit(lm, held_out, placed, feature, config.evaluation.tokens, update)
    return steer_text(lm, placed, feature, unit, strength, prompt, tokens, temperature, seed)


def default_folder(config: Config, info: ModelInfo, plans: Sequence[Plan]) -> Path:
    """runs/<sae|transcoder>/<base model>/<name>, the name made of what is trained if the config has none."""
    kind = "sae" if all(each.read == each.write for each in plans) else "transcoder"
    c = config.coder
    sites = c.read if c.write in (None, c.read) else f"{c.read}-{c.write}"
    made = f"{sites}-{c.activation}-{c.d_sae}-k{c.k}-s{c.seed}"
    model = Path(info.name).name.removesuffix(".gguf").lower()
    return Path("runs") / kind / model / (config.name or made)


def _sinks(run: Run, config: Config, each: Plan, start: int, coders: int) -> list[Sink]:
    member = run.member(each.label)
    sinks: list[Sink] = [JsonLines(member.metrics, start)]
    if config.log.wandb:
        name = run.path.name if coders == 1 else f"{run.path.name}/{each.label}"
        group = run.path.name if coders > 1 else None
        settings = {**config.model_dump(mode="json"), "coder": each.section.model_dump(mode="json")}
        sinks.append(Wandb(config.log.wandb, name, group, settings, member.path))
    if config.log.tensorboard:
        sinks.append(TensorBoard(member.path / "tensorboard"))
    return sinks
