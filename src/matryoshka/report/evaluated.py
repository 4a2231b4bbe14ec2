"""Coders taken through the suite of evaluations, and the report on all of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matryoshka.defaults import EVALUATION_TOKENS
from matryoshka.evaluation.setting import setting_of
from matryoshka.evaluation.suite import explained, labelled, measured, recipes, target
from matryoshka.evaluation.table import OF_SYNTHETIC, chosen, evaluations
from matryoshka.report import markdown
from matryoshka.run import Run, all_held, opened
from matryoshka.scores.comparison import Entry
from matryoshka.scores.result import Result
from matryoshka.study.opening import AnotherText, subject_of


class Evaluated(NamedTuple):
    """What `evaluate` found, and where its report lies."""

    entries: list[Entry]
    report: Path


def evaluate(
    runs: Sequence[Run | str | Path],
    only: Iterable[str] = (),
    labels: Iterable[str | Path] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    tokens: int = EVALUATION_TOKENS,
    text: AnotherText | None = None,
    device: str = "auto",
) -> Evaluated:
    """Measure the coders of these runs on `tokens` held-out tokens, or fresh samples of known features, and write
    report.md, scores.json and scores.parquet on all of them into `out` (default: the evaluation/ of the run, or of the
    current folder where there are several).

    `only`: names of evaluations, default all that say something of a coder, and what explanations scored where
    `matryoshka explain` was run. `labels`: files of the user's labelled text. `text`: a source in place of what each
    coder was trained on. What was measured before with the same coder, model, text and version is taken as it is,
    unless `overwrite`. Raises MatryoshkaError for what cannot be, before anything is measured.
    """
    texts = labelled([Path(file) for file in labels])
    names = chosen(wanted := list(only), [*evaluations(texts), *OF_SYNTHETIC])
    several = opened(runs)
    members = list(dict.fromkeys(member for run in several for member in run.trained()))
    subjects = [subject_of(member.coder, text) for member in members]
    scored: list[dict[str, Result]] = [{} for _ in members]
    with all_held(members, "eval"):
        for key in dict.fromkeys(subject.key for subject in subjects):
            together = [i for i, subject in enumerate(subjects) if subject.key == key]
            setting = setting_of(subjects[together[0]], tokens, texts, device)
            asked = [name for name in names if wanted or name in setting.evaluations]
            results = measured([members[i] for i in together], setting, asked, overwrite)
            for i, of_member in zip(together, results, strict=True):
                scored[i] = of_member | ({} if wanted else explained(members[i]))
    entries = [
        Entry(label, [scored[i] for i in group], target(subjects[group[0]].card)) for label, group in recipes(members)
    ]
    folder = Path(out) if out else several[0].evaluation if len(several) == 1 else Path("evaluation")
    return Evaluated(entries, markdown.write(entries, folder))
