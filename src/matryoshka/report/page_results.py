"""What the page's overview shows besides the store: training's curves, every score that was measured, the report.

results       all of it; what is not there, damaged, or of another coder is one line in its place
read_saved    the JSON of one evaluation or analysis, checked, without the units behind its scores
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from matryoshka.analysis.catalogue import ANALYSES
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.table import EVALUATIONS
from matryoshka.features.store import FeatureStore
from matryoshka.report.figures import read_metrics
from matryoshka.run import Run
from matryoshka.scores import saved
from matryoshka.scores.result import four_digits

CURVE_POINTS = 400
"""Of one curve: more than a page has pixels for tell nothing."""
REPORT = Path("report", "report.html")
"""Inside a run: what `matryoshka analyze` has written."""
Checked = TypeVar("Checked", bound=BaseModel)


class _Strict(BaseModel):
    """JSON of a file that another program may have written: numbers are numbers, and finite."""

    model_config = ConfigDict(frozen=True, strict=True)


class _ScoreRow(_Strict):
    """A score as its JSON has it, without its units."""

    name: str
    width: int
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    null: FiniteFloat | None
    units: int


class _MeasureWords(_Strict):
    """What a score means, in words."""

    better: str
    meaning: str
    unit: str
    null: str
    headline: bool
    percent: bool


class SavedJson(_Strict):
    """A result's JSON; `details` is checked by whoever knows its layout."""

    identity: dict[str, Any]
    measures: dict[str, _MeasureWords]
    scores: list[_ScoreRow]
    details: dict[str, Any]
    reason: str | None


def results(run: Run, store: FeatureStore) -> dict[str, Any]:
    """Curves, scores grouped by what measured them, and whether there is a report."""
    groups = list(_groups(run, store.about.coder))
    measured = {group["name"] for group in groups}
    return {
        "training": told(run, lambda: _curves(run, len(store.about.widths))),
        "groups": groups,
        "unmeasured": [name for name in EVALUATIONS if name not in measured],
        "unanalysed": [name for name in ANALYSES if name not in measured],
        "report": (run.path / REPORT).is_file(),
    }


def told(run: Run, function: Callable[[], Any]) -> Any:
    """`function()`, or {"why": one line} of why there is nothing to show, without the path of the run in it."""
    try:
        return function()
    except MatryoshkaError as error:
        return {"why": " ".join(str(error).replace(f"{run.path}/", "").split())}


def read_saved(folder: Path, name: str, coder: str) -> SavedJson:
    """`folder`/NAME.json. Raises MatryoshkaError where it is damaged, or of a coder with other weights than `coder`."""
    file = folder / f"{name}.json"
    found = checked(SavedJson, saved.content(folder, name), file)
    if _coders(found.identity) != [coder]:
        raise MatryoshkaError(f"{file}: is of a coder with other weights than the features; measure anew")
    if unknown := {score.name for score in found.scores} - set(found.measures):
        raise MatryoshkaError(f"{file}: damaged: it does not say what {min(unknown)!r} means; measure anew")
    return found


def checked(model: type[Checked], value: Any, where: object) -> Checked:
    """`value` as a `model`. Raises MatryoshkaError, of one line, that names the first part that is not as expected."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        part = ".".join(map(str, first["loc"]))
        raise MatryoshkaError(f"{where}: damaged ({f'{part}: ' if part else ''}{first['msg']})") from None


def _coders(identity: dict[str, Any]) -> Any:
    """What a result is of: an analysis' coders, an evaluation's coder, or the coder of the store that was read."""
    of = identity.get("store", identity)
    return identity.get("coders", [of.get("coder") if isinstance(of, dict) else None])


def _groups(run: Run, coder: str) -> Iterator[dict[str, Any]]:
    """What each evaluation and analysis has found, those of the tables first and in their order."""
    for folder, table in ((run.evaluation, EVALUATIONS), (run.analysis, ANALYSES)):
        names = [file.stem for file in folder.glob("*.json") if file.stem != "scores"]  # which has all in one table
        for name in sorted(names, key=lambda name: (_place(name, list(table)), name)):
            yield {"name": name, **told(run, lambda of=(folder, name): _group(*of, coder))}


def _place(name: str, table: list[str]) -> int:
    """absorption-mine stands beside absorption, what no table knows at the end."""
    known = name.partition("-")[0]
    return table.index(known) if known in table else len(table)


def _group(folder: Path, name: str, coder: str) -> dict[str, Any]:
    found = read_saved(folder, name, coder)
    if found.reason is not None:
        return {"why": f"Not measurable here: {found.reason}"}
    rows = [score.model_dump(exclude={"name"}) for score in found.scores]
    measures: dict[str, dict[str, Any]] = {
        measure: {"name": measure, **words.model_dump(), "rows": []} for measure, words in found.measures.items()
    }
    for score, row in zip(found.scores, rows, strict=True):
        measures[score.name]["rows"].append(row)
    return {"measures": [measure for measure in measures.values() if measure["rows"]]}


def _curves(run: Run, prefixes: int) -> dict[str, Any]:
    """FVU of each prefix, of training's batches and of held-out text, over the tokens seen. Raises MatryoshkaError."""
    if not run.config_file.is_file() and not run.metrics.is_file():
        raise MatryoshkaError("This coder was not trained here, so there are no curves of its training.")
    curves = read_metrics(run)
    if curves.fvu.shape[1] != prefixes:
        raise MatryoshkaError(f"{run.metrics}: of {curves.fvu.shape[1]} prefixes, and the features of {prefixes}")
    return {
        "batches": _thinned(curves.tokens, curves.fvu),
        "held_out": _thinned(curves.held_out_tokens, curves.held_out_fvu),
    }


def _thinned(tokens: np.ndarray, fvu: np.ndarray) -> dict[str, Any]:
    """At most CURVE_POINTS of them, the last among them; FVU by prefix, None where it is not finite."""
    kept = np.unique(np.linspace(0, len(tokens) - 1, min(len(tokens), CURVE_POINTS)).round().astype(int))
    return {"tokens": [round(x) for x in tokens[kept].tolist()], "fvu": [four_digits(column) for column in fvu[kept].T]}
