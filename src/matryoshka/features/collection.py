"""The features of a run's coders, collected by one process or several, and what a new store takes over from an old one.

each process records its share of the text for a coder; the first one joins the shares and makes the store
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.identity import fingerprint
from matryoshka.evaluation.placed import Placed
from matryoshka.features.collect import Needs, collect, needs, record_share
from matryoshka.features.recording import join
from matryoshka.features.schema import About
from matryoshka.features.store import FeatureStore
from matryoshka.features.summary import Wanted
from matryoshka.lm.model import LanguageModel
from matryoshka.progress import progress_bar
from matryoshka.run import Run

logger = logging.getLogger("matryoshka")


def collect_members(
    members: Sequence[Run],
    lm: LanguageModel,
    windows: Windows,
    tokens: int,
    source: str,
    wanted: Wanted,
    announce: Callable[[Needs], None],
) -> list[FeatureStore]:
    """A store for each coder, of `tokens` tokens of `windows`, the text that came from `source`; in the first process
    alone. `announce` is told what each takes, before the work."""
    stores = []
    with World.current() as world:
        for member in members:
            placed = Placed.load(member.coder, lm)
            _annotations(member, coder := placed.coder.fold())  # refused before the work, not after
            announce(needs(placed.coder, windows, tokens))
            folders = [member.recording / f"{rank}-of-{world.size}" for rank in range(world.size)]
            with progress_bar(f"reading text for {member.path.name}") as update:
                record_share(lm, windows, placed, tokens, folders[world.rank], world, update)
            world.barrier()
            if world.rank > 0:
                continue
            join(folders[0], folders[1:])
            with progress_bar("making the features") as update:
                kept, explained = partial(_annotations, member, coder), _explanations(member, coder)
                store = collect(lm, windows, placed, folders[0], member.features_file, source, wanted, kept, update)
                store.explain(explained)
                stores.append(store)
            shutil.rmtree(member.recording)  # with what killed runs of other numbers of processes left in it
    return stores


def collected(member: Run, about: About, lm: LanguageModel) -> Placed:
    """The folded coder whose features `about` describes. Raises MatryoshkaError if the run's is another by now."""
    placed = Placed.load(member.coder, lm)
    placed = placed._replace(coder=placed.coder.fold())
    if fingerprint(placed.coder) != about.coder:
        raise MatryoshkaError(
            f"{member.path}: its coder is not the one whose features were collected;"
            f" collect them anew with: matryoshka features {member.path} --overwrite"
        )
    return placed


def _annotations(member: Run, coder: SparseCoder) -> dict[int, tuple[str, str]]:
    """The labels and notes that a new store takes over from the one that lies there."""
    if not member.features_file.exists():
        return {}
    try:
        store = FeatureStore(member.features_file)
        kept = store.annotations()
    except MatryoshkaError as error:
        logger.warning("%s; its labels and notes, if any, are lost", error)
        return {}
    store.close()
    if kept and store.about.coder != fingerprint(coder):
        raise MatryoshkaError(
            f"{member.features_file}: holds {len(kept)} labels and notes for another coder; move it away first"
        )
    return kept


def _explanations(member: Run, coder: SparseCoder) -> dict[int, tuple[str, str]]:
    """The same of explanations."""
    try:
        store = FeatureStore(member.features_file)
        kept = store.explanations() if store.about.coder == fingerprint(coder) else {}
    except MatryoshkaError:  # there is none, or a damaged one, which `_annotations` has warned of
        return {}
    store.close()
    return kept
