"""What Neuronpedia and SAEDashboard are given of a run's features."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.feature import Histogram
from matryoshka.features.store import FeatureStore
from matryoshka.interop.dashboards import bars, rounded
from matryoshka.interop.exporting import export
from matryoshka.run import Run

CHECK = Path(os.environ.get("MATRYOSHKA_FORMATS", "/nowhere")) / "checks" / "check_neuronpedia.py"
SOURCE = "bundled/1-matryoshka-transcoder-256"


@pytest.fixture(scope="module")
def told(featured: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With words on some features, among them what no database takes."""
    run = Run(tmp_path_factory.mktemp("told") / "run")
    run.path.mkdir()
    (run.path / "coder").symlink_to(featured.path / "coder")
    run.features_file.write_bytes(featured.features_file.read_bytes())
    store = FeatureStore(run.features_file)
    alive = _alive(store)
    store.annotate(alive[0], label="a label\0of mine", note="and a note")
    store.explain({alive[0]: ("a rule's words", "rule"), alive[-1]: ("others’ words — ☃", "a model")})
    store.close()
    return run


@pytest.fixture(scope="module")
def exported(told: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(told, tmp_path_factory.mktemp("exported") / "out", "neuronpedia")


def _alive(store: FeatureStore) -> list[int]:
    return [index for index, count in enumerate(store.columns()["count"]) if count]


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    files = sorted((folder / SOURCE / name).iterdir(), key=lambda file: int(file.name.split("-")[1].split(".")[0]))
    assert files
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


def dashboards(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "saedashboard" / SOURCE).iterdir(), key=lambda file: int(file.stem.split("-")[1]))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.skipif(not CHECK.is_file(), reason="MATRYOSHKA_FORMATS names no folder with checks/check_neuronpedia.py")
def test_it_would_be_imported(exported: Path) -> None:
    batches = [str(file) for file in (exported / "saedashboard" / SOURCE).iterdir()]
    for arguments in ([str(exported / SOURCE)], ["--batch", *batches]):
        checked = subprocess.run([sys.executable, str(CHECK), *arguments], capture_output=True, text=True, timeout=120)
        assert checked.returncode == 0, checked.stdout
        assert "all good" in checked.stdout


def test_every_row_of_a_table_has_the_same_keys(exported: Path) -> None:
    for name in ("features", "activations", "explanations"):
        rows = table(exported, name)
        assert len({tuple(row) for row in rows}) == 1
        assert {row["createdAt"][-1] for row in rows} == {"Z"}
        assert {(row["modelId"], row["layer"]) for row in rows} == {("bundled", "1-matryoshka-transcoder-256")}
    for name in ("release", "model", "sourceset", "source"):
        assert (exported / SOURCE / f"{name}.jsonl").read_text().endswith("}\n")
    ids = [row["id"] for name in ("activations", "explanations") for row in table(exported, name)]
    assert len(set(ids)) == len(ids) - len(table(exported, "explanations"))


def test_no_byte_is_one_that_importers_choke_on(exported: Path) -> None:
    for file in exported.rglob("*.*"):
        if file.is_file():
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            assert b"\\u0000" not in content
            assert b"\0" not in content
            json.loads(content.split(b"\n")[0], parse_constant=lambda name: pytest.fail(name))


def test_features_are_those_of_the_store_that_fire(told: Run, exported: Path) -> None:
    store, coder = FeatureStore(told.features_file), SparseCoder.load(told.coder)
    alive, rows = _alive(store), table(exported, "features")
    assert [row["index"] for row in rows] == alive
    assert 0 < len(alive) <= len(store)
    directions = coder.decoder_rows().numpy()
    for row in rows:
        feature, direction = store[row["index"]], directions[row["index"]]
        np.testing.assert_allclose(row["vector"], direction, rtol=1e-5)
        assert (row["hookName"], row["hasVector"]) == ("blocks.1.hook_mlp_out", True)
        assert row["maxActApprox"] == row["vectorDefaultSteerStrength"] == pytest.approx(feature.statistics.max, 1e-5)
        assert row["frac_nonzero"] == pytest.approx(feature.statistics.density, 1e-5)
        assert row["topkCosSimIndices"] == [other.index for other in feature.cosine]
        assert feature.logits is not None
        assert row["pos_values"] == pytest.approx([effect.effect for effect in feature.logits.top], 1e-5)
        assert row["neg_str"] == [effect.token.replace("\0", "␀") for effect in feature.logits.bottom]
        largest = row["neuron_alignment_indices"]
        assert largest[0] == int(direction.argmax())
        assert row["neuron_alignment_values"] == pytest.approx(direction[largest].tolist(), 1e-5)
        assert sum(row["freq_hist_data_bar_heights"]) == pytest.approx(feature.statistics.count, 1e-4)


