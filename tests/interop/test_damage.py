"""Files that are damaged or that lie, of every format: one line that names the file, never anything else."""

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign_files import GOLDEN
from safetensors.torch import load_file, save_file

from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import foreign_coders
from matryoshka.interop.tensors import Tensors

State = dict[str, torch.Tensor]


def _read(file: Path) -> State:
    if file.suffix == ".npz":
        with np.load(file) as stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
    return torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)


def _write(file: Path, state: State) -> None:
    if file.suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
    elif file.suffix == ".pt":
        torch.save(state, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


FORMATS = {
    "saelens": ("saelens/jumprelu_transcoder", "sae_weights.safetensors", "cfg.json"),
    "saelens gated": ("saelens/gated", "sae_weights.safetensors", "cfg.json"),
    "circuit-tracer": ("circuit_tracer/transcoder_set_jumprelu_skip", "layer_0.safetensors", "config.yaml"),
    "sparsify": ("sparsify/skip_transcoder/layers.8.mlp", "sae.safetensors", "cfg.json"),
    "dictionary_learning": ("dictionary_learning/MatryoshkaBatchTopKSAE", "ae.pt", "config.json"),
    "dictionary_learning topk": ("dictionary_learning/AutoEncoderTopK", "ae.pt", "config.json"),
    "openmoss": ("openmoss/transcoder_jumprelu", "sae_weights.safetensors", "config.json"),
    "gemma scope 1": ("gemma_scope/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "params.npz", None),
    "gemma scope 2": (
        "gemma_scope/gemma-scope-2-270m-pt/transcoder/layer_12_width_16k_l0_medium_affine",
        *("params.safetensors", "config.json"),
    ),
    "llama-scope": (None, "checkpoints/final.safetensors", "hyperparams.json"),
    "qwen-scope": (None, "layer3.sae.pt", None),
}
"""A golden, its file of tensors, and its configuration's; those without one are made here."""
WITH_CONFIG = [name for name, (_, _, config) in FORMATS.items() if config is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], tuple[Path, Path, Path | None]]:
    """Makes a copy of a format's files: (folder, tensors, configuration)."""

    def make(name: str) -> tuple[Path, Path, Path | None]:
        golden, tensors, config = FORMATS[name]
        place = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "SAE-Res-Qwen3-8B-Base-W64K-L0_8"
        if golden is not None:
            shutil.copytree(GOLDEN / golden, place)
        else:
            _make(name, place)
        list(foreign_coders(place))  # it is whole
        return place, place / tensors, None if config is None else place / config

    return make


def _make(name: str, place: Path) -> None:
    t = _read(GOLDEN / "saelens/standard/sae_weights.safetensors")
    place.mkdir(parents=True)
    if name == "qwen-scope":
        torch.save({**t, "W_enc": t["W_enc"].T, "W_dec": t["W_dec"].T}, place / "layer3.sae.pt")
        return
    (place / "checkpoints").mkdir()
    names = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}
    _write(place / "checkpoints/final.safetensors", {**names, "decoder.bias": t["b_dec"]})
    config = {
        "d_model": 16,
        "d_sae": 64,
        "act_fn": "topk",
        "jump_relu_threshold": 0.5,
        "norm_activation": "dataset-wise",
    }
    config |= {"dataset_average_activation_norm": {"in": 9.0, "out": 9.0}, "sparsity_include_decoder_norm": True}
    (place / "hyperparams.json").write_text(
        json.dumps({**config, "top_k": 8, "hook_point_in": "blocks.8.hook_resid_post"})
    )


def refusal(place: Path) -> str:
    """The line in which the coders that lie there are refused."""
    with pytest.raises(MatryoshkaError) as refused:
        list(foreign_coders(place))
    said = str(refused.value)
    assert str(place) in said
    assert "\n" not in said
    return said


def is_read(place: Path) -> bool:
    """Whether the coders that lie there are read, down to their cards; otherwise they are refused, by file."""
    said = None
    try:
        for foreign in foreign_coders(place):
            foreign.facts.card(foreign.origin)
    except MatryoshkaError as error:
        said = str(error)
    assert said is None or str(place) in said
    return said is None


def _damaged(state: State, name: str, damage: str) -> State:
    tensor = state[name]
    match damage:
        case "missing":
            return {other: value for other, value in state.items() if other != name}
        case "of another shape":
            return {**state, name: torch.cat([tensor, tensor]) if tensor.dim() else tensor.expand(2).clone()}
        case "of more dimensions":
            return {**state, name: tensor[None]}
        case "NaN" | "Inf":
            values = tensor.double().contiguous().clone()
            values.view(-1)[-1] = float(damage)
            return {**state, name: values}
        case _:
            return {**state, name: torch.ones(tensor.shape, dtype=torch.bool)}


