"""From coders to findings in one call: what is missing is made, what is there is taken, and one report tells of all.

    1. features      one pass of the language model for all coders, and a store each; one that lies there is taken
    2. names         by rule, of the features that have none
    3. evaluation    the suite, each evaluation where it is not saved
    4. analyses      of the catalogue, on the recording of that same pass
    5. comparison    of several coders: each with the next where each is of another layer, otherwise every two
    6. report        report.html, report.md, findings.json, scores.json, scores.parquet, figures/, comparison/

Every part saves what it finds under the identity of all that it depends on. So a call that was killed at any moment is
gone on with by the same call again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matryoshka.analysis.catalogue import ANALYSES
from matryoshka.analysis.joint import Joint
from matryoshka.coder.io import fingerprint
from matryoshka.defaults import EVALUATION_TOKENS, FEATURE_TOKENS
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.suite import recipes
from matryoshka.evaluation.table import EVALUATIONS, chosen
from matryoshka.features.collection import kept_words, store_member
from matryoshka.features.naming import named_once
from matryoshka.features.store import FeatureStore
from matryoshka.files import refuse_unwritable, sweep, write_text
from matryoshka.progress import Steps, progress_bar
from matryoshka.report import chapters, drawing, markdown
from matryoshka.report.analysed import Analysed, AnalysedCoder
from matryoshka.report.chapters import COMPARISON, EVALUATION, Asked, Contents
from matryoshka.report.compared import Compared, compare_joint, first_read
from matryoshka.report.document import html
from matryoshka.report.evaluated import evaluate
from matryoshka.report.figures import save_figures
from matryoshka.report.finding import outstanding
from matryoshka.run import Run, all_held, once, opened
from matryoshka.scores.comparison import Entry
from matryoshka.scores.result import Result
from matryoshka.study.opening import AnotherText
from matryoshka.training.allocator import keep_freed_memory

FEATURES, NAMES, EVALUATING, ANALYSING, COMPARING, REPORTING = 30.0, 20.0, 90.0, 15.0, 20.0, 5.0
"""How long the steps take in proportion: seconds of the quickstart's run, or about so."""


