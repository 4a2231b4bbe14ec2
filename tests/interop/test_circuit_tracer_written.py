"""Sets of transcoders for circuit-tracer."""

from pathlib import Path

import pytest
import yaml
from written_coders import circuit_tracer, close, inputs, ours, random_coder, saved

from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.exporting import export
from matryoshka.interop.importing import import_coder
from matryoshka.run import Run

LAYERS = range(4)


@pytest.mark.parametrize("prefix", [None, 96])
def test_a_trained_set_is_the_same_function_there(prefix: int | None, kinds: dict[str, Run], tmp_path: Path) -> None:
    folder = export([kinds[f"layer {n}"] for n in LAYERS], tmp_path / "out", "circuit-tracer", prefix)
    for layer in LAYERS:
        coder, x = SparseCoder.load(kinds[f"layer {layer}"].path), inputs(192)
        close(circuit_tracer(folder, layer, x), ours(coder if prefix is None else coder.prefix(prefix), x), 1e-5)
    assert {file.name for file in folder.iterdir()} == {"config.yaml", *(f"layer_{n}.safetensors" for n in LAYERS)}
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {
        "model_name": "bundled",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": f"matryoshka-bundled-transcoders-{prefix or 256}",
    }


def layers(folder: Path, kind: str, read: str = "mlp_in", **options: object) -> list[Run]:
    coders = (random_coder(kind, f"{n}.{read}", f"{n}.mlp_out", seed=n, **options) for n in LAYERS)  # type: ignore[arg-type]
    return [saved(coder, folder / f"{kind} {n}") for n, coder in enumerate(coders)]


@pytest.mark.parametrize("kind", ["relu", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("read", "hook"), [("resid_mid", "hook_resid_mid"), ("ln2_normalized", "ln2.hook_normalized")])
def test_every_kind_is_the_same_function_there(kind: str, skip: bool, read: str, hook: str, tmp_path: Path) -> None:
    runs = layers(tmp_path, kind, read, skip=skip)
    folder = export(runs[::-1], tmp_path / "out", "circuit-tracer")  # in whatever order
    for layer, run in enumerate(runs):
        want = ours(SparseCoder.load(run.path), inputs(6))
        close(circuit_tracer(folder, layer, inputs(6)), want)
        back = import_coder(folder, part=f"layer_{layer}")
        close(ours(back, inputs(6)), want)
        assert back.card is not None
        assert back.card.sources[0].reads == (f"{layer}.{read}",)
    assert yaml.safe_load((folder / "config.yaml").read_text())["feature_input_hook"] == hook


def test_missing_layers_are_listed(kinds: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"each of the 4 layers of bundled; missing: 1, 3"):
        export([kinds["layer 0"], kinds["layer 2"]], tmp_path / "out", "circuit-tracer")
    twice = [*(kinds[f"layer {n}"] for n in LAYERS), kinds["jumprelu skip transcoder"]]
    with pytest.raises(MatryoshkaError, match=r"would both be layer_1\.safetensors"):
        export(twice, tmp_path / "out", "circuit-tracer")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("topk transcoder", "would read a TopK as a ReLU; nearest: train with batchtopk or jumprelu"),
        ("sae", "takes transcoders from mlp_in, resid_mid, ln2_normalized to the mlp_out of the same layer"),
        ("crosscoder", "a crosscoder"),
    ],
)
def test_what_it_cannot_hold_is_refused(kind: str, said: str, kinds: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=said):
        export(kinds[kind], tmp_path / "out", "circuit-tracer")
    assert not (tmp_path / "out").exists()


def test_layers_have_to_be_alike(tmp_path: Path) -> None:
    runs = layers(tmp_path, "relu")
    for name, options, said in [
        ("wide", {"widths": (2, 32)}, "d_sae 32, and .* has 16"),
        ("elsewhere", {"read": "3.resid_mid"}, "reads resid_mid, and .* has mlp_in"),
        ("other", {"model": "openai-community/gpt2"}, "model openai-community/gpt2, and .* has bundled"),
        ("narrow", {"d_out": 5}, "reads 6 and writes 5 numbers"),
    ]:
        values = {"read": "3.mlp_in", **options}
        other = saved(random_coder("relu", write="3.mlp_out", **values), tmp_path / name)  # type: ignore[arg-type]
        with pytest.raises(MatryoshkaError, match=said):
            export([*runs[:3], other], tmp_path / "out", "circuit-tracer")
