"""dictionary_learning: what its classes compute, by the names of their tensors; what config.json has to say."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import GOLDEN, D, F, compare, draw, inputs, numbers, top

from matryoshka.coder.architecture import ReLUConfig
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders, import_coder

K, THETA = 4, 0.8


def linear(**more: np.ndarray | int | float) -> dict[str, Any]:
    """A state dict of torch's linear layers."""
    weights = {
        "encoder.weight": draw(F, D, seed=1),
        "encoder.bias": draw(F, seed=2),
        "decoder.weight": draw(D, F, seed=3),
    }
    return {name: torch.as_tensor(value) for name, value in {**weights, **more}.items()}


def upright(**more: np.ndarray | int | float | torch.Tensor) -> dict[str, Any]:
    """One of JumpReLU's and Matryoshka's."""
    weights = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3)}
    weights["b_dec"] = draw(D, seed=4)
    return {name: torch.as_tensor(value) for name, value in {**weights, **more}.items()}


def write(folder: Path, content: object, name: str = "ae.pt", **trainer: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / name)
    if trainer:
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


def arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def refusal(folder: Path) -> str:
    with pytest.raises(MatryoshkaError) as refused:
        list(foreign_coders(folder))
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_autoencoder_new_takes_nothing_off_x(tmp_path: Path) -> None:
    """Its config.json names another class."""
    state, x = linear(**{"decoder.bias": draw(D, seed=4)}), inputs()
    t = arrays(state)
    latents = np.maximum(x @ t["encoder.weight"].T + t["encoder.bias"], 0)
    out = latents @ t["decoder.weight"].T + t["decoder.bias"]
    compare(import_coder(write(tmp_path, state, dict_class="AutoEncoder")), x, latents, out)


