"""Neuronpedia: a folder that it imports, and the batches of SAEDashboard that its own converters read.

    MODEL/LAYER-SET/                   release, model, sourceset, source .jsonl; features/, activations/, explanations/
    saedashboard/MODEL/LAYER-SET/      batch-N.json

All is made of a run's store of features; those that never fired are left out. The importer takes a table's columns from
a file's first line, and nothing that is there already is written over: every row has all keys, and ids are the same at
each export of one coder.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from matryoshka.errors import MatryoshkaError
from matryoshka.features.feature import Feature
from matryoshka.features.store import FeatureStore
from matryoshka.interop.dashboards import dashboard
from matryoshka.interop.names import hook_of_site, short_name
from matryoshka.interop.ours import Ours, distinct
from matryoshka.lm.info import ModelInfo, describe

TABLES = ("features", "activations", "explanations")
SINGLE = ("release", "model", "sourceset", "source")
FILES = (
    *(f"*/*/{name}.jsonl" for name in SINGLE),
    *(f"*/*/{table}/batch-*.jsonl.gz" for table in TABLES),
    "saedashboard/*/*/batch-*.json",
)
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user of Neuronpedia as whom its own tools import."""
BATCH = 128
"""Features a file, as in SAEDashboard."""


class _Source(NamedTuple):
    """What every row of one coder's export says."""

    model: str
    layer: str
    """The id of the source: `8-matryoshka-transcoder-16384`."""
    set: str
    created: str
    prefix: str
    """Of ids of rows: the coder's own."""


def arrange(coders: Sequence[Ours]) -> dict[str, Ours]:
    """The folder of each: MODEL/LAYER-SET. Raises MatryoshkaError, naming the command that makes them, where a coder
    has no features or those of another."""
    for ours in coders:
        with closing(ours.features()) as store:
            if not any(store.columns()["count"]):
                raise MatryoshkaError(f"{ours.run.features_file}: none of its features ever fired; nothing to show")
    return distinct((f"{_model_id(ours)}/{ours.write.layer}-{_set(ours)}", ours) for ours in coders)