def analyze(
    runs: Run | str | Path | Sequence[Run | str | Path],
    only: Iterable[str] = (),
    tokens: int = FEATURE_TOKENS,
    text: AnotherText | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> Analysed:
    """Take the coders of these runs through all that can be asked of them, and write one report on it into `out`
    (default: the report/ of the run, or of the current folder where there are several).

    `only`: evaluations, analyses and "comparison" by name, in place of all; features and their names are always made.
    `tokens`: held-out tokens that features and analyses are of, of each coder's own text or of `text`; evaluations are
    of no more than they are elsewhere. What was found before of the same coders, model, text and version is taken
    as it is, unless `overwrite`. Raises MatryoshkaError, before anything is written, for coders of different models,
    windows or texts, of no language model, and without matplotlib.
    """
    names = chosen(wanted := list(only), [*EVALUATIONS, *ANALYSES, COMPARISON], "evaluation or analysis")
    several = opened(runs)
    members = once(member for run in several for member in run.trained())
    if COMPARISON in wanted and len(members) < 2:
        raise MatryoshkaError(f"{members[0].path}: is one coder; a comparison takes two or more")
    folder = Path(out) if out else several[0].report if len(several) == 1 else Path("report")
    members.sort(key=lambda member: first_read(member).layer)
    job = _Job(several, members, tuple(names), bool(wanted), tokens, text, folder, overwrite, device)
    job.joint()  # refused before anything is written
    with drawing.style():
        refuse_unwritable(folder)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    with all_held([*several, *members, Run(folder)], "analyze"):
        sweep(folder / "figures")
        return job.run()


class _Job(NamedTuple):
    """What is to be done."""

    runs: Sequence[Run]
    members: Sequence[Run]
    names: tuple[str, ...]
    """Of evaluations, analyses, and the comparison."""
    some: bool
    """Whether it was said which."""
    tokens: int
    text: AnotherText | None
    folder: Path
    overwrite: bool
    device: str

    def run(self) -> Analysed:
        """Step by step; what an earlier step has opened is closed before the next one opens what it needs."""
        evaluations, analyses = ([name for name in self.names if name in table] for table in (EVALUATIONS, ANALYSES))
        compares = COMPARISON in self.names and len(self.members) > 1
        weights = [FEATURES, NAMES, *([EVALUATING] if evaluations else []), *([ANALYSING] * len(analyses))]
        steps = Steps([*weights, *([COMPARING] if compares else []), REPORTING])
        with steps.step("features"):
            self._features()
        with steps.step("names"):
            found = [{"names": self._named(member)} for member in self.members]
        evaluated: list[Entry] = []
        if evaluations:
            with steps.step(EVALUATION):
                evaluated = self._evaluated(evaluations)
        joint, compared = self.joint(), None
        for name in analyses:
            with steps.step(name):
                for number, of_coder in enumerate(found):
                    of_coder[name] = joint.found(name, number)
        if compares:
            with steps.step(COMPARISON):
                compared = compare_joint(joint, self.folder / COMPARISON, self._consecutive())
        with steps.step("report"):
            return self._report(self._coders(joint.names, evaluated, found), evaluated, compared)

    def joint(self) -> Joint:
        """The coders together, with nothing opened yet."""
        recording = self.runs[0].recording
        return Joint(self.members, self.text, self.tokens, recording, self.device, self.overwrite)

    def _features(self) -> None:
        """A store of each coder's features. One of the coder as it is now is taken, whatever it was collected from."""
        lacking = [i for i, member in enumerate(self.members) if self.overwrite or not _stored(member)]
        if not lacking:
            return
        joint = self.joint()
        for i in lacking:
            with kept_words(self.members[i], joint.coders[i].fingerprint):
                pass  # refused before the work, not after
        corpus = joint.corpus
        for i in lacking:
            source = joint.studied[i].text.source
            store_member(self.members[i], corpus.lm, corpus.windows, joint.coders[i], joint.recording, source).close()

    def _named(self, member: Run) -> Result:
        with (
            closing(FeatureStore(member.features_file)) as store,
            progress_bar(f"naming the features of {member.path.name}") as update,
        ):
            return named_once(store, member.analysis, update)

    def _evaluated(self, names: Sequence[str]) -> list[Entry]:
        folder = self.runs[0].evaluation if len(self.runs) == 1 else self.folder / EVALUATION
        only = names if self.some else ()
        tokens = min(self.tokens, EVALUATION_TOKENS)
        return evaluate(self.members, only, (), folder, self.overwrite, tokens, self.text, self.device).entries

    def _consecutive(self) -> bool:
        """Whether each coder is of another layer."""
        return all(first_read(a).layer < first_read(b).layer for a, b in pairwise(self.members))

    def _coders(
        self, names: Sequence[str], evaluated: Sequence[Entry], found: Sequence[dict[str, Result]]
    ) -> list[AnalysedCoder]:
        evaluations: list[Mapping[str, Result]] = [{} for _ in self.members]
        if evaluated:
            for entry, (_, group) in zip(evaluated, recipes(self.members), strict=True):
                for i, results in zip(group, entry.seeds, strict=True):
                    evaluations[i] = results
        served = list(dict.fromkeys(member.path.resolve() for run in self.runs for member in run.trained()))
        keys = [served.index(member.path.resolve()) for member in self.members]
        parts = zip(names, self.members, keys, evaluations, found, strict=True)
        return [AnalysedCoder(*of_coder) for of_coder in parts]

    def _report(
        self, coders: Sequence[AnalysedCoder], evaluated: Sequence[Entry], compared: Compared | None
    ) -> Analysed:
        asked = Asked(tuple(run.path for run in self.runs), self.tokens, self.text)
        contents = Contents(asked, coders, evaluated, compared, self.folder)
        findings = outstanding(contents.findings())
        with drawing.style():
            drawn = chapters.figures(contents)
            save_figures(drawn, self.folder / "figures", ", ".join(coder.name for coder in coders))
            lines = chapters.report(contents, findings, drawn)
        markdown.write_scores(contents.entries, self.folder)
        said = [{"source": source, **finding._asdict()} for source, finding in findings]
        write_text(self.folder / "findings.json", json.dumps(said, indent=2, ensure_ascii=False) + "\n")
        write_text(self.folder / "report.md", "\n".join(lines) + "\n")
        write_text(page := self.folder / "report.html", html(lines, self.folder))
        return Analysed(tuple(coders), compared, tuple(findings), page)


def _stored(member: Run) -> bool:
    """Whether the features of a run's coder, as it is now, have been collected."""
    if not member.features_file.exists():
        return False
    with closing(FeatureStore(member.features_file)) as store:
        return store.about.coder == fingerprint(member.coder)
