"""The product's verbs, one function each, for Python and the command line alike. A run is given as such or by its path.

train, resume, tokenise, preview       from text and a language model to trained, measured coders
evaluate, results                      what the suite of evaluations finds of them
compare                                what matches what between several
analyze                                all of it, from features to findings, and one report
features, name, explain                every feature's evidence, rules and explanations, into each coder's store
store, feature                         what it holds
steer                                  what the language model writes with a feature held at a level, and without
serve, export_page, figures            to look at
import_run, import_coder, releases     coders of others: to a run, or into memory
export, push, pull                     in the files of other programs, and on the hub
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from matryoshka.data.documents import check_source
from matryoshka.data.tokens import Split, Tokens
from matryoshka.data.tokens import tokenise as tokenise_text
from matryoshka.defaults import EVALUATION_TOKENS, FEATURE_TOKENS, PROMPT, STEERED_TOKENS, STRENGTH, TEMPERATURE
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.setting import setting_of
from matryoshka.evaluation.suite import measured
from matryoshka.evaluation.table import first_of
from matryoshka.features.chat import ChatModel, Choice
from matryoshka.features.collection import Needs, Request, collect, collected
from matryoshka.features.endpoint import Cost, Endpoint
from matryoshka.features.explain import explain as explain_features
from matryoshka.features.explain import prepare
from matryoshka.features.naming import Named, name_by_rules
from matryoshka.features.reading import reader
from matryoshka.features.store import FeatureStore
from matryoshka.features.summary import Wanted
from matryoshka.interop.exporting import export as export
from matryoshka.interop.importing import import_coder as import_coder
from matryoshka.interop.importing import import_run as import_run
from matryoshka.interop.registry import releases as releases
from matryoshka.interop.sharing import pull as pull
from matryoshka.interop.sharing import push as push
from matryoshka.interventions.steering import Steered, measure_unit
from matryoshka.interventions.steering import steer as steer_text
from matryoshka.lm.model import describe, load_vocabulary
from matryoshka.progress import progress_bar
from matryoshka.report.compared import compare as compare
from matryoshka.report.evaluated import evaluate as evaluate
from matryoshka.report.figures import draw
from matryoshka.report.notebook import FeatureCard
from matryoshka.report.pipeline import analyze as analyze
from matryoshka.report.scaled import scaling as scaling
from matryoshka.report.server import Shown
from matryoshka.report.server import serve as serve_page
from matryoshka.report.static_page import write_page
from matryoshka.run import Run, all_held, once, opened
from matryoshka.run import names as run_names
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.scores.saved import load, save
from matryoshka.study.hooked import HookedCoder, hook_all
from matryoshka.study.opening import AnotherText, Models, is_synthetic, read_card, refuse_synthetic, studied, subject_of
from matryoshka.study.watch import held_out_metrics
from matryoshka.training import checkpoint
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.log import Record
from matryoshka.training.loop import train as train_coders
from matryoshka.training.plan import check, configurations, default_folder, resolve
from matryoshka.training.preview import preview as preview
from matryoshka.training.provenance import provenance, recorded_hash
from matryoshka.training.recipe import Config, TokensConfig
from matryoshka.training.session import Learned, Session


def train(config: Config, out: str | Path | None = None, overwrite: bool = False) -> Run:
    """Train the coders of `config`, measure them on held-out text and save all of it in a new run.

    `out` is the run's folder (default: runs/<sae|transcoder>/<base model>/<name>). Raises MatryoshkaError for what
    cannot be, before anything is loaded or written; `Interrupted` after a signal.
    """
    with World.current() as world:
        info, plans = check(config)
        config = Config.build(world.told(resolve(config, info, plans).model_dump(mode="json")))
        path = Path(out) if out else default_folder(config, info, plans)
        Run.refuse_existing(path, overwrite)
        session = Session.open(config, plans, world=world)
        select = session.of_all([trainee.coder.precision for trainee in session.trainees])
        if world.first:
            labels = [plan.label for plan in plans]
            facts = provenance(session.supply, dict(zip(labels, select, strict=True)), world.size)
            Run.create(path, configurations(config, plans), json.dumps(facts, indent=2) + "\n", overwrite)
        with Run(path).held("train") if world.first else nullcontext():
            return _train(Run(path), session)


def resume(run: Run | str | Path) -> Run:
    """Go on with an interrupted run from its last checkpoint, to the same result as if it had never stopped.

    Raises MatryoshkaError if there is nothing to resume, or if the text has changed since.
    """
    run = Run.open(run)
    with World.current() as world, run.held("train") if world.first else nullcontext():
        config = Config.load(run.config_file)
        _, plans = check(config)
        folder = checkpoint.latest(run.checkpoints)
        session = Session.open(config, plans, folder, world)
        supply = session.supply
        before, now = recorded_hash(run.provenance, supply.kind), supply.hash
        if before != now:
            raise MatryoshkaError(
                f"{run.path}: was trained on {supply.kind} {before}, but {supply.source} now gives {now}"
            )
        return _train(run, session)


def _train(run: Run, session: Session) -> Run:
    session.world.barrier()  # the run's folder is there
    held_out, tokens = session.supply.held_out, session.config.evaluation.tokens

    def watch(learned: Sequence[Learned]) -> list[Record]:
        return held_out_metrics(held_out, [HookedCoder(*parts) for parts in learned], tokens)

    train_coders(session, run, watch)
    members = [run.member(trainee.plan.label) for trainee in session.trainees]
    setting = setting_of(subject_of(members[0].coder), tokens, ready=held_out)
    measured(members, setting, [first_of(is_synthetic(members[0].coder))])
    session.world.barrier()
    return run


def tokenise(config: TokensConfig) -> Tokens:
    """Only the tokens of a text for a model's tokenizer; loads no weights."""
    check_source(config.text)
    return tokenise_text(config.text, *load_vocabulary(describe(config.model.name, config.model.revision)))


