"""The coders of runs taken through the evaluations of the table.

    measured(member, …)  results of one coder: a saved one if it still answers what is asked
    recipes(members, …)  which of them are the same recipe with other seeds

Each result is saved as soon as it is there: an interrupted suite goes on with the evaluation that it was in.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation import concepts, spelling
from matryoshka.evaluation.concepts import Activations, LabelledText
from matryoshka.evaluation.identity import fingerprint
from matryoshka.evaluation.labels import shipped
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.saved import load, save
from matryoshka.evaluation.scores import NotMeasurable, Result
from matryoshka.evaluation.subject import Subject
from matryoshka.evaluation.table import Evaluation, evaluations
from matryoshka.lm.model import LanguageModel, describe, load_vocabulary
from matryoshka.lm.sites import Site
from matryoshka.progress import progress_bar
from matryoshka.run import Run
from matryoshka.run import names as run_names
from matryoshka.training.config import Config
from matryoshka.training.setup import open_lm, open_tokens
from matryoshka.version import __version__


@dataclass(frozen=True)
class Bench:
    """Where the coders of one configuration are measured: its language model (loaded when it is needed first) and its
    held-out text."""

    config: Config
    labels: tuple[LabelledText, ...] = ()
    ready: tuple[LanguageModel, Windows] | None = None
    """Where both are loaded already."""
    read: dict[tuple[str, Site, Site], Activations] = field(default_factory=dict)
    """Of labelled text, for all coders."""

    @cached_property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.ready[0] if self.ready else open_lm(self.config.model)

    @cached_property
    def windows(self) -> Windows:
        """The held-out text's."""
        if self.ready:
            return self.ready[1]
        vocabulary = load_vocabulary(describe(self.config.model.name, self.config.model.revision))
        return open_tokens(self.config.text, vocabulary).windows("held_out")

    @cached_property
    def key(self) -> str:
        """What configurations have in common that are measured on one bench."""
        config = self.config
        return _hash(
            [config.model.model_dump(mode="json"), config.text.model_dump(mode="json"), config.evaluation.tokens]
        )

    def identity(self, coder: str, evaluation: Evaluation) -> dict[str, Any]:
        """All that a result depends on: where it is the same, so is the result. `coder`: its fingerprint."""
        labels = {text.name: _hash(text.examples) for text in self.labels} if evaluation.reads_labels else {}
        return {
            "matryoshka": __version__,
            "coder": coder,
            "model": self.config.model.model_dump(mode="json"),
            "text": self.windows.tokens.hash,
            "context": self.windows.context,
            "tokens": self.config.evaluation.tokens,
            "labels": labels,
        }


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def measured(member: Run, bench: Bench, names: Sequence[str], overwrite: bool = False) -> dict[str, Result]:
    """The results of these evaluations for a run's coder. One that is saved and still is what would be found is taken,
    unless `overwrite`; the others are measured now, and each is saved at once."""
    coder = _fingerprint(member)
    results: dict[str, Result] = {}
    subject = None
    known = evaluations(bench.labels)
    for name in names:
        evaluation = known[name]
        identity = bench.identity(coder, evaluation)
        if not overwrite and (saved := _saved(member, name, identity)):
            results[name] = saved
            continue
        with progress_bar(f"{member.path.name}: {name}") as update:
            subject = subject or Subject(
                bench.lm,
                bench.windows,
                Placed.load(member.coder, bench.lm),
                bench.config.evaluation.tokens,
                bench.labels,
                bench.read,
            )
            try:
                results[name] = evaluation.run(subject, update)
            except NotMeasurable as reason:
                results[name] = Result((), reason=str(reason))
        save(results[name], identity, member.evaluation, name)
    return results


def explained(member: Run) -> dict[str, Result]:
    """What a chat model's explanations of this coder scored, where `matryoshka explain` has measured it."""
    try:
        result, identity = load(member.evaluation, "detection")
    except MatryoshkaError:
        return {}
    return {"detection": result} if identity["coder"] == _fingerprint(member) else {}


def _fingerprint(member: Run) -> str:
    """Of its folded coder, as the store of features has it too."""
    return fingerprint(SparseCoder.load(member.coder).fold())


def _saved(member: Run, name: str, identity: dict[str, Any]) -> Result | None:
    """What is saved, if it is of this identity."""
    try:
        result, saved = load(member.evaluation, name)
    except MatryoshkaError:
        return None
    return result if saved == identity else None


def labelled(files: Sequence[Path]) -> tuple[LabelledText, ...]:
    """The user's labelled text; each has a name of its own, by which its concepts are known."""
    taken = {text.name for text in shipped()} | {spelling.NAME}
    texts = []
    for file in files:
        texts.append(text := concepts.load(file))
        if text.name in taken:
            raise MatryoshkaError(f"{file}: there are labels of the name {text.name!r} already; give the file another")
        taken.add(text.name)
    return tuple(texts)


def recipes(members: Sequence[Run], configs: Sequence[Config]) -> list[tuple[str, list[int]]]:
    """(name, numbers of its members) of each recipe: coders whose configurations differ in seeds alone are one."""
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        recipe = config.model_dump(
            mode="json", exclude={"name": True, "log": True, "training": {"seed"}, "coder": {"seed"}}
        )
        groups.setdefault(_hash(recipe), []).append(i)
    names = run_names(members)
    return [(_common([names[i] for i in group], members[group[0]].path), group) for group in groups.values()]


def _common(names: Sequence[str], first: Path) -> str:
    """What the names of a recipe's seeds have in common, or else the run that they lie in; of a single coder its
    name."""
    if len(names) == 1:
        return names[0]
    same = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )
    return re.sub(r"[\W_]*(seed)?[\W_]*$", "", same) or first.resolve().parent.name
