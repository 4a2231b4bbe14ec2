"""A coder on disk: what comes back is what was saved, and a damaged or foreign file is refused by name."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from matryoshka.coder import io
from matryoshka.coder.coder import CoderConfig, SparseCoder
from matryoshka.errors import MatryoshkaError

ACTIVATIONS = ("topk", "batchtopk", "jumprelu")
METADATA = {"model": "a/model", "read": "8.mlp_in", "write": "8.mlp_out", "note": "ŷ"}


def rows(count, d, seed):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + 1


def make(activation="batchtopk", seed=0, skip=False):
    """A coder after a training pass."""
    config = CoderConfig(
        d_in=5, d_out=3, d_sae=16, widths=(4, 16), activation=activation, k=3, bandwidth=0.2, skip=skip
    )
    coder = SparseCoder(config, METADATA).initialise(seed, tied=False)
    coder.calibrate(rows(64, 5, 0), rows(64, 3, 1))
    coder(rows(64, 5, 2), rows(64, 3, 3))
    coder.tokens_since_fired[2] = 99
    return coder


def refused(path, *named):
    """Loading fails in one line that holds every one of `named`."""
    with pytest.raises(MatryoshkaError) as error:
        SparseCoder.load(path)
    text = str(error.value)
    assert "\n" not in text
    for each in named:
        assert each in text
    return text


@pytest.fixture
def folder(tmp_path):
    """A saved coder."""
    make().save(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder, **changes):
    """Change fields of config.json; None removes one."""
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))


def reweigh(folder, **changes):
    """Change tensors; None removes one."""
    tensors = load_file(folder / "weights.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "weights.safetensors")


# round trips


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("place", ["coder", "elsewhere"])
def test_a_loaded_coder_is_the_saved_one_bit_for_bit(tmp_path, activation, skip, place):
    coder = make(activation, skip=skip)
    coder.save(tmp_path / "run" / place)
    loaded = SparseCoder.load(tmp_path / "run" / place)

    assert loaded.config == coder.config
    assert loaded.metadata == METADATA
    assert type(loaded.activation) is type(coder.activation)
    assert not loaded.training
    saved, found = coder.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    for name, tensor in saved.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    x = rows(20, 5, 9)
    ours, theirs = coder.eval().encode(x), loaded.encode(x)
    assert torch.equal(ours.dense(), theirs.dense())
    assert torch.equal(coder.decode(ours, x), loaded.decode(theirs, x))


def test_a_loaded_topk_coder_still_keeps_k_of_each_row(tmp_path):
    make("topk").save(tmp_path / "topk")
    latents = SparseCoder.load(tmp_path / "topk").encode(rows(20, 5, 9))
    assert latents.dense().count_nonzero(1).max() == 3


def test_a_loaded_batchtopk_coder_has_its_threshold(tmp_path):
    coder = make("batchtopk")
    coder.save(tmp_path / "batchtopk")
    assert SparseCoder.load(tmp_path / "batchtopk").activation.threshold == coder.activation.threshold > 0


def test_a_run_folder_and_its_coder_folder_load_alike(tmp_path):
    coder = make()
    coder.save(tmp_path / "run" / "coder")
    for path in (tmp_path / "run", tmp_path / "run" / "coder", str(tmp_path / "run")):
        assert torch.equal(SparseCoder.load(path).W_enc, coder.W_enc)


def test_saving_again_replaces_the_coder_and_leaves_nothing_beside_it(tmp_path):
    make(seed=0).save(tmp_path / "saved")
    make("jumprelu", seed=1).save(tmp_path / "saved")
    assert torch.equal(SparseCoder.load(tmp_path / "saved").W_enc, make("jumprelu", seed=1).W_enc)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_two_files_and_no_pickle(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]
    SparseCoder.load(folder)


def test_the_config_is_readable_and_says_its_format(folder):
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (content["format"], content["version"]) == ("matryoshka-coder", 1)
    assert content["widths"] == [4, 16]
    assert content["metadata"] == METADATA


# a save that fails


def test_a_save_that_fails_leaves_the_old_coder(folder, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError("no space left on device")

    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    unserialisable = make(seed=1)
    unserialisable.metadata["model"] = object()
    with pytest.raises(TypeError):  # the weights are written by then, the config is not
        unserialisable.save(folder)
    monkeypatch.setattr(io, "save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        make(seed=1).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_first_save_that_fails_leaves_nothing(tmp_path):
    coder = make()
    coder.metadata["model"] = object()
    with pytest.raises(TypeError):
        coder.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# what is refused


def test_a_folder_without_a_coder_is_refused(tmp_path):
    refused(tmp_path, str(tmp_path), "no coder")
    refused(tmp_path / "missing", str(tmp_path / "missing"), "no coder")


def test_missing_weights_are_refused(folder):
    (folder / "weights.safetensors").unlink()
    refused(folder, str(folder / "weights.safetensors"))


def test_weights_cut_short_are_refused_wherever_the_cut_is(folder):
    whole = (folder / "weights.safetensors").read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        (folder / "weights.safetensors").write_bytes(whole[:length])
        refused(folder, str(folder / "weights.safetensors"), "damaged")


def test_a_pickle_in_the_place_of_weights_is_refused(folder):
    torch.save({"W_enc": torch.ones(2)}, folder / "weights.safetensors")
    refused(folder, str(folder / "weights.safetensors"))


@pytest.mark.parametrize(
    "content", ["", "{", "not json", '"text"', "3", "null", b"\xff\xfe\x00", '{"format": "matryoshka-coder"']
)
def test_a_config_that_is_no_json_object_is_refused(folder, content):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, str(folder / "config.json"), "damaged")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, "not a coder"),
        ({"format": None}, "not a coder"),
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"d_sae": None}, "d_sae"),
        ({"d_sae": "wide"}, "d_sae"),
        ({"activation": "gelu"}, "activation"),
        ({"temperature": 1.0}, "temperature"),
    ],
)
def test_a_foreign_config_is_refused_by_the_field(folder, changes, named):
    rewrite(folder, **changes)
    refused(folder, str(folder / "config.json"), named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"W_enc": None}, "lack W_enc"),
        ({"activation.threshold": None}, "lack activation.threshold"),
        ({"scale_out": None}, "lack scale_out"),
        ({"W_other": torch.ones(2)}, "unknown tensor W_other"),
        ({"W_skip": torch.ones(5, 3)}, "unknown tensor W_skip"),
        ({"W_dec": torch.ones(3, 16)}, "W_dec has shape [3, 16], expected [16, 3]"),
        ({"b_enc": torch.ones(1)}, "b_enc has shape [1], expected [16]"),
    ],
)
def test_wrong_tensors_are_refused_by_name(folder, changes, named):
    reweigh(folder, **changes)
    refused(folder, str(folder), named)


def test_weights_of_another_size_than_the_config_are_refused(folder):
    rewrite(folder, d_in=6)
    refused(folder, str(folder), "W_enc has shape [5, 16], expected [6, 16]")


def test_a_batchtopk_coder_is_not_read_as_another_activation(folder):
    for activation in ("topk", "jumprelu"):
        rewrite(folder, activation=activation)
        refused(folder, str(folder), "activation.")
