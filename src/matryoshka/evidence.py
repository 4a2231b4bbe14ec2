"""The product's verbs for a trained run's features, for Python and the command line alike.

features(path)              collect the evidence of every feature in the run's store
name(path)                  the best rule of each feature beside its label
explain(path, model)        a chat model's explanations beside the labels, and how well they tell where features fire
serve(paths)                a page of it, on this machine
export_page(path, folder)   the same page as a folder that opens without a server
figures(path)               training, FVU and densities as PNG and SVG
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from matryoshka import assembly
from matryoshka.coder.coder import SparseCoder
from matryoshka.config import merged
from matryoshka.data.documents import check_source
from matryoshka.data.tokens import Split
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.saved import save
from matryoshka.evaluation.scores import NotMeasurable, Result
from matryoshka.features.collect import Needs, Share, collect, fingerprint, needs, record_share
from matryoshka.features.endpoint import ChatModel, Cost, Endpoint
from matryoshka.features.explain import Wanted as Explaining
from matryoshka.features.explain import explain as explain_features
from matryoshka.features.explain import prepare
from matryoshka.features.naming import Named, name_by_rules
from matryoshka.features.reading import Reading, read_text
from matryoshka.features.recording import join
from matryoshka.features.schema import About
from matryoshka.features.store import FeatureStore
from matryoshka.features.summary import Wanted
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import progress_bar
from matryoshka.report.export import export
from matryoshka.report.figures import draw
from matryoshka.report.server import Shown
from matryoshka.report.server import serve as serve_page
from matryoshka.run import Run
from matryoshka.run import names as run_names
from matryoshka.training.allocator import keep_freed_memory
from matryoshka.training.config import Config

logger = logging.getLogger("matryoshka")


def features(
    path: str | Path,
    tokens: int = 2_000_000,
    text: str | None = None,
    split: Split = "held_out",
    overwrite: bool = False,
    wanted: Wanted = Wanted(),  # noqa: B008
    announce: Callable[[Needs], None] = lambda needed: None,
) -> list[FeatureStore]:
    """Collect the features of a run's coders from `tokens` tokens of `split`: of the run's own text, or of `text`.

    Labels, notes and explanations of an earlier store of the same coder are kept. Under torchrun each process reads its
    share of the windows; the first one makes the stores, and the others return none. Raises MatryoshkaError if there is
    a store already and not `overwrite`.
    """
    run = Run.open(path)
    config = Config.load(run.config_file)
    members = run.trained()
    for member in members:
        if member.features_file.exists() and not overwrite:
            raise MatryoshkaError(f"{member.features_file}: exists already; --overwrite collects anew and keeps labels")
    if text is not None:
        source = {"source": text, "limit": None, "subset": None, "split": "train", "field": "text"}
        config = Config.build(merged(config.model_dump(), {"text": source}))
    check_source(config.text)
    keep_freed_memory()
    lm = assembly.open_lm(config.model)
    windows = assembly.open_tokens(config.text, lm.vocabulary).windows(split)
    stores = []
    with _processes() as (share, wait):
        for member in members:
            placed = Placed.load(member.coder, lm)
            _annotations(member, coder := placed.coder.fold())  # refused before the work, not after
            announce(needs(placed.coder, windows, tokens))
            folders = [member.recording / f"{rank}-of-{share.of}" for rank in range(share.of)]
            with progress_bar(f"reading text for {member.path.name}") as update:
                record_share(lm, windows, placed, tokens, folders[share.rank], share, update)
            wait()
            if share.rank > 0:
                continue
            join(folders[0], folders[1:])
            with progress_bar("making the features") as update:
                file, source = member.features_file, config.text.source
                kept, explained = partial(_annotations, member, coder), _explanations(member, coder)
                store = collect(lm, windows, placed, folders[0], file, source, wanted, kept, update)
                store.explain(explained)
                stores.append(store)
            shutil.rmtree(member.recording)  # with what killed runs of other numbers of processes left in it
    return stores


@contextmanager
def _processes() -> Iterator[tuple[Share, Callable[[], None]]]:
    """(this process's share, a function that waits for the others), as torchrun says."""
    share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if share.of == 1:
        yield share, lambda: None
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield share, lambda: torch.distributed.barrier() and None
    finally:
        torch.distributed.destroy_process_group()


def _annotations(member: Run, coder: SparseCoder) -> dict[int, tuple[str, str]]:
    """The labels and notes that a new store takes over from the one that lies there."""
    if not member.features_file.exists():
        return {}
    try:
        store = FeatureStore(member.features_file)
        found = store.annotations()
    except MatryoshkaError as error:
        logger.warning("%s; its labels and notes, if any, are lost", error)
        return {}
    store.close()
    if found and store.about.coder != fingerprint(coder):
        raise MatryoshkaError(
            f"{member.features_file}: holds {len(found)} labels and notes for another coder; move it away first"
        )
    return found


def _explanations(member: Run, coder: SparseCoder) -> dict[int, tuple[str, str]]:
    """The same of explanations."""
    try:
        store = FeatureStore(member.features_file)
        found = store.explanations() if store.about.coder == fingerprint(coder) else {}
    except MatryoshkaError:  # there is none, or a damaged one, which `_annotations` has warned of
        return {}
    store.close()
    return found


def name(path: str | Path) -> dict[str, Named]:
    """Name every living feature of a run's coders by the rule that tells best where it fires, if there is a good one;
    what was found, by coder's folder. Needs no language model. Labels, and explanations by others, stay."""
    found = {}
    for member in Run.open(path).trained():
        with progress_bar(f"naming the features of {member.path.name}") as update:
            found[str(member.path)] = name_by_rules(FeatureStore(member.features_file), update)
    return found


def explain(
    path: str | Path,
    model: ChatModel,
    wanted: Explaining = Explaining(),  # noqa: B008
    agree: Callable[[Cost], None] = lambda cost: None,
) -> dict[str, Result]:
    """Let a chat model explain features of a run's coders; the scores of its explanations, by coder's folder.

    The explanations are in each store from then on, the scores in its evaluation/detection.json. `agree` is told what
    each coder costs before anything is asked, and raises what ends it. Raises MatryoshkaError without features or a
    key, for a coder that has changed since, and where the model cannot be reached; what it has answered is kept, and
    the next call goes on.
    """
    run = Run.open(path)
    config = Config.load(run.config_file)
    stores = {member: FeatureStore(member.features_file) for member in run.trained()}
    endpoint = Endpoint(model)
    endpoint.check()
    lm = assembly.open_lm(config.model)
    results = {}
    for member, store in stores.items():
        try:
            with progress_bar(f"looking where features of {member.path.name} are silent") as update:
                plan = prepare(store, lm, _collected(member, store.about, lm), endpoint, wanted, update)
            agree(plan.cost)
            with progress_bar(f"asking {model.name} about {member.path.name}") as update:
                result = explain_features(plan, update)
        except NotMeasurable as reason:
            result = Result((), reason=str(reason))
        asked = {"chat model": model.name, "address": model.base_url, **model.parameters, **wanted._asdict()}
        save(result, {"coder": store.about.coder, **asked}, member.evaluation, "detection")
        results[str(member.path)] = result
    return results


def _collected(member: Run, about: About, lm: LanguageModel) -> Placed:
    """The folded coder whose features `about` describes. Raises MatryoshkaError if the run's is another by now."""
    placed = Placed.load(member.coder, lm)
    placed = placed._replace(coder=placed.coder.fold())
    if fingerprint(placed.coder) != about.coder:
        raise MatryoshkaError(
            f"{member.path}: its coder is not the one whose features were collected;"
            f" collect them anew with: matryoshka features {member.path} --overwrite"
        )
    return placed


def serve(paths: Sequence[str | Path], port: int, ready: Callable[[str], None] = print) -> None:
    """Show the features of these runs' coders until interrupted; `ready(address)` is called when the page can be
    opened.

    Raises MatryoshkaError if a run has no features yet, or the port is taken.
    """
    members = [member for path in paths for member in Run.open(path).trained()]
    names = run_names(members)
    models = cache(assembly.open_lm)
    stores = [FeatureStore(member.features_file) for member in members]
    shown = [
        Shown(name, store, _reader(member, store.about, models))
        for name, member, store in zip(names, members, stores, strict=True)
    ]
    serve_page(shown, port, ready)


def _reader(member: Run, about: About, models: Callable[[Any], LanguageModel]) -> Callable[[str], Reading]:
    """Reads texts; the language model, from its section of the configuration, and the coder are loaded at the first
    one."""
    lock = Lock()

    @cache
    def parts() -> tuple[LanguageModel, Placed]:
        lm = models(Config.load(member.config_file).model)
        return lm, _collected(member, about, lm)

    def read(text: str) -> Reading:
        with lock:
            return read_text(*parts(), about, text)

    return read


def export_page(path: str | Path, folder: str | Path, overwrite: bool = False) -> Path:
    """Write the page of a run's features into `folder`, to be opened without a server; its index.html.

    Raises MatryoshkaError if the run has several coders or no features yet, or if something lies in `folder`.
    """
    run = Run.sole(path)
    with progress_bar(f"writing {folder}") as update:
        export(FeatureStore(run.features_file), run.path.resolve().name, Path(folder), overwrite, update)
    return Path(folder) / "index.html"


def figures(path: str | Path) -> list[Path]:
    """Draw the figures of a run's coders as PNG and SVG into each one's figures/; their paths."""
    written = []
    for member in Run.open(path).trained():
        density = (
            np.array(FeatureStore(member.features_file).columns()["density"]) if member.features_file.exists() else None
        )
        written += draw(member, density)
    return written