def features(
    runs: Run | str | Path | Sequence[Run | str | Path],
    tokens: int = FEATURE_TOKENS,
    text: AnotherText | None = None,
    split: Split = "held_out",
    overwrite: bool = False,
    wanted: Wanted = Wanted(),  # noqa: B008
    announce: Callable[[Needs], None] = lambda needed: None,
    keep_recording: bool = True,
    device: str = "auto",
) -> list[FeatureStore]:
    """Collect the features of a run's coders, or of several runs', from `tokens` tokens of `split`: of each run's own
    text, or of `text`.

    Coders of one language model and text share one pass over it, whose recording stays in the (first) run's folder
    unless not `keep_recording`: collecting again from the same tokens reads nothing. Labels, notes and explanations of
    an earlier store of the same coder are kept. Under torchrun each process reads its share of the windows; the first
    one makes the stores, and the others return none. Raises MatryoshkaError if there is a store already and not
    `overwrite`.
    """
    several = opened(runs)
    for member in (member for run in several for member in run.trained()):
        if member.features_file.exists() and not overwrite:
            raise MatryoshkaError(f"{member.features_file}: exists already; --overwrite collects anew and keeps labels")
    keep_freed_memory()
    request = Request(tokens, split, wanted, keep_recording)
    with all_held(several if World.current().rank == 0 else (), "features"):
        return collect(several, request, text, device, announce)


def name(run: Run | str | Path) -> dict[str, Named]:
    """Name every living feature of a run's coders by the rule that tells best where it fires, if there is a good one;
    what was found, by coder's folder. Needs no language model. Labels, and explanations by others, stay."""
    named = {}
    for member in Run.open(run).trained():
        with progress_bar(f"naming the features of {member.path.name}") as update:
            named[str(member.path)] = name_by_rules(FeatureStore(member.features_file), update)
    return named


