"""Gemma Scope: what paths and hook points say, and files that say something else than their tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import D, F, compare, draw, inputs
from safetensors.numpy import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder

SKIP = "affine_skip_connection"
BEFORE, AFTER = "model.layers.12.pre_feedforward_layernorm.output", "model.layers.12.post_feedforward_layernorm.output"


def tensors(d_out: int = D) -> dict[str, np.ndarray]:
    W_dec, b_dec = draw(F, d_out, seed=3), draw(d_out, seed=4)
    return {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": W_dec, "b_dec": b_dec, "threshold": draw(F)}


def write_first(folder: Path, **more: np.ndarray) -> dict[str, np.ndarray]:
    t = {**tensors(), **more}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **t)
    return t


def write_second(folder: Path, skips: bool = False, d_out: int = D, **config: object) -> dict[str, np.ndarray]:
    t = {name.replace("W_", "w_"): array for name, array in tensors(d_out).items()}
    if skips:
        t[SKIP] = draw(D, d_out, seed=6)
    save_file(t, folder / "params.safetensors")
    fields = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-it", "width": F, "l0": 40, "type": "transcoder"}
    fields |= {"hf_hook_point_in": BEFORE, "hf_hook_point_out": AFTER, "affine_connection": skips, **config}
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in fields.items() if value is not None})
    )
    return t


def refusal(folder: Path) -> str:
    with pytest.raises(MatryoshkaError) as refused:
        list(foreign_coders(folder))
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_thresholds_below_0_act_as_0(tmp_path: Path) -> None:
    t, x = write_first(tmp_path), inputs()
    assert (t["threshold"] < 0).any()
    pre = x @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0) * (pre > t["threshold"])
    compare(import_coder(tmp_path), x, latents, latents @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("skips", [False, True])
def test_what_it_skips_is_not_transposed(tmp_path: Path, skips: bool) -> None:
    t, x = write_second(tmp_path, skips, d_out=4), inputs()
    pre = x @ t["w_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0) * (pre > t["threshold"])
    compare(import_coder(tmp_path), x, latents, latents @ t["w_dec"] + t["b_dec"] + (x @ t[SKIP] if skips else 0))


@pytest.mark.parametrize(
    ("path", "model", "read", "write"),
    [
        ("gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_46", "2b", "0.resid_post", None),
        ("gemma-scope-9b-it-res/layer_31/width_131k/average_l0_63", "9b-it", "31.resid_post", None),
        ("gemma-scope-2b-pt-mlp/layer_12/width_16k/average_l0_76", "2b", "12.mlp_out", None),
        ("gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_7", "2b", "5.ln2_normalized", "5.mlp_out"),
        ("gemma-scope-27b-pt-res/layer_22/width_131k/average_l0_82", "27b", "22.resid_post", None),
        (
            "models--google--gemma-scope-2b-pt-res/snapshots/0a1b/layer_7/width_16k/canonical",
            "2b",
            "7.resid_post",
            None,
        ),
        ("gemma-scope-2b-pt-att/layer_7/width_16k/average_l0_80", "2b", None, None),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "2b", None, None),
    ],
)
def test_its_path_says_where_it_belongs(
    tmp_path: Path, path: str, model: str, read: str | None, write: str | None
) -> None:
    write_first(tmp_path / path)
    (foreign,) = foreign_coders(tmp_path / path / "params.npz")
    facts = foreign.facts
    assert facts.model == f"google/gemma-2-{model}"
    assert [site and str(site) for site in (facts.read, facts.write)] == [read, write]
    assert facts.called is not None
    assert "gemma-scope" in facts.called
    if read is None:
        with pytest.raises(MatryoshkaError, match="--read"):
            facts.refuse_unknown(path)


@pytest.mark.parametrize(
    ("into", "out", "sites"),
    [
        ("model.layers.12.output", None, ("12.resid_post", None)),
        ("model.layers.12.output", "model.layers.12.output", ("12.resid_post", None)),
        ("model.language_model.layers.3.output", None, ("3.resid_post", None)),
        (BEFORE, AFTER, ("12.mlp_in", "12.mlp_out")),
        (AFTER, None, ("12.mlp_out", None)),
        ("model.layers.4.post_attention_layernorm.output", None, ("4.attn_out", None)),
        ("model.layers.4.pre_feedforward_layernorm.input", None, ("4.resid_mid", None)),
        ("model.layers.12.self_attn.o_proj.input", None, (None, None)),
        ("model.layers.12.mlp.output", None, (None, None)),
        (BEFORE, "model.layers.12.mlp.output", (None, None)),
        ("model.layers.12", None, (None, None)),
        (None, None, (None, None)),
    ],
)
def test_hook_points_are_modules_inputs_and_outputs(
    tmp_path: Path, into: str | None, out: str | None, sites: tuple[str | None, str | None]
) -> None:
    write_second(tmp_path, hf_hook_point_in=into, hf_hook_point_out=out)
    (foreign,) = foreign_coders(tmp_path)
    assert tuple(site and str(site) for site in (foreign.facts.read, foreign.facts.write)) == sites
    assert foreign.facts.model == "google/gemma-3-1b-it"
    assert (foreign.facts.called is None) == (into is None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "gated"}, "architecture is 'gated': no architecture of Gemma Scope's"),
        ({"type": "crosscoder"}, "type is 'crosscoder': reads or writes several layers"),
        ({"type": "clt"}, "type is 'clt': reads or writes several layers"),
        ({"width": 2 * F}, "width is 32: params.safetensors holds 16 latents"),
        ({"affine_connection": True}, "affine_connection is True: params.safetensors holds no affine_skip_connection"),
        ({"affine_connection": 3}, "affine_connection is 3: expected bool"),
        ({"model_name": ["gemma"]}, "model_name is a list: expected str"),
    ],
)
def test_what_is_not_read(tmp_path: Path, config: dict[str, object], said: str) -> None:
    write_second(tmp_path, **config)
    assert f"config.json: {said}" in refusal(tmp_path)


def test_a_skip_that_the_config_denies(tmp_path: Path) -> None:
    write_second(tmp_path, skips=True, affine_connection=False)
    assert "affine_connection is False: params.safetensors holds affine_skip_connection" in refusal(tmp_path)


def test_coders_of_several_layers_are_refused_by_name(tmp_path: Path) -> None:
    write_second(tmp_path)
    (tmp_path / "params.safetensors").rename(tmp_path / "params_layer_0.safetensors")
    assert "holds a crosscoder or cross-layer transcoder" in refusal(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_other_kinds(tmp_path: Path, compressed: bool) -> None:
    """Compressed, of another byte order, stored by columns, in half precision: numbers are numbers."""
    t = tensors()
    others = {**t, "W_enc": np.asfortranarray(t["W_enc"]), "b_dec": t["b_dec"].astype(">f4")}
    others["b_enc"] = t["b_enc"].astype(np.float64)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "params.npz", **others)
    pre = inputs() @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre, 0) * (pre > t["threshold"])
    compare(import_coder(tmp_path), inputs(), latents, latents @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize(
    "array", [np.array([None] * F), np.array(["a"] * F), np.ones(F, np.complex64), np.ones(F, bool), np.zeros(0)]
)
def test_arrays_of_no_numbers(tmp_path: Path, array: np.ndarray) -> None:
    write_first(tmp_path, b_enc=array)
    assert "params.npz: b_enc " in refusal(tmp_path)
