"""circuit-tracer: sets of transcoders with options that no golden has, and folders that are no such set."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from foreign_files import D, F, compare, draw, inputs, top
from safetensors.numpy import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder
from matryoshka.lm.sites import Site

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
Layers = list[dict[str, np.ndarray]]


def write(folder: Path, layers: int = 2, more: dict[str, np.ndarray] | None = None, **config: object) -> Layers:
    """The layers' tensors, `more` in each of them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_name": "bundled", **HOOKS, **config}))
    written = []
    for layer in range(layers):
        t = {"W_enc": draw(F, D, seed=layer), "W_dec": draw(F, D, seed=10 + layer), "b_dec": draw(D, seed=20 + layer)}
        t |= {"b_enc": draw(F, seed=30 + layer) - 0.2, **(more or {})}
        save_file(t, folder / f"layer_{layer}.safetensors")
        written.append(t)
    return written


def refusal(folder: Path) -> str:
    with pytest.raises(MatryoshkaError) as refused:
        list(foreign_coders(folder))
    assert str(folder) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("jumps", [False, True])
def test_every_combination(tmp_path: Path, jumps: bool, skips: bool) -> None:
    more = {"activation_function.threshold": np.abs(draw(F, seed=5))} if jumps else {}
    more |= {"W_skip": draw(D, D, seed=6)} if skips else {}
    layers, x = write(tmp_path, more=more), inputs()
    for t, foreign in zip(layers, foreign_coders(tmp_path), strict=True):
        pre = x @ t["W_enc"].T + t["b_enc"]
        latents = pre * (pre > t["activation_function.threshold"]) if jumps else np.maximum(pre, 0)
        out = latents @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skips else 0)
        compare(foreign.coder, x, latents, out)


@pytest.mark.parametrize("where", ["config", "file", "both"])
def test_topk_of_its_later_versions(tmp_path: Path, where: str) -> None:
    more = {"k": np.array(4)} if where != "config" else None
    config = {"activation": "topk", "k": 4} if where != "file" else {}
    (t, _), x = write(tmp_path, more=more, **config), inputs()
    latents = top(x @ t["W_enc"].T + t["b_enc"], 4)
    compare(import_coder(tmp_path, part="layer_0"), x, latents, latents @ t["W_dec"] + t["b_dec"])


def test_a_threshold_of_0_lets_nothing_negative_pass(tmp_path: Path) -> None:
    (t,), x = write(tmp_path, 1, {"activation_function.threshold": np.zeros(F, np.float32)}), inputs()
    latents = np.maximum(x @ t["W_enc"].T + t["b_enc"], 0)
    compare(import_coder(tmp_path), x, latents, latents @ t["W_dec"] + t["b_dec"])


def test_a_negative_threshold_is_refused(tmp_path: Path) -> None:
    threshold = np.full(F, 0.2, np.float32)
    threshold[3] = -0.3
    write(tmp_path, more={"activation_function.threshold": threshold})
    said = "layer_0.safetensors: activation_function.threshold is -0.3 somewhere: such a latent may be negative"
    assert said in refusal(tmp_path)


def test_one_coder_after_another(tmp_path: Path) -> None:
    """The first is there before the last is looked at; none of a set is asked for without its name."""
    write(tmp_path, 3)
    (tmp_path / "layer_2.safetensors").write_bytes(b"damaged")
    coders = foreign_coders(tmp_path)
    assert [next(coders).label, next(coders).label] == ["layer_0", "layer_1"]
    with pytest.raises(MatryoshkaError, match=r"layer_2\.safetensors: damaged"):
        next(coders)
    assert import_coder(tmp_path, part="layer_1").card is not None
    with pytest.raises(MatryoshkaError, match="several"):
        import_coder(tmp_path)