def explain(
    run: Run | str | Path,
    model: ChatModel,
    choice: Choice = Choice(),  # noqa: B008
    agree: Callable[[Cost], None] = lambda cost: None,
    device: str = "auto",
) -> dict[str, Result]:
    """Let a chat model explain features of a run's coders; the scores of its explanations, by coder's folder.

    The explanations are in each store from then on, the scores in its evaluation/detection.json. `agree` is told what
    each coder costs before anything is asked, and raises what ends it. Raises MatryoshkaError without features or a
    key, for a coder that has changed since, and where the model cannot be reached; what it has answered is kept, and
    the next call goes on.
    """
    stores = {member: FeatureStore(member.features_file) for member in Run.open(run).trained()}
    endpoint = Endpoint(model)
    endpoint.check()
    models = Models(device)
    scored = {}
    with all_held(stores, "explain"):
        for member, its in stores.items():
            lm = models.of(read_card(member.coder))
            try:
                with progress_bar(f"looking where features of {member.path.name} are silent") as update:
                    plan = prepare(its, lm, collected(member, its.about, lm), endpoint, choice, update)
                agree(plan.cost)
                with progress_bar(f"asking {model.name} about {member.path.name}") as update:
                    result = explain_features(plan, update)
            except NotMeasurable as reason:
                result = Result((), reason=str(reason))
            asked = {"chat model": model.name, "address": model.base_url, **model.parameters, **choice._asdict()}
            save(result, {"coder": its.about.coder, **asked}, member.evaluation, "detection")
            scored[str(member.path)] = result
    return scored


def steer(
    run: Run | str | Path,
    feature: int,
    strength: float = STRENGTH,
    prompt: str = PROMPT,
    tokens: int = STEERED_TOKENS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    text: AnotherText | None = None,
    device: str = "auto",
) -> Steered:
    """What the language model of a run writes after `prompt` with `feature` held at `strength` times its maximum on
    held-out text, and what without.

    Raises MatryoshkaError if the run has several coders, and for whatever `steering.steer` refuses.
    """
    coder = Run.sole(run).coder
    its = studied(coder, text)
    lm = its.open_lm(device)
    windows = its.open_tokens(lm.vocabulary).windows("held_out")
    [hooked] = hook_all([coder], lm, windows)
    with progress_bar("reading held-out text for the feature's maximum") as update:
        unit = measure_unit(lm, windows, hooked, feature, EVALUATION_TOKENS, update)
    return steer_text(lm, hooked, feature, unit, strength, prompt, tokens, temperature, seed)


def serve(
    runs: Sequence[Run | str | Path], port: int, ready: Callable[[str], None] = print, device: str = "auto"
) -> None:
    """Show the features of these runs' coders until interrupted; `ready(address)` is called when the page can be
    opened.

    Raises MatryoshkaError if a run has no features yet, or the port is taken.
    """
    members = once(member for run in runs for member in Run.open(run).trained())
    models = Models(device)
    stores = [FeatureStore(member.features_file) for member in members]
    shown = [
        Shown(label, member, its, reader(member, its.about, models))
        for label, member, its in zip(run_names(members), members, stores, strict=True)
    ]
    serve_page(shown, port, ready)


def export_page(run: Run | str | Path, folder: str | Path, overwrite: bool = False) -> Path:
    """Write the page of a run's features into `folder`, to be opened without a server; its index.html.

    Raises MatryoshkaError if the run has several coders or no features yet, or if something lies in `folder`.
    """
    run = Run.sole(run)
    with progress_bar(f"writing {folder}") as update:
        write_page(run, store(run), run.path.resolve().name, Path(folder), overwrite, update)
    return Path(folder) / "index.html"


def figures(run: Run | str | Path) -> list[Path]:
    """Draw the figures of a run's coders as PNG and SVG into each one's figures/; their paths."""
    written = []
    for member in Run.open(run).trained():
        refuse_synthetic(member.coder)
        known = member.features_file.exists()
        density = np.array(FeatureStore(member.features_file).columns()["density"]) if known else None
        written += draw(member, density)
    return written


def results(run: Run | str | Path, name: str | None = None) -> Result:
    """What an evaluation (none: the one that ends training) found of a run's coder, as `matryoshka eval RUN` has saved
    it. Raises MatryoshkaError before that."""
    run = Run.sole(run)
    return load(run.evaluation, name or first_of(is_synthetic(run.coder))).result


def store(run: Run | str | Path) -> FeatureStore:
    """The features of a run's coder, as `matryoshka features RUN` has collected them. Raises MatryoshkaError before
    that."""
    return FeatureStore(Run.sole(run).features_file)


def feature(run: Run | str | Path, index: int) -> FeatureCard:
    """One feature: its page's card in a notebook, text elsewhere."""
    return FeatureCard(store(run), index)