def test_autoencoder_makes_its_decoder_rows_unit_vectors(tmp_path: Path) -> None:
    state, x = linear(bias=draw(D, seed=4)), inputs()
    t = arrays(state)
    norms = np.linalg.norm(t["decoder.weight"], axis=0)
    latents = np.maximum((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    out = latents @ t["decoder.weight"].T + t["bias"]
    compare(import_coder(write(tmp_path, state)), x, latents * norms, out)


def by_k(state: dict[str, Any], x: np.ndarray, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """A TopK, or what exceeds `threshold`."""
    t = arrays(state)
    pre = np.maximum((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    latents = top(pre, K) if threshold is None else pre * (pre > threshold)
    return latents, latents @ t["decoder.weight"].T + t["b_dec"]


@pytest.mark.parametrize(
    "trainer",
    [{"dict_class": "AutoEncoderTopK", "k": K}, {"trainer_class": "TopKTrainer"}, {"dict_class": "AutoEncoderTopK"}],
)
def test_topk(tmp_path: Path, trainer: dict[str, object]) -> None:
    state, x = linear(b_dec=draw(D, seed=4), k=K, threshold=THETA), inputs()
    compare(import_coder(write(tmp_path, state, **trainer)), x, *by_k(state, x, None))


@pytest.mark.parametrize("k_in_file", [False, True])
def test_topk_of_before_there_were_thresholds(tmp_path: Path, k_in_file: bool) -> None:
    state, x = linear(b_dec=draw(D, seed=4), **({"k": K} if k_in_file else {})), inputs()
    folder = write(tmp_path, state, **({"seed": 0} if k_in_file else {"k": K}))
    compare(import_coder(folder), x, *by_k(state, x, None))


@pytest.mark.parametrize(
    "trainer",
    [{"dict_class": "BatchTopKSAE"}, {"trainer_class": "BatchTopKTrainer"}, {"dict_class": "BatchTopKSAE", "k": 9}],
)
def test_batchtopk(tmp_path: Path, trainer: dict[str, object]) -> None:
    state, x = linear(b_dec=draw(D, seed=4), k=K, threshold=THETA), inputs()
    coder = import_coder(write(tmp_path, state, **trainer))
    compare(coder, x, *by_k(state, x, THETA))
    assert coder.config.k == K


def test_a_threshold_that_was_never_set_is_a_relu(tmp_path: Path) -> None:
    state, x = linear(b_dec=draw(D, seed=4), k=K, threshold=-1.0), inputs()
    coder = import_coder(write(tmp_path, state, dict_class="BatchTopKSAE"))
    compare(coder, x, *by_k(state, x, 0))
    assert isinstance(coder.config.activation, ReLUConfig)


@pytest.mark.parametrize("trainer", [{}, {"seed": 0}, {"dict_class": "Unheard"}])
def test_who_does_not_say_which_of_the_two_it_is_is_asked(tmp_path: Path, trainer: dict[str, object]) -> None:
    folder = write(tmp_path, linear(b_dec=draw(D, seed=4), k=K, threshold=THETA), **trainer)
    said = "config.json: does not say whether ae.pt is an AutoEncoderTopK or a BatchTopKSAE"
    assert said in refusal(folder)


@pytest.mark.parametrize("trained", [False, True])
def test_matryoshka(tmp_path: Path, trained: bool) -> None:
    theta, x = THETA if trained else -1.0, inputs()
    state = upright(group_sizes=torch.tensor([2, 2, 4, 8]), k=K, threshold=theta)
    t = arrays(state)
    pre = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    latents = pre * (pre > theta)
    coder = import_coder(write(tmp_path, state))
    compare(coder, x, latents, latents @ t["W_dec"] + t["b_dec"])
    assert coder.widths == (2, 4, 8, 16)
    with torch.no_grad():
        prefixes = coder.decode(coder.encode(torch.from_numpy(x))).numpy()
    for ours, width in zip(prefixes, coder.widths, strict=True):
        np.testing.assert_allclose(ours, latents[:, :width] @ t["W_dec"][:width] + t["b_dec"], atol=1e-4)


def test_jumprelu_with_thresholds_below_0(tmp_path: Path) -> None:
    state, x = upright(threshold=draw(F, seed=5)), inputs()
    t = arrays(state)
    pre = x @ t["W_enc"] + t["b_enc"]
    latents = np.maximum(pre * (pre > t["threshold"]), 0)
    compare(import_coder(write(tmp_path, state)), x, latents, latents @ t["W_dec"] + t["b_dec"])


INTERRUPTED = ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]


@pytest.mark.parametrize("name", [*INTERRUPTED, "JumpReluAutoEncoder"])
def test_a_run_that_was_interrupted(tmp_path: Path, name: str) -> None:
    """Its biases and threshold are in units of norm_factor: here those of a golden, divided by it."""
    golden, factor = GOLDEN / "dictionary_learning" / name, 3.0
    state = torch.load(golden / "ae.pt", weights_only=True)
    scaled = {
        key: value / factor if "bias" in key or key in ("b_dec", "b_enc", "threshold") else value
        for key, value in state.items()
    }
    backup = {"step": 5, "ae": scaled, "optimizer": {"state": {}}, "config": {"lr": 0.1}, "norm_factor": factor}
    write(tmp_path, backup)
    (tmp_path / "config.json").write_bytes((golden / "config.json").read_bytes())
    theirs = numbers(golden)
    compare(import_coder(tmp_path), theirs["x"], theirs["latents"], theirs["out"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_a_factor_that_is_none(tmp_path: Path, factor: object) -> None:
    write(tmp_path, {"ae": linear(bias=draw(D)), "norm_factor": factor})
    assert "ae.pt: norm_factor is" in refusal(tmp_path)


def test_checkpoints_lie_below_their_config(tmp_path: Path) -> None:
    write(tmp_path, linear(bias=draw(D)), lm_name="bundled", submodule_name="resid_post_layer_2")
    (tmp_path / "ae.pt").unlink()
    for step in (1000, 200):
        write(tmp_path / "checkpoints", linear(bias=draw(D)), f"ae_{step}.pt")
    coders = list(foreign_coders(tmp_path / "checkpoints"))
    assert [(foreign.label, str(foreign.facts.read)) for foreign in coders] == [
        ("ae_200", "2.resid_post"),
        ("ae_1000", "2.resid_post"),
    ]


@pytest.mark.parametrize(
    ("trainer", "read"),
    [
        ({"submodule_name": "resid_post_layer_12", "lm_name": "google/gemma-2-2b"}, "12.resid_post"),
        ({"submodule_name": "mlp_out_layer_3", "lm_name": "EleutherAI/pythia-70m-deduped"}, "3.mlp_out"),
        ({"submodule_name": "mlp_out_layer_3", "lm_name": "google/gemma-2-2b"}, None),
        ({"submodule_name": "unheard_layer_3"}, None),
        ({"layer": 3}, None),
    ],
)
def test_sites(tmp_path: Path, trainer: dict[str, object], read: str | None) -> None:
    (foreign,) = foreign_coders(write(tmp_path, linear(bias=draw(D)), **trainer))
    assert (foreign.facts.read and str(foreign.facts.read)) == read
    assert foreign.facts.model == trainer.get("lm_name")
    assert foreign.facts.context == 128
    assert foreign.facts.called == trainer.get("submodule_name")


def test_a_site_is_named_by_the_folder_above_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "resid_post_layer_12" / "trainer_0", linear(bias=draw(D)))
    (foreign,) = foreign_coders(folder)
    assert str(foreign.facts.read) == "12.resid_post"


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_nothing_in_a_file_is_run(tmp_path: Path, by: str) -> None:
    content = {**linear(bias=draw(D)), "more": Hostile(tmp_path / "ran")}
    write(tmp_path, content)
    if by == "pickle":
        (tmp_path / "ae.pt").write_bytes(pickle.dumps(content))
    assert "ae.pt: damaged, or not a file of plain tensors" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "ae.pt", weights_only=False) if by == "torch" else pickle.loads(
        (tmp_path / "ae.pt").read_bytes()
    )
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([1, 2], "ae.pt: holds a list, expected tensors by name"),
        ({}, "ae.pt: holds the tensors of no dictionary known here: none"),
        ({"ae": 3, "norm_factor": 1.0}, "ae.pt: holds a int, expected tensors by name"),
        (linear(bias=draw(D + 1)), "bias has shape [7], expected [6]"),
        (linear(bias=np.arange(D) > 2), "bias is no tensor of numbers"),
        (upright(threshold=np.float32(1)), "threshold has shape [], expected [16]"),
        (
            upright(group_sizes=torch.tensor([2, 4]), k=K, threshold=1.0),
            "group_sizes add up to 6, W_enc has 16 latents",
        ),
        (upright(group_sizes=torch.tensor([0, 16]), k=K, threshold=1.0), "group_sizes are [0.0, 16.0], expected whole"),
        (
            upright(group_sizes=torch.tensor([20, -4]), k=K, threshold=1.0),
            "group_sizes are [20.0, -4.0], expected whole",
        ),
        (
            upright(group_sizes=torch.tensor([16]), k=17, threshold=1.0),
            "k is 17, expected a whole number from 1 to 16",
        ),
        (upright(group_sizes=torch.tensor([16]), threshold=1.0), "config.json: k is None: expected"),
        (
            {**upright(group_sizes=torch.tensor([16]), threshold=1.0), "k": 10**30},
            "k is a int too large: expected a whole",
        ),
        ({**upright(group_sizes=torch.tensor([16]), threshold=1.0), "k": True}, "k is True: expected int"),
        ({**linear(), "bias": torch.ones(1).expand(D)}, "bias is no tensor of numbers"),
        ({**linear(), "bias": torch.ones(D).to_sparse()}, "bias is no tensor of numbers"),
        ({**linear(), "bias": torch.ones(D, dtype=torch.complex64)}, "bias is no tensor of numbers"),
        ({**linear(), "bias": torch.ones(D, device="meta")}, "bias is no tensor of numbers"),
        ({**linear(), "bias": 3}, "bias is no tensor of numbers"),
    ],
)
def test_what_is_no_dictionary(tmp_path: Path, state: object, said: str) -> None:
    assert said in refusal(write(tmp_path, state))


def test_a_few_bytes_that_claim_a_terabyte(tmp_path: Path) -> None:
    huge = torch.ones(1).expand(10**6, 10**6)
    assert "encoder.weight is no tensor of numbers" in refusal(
        write(tmp_path, {**linear(bias=draw(D)), "encoder.weight": huge})
    )


def test_a_config_of_the_wrong_kind(tmp_path: Path) -> None:
    write(tmp_path, linear(bias=draw(D)))
    for content, said in (("[]", "holds no object"), ('{"trainer": 3}', "trainer is 3"), ("{", "not JSON")):
        (tmp_path / "config.json").write_text(content)
        assert f"config.json: {said}" in refusal(tmp_path)
