"""OpenMOSS: what its coders compute by every option of its configuration."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import D, F, compare, draw, inputs, top
from safetensors.numpy import save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder

K = 4
INTO, OUT = "blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out"
NORMS = {INTO: 9.0, OUT: 3.0}
CONFIG = {
    **{"sae_type": "sae", "d_model": D, "expansion_factor": F / D, "use_decoder_bias": True, "act_fn": "relu"},
    **{"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False, "top_k": K, "use_glu_encoder": False},
    **{"hook_point_in": INTO, "hook_point_out": OUT},
}


def write(folder: Path, **config: object) -> dict[str, np.ndarray]:
    t = {"W_E": draw(D, F, seed=1), "b_E": draw(F, seed=2), "W_D": draw(F, D, seed=3), "b_D": draw(D, seed=4)}
    t["activation_function.log_jumprelu_threshold"] = draw(F, seed=5) - 1
    t |= {f"dataset_average_activation_norm.{hook}": np.array(norm, np.float32) for hook, norm in NORMS.items()}
    save_file(t, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return t


@pytest.mark.parametrize("normalises", ["dataset-wise", "inference"])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_every_combination(tmp_path: Path, activation: str, biased: bool, by_norm: bool, normalises: str) -> None:
    options = {"act_fn": activation, "use_decoder_bias": biased, "norm_activation": normalises}
    t = write(tmp_path, **options, sparsity_include_decoder_norm=by_norm)
    into, out = (D**0.5 / NORMS[hook] if normalises == "dataset-wise" else 1 for hook in (INTO, OUT))
    x, norms = inputs(), np.linalg.norm(t["W_D"], axis=1) if by_norm else np.ones(F)
    judged = (into * x @ t["W_E"] + t["b_E"]) * norms
    match activation:
        case "relu":
            kept = np.maximum(judged, 0)
        case "jumprelu":
            kept = judged * (judged > np.exp(t["activation_function.log_jumprelu_threshold"]))
        case _:
            kept = top(judged, K)
    latents = kept / norms
    y = (latents @ t["W_D"] + t["b_D"] * biased) / out
    compare(import_coder(tmp_path), x, kept if activation == "topk" else latents, y)


def test_facts(tmp_path: Path) -> None:
    write(tmp_path)
    (foreign,) = foreign_coders(tmp_path)
    assert (str(foreign.facts.read), str(foreign.facts.write)) == ("8.ln2_normalized", "8.mlp_out")
    assert foreign.facts.called == f"{INTO} → {OUT}"
    card = import_coder(tmp_path, model="bundled").card
    assert card is not None
    assert card.sources[0].writes == ("8.mlp_out",)


def test_a_latent_that_writes_nothing_is_never_active(tmp_path: Path) -> None:
    """Where what it writes is judged."""
    t = write(tmp_path, act_fn="jumprelu", sparsity_include_decoder_norm=True)
    t["W_D"][0] = 0
    save_file(t, tmp_path / "sae_weights.safetensors")
    latents = import_coder(tmp_path).encode(torch.from_numpy(inputs())).dense()
    assert not latents[:, 0].any()
    assert latents[:, 1:].any()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sae_type": "clt"}, "sae_type is 'clt': a cross-layer transcoder"),
        ({"sae_type": "crosscoder"}, "sae_type is 'crosscoder': a crosscoder"),
        ({"sae_type": "lorsa"}, "sae_type is 'lorsa': low-rank sparse attention"),
        ({"sae_type": "molt"}, "sae_type is 'molt': a mixture"),
        ({"sae_type": "unheard"}, "sae_type is 'unheard': not known here"),
        ({"act_fn": "batchtopk"}, "act_fn is 'batchtopk': it has no threshold"),
        ({"act_fn": "layertopk"}, "act_fn is 'layertopk': no activation here"),
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise': no constant"),
        ({"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise': no constant"),
        ({"norm_activation": None}, "norm_activation is None: no constant"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True: a gated linear unit"),
        ({"act_fn": "topk", "top_k": F + 1}, "top_k is 17: expected a whole number from 1 to 16"),
        ({"act_fn": "topk", "sparsity_include_decoder_norm": None}, "sparsity_include_decoder_norm is None: expected"),
        ({"expansion_factor": 0}, "expansion_factor is 0: expected a positive number"),
        ({"expansion_factor": float("nan")}, "expansion_factor is nan: expected a positive number"),
        ({"d_model": D + 1}, "W_E has shape [6, 16], expected [7, 18]"),
        (
            {"hook_point_out": "blocks.9.hook_mlp_out"},
            "no tensor 'dataset_average_activation_norm.blocks.9.hook_mlp_out'",
        ),
    ],
)
def test_what_is_not_read(tmp_path: Path, config: dict[str, object], said: str) -> None:
    write(tmp_path, **config)
    with pytest.raises(MatryoshkaError) as refused:
        import_coder(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("norm", [0.0, -3.0, 1e-40, 1e35])
def test_a_norm_that_nobody_has_measured(tmp_path: Path, norm: float) -> None:
    """What lay in memory is what it stores then."""
    t = write(tmp_path)
    t[f"dataset_average_activation_norm.{OUT}"] = np.array(norm, np.float32)
    save_file(t, tmp_path / "sae_weights.safetensors")
    with pytest.raises(MatryoshkaError, match=r"hook_mlp_out is .*, as where nobody has measured it"):
        import_coder(tmp_path)