def test_a_set_without_a_config_is_of_an_unknown_model(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.yaml").unlink()
    facts = [foreign.facts for foreign in foreign_coders(tmp_path)]
    assert [(each.model, each.read, each.called) for each in facts] == [
        (None, None, "layer 0"),
        (None, None, "layer 1"),
    ]


@pytest.mark.parametrize(
    ("hook", "model", "site"),
    [
        ("hook_resid_mid", "google/gemma-2-2b", "resid_mid"),
        ("hook_mlp_in", "google/gemma-2-2b", "resid_mid"),
        ("ln2.hook_normalized", "google/gemma-2-2b", "ln2_normalized"),
        ("mlp.hook_pre", "google/gemma-2-2b", None),
    ],
)
def test_sites_are_those_of_its_hooks(tmp_path: Path, hook: str, model: str, site: str | None) -> None:
    write(tmp_path, feature_input_hook=hook, model_name=model)
    _, second = foreign_coders(tmp_path)
    assert second.facts.read == (site and Site(site, 1))
    assert second.facts.write == (site and Site("mlp_out", 1))
    assert second.facts.called == f"layer 1: {hook} → hook_mlp_out"


def test_what_a_gemma_mlp_returns_is_no_site(tmp_path: Path) -> None:
    write(tmp_path, feature_output_hook="mlp.hook_out", model_name="google/gemma-3-1b-pt")
    first, _ = foreign_coders(tmp_path)
    assert (first.facts.read, first.facts.write) == (None, None)


def test_missing_layers(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "layer_1.safetensors").unlink()
    assert "lacks layer_1.safetensors of layers 0 to 3" in refusal(tmp_path)


def test_layers_of_several_sizes(tmp_path: Path) -> None:
    first, _ = write(tmp_path)
    smaller = {name: array[: F // 2] if name != "b_dec" else array for name, array in first.items()}
    save_file(smaller, tmp_path / "layer_1.safetensors")
    assert f"layer_1.safetensors: W_enc has shape [{F // 2}, {D}], expected [{F}, {D}]" in refusal(tmp_path)


@pytest.mark.parametrize(
    "listed", [["hf://google/x/params.npz"], ["../../etc/passwd"], ["layer_0.safetensors"], "x", {"a": 1}]
)
def test_files_of_other_folders_are_not_followed(tmp_path: Path, listed: object) -> None:
    write(tmp_path, transcoders=listed)
    assert "config.yaml: transcoders lists files of other folders, which are not followed" in refusal(tmp_path)
    for file in tmp_path.glob("layer_*"):
        file.unlink()
    assert "transcoders lists files" in refusal(tmp_path)


def test_a_cross_layer_transcoder_by_its_config_alone(tmp_path: Path) -> None:
    write(tmp_path, model_kind="cross_layer_transcoder")
    assert "cross-layer transcoder" in refusal(tmp_path)


def test_links_as_the_hubs_cache_lays_them(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    write(blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert [foreign.label for foreign in foreign_coders(snapshot)] == ["layer_0", "layer_1"]


@pytest.mark.parametrize("target", ["nothing", "layer_0.safetensors", "/dev/zero", "/etc/passwd", "/"])
def test_links_to_what_is_no_file_of_tensors(tmp_path: Path, target: str) -> None:
    write(tmp_path, 1)
    (tmp_path / "layer_0.safetensors").unlink()
    (tmp_path / "layer_0.safetensors").symlink_to(target)
    assert "layer_0.safetensors: " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("more", "config", "said"),
    [
        ({}, {"activation": "topk"}, "config.yaml: k is None: expected a whole number from 1 to 16"),
        ({}, {"activation": "topk", "k": 17}, "config.yaml: k is 17: expected"),
        ({}, {"activation": "gelu"}, "config.yaml: activation is 'gelu': layer_0.safetensors holds no thresholds"),
        ({}, {"activation": "jump_relu"}, "activation is 'jump_relu': layer_0.safetensors holds no thresholds"),
        ({"k": np.array(0)}, {}, "layer_0.safetensors: k is 0, expected a whole number from 1 to 16"),
        ({"k": np.array(3)}, {"k": 4}, "config.yaml: k is 4: layer_0.safetensors holds k 3"),
        ({"k": np.array(3)}, {"activation": "relu"}, "activation is 'relu': layer_0.safetensors holds k"),
        ({"activation_function.threshold": np.ones(F, np.float32)}, {"activation": "topk", "k": 3}, "thresholds"),
        ({"activation_function.threshold": np.ones(F, np.float32)}, {"activation": "relu"}, "holds thresholds"),
        ({"W_glu": np.ones(F, np.float32)}, {}, "layer_0.safetensors: holds 'W_glu'"),
        ({}, {"model_name": 3}, "config.yaml: model_name is 3: expected str"),
        ({}, {"feature_input_hook": ["a"]}, "config.yaml: feature_input_hook is a list: expected str"),
    ],
)
def test_what_is_not_read(tmp_path: Path, more: dict[str, np.ndarray], config: dict[str, object], said: str) -> None:
    write(tmp_path, more=more, **config)
    assert said in refusal(tmp_path)


def test_a_config_that_unfolds_to_gigabytes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.yaml").write_text("a: &a [1, 1]\nb: &b [*a, *a]\nfeature_input_hook: *b\n")
    assert "config.yaml: not YAML: aliases" in refusal(tmp_path)