def test_examples_leave_out_the_bos_and_say_which_firing_they_are_for(told: Run, exported: Path) -> None:
    store, rows = FeatureStore(told.features_file), table(exported, "activations")
    alive = _alive(store)
    for index in (alive[0], alive[len(alive) // 2]):
        examples = [example for group in store[index].groups for example in group.examples]
        mine = [row for row in rows if row["index"] == index]
        assert len(mine) == len(examples) > 0
        for row, example in zip(mine, examples, strict=True):
            assert len(row["tokens"]) == len(row["values"]) == 63 == len(example.tokens) - 1
            assert row["tokens"] == [token.replace("\0", "␀") for token in example.tokens[1:]]
            assert row["qualifyingTokenIndex"] == example.peak - 1
            assert row["values"][example.peak - 1] == pytest.approx(example.activation, 1e-5)
            assert np.count_nonzero(row["values"]) == len(example.positions)
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
            assert row["minValue"] == min(row["values"]) == 0


def test_strongest_examples_come_first_and_then_shares_of_all_firings(told: Run, exported: Path) -> None:
    store = FeatureStore(told.features_file)
    for batch in dashboards(exported):
        for fields in batch["features"]:
            feature = store[fields["feature_index"]]
            bounds = [(each["bin_min"], each["bin_max"], each["bin_contains"]) for each in fields["activations"]]
            assert bounds[0] == (-1, pytest.approx(feature.statistics.max, 1e-5), -1)
            intervals = dict.fromkeys(bound for bound in bounds if bound[2] != -1)
            assert sum(share for _, _, share in intervals) == pytest.approx(1, 1e-4)
            for low, high, share in intervals:
                assert 0 < low <= high <= feature.statistics.max * (1 + 1e-5)
                assert 0 < share <= 1


def test_words_become_explanations(told: Run, exported: Path) -> None:
    alive = _alive(FeatureStore(told.features_file))
    rows = {(row["index"], row["description"]): row["notes"] for row in table(exported, "explanations")}
    assert rows == {
        (alive[0], "a label␀of mine"): "and a note",
        (alive[0], "a rule's words"): "by rule",
        (alive[-1], "others’ words — ☃"): "by a model",
    }


def test_no_words_are_no_file(featured: Run, tmp_path: Path) -> None:
    folder = export(featured, tmp_path / "out", "neuronpedia", prefix=96)
    source = folder / "bundled" / "1-matryoshka-transcoder-96"
    assert [*(source / "explanations").iterdir()] == []
    indices = [
        json.loads(line)["index"]
        for file in (source / "features").iterdir()
        for line in gzip.decompress(file.read_bytes()).decode().splitlines()
    ]
    assert len(indices) > 0
    assert max(indices) < 96


def test_tables_of_one_row_are_linked(exported: Path) -> None:
    release, model, sourceset, source = (
        json.loads((exported / SOURCE / f"{name}.jsonl").read_text())
        for name in ("release", "model", "sourceset", "source")
    )
    assert release["name"] == sourceset["releaseName"]
    assert (model["id"], model["layers"], model["dimension"]) == ("bundled", 4, 192)
    assert source["setName"] == sourceset["name"] == "matryoshka-transcoder-256"
    assert (source["num_tokens_in_prompt"], source["dataset"]) == (64, _text(exported))


def _text(exported: Path) -> str:
    return dashboards(exported)[0]["features"][0]["dataset"]


def test_exports_of_one_coder_are_the_same(told: Run, tmp_path: Path) -> None:
    folder, contents = tmp_path / "out", []
    for _ in range(2):
        export(told, folder, "neuronpedia", prefix=32, overwrite=True)
        files = [file for file in folder.rglob("*.*") if file.is_file()]
        contents.append(
            {str(f): gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in files}
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) >= 4 + 2 + 1


def test_features_have_to_be_collected_before(kinds: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"no features here; collect them with: matryoshka features"):
        export(kinds["layer 1"], tmp_path / "out", "neuronpedia")
    assert not (tmp_path / "out").exists()


def test_bars_have_equal_widths_and_keep_the_number_of_firings() -> None:
    edges = np.geomspace(0.5, 8, 33).tolist()
    heights, centres = bars(Histogram(edges, list(range(32))))
    assert len(heights) == len(centres) == 50
    np.testing.assert_allclose(np.diff(centres), 8 / 50, rtol=1e-4)
    assert sum(heights) == pytest.approx(sum(range(32)), 1e-5)
    assert heights[:3] == [0, 0, 0]  # below the least activation
    heights, _ = bars(Histogram(edges, [0] * 31 + [40]))
    assert heights[:45] == [0] * 45
    assert heights[-1] == pytest.approx(40 * 8 / 50 / (8 - edges[-2]), 1e-5)


def test_numbers_have_six_digits() -> None:
    values = torch.tensor([0.1, -1 / 3, 1234567.0, 1e-9 / 3, 0.0], dtype=torch.float64).numpy()
    assert rounded(values) == [0.1, -0.333333, 1234570.0, 3.33333e-10, 0.0]