@pytest.mark.parametrize("damage", ["missing", "of another shape", "of more dimensions", "NaN", "Inf", "no numbers"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_is_checked(
    name: str, damage: str, folder: Callable[[str], tuple[Path, Path, Path | None]]
) -> None:
    place, file, _ = folder(name)
    state = _read(file)
    for tensor in state:
        if tensor.startswith("k") or (tensor == "threshold" and "topk" in name):
            continue  # what is not needed: k stands in the configuration too, a TopK's threshold is not its own
        if damage == "missing" and ("skip" in tensor.lower() or "threshold" in tensor or tensor == "group_sizes"):
            continue  # what a file may have or not; denied by its configuration below
        _write(file, _damaged(state, tensor, damage))
        assert file.name in refusal(place), tensor


@pytest.mark.parametrize("content", ["nothing", "half", "all but a byte", "text", "zeros", "a folder", "no file"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_tensors_that_is_none(
    name: str, content: str, folder: Callable[[str], tuple[Path, Path, Path | None]]
) -> None:
    place, file, _ = folder(name)
    whole = file.read_bytes()
    file.unlink()
    if content == "a folder":
        file.mkdir()
    elif content != "no file":
        halves = {
            "nothing": b"",
            "half": whole[: len(whole) // 2],
            "all but a byte": whole[:-1],
            "text": b"no tensors\n" * 9,
        }
        file.write_bytes(halves.get(content, bytes(len(whole))))
    refusal(place)


@pytest.mark.parametrize("name", [name for name, files in FORMATS.items() if files[1].endswith("safetensors")])
@pytest.mark.parametrize("size", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_to_be_huge(
    name: str, size: int, folder: Callable[[str], tuple[Path, Path, Path | None]]
) -> None:
    place, file, _ = folder(name)
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    assert "damaged" in refusal(place)


def test_an_array_that_claims_to_be_huge(tmp_path: Path) -> None:
    """No room is made for it."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    assert "W_enc is damaged (claims 4,000,000,000,000 bytes of float32, holds 64)" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '"text"', "null", "\x00", "{'a': 1}", '{"a": "\\ud800"}', "[" * 99_999]
)
@pytest.mark.parametrize("name", WITH_CONFIG)
def test_a_configuration_that_is_none(
    name: str, content: str, folder: Callable[[str], tuple[Path, Path, Path | None]]
) -> None:
    place, _, config = folder(name)
    assert config is not None
    config.write_text(content)
    if name != "circuit-tracer" or "a" not in content:  # that one needs no field
        assert config.name in refusal(place)
    config.write_bytes(b"\xff\xfe\x00")
    assert config.name in refusal(place)


VALUES = [
    *(None, True, False, 0, -1, 1, 3, 64, 65, 2**31, 2**80, 0.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", "x", "topk", "\x00" * 9, "a" * 9999, [], [1], [[]], {}, {"k": 1}, {"sae_lens_version": 3}),
]


def _ways(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path to every field, however deep."""
    fields = content.items() if isinstance(content, dict) else ()
    return [found for name, value in fields for found in ((*path, name), *_ways(value, (*path, name)))]


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_whatever_stands_in_a_configuration(name: str, folder: Callable[[str], tuple[Path, Path, Path | None]]) -> None:
    """Every field is given some values of every kind: it is read, or refused in one line that names a file there."""
    place, _, config = folder(name)
    assert config is not None
    whole = yaml.safe_load(config.read_text())
    dump = yaml.safe_dump if config.suffix == ".yaml" else json.dumps
    chance, outcomes = random.Random(2), set()
    for way in _ways(whole):
        for value in chance.sample(VALUES, 8):
            changed = json.loads(json.dumps(whole))
            inner = changed
            for step in way[:-1]:
                inner = inner[step]
            inner[way[-1]] = value
            config.write_text(dump(changed))
            outcomes.add(is_read(place))
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_that_have_changed(name: str, folder: Callable[[str], tuple[Path, Path, Path | None]]) -> None:
    """Of its files of tensors and configurations, some at random and most near the front: it is read or refused."""
    place, file, config = folder(name)
    chance = random.Random(0)
    for target, times in ((file, 80), (config, 60)):
        if target is None:
            continue
        whole = target.read_bytes()
        for _ in range(times):
            changed = bytearray(whole)
            reach = chance.choice((64, 512, len(whole)))
            for _ in range(chance.choice((1, 1, 3, 20))):
                changed[chance.randrange(min(reach, len(whole)))] = chance.randrange(256)
            if chance.random() < 0.2:
                del changed[chance.randrange(len(changed)) :]
            target.write_bytes(changed)
            is_read(place)
        target.write_bytes(whole)
    assert is_read(place)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_bytes_of_nothing_at_all(suffix: str, tmp_path: Path) -> None:
    chance, file = random.Random(1), tmp_path / f"file{suffix}"
    starts = {".npz": b"PK\x03\x04", ".pt": b"PK\x03\x04", ".safetensors": struct.pack("<Q", 40) + b"{"}
    for _ in range(200):
        file.write_bytes(starts[suffix] * chance.randrange(2) + chance.randbytes(chance.randrange(300)))
        with pytest.raises(MatryoshkaError, match="damaged"):
            Tensors.open(file)