def write(arranged: Mapping[str, Ours], folder: Path) -> None:
    """The import folder and SAEDashboard's batches of each coder, one after another."""
    for place, ours in arranged.items():
        info = describe(ours.card.model.name, ours.card.model.revision)
        with closing(ours.features()) as store:
            created = f"{store.about.collected.isoformat()}T00:00:00Z"
            model, layer = place.split("/")
            digest = hashlib.sha256(f"{store.about.coder} {place} {created}".encode()).hexdigest()
            source = _Source(model, layer, _set(ours), created, digest[:16])
            for table in TABLES:
                (folder / place / table).mkdir(parents=True)
            for name, row in _single(ours, source, store, info).items():
                (folder / place / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
            _write_features(ours, source, store, folder / place, folder / "saedashboard" / place)


def _model_id(ours: Ours) -> str:
    """As Neuronpedia calls the model: lower case, letters, digits and hyphens."""
    name = Path(short_name(ours.card.model.name)).name.lower()
    return re.sub(r"[^a-z0-9_-]", "-", name)[:128]


def _set(ours: Ours) -> str:
    width = ours.prefix or ours.config.d_sae
    what = "transcoder" if ours.transcodes else ours.read.kind.replace("_", "-")
    return f"matryoshka-{what}-{width}"


def _single(ours: Ours, source: _Source, store: FeatureStore, info: ModelInfo) -> dict[str, dict[str, Any]]:
    """The four tables of one row; an unknown key is an error there."""
    about, card = store.about, ours.card
    release, name = f"{source.set}-{source.model}", card.model.name
    described = f"{ours.sites} of {name}, {ours.prefix or ours.config.d_sae:,} latents, prefixes {about.widths}"
    creator = {"creatorId": CREATOR, "createdAt": source.created, "visibility": "PUBLIC"}
    return {
        "release": creator
        | {"name": release, "description": described, "descriptionShort": described, "creatorName": card.origin}
        | {"creatorNameShort": card.origin, "creatorEmail": None, "urls": [], "isNewUi": False, "featured": False}
        | {"defaultSourceSetName": source.set, "defaultSourceId": source.layer, "defaultUmapSourceIds": []},
        "model": creator
        | {"id": source.model, "displayName": source.model, "displayNameShort": source.model, "tlensId": None}
        | {"owner": name.split("/")[0] if "/" in name else "", "website": None, "updatedAt": source.created}
        | {"layers": info.n_layers, "neuronsPerLayer": 0, "dimension": info.d_model, "instruct": False}
        | {"defaultSourceSetName": None, "defaultSourceId": None, "inferenceEnabled": False},
        "sourceset": creator
        | {"modelId": source.model, "name": source.set, "description": described, "creatorName": card.origin}
        | {"creatorEmail": None, "releaseName": release, "urls": [], "type": "", "hasDashboards": True}
        | {"defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False}
        | {"showCorrelated": False, "showHeadAttribution": False, "showUmap": False},
        "source": creator
        | {"id": source.layer, "modelId": source.model, "setName": source.set, "hasDashboards": True}
        | {"inferenceEnabled": False, "inferenceHosts": [], "saelensConfig": None, "saelensRelease": None}
        | {"saelensSaeId": None, "hfRepoId": None, "hfFolderId": None, "defaultOfModelId": None, "hasUmap": False}
        | {"hasUmapLogSparsity": False, "hasUmapClusters": False, "num_prompts": about.windows}
        | {"num_tokens_in_prompt": about.context, "dataset": about.text, "notes": None},
    }


def _write_features(ours: Ours, source: _Source, store: FeatureStore, folder: Path, dashboards: Path) -> None:
    """BATCH features at a time; a table that has no row in a batch has no file."""
    rows = ours.load().decoder_rows().numpy()
    hook = hook_of_site(ours.write)
    fired = [i for i, count in enumerate(store.columns()["count"][: len(rows)]) if count]
    dashboards.mkdir(parents=True)
    for number, start in enumerate(range(0, len(fired), BATCH)):
        shown = []
        with ExitStack() as stack:
            files: dict[str, TextIO] = {}
            for index in fired[start : start + BATCH]:
                feature = store[index]
                fields = dashboard(feature, rows[index], store.about, ours.card.prepend_bos)
                shown.append(fields)
                for table, row in _rows(feature, fields, source, hook):
                    if table not in files:
                        file = folder / table / f"batch-{number}.jsonl.gz"
                        files[table] = stack.enter_context(
                            gzip.open(file, "wt", compresslevel=6, encoding="utf-8", newline="\n")
                        )
                    files[table].write(_line(row))
        batch = {"model_id": source.model, "layer": ours.write.layer, "sae_set": source.set, "sae_id_suffix": None}
        (dashboards / f"batch-{number}.json").write_text(_line(batch | {"features": shown}), encoding="utf-8")


def _rows(
    feature: Feature, fields: dict[str, Any], source: _Source, hook: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) of everything that is said of one feature."""
    index = fields["feature_index"]
    of = {"modelId": source.model, "layer": source.layer, "index": index, "createdAt": source.created}
    yield "features", of | _feature_row(feature, fields, source, hook)
    for number, example in enumerate(fields["activations"]):
        yield "activations", of | _activation_row(example, f"{source.prefix}-{index}-{number}")
    said = ((feature.label, feature.note), (feature.explanation, f"by {feature.explained_by}"))
    for number, (words, notes) in enumerate(said):
        if words:
            yield (
                "explanations",
                of
                | {
                    "id": f"{source.prefix}-{index}-{number}",
                    "description": words.replace("\0", "␀"),
                    "notes": notes.replace("\0", "␀") or None,
                    "authorId": CREATOR,
                    "updatedAt": source.created,
                    "scoreV1": 0,
                    "typeName": None,
                    "explanationModelName": None,
                    "embedding": None,
                },
            )


def _feature_row(feature: Feature, fields: dict[str, Any], source: _Source, hook: str | None) -> dict[str, Any]:
    """A dashboard's fields, but for those that are none of a feature's columns."""
    own = {"feature_index", "activations", "n_prompts_total", "n_tokens_in_prompt", "dataset"}
    largest = fields["activations"][0]["bin_max"]
    return {name: value for name, value in fields.items() if name not in own} | {
        "creatorId": CREATOR,
        "sourceSetName": source.set,
        "maxActApprox": largest,
        "hasVector": hook is not None,
        "vector": fields["vector"] if hook is not None else [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": largest,
        "hookName": hook,
        "topkCosSimIndices": [other.index for other in feature.cosine],
        "topkCosSimValues": [other.value for other in feature.cosine],
    }


def _activation_row(example: dict[str, Any], identity: str) -> dict[str, Any]:
    values = example["values"]
    largest = max(values)
    return {
        "id": identity,
        "creatorId": CREATOR,
        "tokens": example["tokens"],
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "dataSource": None,
        "dataIndex": None,
        "dfaValues": [],
        "dfaTargetIndex": -1,
        "dfaMaxValue": 0,
        "lossValues": [],
        "logitContributions": None,
        "binMin": example["bin_min"],
        "binMax": example["bin_max"],
        "binContains": example["bin_contains"],
        "qualifyingTokenIndex": example["qualifying_token_index"],
        "zIndices": None,
        "zValues": None,
    }


def _line(row: Mapping[str, Any]) -> str:
    """As JSON, which knows no NaN."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
