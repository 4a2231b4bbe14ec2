"""Results on disk: NAME.json for people and programs, NAME.parquet with the units behind every score.

The JSON says what each measure means, so that a file explains itself. It is written last: where it lies, both are
whole, and its identity (coder, model, text, settings) says whether it still is the answer to what is asked.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from matryoshka.errors import MatryoshkaError
from matryoshka.files import parse_json, write_bytes, write_text
from matryoshka.scores.result import Measure, Result, Score

FORMAT = 2
UNITS = pa.schema(
    {
        "score": pa.string(),
        "width": pa.int64(),
        "unit": pa.string(),
        "numerator": pa.float64(),
        "denominator": pa.float64(),
    }
)
"""One row a unit of a score."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file raises that is not there, or not what was written."""


class Saved(NamedTuple):
    """A result, and what it is of."""

    result: Result
    identity: Mapping[str, Any]


def save(result: Result, identity: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write `folder`/NAME.parquet, then NAME.json; `identity` holds plain JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{name}.parquet", _units(result))
    content = {
        "format": FORMAT,
        "identity": identity,
        "measures": {score.measure.name: asdict(score.measure) for score in result.scores},
        "scores": [score.as_json() for score in result.scores],
        "details": result.details,
        "reason": result.reason,
    }
    write_text(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")


def load(folder: Path, name: str) -> Saved:
    """What `save` wrote. Raises MatryoshkaError where nothing lies, or what does is damaged or of another version."""
    file = folder / f"{name}.json"
    described = content(folder, name)
    try:
        measures = {key: Measure(**fields) for key, fields in described["measures"].items()}
        units = _read(folder / f"{name}.parquet").to_pydict()
        scores = _scores(described["scores"], measures, units)
        return Saved(Result(tuple(scores), described["details"], described["reason"]), described["identity"])
    except _UNREADABLE as error:
        raise _refusal(error, file) from None


def content(folder: Path, name: str) -> dict[str, Any]:
    """What NAME.json says by itself, unchecked but for its format. Raises MatryoshkaError as `load` does."""
    file = folder / f"{name}.json"
    try:
        described = parse_json(file.read_bytes(), file)
        if described["format"] != FORMAT:
            raise MatryoshkaError(f"{file}: written in format {described['format']}, this version reads {FORMAT}")
    except _UNREADABLE as error:
        raise _refusal(error, file) from None
    return described


def _refusal(error: Exception, file: Path) -> MatryoshkaError:
    if isinstance(error, FileNotFoundError):
        return MatryoshkaError(f"{error.filename}: no such results; measure first: matryoshka eval RUN")
    why = " ".join(str(error).split())
    return MatryoshkaError(f"{file}: damaged, or written by another version ({why}); measure anew")


def answer(folder: Path, name: str, identity: Mapping[str, Any]) -> Result | None:
    """The saved result, if it is of just this identity; None where it is another's, damaged or not there."""
    with suppress(MatryoshkaError):
        saved = load(folder, name)
        return saved.result if saved.identity == identity else None
    return None


def _units(result: Result) -> bytes:
    scores = result.scores
    columns = {
        "score": [score.measure.name for score in scores for _ in score.units],
        "width": [score.width for score in scores for _ in score.units],
        "unit": [unit for score in scores for unit in score.units],
        "numerator": np.concatenate([np.empty(0), *(score.numerator for score in scores)]),
        "denominator": np.concatenate([np.empty(0), *(score.denominator for score in scores)]),
    }
    file = BytesIO()
    pq.write_table(pa.table(columns, schema=UNITS), file, compression="zstd")
    return file.getvalue()


def _read(file: Path) -> pa.Table:
    """By its path and in order: threads of Arrow's that hold a file object of Python's abort a process that ends."""
    file.stat()  # names the file where there is none
    with pq.ParquetFile(file) as parquet:
        return parquet.read(use_threads=False)


def _scores(described: list[dict[str, Any]], measures: Mapping[str, Measure], units: Mapping[str, list]) -> list[Score]:
    scores, start = [], 0
    for row in described:
        end = start + row["units"]
        if {*units["score"][start:end]} - {row["name"]} or {*units["width"][start:end]} - {row["width"]}:
            raise ValueError(f"the units of {row['name']} are those of another score")
        numerator, denominator = (np.array(units[key][start:end], np.float64) for key in ("numerator", "denominator"))
        names = tuple(units["unit"][start:end])
        scores.append(Score(measures[row["name"]], row["width"], names, numerator, denominator, row["null"]))
        start = end
    if start != len(units["score"]):
        raise ValueError(f"{start} units are described, {len(units['score'])} are there")
    return scores
