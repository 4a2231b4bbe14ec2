"""All features of the coders of one or several runs, from one pass over text that they were not trained on.

    1. record      the sparse latents of all coders on every window, on disk    (study/recorder.py)
    2. summarise   statistics and examples, exactly, block by block             (features/summary.py)
    3. relate      cosine and co-active neighbours, parents                     (features/relations.py)
                   the direct effect on the logits                              (features/effects.py)
    4. store       one database file a coder                                    (features/store.py)

Coders of one language model and text share one pass and one recording. It stays, so that the same features are made
again without the language model. Killed in step 1, the next call goes on; killed later, it starts step 2 again.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from matryoshka.data.rowfilter import SINK_FACTOR, RowFilter
from matryoshka.data.tokens import Split, Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.features.effects import direct_effects
from matryoshka.features.feature import flag_bits, summarise, top_tokens
from matryoshka.features.relations import BLOCK_SCORES, Partners, coactive, cosine_neighbours
from matryoshka.features.schema import STATISTICS, About, Words
from matryoshka.features.store import FeatureStore
from matryoshka.features.summary import BLOCK_ENTRIES, Summary, Wanted
from matryoshka.features.summary import summarise as summaries
from matryoshka.features.writer import Row, Writer
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.vocabulary import alone
from matryoshka.progress import Progress, progress_bar, silent
from matryoshka.run import Run
from matryoshka.study.final_norm import final_scale
from matryoshka.study.hooked import HookedCoder, hook, hook_all
from matryoshka.study.opening import AnotherText, Studied, studied
from matryoshka.study.reader import spread, spread_windows
from matryoshka.study.recorder import bytes_needed, record
from matryoshka.study.recording import RecordedCoder, Recording

logger = logging.getLogger("matryoshka")
LEFT_OUT = (
    "BOS, the first token of each window, and attention sinks"
    f" (activations whose norm is more than {SINK_FACTOR:.0f} times the median)"
)


class Needs(NamedTuple):
    """Upper bounds in bytes, beside the language model and the coders."""

    memory: int
    disk: int
    """Of the recording, which stays unless --no-recording; the stores are smaller."""


class Request(NamedTuple):
    """Which text, and what is made of it."""

    tokens: int
    split: Split
    wanted: Wanted = Wanted()
    keep_recording: bool = True


@dataclass(frozen=True, eq=False)
class _TextPass:
    """Coders that read the same text through the same language model."""

    studied: Studied
    members: list[Run]
    folder: Path
    """Where the recording lies: of several runs, in the first one."""


_Ready = tuple[LanguageModel, Windows, list[HookedCoder]]
"""What a pass needs in memory, the coders in the order of its members."""


def collect(
    runs: Sequence[Run],
    request: Request,
    text: AnotherText | None = None,
    device: str = "auto",
    announce: Callable[[Needs], None] = lambda needed: None,
) -> list[FeatureStore]:
    """A store for each coder of these runs, made of the source `text` or of what each was trained on; in a group of
    processes in the first one alone. `announce` is told what each pass takes, before the work."""
    passes = _passes(runs, text)
    ready = lru_cache(maxsize=1)(partial(_prepare, request=request, device=device))  # a single pass opens once
    with World.current() as world:
        for text_pass in passes:
            _record(text_pass, ready(text_pass), request, world, announce)
    # nobody waits for the first process while it makes the stores
    if world.rank > 0:
        return []
    return [store for text_pass in passes for store in _make_stores(text_pass, ready(text_pass), request)]


def _passes(runs: Sequence[Run], text: AnotherText | None) -> list[_TextPass]:
    passes: dict[str, _TextPass] = {}
    for run in runs:
        wishes = {member: studied(member.coder, text) for member in run.trained()}
        shared = len({wanted.key for wanted in wishes.values()}) == 1  # otherwise one recording would replace another
        for member, wanted in wishes.items():
            new = _TextPass(wanted, [], (run if shared else member).recording)
            members = passes.setdefault(wanted.key, new).members
            if member not in members:
                members.append(member)
    return list(passes.values())


def _prepare(text_pass: _TextPass, request: Request, device: str) -> _Ready:
    lm = text_pass.studied.open_lm(device)
    windows = text_pass.studied.open_tokens(lm.vocabulary, request.split, request.tokens).windows(request.split)
    return lm, windows, hook_all([member.coder for member in text_pass.members], lm, windows)


def _record(
    text_pass: _TextPass, ready: _Ready, request: Request, world: World, announce: Callable[[Needs], None]
) -> None:
    (lm, windows, coders), members = ready, text_pass.members
    for member, hooked in zip(members, coders, strict=True):
        with _kept(member, hooked.fingerprint):
            pass  # refused before the work, not after
    announce(needs(coders, windows, request.tokens))
    numbers = spread_windows(windows, request.tokens)
    readers = members[0].path.name if len(members) == 1 else f"{len(members)} coders"
    with progress_bar(f"reading text for {readers}") as update:
        record(lm, windows, numbers, coders, text_pass.folder, world=world, progress=update)


def _make_stores(text_pass: _TextPass, ready: _Ready, request: Request) -> list[FeatureStore]:
    lm, windows, coders = ready
    recording, stores, source = Recording(text_pass.folder), [], text_pass.studied.text.source
    for member, hooked in zip(text_pass.members, coders, strict=True):
        file, kept = member.features_file, partial(_kept, member, hooked.fingerprint)
        with progress_bar(f"making the features of {member.path.name}") as update:
            stores.append(make_store(lm, windows, hooked, recording, file, source, request.wanted, kept, update))
    if not request.keep_recording:
        shutil.rmtree(text_pass.folder)
    return stores


def needs(coders: Sequence[HookedCoder], windows: Windows, tokens: int) -> Needs:
    """What collecting the features of these coders takes."""
    count = len(spread_windows(windows, tokens)) * windows.context
    largest = max(hooked.coder.config.d_sae for hooked in coders)
    memory = 170 * BLOCK_ENTRIES + 60 * BLOCK_SCORES + 30 * count + 1000 * largest
    return Needs(memory, bytes_needed(coders, count))


class _Known(NamedTuple):
    """What is known before the first block of features."""

    numbers: Int[np.ndarray, " windows"]
    """Of the recorded windows."""
    widths: Sequence[int]
    firings: Int[np.ndarray, " d_sae"]
    """On how many tokens each fires."""
    dead: Collection[int]
    cosine: Partners
    effects: Iterator[tuple[np.ndarray, np.ndarray]]
    """Of each feature, in order: tokens, and what it does to their logits."""
    texts: Sequence[str]
    """Of each token alone."""


def make_store(
    lm: LanguageModel,
    windows: Windows,
    hooked: HookedCoder,
    recording: Recording,
    path: Path,
    text: str,
    wanted: Wanted = Wanted(),  # noqa: B008
    kept: Callable[[], AbstractContextManager[tuple[Words, Words]]] = lambda: nullcontext(({}, {})),
    progress: Progress = silent,
) -> FeatureStore:
    """Make the store of a coder at `path` of what a recording holds of it.

    `windows`: those that were recorded. `text`: their source, in words. `kept`: labels with notes, and explanations, to
    take over, asked for at the end. `progress(done, total)` counts features.
    """
    recorded = recording.of(hooked)
    if not recorded.rows:
        raise MatryoshkaError(f"{text}: no position counts in {len(recorded.tokens):,} tokens")
    coder, vocabulary = hooked.coder, lm.token_bytes
    known = _Known(
        numbers=spread(len(recorded.tokens) // windows.context, len(windows)),
        widths=coder.widths,
        firings=np.bincount(recorded.indices, minlength=coder.config.d_sae),
        dead=frozenset(hooked.dead or ()),
        cosine=cosine_neighbours(coder.decoder_rows()),
        effects=direct_effects(lm, hooked, lambda: recording.number("final scale", lambda: final_scale(lm, windows))),
        texts=[alone(token) for token in vocabulary],
    )
    writer = Writer(path, vocabulary)
    try:
        _fill(writer, recorded, known, wanted, progress)
        with kept() as words:
            return writer.finish(_about(lm, windows, hooked, recorded, text, wanted), *words)
    finally:
        writer.abandon()


def _fill(writer: Writer, recorded: RecordedCoder, known: _Known, wanted: Wanted, progress: Progress) -> None:
    """Write all features, and the windows that their examples lie in."""
    used = np.zeros(len(known.numbers), bool)
    for summary in summaries(recorded, wanted):
        partners, parents = coactive(recorded, known.widths, known.firings, summary.first, summary.sample)
        writer.features(_rows(summary, recorded, known, partners))
        child, rank = np.nonzero(parents.other >= 0)
        relations = child + summary.first, parents.other[child, rank], parents.value[child, rank]
        writer.parents(zip(*(column.tolist() for column in relations), strict=True))
        used[summary.examples.place // recorded.context] = True
        progress(summary.first + len(summary.count), recorded.d_sae)
    tokens = recorded.tokens.reshape(-1, recorded.context)
    writer.windows((int(known.numbers[window]), tokens[window]) for window in np.flatnonzero(used))


def _rows(summary: Summary, recorded: RecordedCoder, known: _Known, partners: Partners) -> Iterator[Row]:
    examples, indices = summary.examples, summary.first + np.arange(len(summary.count))
    rings = np.searchsorted(known.widths, indices, side="right")
    bounds = np.searchsorted(examples.feature, np.append(indices, indices[-1] + 1))
    columns = {
        "example_group": examples.group,
        "example_window": known.numbers[examples.place // recorded.context],
        "example_document": recorded.documents[examples.place],
        "example_peak": examples.place % recorded.context,
    }
    where_it_fires = (summary.mean, summary.mean_square, summary.max, summary.entropy, summary.first_position)
    for i, index in enumerate(indices.tolist()):
        count, (start, end) = int(summary.count[i]), bounds[i : i + 2]
        top = summary.top_tokens[i] >= 0
        arrays = {name: getattr(summary, name)[i][top] for name in ("top_tokens", "top_counts", "top_shares")}
        arrays |= known.cosine.of(index, "cosine") | partners.of(i, "coactive")
        arrays["logit_tokens"], arrays["logit_effects"] = next(known.effects)
        arrays |= {name: column[start:end] for name, column in columns.items()}
        offsets = examples.offsets[start : end + 1]
        arrays |= {
            "example_offsets": offsets - offsets[0],
            "positions": examples.positions[offsets[0] : offsets[-1]],
            "values": examples.values[offsets[0] : offsets[-1]],
            "histogram": summary.histogram[i],
            "range": np.array([summary.min[i], summary.max[i]]),
            "limits": summary.limits[i] if count else np.empty(0),
        }
        tokens = top_tokens(arrays, known.texts.__getitem__)
        nearest = float(arrays["cosine_value"][0]) if len(arrays["cosine_value"]) else None
        density, numbers_of = count / recorded.rows, [float(column[i]) if count else None for column in where_it_fires]
        yield Row(
            index=index,
            statistics=dict(zip(STATISTICS, (int(rings[i]), count, density, *numbers_of, nearest), strict=True)),
            flags=flag_bits(density, index in known.dead, tokens[0].share if tokens else 0.0, nearest or 0.0),
            summary=summarise(tokens),
            tokens="".join(share.token for share in tokens),
            arrays=arrays,
        )


def _about(
    lm: LanguageModel, windows: Windows, hooked: HookedCoder, recorded: RecordedCoder, text: str, wanted: Wanted
) -> About:
    config, wiring, counts = hooked.coder.config, hooked.wiring, recorded.row_counts
    return About(
        coder=hooked.fingerprint,
        model=lm.info.name,
        read=" + ".join(map(str, wiring.reads)),
        write=" + ".join(map(str, wiring.writes)),
        activation=config.activation.kind,
        k=config.k,
        widths=config.widths,
        context=windows.context,
        text=text,
        split=windows.split,
        windows=len(recorded.tokens) // windows.context,
        documents=len(np.unique(recorded.documents[recorded.kept])),
        tokens=recorded.rows,
        tokens_left_out=counts.left_out,
        tokens_not_finite=counts.not_finite,
        left_out=LEFT_OUT,
        largest_norms={str(site): norm for site, norm in hooked.keep.largest.items()},
        direct_path=any(site.in_residual for site in wiring.writes),
        collected=date.today(),
        **wanted._asdict(),
    )


def collected(member: Run, about: About, lm: LanguageModel) -> HookedCoder:
    """The coder whose features `about` describes, with the rows of then. Raises MatryoshkaError if the run's is another
    by now."""
    keep = RowFilter(lm.bos, {Site.parse(site): norm for site, norm in about.largest_norms.items()})
    hooked = hook(member.coder, lm, keep)
    if hooked.fingerprint != about.coder:
        raise MatryoshkaError(
            f"{member.path}: its coder is not the one whose features were collected;"
            f" collect them anew with: matryoshka features {member.path} --overwrite"
        )
    return hooked


@contextmanager
def _kept(member: Run, fingerprint: str) -> Iterator[tuple[Words, Words]]:
    """The labels with notes, and the explanations, that a new store takes over from the one that lies there, into which
    nobody writes until it is replaced."""
    annotations, explanations, coder = {}, {}, fingerprint
    with ExitStack() as stack:
        try:
            store = stack.enter_context(closing(FeatureStore(member.features_file)))
        except MatryoshkaError as error:
            if member.features_file.exists():
                logger.warning("%s; its labels and notes, if any, are lost", error)
        else:
            stack.enter_context(store.frozen())
            coder = store.about.coder
            try:
                annotations = store.annotations()
            except MatryoshkaError as error:
                logger.warning("%s; its labels and notes, if any, are lost", error)
            with suppress(MatryoshkaError):  # damaged: a program can say it again
                explanations = store.explanations() if coder == fingerprint else {}
        if annotations and coder != fingerprint:
            raise MatryoshkaError(
                f"{member.features_file}: holds {len(annotations)} labels and notes for another coder; move it away"
                " first"
            )
        yield annotations, explanations
