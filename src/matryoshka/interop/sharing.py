"""Coders to a repository on the hub and back: what is ours in files that others load by name.

push    a SAELens folder a coder, called by the hook that it reads; of all layers' MLPs a set for circuit-tracer too;
        a model card (`modelcard`)
pull    such folders, or coders of a release, as one run with a member each
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from matryoshka.coder.card import Card
from matryoshka.errors import MatryoshkaError
from matryoshka.files import read_json
from matryoshka.interop import circuit_tracer, hub, registry
from matryoshka.interop.circuit_tracer_features import pack
from matryoshka.interop.exporting import export
from matryoshka.interop.foreign import Foreign
from matryoshka.interop.importing import import_run, located_coders, new_run
from matryoshka.interop.modelcard import CARD, SET, Shared, card_text
from matryoshka.interop.saelens import CONFIG, WEIGHTS
from matryoshka.interop.sources import Located, locate
from matryoshka.lm.info import describe
from matryoshka.run import Run, opened
from matryoshka.study.hooked import wiring_of
from matryoshka.study.opening import read_card

FIGURE = Path("figures") / "fvu-per-prefix.png"
IN_CIRCUITS = {(kind, circuit_tracer.OUTPUT[0]) for kind in circuit_tracer.INPUTS}
"""Kinds of sites between which circuit-tracer puts transcoders."""
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}")


class Pushed(NamedTuple):
    """What lies on the hub now."""

    address: str
    commit: str
    places: tuple[str, ...]
    """Folders of the repository: `SparseCoder.from_pretrained(repository, place)`."""
    card: bool
    """Whether the model card was written."""


def push(
    runs: Run | str | Path | Sequence[Run | str | Path],
    repository: str,
    prefix: int | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> Pushed:
    """Upload the coders of one run or several to `user/repo`, which is made if it is not there, in one commit.

    `prefix`: their first latents alone. Coders of the same names and a model card that are there are left alone, unless
    `overwrite`. Raises MatryoshkaError, before anything is uploaded, for what cannot be written or what is there.
    """
    hub.refuse_no_repository(repository)
    if license is not None and not LICENCE.fullmatch(license):
        raise MatryoshkaError(
            f"--license {license!r}: expected a name as the hub has it, such as apache-2.0 or cc-by-4.0"
        )
    members = list(dict.fromkeys(member for run in opened(runs) for member in run.trained()))
    with TemporaryDirectory(prefix="matryoshka-push-") as temporary:
        staged = Path(temporary) / "repository"
        shared = _staged(members, staged, prefix)
        with_set = _is_set([read_card(member.coder) for member in members])
        if with_set:
            pack(export(members, staged / SET, "circuit-tracer", prefix))
        places = tuple(coder.place for coder in shared)
        there = hub.create(repository, private)
        folders = (*places, SET) if with_set else places
        taken = [place for place in folders if any(file.startswith(f"{place}/") for file in there)]
        if taken and not overwrite:
            raise MatryoshkaError(f"{repository}: holds {taken[0]} already; --overwrite replaces it")
        card = overwrite or CARD not in there
        if card:
            (staged / CARD).write_text(card_text(repository, shared, license, with_set), encoding="utf-8")
        done = hub.upload(staged, repository, f"Add {', '.join(places)}", [f"{place}/*" for place in taken])
    return Pushed(done.address, done.commit, places, card)


def _staged(members: Sequence[Run], staged: Path, prefix: int | None) -> list[Shared]:
    """A SAELens folder a coder below `staged`, and its figure if it has one."""
    hooks = []
    for number, member in enumerate(members):
        folder = export(member, staged / str(number), "saelens", prefix)
        hooks.append(str(read_json(folder / CONFIG)["metadata"]["hook_name"]))
    shared = []
    for number, (member, hook) in enumerate(zip(members, hooks, strict=True)):
        place = hook if hooks.count(hook) == 1 else f"{hook}/{member.path.resolve().name}"
        if (staged / place).exists():
            raise MatryoshkaError(f"{member.path}: would be {place}, as another one is; push one of them at a time")
        (staged / place).parent.mkdir(parents=True, exist_ok=True)
        (staged / str(number)).rename(staged / place)
        figure = None
        if (member.path / FIGURE).is_file():
            figure = f"figures/{place.replace('/', '-')}.png"
            (staged / "figures").mkdir(exist_ok=True)
            shutil.copyfile(member.path / FIGURE, staged / figure)
        shared.append(Shared(place, member, prefix, figure))
    return shared


def _is_set(cards: Sequence[Card]) -> bool:
    """Whether these are transcoders of every layer's MLP of one model, one each."""
    wirings = [wiring_of(card) for card in cards]
    if any(len(wiring.reads) != 1 or len(wiring.writes) != 1 for wiring in wirings):
        return False
    kinds = {(wiring.reads[0].kind, wiring.writes[0].kind) for wiring in wirings}
    layers = sorted(wiring.reads[0].layer for wiring in wirings)
    models = {(card.model.name, card.model.revision) for card in cards}
    if len(kinds) != 1 or not kinds <= IN_CIRCUITS or len(models) != 1 or layers != list(range(len(layers))):
        return False
    return len(layers) == describe(*models.pop()).n_layers


def pull(source: str, names: Sequence[str] = (), out: str | Path | None = None, overwrite: bool = False) -> Run:
    """A run of coders of `user/repo[@revision]`, by their folders (default: all that hold SAELens' files), or of a
    release that is known by name; a member each where there are several.

    `out` is the run's folder (default: runs/imported/<base model>/<repository>). Raises MatryoshkaError, leaving
    nothing behind, where one cannot be had.
    """
    base, _, revision = source.partition("@")
    if out is not None:
        Run.refuse_existing(Path(out), overwrite)  # before anything is fetched
    release = registry.releases().get(base)
    if release is not None and release.coders is None and not names:
        return import_run(source, out=out, overwrite=overwrite)
    wanted = list(dict.fromkeys(names)) or _all(base, revision)
    located = {}
    for name in wanted:
        located[name] = locate(f"{base}/{name}{f'@{revision}' if revision else ''}")
        revision = located[name].revision or ""  # all of one commit
    files = {f"{name}/{file}": sha for name, place in located.items() for file, sha in place.checksums().items()}
    origin = {"source": f"{base}@{revision}", "revision": revision, "files": files}
    return new_run(_called(located), base.rpartition("/")[2], origin, out=out, overwrite=overwrite)


def _called(located: Mapping[str, Located]) -> Iterator[Foreign]:
    """The coders of these places, one after another, called as the places are."""
    for name, place in located.items():
        yield from (foreign._replace(label=name.replace("/", "-")) for foreign in located_coders(place))


def _all(base: str, revision: str) -> list[str]:
    """The folders of a repository that hold a coder in SAELens' files."""
    registry.find(base)  # which asks for the names of a release's coders
    if "/" not in base:
        raise MatryoshkaError(f"{base!r}: expected user/repo, or the name of a release{registry.nearest(base)}")
    place = hub.parse(base)
    if place.folder:
        raise MatryoshkaError(f"{base}: expected user/repo, and the folders of its coders as further words")
    files = set(hub.names(place.repository, revision or None))
    folders = sorted(name.removesuffix(f"/{CONFIG}") for name in files if name.endswith(f"/{CONFIG}"))
    if not (coders := [folder for folder in folders if f"{folder}/{WEIGHTS}" in files]):
        raise MatryoshkaError(
            f"{base}: holds no folder with {CONFIG} and {WEIGHTS}; for other files: matryoshka import {base}/FOLDER"
        )
    return coders
