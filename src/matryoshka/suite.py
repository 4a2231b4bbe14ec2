"""The evaluation suite: which evaluations there are, and the coders of runs taken through them.

    EVALUATIONS          name → function of a subject (language model, text, coder in its place, labelled text)
    measured(member, …)  one evaluation of one coder: its saved result if that still answers what is asked
    evaluate(paths, …)   all of them for the coders of several runs → entries side by side, and a report

Each result is saved as soon as it is there: an interrupted suite goes on with the evaluation that it was in.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from matryoshka import __version__, assembly
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError, did_you_mean
from matryoshka.evaluation import concepts, reconstruction, spelling
from matryoshka.evaluation.concepts import Activations, LabelledText, Rows
from matryoshka.evaluation.labels import shipped
from matryoshka.evaluation.placed import Placed
from matryoshka.evaluation.saved import load, save
from matryoshka.evaluation.scores import NotMeasurable, Result
from matryoshka.features.collect import fingerprint
from matryoshka.files import write_bytes, write_text
from matryoshka.lm.model import LanguageModel, describe, load_vocabulary
from matryoshka.lm.sites import Site
from matryoshka.progress import Progress, progress_bar
from matryoshka.report import comparison
from matryoshka.report.comparison import Entry
from matryoshka.run import Run
from matryoshka.run import names as run_names
from matryoshka.training.config import Config

FIRING_TOKENS = 131_072
"""Tokens, at least, where a number of firings of single latents is needed."""


@dataclass(frozen=True)
class Subject:
    """What an evaluation is given: a coder in its place in a language model, and text."""

    lm: LanguageModel
    windows: Windows
    """Held-out text."""
    placed: Placed
    tokens: int
    """How much of it to measure on."""
    labels: tuple[LabelledText, ...] = ()
    """The user's own, beside those that come with the package."""
    read: dict[tuple[str, Site, Site], Activations] = field(default_factory=dict)
    """What the language model has read of labelled text, by its name and the sites."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The coder's prefixes."""
        return self.placed.coder.config.widths

    def rows(self, text: LabelledText, progress: Progress) -> Rows:
        """Labelled text read through the language model and the coder: by the model once for all coders of its
        sites."""
        key = (text.name, self.placed.read, self.placed.write)
        if key not in self.read:
            self.read[key] = concepts.activations(self.lm, self.placed.read, self.placed.write, text, progress)
        return concepts.encode(self.placed.coder, self.read[key])

    @cached_property
    def letters(self) -> LabelledText:
        """The first-letter task, in words of the model's own. Raises NotMeasurable where it has too few."""
        return spelling.first_letters(self.lm)

    def all_rows(self, progress: Progress) -> list[Rows]:
        """Every labelled text: what comes with the package, the first letters where there are words, the user's."""
        texts = [*shipped(), *self.labels]
        with suppress(NotMeasurable):
            texts.append(self.letters)
        return [self.rows(text, progress) for text in texts]


class Evaluation(NamedTuple):
    """One entry of the suite."""

    run: Callable[[Subject, Progress], Result]
    reads_labels: bool = False
    """Whether its result depends on the user's labelled text."""


# these import what they need when they run: scikit-learn takes 100 MB, which training does not


def _reconstruction(subject: Subject, progress: Progress) -> Result:
    return reconstruction.evaluate(subject.lm, subject.windows, subject.placed, subject.tokens, progress)


def _absorption(subject: Subject, progress: Progress, text: LabelledText | None = None) -> Result:
    """Of first letters, or of the concepts of `text`."""
    from matryoshka.evaluation.absorption import absorption

    return absorption(subject.rows(text or subject.letters, progress), subject.placed, progress)


def _splitting(subject: Subject, progress: Progress) -> Result:
    from matryoshka.evaluation.splitting import splitting

    return splitting(subject.all_rows(progress), subject.widths, progress)


def _probing(subject: Subject, progress: Progress) -> Result:
    from matryoshka.evaluation.probing import probing

    return probing(subject.all_rows(progress), subject.widths, progress)


def _monosemanticity(subject: Subject, progress: Progress) -> Result:
    from matryoshka.evaluation.monosemanticity import monosemanticity

    tokens = max(subject.tokens, FIRING_TOKENS)
    return monosemanticity(subject.lm, subject.windows, subject.placed, tokens, progress)


def _intervention(subject: Subject, progress: Progress) -> Result:
    from matryoshka.evaluation.intervention import intervention

    return intervention(subject.lm, subject.windows, subject.placed, subject.tokens, progress)


EVALUATIONS: dict[str, Evaluation] = {
    "reconstruction": Evaluation(_reconstruction),
    "absorption": Evaluation(_absorption),
    "splitting": Evaluation(_splitting, reads_labels=True),
    "probing": Evaluation(_probing, reads_labels=True),
    "monosemanticity": Evaluation(_monosemanticity),
    "intervention": Evaluation(_intervention),
}
"""By name, in the order in which they are run and shown."""


