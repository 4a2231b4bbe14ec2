"""What circuit-tracer's page of a graph fetches of a feature: names and fields as its front end (0.5.0) reads them."""

import gzip
import json
import math
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_folder import HubFolder
from written_coders import card, saved

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features.feature import Feature
from matryoshka.features.store import FeatureStore
from matryoshka.interop.circuit_tracer_features import number
from matryoshka.interop.exporting import export
from matryoshka.interop.sharing import push
from matryoshka.lm.info import describe
from matryoshka.run import Run

SHOWN = (0, 1, 3)
SCAN = "matryoshka-bundled-transcoders-256"
FIELDS = {
    "transcoder_id": str,
    "index": int,
    "examples_quantiles": list,
    "top_logits": list,
    "bottom_logits": list,
    "act_min": float,
    "act_max": float,
    "quantile_values": list,
    "histogram": list,
    "activation_frequency": float,
}
"""Of `Model` in frontend/feature_models.py; `Example` has the four of EXAMPLE."""
EXAMPLE = {"tokens_acts_list": list, "train_token_ind": int, "is_repeated_datapoint": bool, "tokens": list}


@pytest.fixture(scope="module")
def exported(shown_layers: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(shown_layers, tmp_path_factory.mktemp("exported") / "out", "circuit-tracer")


def unpaired(z: int) -> tuple[int, int]:
    """(layer, index), as the page takes a node's number apart."""
    w = (math.isqrt(8 * z + 1) - 1) // 2
    return w - (z - w * (w + 1) // 2), z - w * (w + 1) // 2


def page(folder: Path, layer: int, index: int) -> dict[str, Any]:
    """What the page fetches: `scan`/NUMBER.json, where ./data/ is the folder of graphs, which holds our `features`."""
    scan = yaml.safe_load((folder / "config.yaml").read_text())["scan"]
    file = folder / scan.removeprefix("./data/") / f"{(layer + index) * (layer + index + 1) // 2 + index}.json"
    return json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_there_is_a_file_for_every_latent_of_every_layer_with_features(exported: Path) -> None:
    assert yaml.safe_load((exported / "config.yaml").read_text())["scan"] == f"./data/features/{SCAN}"
    files = [file.name for file in (exported / "features" / SCAN).iterdir()]
    pairs = [unpaired(int(re.fullmatch(r"(\d+)\.json", name)[1])) for name in files]  # type: ignore[index]
    assert sorted(pairs) == [(layer, index) for layer in SHOWN for index in range(256)]
    assert [number(*pair) for pair in ((0, 0), (1, 0), (0, 1), (25, 16_383))] == [0, 1, 2, 134_635_819]


def test_every_file_has_the_fields_that_the_program_declares(exported: Path) -> None:
    for layer in SHOWN:
        for index in range(256):
            content = page(exported, layer, index)
            assert {name: type(value) for name, value in content.items()} == FIELDS
            assert (content["transcoder_id"], content["index"]) == (f"layer_{layer}", index)
            for quantile in content["examples_quantiles"]:
                assert quantile.keys() == {"quantile_name", "examples"}
                for example in quantile["examples"]:
                    assert {name: type(value) for name, value in example.items()} == EXAMPLE
                    assert len(example["tokens"]) == len(example["tokens_acts_list"])


@pytest.mark.parametrize("layer", SHOWN)
def test_what_is_shown_is_what_the_store_holds(layer: int, shown_layers: list[Run], exported: Path) -> None:
    store, dead = FeatureStore(shown_layers[layer].features_file), 0
    for feature in store:
        content = page(exported, layer, feature.index)
        assert content["activation_frequency"] == pytest.approx(feature.statistics.density, rel=1e-5)
        assert feature.logits is not None
        assert content["top_logits"] == [effect.token.replace("\0", "␀") for effect in feature.logits.top]
        assert content["bottom_logits"] == [effect.token.replace("\0", "␀") for effect in feature.logits.bottom]
        if feature.statistics.count:
            same_examples(content, feature)
            same_distribution(content, feature)
        else:
            dead += 1
            said = {"quantile_name": f"never fired on {store.about.tokens:,} tokens", "examples": []}
            assert content["examples_quantiles"] == [said]
            assert content["histogram"] == content["quantile_values"] == []
    assert dead < len(store)


def same_examples(content: dict[str, Any], feature: Feature) -> None:
    """Without the BOS, each activation on its token; what is pale has been shown further up."""
    quantiles, windows = content["examples_quantiles"], []
    assert [quantile["quantile_name"].split(",")[0] for quantile in quantiles] == [g.name for g in feature.groups]
    for quantile, group in zip(quantiles, feature.groups, strict=True):
        for shown, example in zip(quantile["examples"], group.examples, strict=True):
            assert shown["tokens"] == [token.replace("\0", "␀") for token in example.tokens[1:]]
            acts = np.array([0.0, *shown["tokens_acts_list"]])
            assert acts.nonzero()[0].tolist() == example.positions
            np.testing.assert_allclose(acts[example.positions], example.values, rtol=1e-5)
            assert shown["tokens_acts_list"][shown["train_token_ind"]] == pytest.approx(example.activation, rel=1e-5)
            assert shown["is_repeated_datapoint"] == (example.window in windows)
            windows.append(example.window)


def same_distribution(content: dict[str, Any], feature: Feature) -> None:
    """Bars of equal width from act_min to act_max, and the activation below which 1 to 100 % of the firings lie."""
    assert content["act_min"] == 0
    assert content["act_max"] == pytest.approx(feature.statistics.max, rel=1e-5)
    assert sum(content["histogram"]) == pytest.approx(feature.statistics.count, rel=1e-4)
    below = np.cumsum([0, *feature.histogram.counts]) / feature.statistics.count
    values, shares = np.array(content["quantile_values"]), np.arange(1, 101) / 100
    under, over = (np.interp(values * factor, feature.histogram.edges, below) for factor in (1 - 1e-5, 1 + 1e-5))
    assert ((under <= shares + 1e-6) & (shares - 1e-6 <= over)).all()


def test_a_prefix_has_the_pages_of_its_latents_alone(shown_layers: list[Run], exported: Path, tmp_path: Path) -> None:
    folder = export(shown_layers, tmp_path / "out", "circuit-tracer", 96)
    [pages] = (folder / "features").iterdir()
    assert pages.name == "matryoshka-bundled-transcoders-96"
    assert len([*pages.iterdir()]) == 96 * len(SHOWN)
    assert page(folder, 3, 95) == page(exported, 3, 95)


def test_without_features_there_are_no_pages(kinds: dict[str, Run], shown_layers: list[Run], tmp_path: Path) -> None:
    folder = export(shown_layers, tmp_path / "out", "circuit-tracer", 32)
    assert (folder / "features").is_dir()
    assert export([kinds[f"layer {n}"] for n in range(4)], folder, "circuit-tracer", overwrite=True) == folder
    assert not (folder / "features").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["scan"] == SCAN


def test_features_of_another_coder_are_refused(shown_layers: list[Run], tmp_path: Path) -> None:
    other = Run(Path(shutil.copytree(shown_layers[0].path, tmp_path / "other")))
    shutil.copyfile(shown_layers[1].features_file, other.features_file)
    with pytest.raises(MatryoshkaError, match=r"not the one whose features were collected; .* features .*--overwrite"):
        export([other, *shown_layers[1:]], tmp_path / "out", "circuit-tracer")
    assert not (tmp_path / "out").exists()


def test_a_models_folder_is_called_what_an_address_holds(shown_layers: list[Run], tmp_path: Path) -> None:
    bundled = describe("bundled", None).folder
    assert bundled is not None
    model = shutil.copytree(bundled, tmp_path / "my model #1")
    runs = []
    for layer, run in enumerate(shown_layers):
        coder = SparseCoder.load(run.path)
        coder.card = card(f"{layer}.mlp_in", f"{layer}.mlp_out", str(model))
        runs.append(saved(coder, tmp_path / str(layer)))
    folder = export(runs, tmp_path / "out", "circuit-tracer")
    assert yaml.safe_load((folder / "config.yaml").read_text())["scan"] == "matryoshka-my-model--1-transcoders-256"


def test_on_the_hub_they_lie_as_the_page_reads_them_there(
    shown_layers: list[Run], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = HubFolder(tmp_path).serve(monkeypatch)
    push(shown_layers, "me/coders", prefix=96)
    features = hub.commit("me/coders") / "circuit-tracer" / "features"
    assert {file.name for file in features.iterdir()} == {"index.json.gz", *(f"layer_{n}.bin" for n in SHOWN)}
    index = json.loads(gzip.decompress((features / "index.json.gz").read_bytes()))
    assert index[2] == {"filename": "", "offsets": []}
    for layer in SHOWN:
        content, offsets = (features / index[layer]["filename"]).read_bytes(), index[layer]["offsets"]
        assert (len(offsets), offsets[-1]) == (97, len(content))
        for feature in (0, 50, 95):
            fetched = content[offsets[feature] : offsets[feature + 1] + 1]  # Range: bytes=start-end, the last included
            (length,) = struct.unpack("<I", fetched[:4])
            assert json.loads(zlib.decompress(fetched[4 : 4 + length])) == page(exported, layer, feature)