def evaluations(labels: Iterable[LabelledText]) -> dict[str, Evaluation]:
    """EVALUATIONS, and absorption in each of the user's texts whose concepts have children."""
    return EVALUATIONS | {
        f"absorption-{text.name}": Evaluation(partial(_absorption, text=text), reads_labels=True)
        for text in labels
        if any(len(example.path) > 1 for example in text.examples)
    }


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
        return self.ready[0] if self.ready else assembly.open_lm(self.config.model)

    @cached_property
    def windows(self) -> Windows:
        """The held-out text's."""
        if self.ready:
            return self.ready[1]
        vocabulary = load_vocabulary(describe(self.config.model.name, self.config.model.revision))
        return assembly.open_tokens(self.config.text, vocabulary).windows("held_out")

    def identity(self, coder: str, evaluation: Evaluation) -> dict[str, Any]:
        """All that a result depends on: where it is the same, so is the result. `coder`: its fingerprint."""
        labels = {each.name: _hash(each.examples) for each in self.labels} if evaluation.reads_labels else {}
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
        if not overwrite and (found := _found(member, name, identity)):
            results[name] = found
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


def _explained(member: Run) -> dict[str, Result]:
    """What a chat model's explanations of this coder scored, where `matryoshka explain` has measured it."""
    try:
        result, identity = load(member.evaluation, "detection")
    except MatryoshkaError:
        return {}
    return {"detection": result} if identity["coder"] == _fingerprint(member) else {}


def _fingerprint(member: Run) -> str:
    """Of its folded coder, as the store of features has it too."""
    return fingerprint(SparseCoder.load(member.coder).fold())


def _found(member: Run, name: str, identity: dict[str, Any]) -> Result | None:
    """What is saved, if it is of this identity."""
    try:
        result, saved = load(member.evaluation, name)
    except MatryoshkaError:
        return None
    return result if saved == identity else None


class Evaluated(NamedTuple):
    """What `evaluate` found, and where its report lies."""

    entries: list[Entry]
    report: Path


def evaluate(
    paths: Sequence[str | Path],
    only: Iterable[str] = (),
    labels: Iterable[str | Path] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Evaluated:
    """Measure the coders of these runs, and write report.md, scores.json and scores.parquet on all of them into `out`
    (default: the evaluation/ of the run, or of the current folder where there are several).

    `only`: names of EVALUATIONS, default all, and what explanations scored where `matryoshka explain` was run.
    `labels`: files of the user's labelled text. What was measured before with the same coder, model, text and version
    is taken as it is, unless `overwrite`. Raises MatryoshkaError for what cannot be, before anything is measured.
    """
    texts = _labelled([Path(file) for file in labels])
    names = _chosen(wanted := list(only), evaluations(texts))
    runs = [Run.open(path) for path in paths]
    members = list(dict.fromkeys(member for run in runs for member in run.trained()))
    configs = [Config.load(member.config_file) for member in members]
    benches: dict[str, Bench] = {}
    found = []
    for member, config in zip(members, configs, strict=True):
        key = _hash(
            [config.model.model_dump(mode="json"), config.text.model_dump(mode="json"), config.evaluation.tokens]
        )
        bench = benches.setdefault(key, Bench(config, texts))
        explained = {} if wanted else _explained(member)
        found.append(measured(member, bench, names, overwrite) | explained)
    entries = _entries(members, configs, found)
    folder = Path(out) if out else runs[0].evaluation if len(runs) == 1 else Path("evaluation")
    return Evaluated(entries, _write(entries, folder))


def _labelled(files: Sequence[Path]) -> tuple[LabelledText, ...]:
    """The user's labelled text; each has a name of its own, by which its concepts are known."""
    taken = {text.name for text in shipped()} | {spelling.NAME}
    texts = []
    for file in files:
        texts.append(text := concepts.load(file))
        if text.name in taken:
            raise MatryoshkaError(f"{file}: there are labels of the name {text.name!r} already; give the file another")
        taken.add(text.name)
    return tuple(texts)


def _chosen(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names that are asked for, in the order of `known`; "absorption" is that of the user's concepts too."""
    known = list(known)
    for name in wanted:
        if name not in known:
            raise MatryoshkaError(f"--only {name}: no such evaluation{did_you_mean(name, known)}")
    return [name for name in known if not wanted or name in wanted or name.partition("-")[0] in wanted]


def _entries(members: Sequence[Run], configs: Sequence[Config], found: Sequence[dict[str, Result]]) -> list[Entry]:
    """An entry for each recipe: coders whose configurations differ in nothing but seeds are one."""
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        recipe = config.model_dump(
            mode="json", exclude={"name": True, "log": True, "training": {"seed"}, "coder": {"seed"}}
        )
        groups.setdefault(_hash(recipe), []).append(i)
    names = run_names(members)
    return [
        Entry(_common([names[i] for i in group], members[group[0]].path), [found[i] for i in group])
        for group in groups.values()
    ]


def _common(names: Sequence[str], first: Path) -> str:
    """What the names of a recipe's seeds have in common, or else the run that they lie in; of a single coder its
    name."""
    if len(names) == 1:
        return names[0]
    same = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )
    return re.sub(r"[\W_]*(seed)?[\W_]*$", "", same) or first.resolve().parent.name


def _write(entries: Sequence[Entry], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.json", json.dumps(comparison.tidy(entries), indent=2) + "\n")
    write_bytes(folder / "scores.parquet", comparison.parquet(entries))
    write_text(folder / "report.md", comparison.markdown(entries))
    return folder / "report.md"
