"""A coder on disk: what comes back is what was saved, and a damaged or foreign file is refused by name."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from matryoshka.coder import io
from matryoshka.coder.architecture import CoderConfig
from matryoshka.coder.card import Card, ModelCard, RowCard, SourceCard, TrainingCard
from matryoshka.coder.coder import SparseCoder
from matryoshka.coder.weights import Weights
from matryoshka.errors import MatryoshkaError

ACTIVATIONS = {
    "relu": {"kind": "relu"},
    "topk": {"kind": "topk", "k": 3},
    "batchtopk": {"kind": "batchtopk", "k": 3},
    "jumprelu": {"kind": "jumprelu", "k": 3, "bandwidth": 0.2},
}
CARD = Card(
    model=ModelCard(name="a/model", revision="0" * 40, dtype="bfloat16"),
    sources=(SourceCard(reads=("8.mlp_in",), writes=("8.mlp_out",)),),
    context=128,
    prepend_bos=True,
    rows=RowCard(largest_norms={"8.mlp_in": 41.25, "8.mlp_out": 7.5}, sample=2048),
    trained=TrainingCard(
        tokens=10**9,
        left_out=12,
        not_finite=0,
        text={"source": "texts of ŷ [ 1, 2 ]", "held_out": 0.05, "limit": None},
        text_hash="f" * 64,
        dead_after_tokens=10**6,
        dead=tuple(range(2, 16)),
    ),
    origin="matryoshka 0.2",
)


def rows(count, d, seed):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + 1


def make(activation="batchtopk", seed=0, skip=False, card=CARD):
    """A coder after a training pass."""
    config = CoderConfig(
        reads=(5,),
        writes=(3,),
        d_sae=16,
        widths=(4, 16),
        activation=ACTIVATIONS[activation],
        skip=skip,
    )
    coder = SparseCoder(config, card).initialise(seed, tied=False)
    coder.calibrate(rows(64, 5, 0), rows(64, 3, 1).mean(0))
    coder(rows(64, 5, 2), rows(64, 3, 3))
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


def rewrite(folder, *section, **changes):
    """Change fields of config.json, or of a section of it; None removes one."""
    content = json.loads((folder / "config.json").read_text())
    fields = content
    for name in section:
        fields = fields[name]
    fields |= changes
    for name in [name for name, value in changes.items() if value is None]:
        del fields[name]
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
    assert loaded.card == CARD
    assert type(loaded.activation) is type(coder.activation)
    assert not loaded.training
    for name, saved, stored in zip(Weights._fields, coder.weights, loaded.weights, strict=True):
        if saved is None:
            assert stored is None, name
        else:
            assert stored.dtype == saved.dtype
            assert torch.equal(stored, saved), name
    x = rows(20, 5, 9)
    ours, theirs = coder.eval().encode(x), loaded.encode(x)
    assert torch.equal(ours.dense(), theirs.dense())
    assert torch.equal(coder.decode(ours, x), loaded.decode(theirs, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_coder_of_another_precision_comes_back_in_it(tmp_path, dtype):
    coder = make("topk").to(dtype)
    coder.save(tmp_path / "saved")
    loaded = SparseCoder.load(tmp_path / "saved")
    assert loaded.dtype == dtype
    assert torch.equal(loaded.W_enc, coder.W_enc)


def test_a_coder_without_a_card_loads(tmp_path):
    make(card=None).save(tmp_path / "saved")
    assert SparseCoder.load(tmp_path / "saved").card is None
    assert io.load_card(tmp_path / "saved")[1] is None
    rewrite(tmp_path / "saved", card=None)  # nor need the field be there
    assert SparseCoder.load(tmp_path / "saved").card is None


def test_a_card_whose_rows_and_training_nobody_knows_comes_back(tmp_path):
    card = CARD.model_copy(update={"rows": None, "trained": None, "origin": "somebody else's"})
    make(card=card).save(tmp_path / "saved")
    assert SparseCoder.load(tmp_path / "saved").card == card


def test_a_card_is_read_without_the_weights(folder):
    (folder / "weights.safetensors").unlink()
    config, card = io.load_card(folder)
    assert (config, card) == (make().config, CARD)


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
    assert list(content) == ["format", "version", "coder", "card"]
    assert (content["format"], content["version"]) == ("matryoshka-coder", 2)
    assert content["coder"]["widths"] == [4, 16]
    assert content["coder"]["activation"] == {"kind": "batchtopk", "k": 3}
    assert content["card"]["model"]["name"] == "a/model"


def test_lists_of_numbers_stand_on_one_line_each(folder):
    lines = (folder / "config.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert '    "widths": [4, 16],' in lines
    assert sum(", ".join(map(str, range(2, 16))) in line for line in lines) == 1
    assert any('"texts of ŷ [ 1, 2 ]"' in line for line in lines), "text is left as it is"


# the fingerprint


def test_the_fingerprint_is_of_the_stored_bytes(folder, tmp_path):
    known = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert io.fingerprint(folder) == known
    shutil.copytree(folder, tmp_path / "run" / "coder")
    assert io.fingerprint(tmp_path / "run") == known, "a run's is its coder's"
    SparseCoder.load(folder).double().encode(rows(20, 5, 9).double())
    assert io.fingerprint(folder) == known, "whatever is computed with it"
    SparseCoder.load(folder).save(tmp_path / "again")
    assert io.fingerprint(tmp_path / "again") == known
    rewrite(folder, "card", origin="elsewhere")
    assert io.fingerprint(folder) == known, "nor does it depend on the card"


def test_a_changed_weight_changes_the_fingerprint(folder, tmp_path):
    coder = SparseCoder.load(folder)
    with torch.no_grad():
        coder.W_dec[3, 1] = torch.nextafter(coder.W_dec[3, 1], torch.tensor(9.0))
    coder.save(tmp_path / "other")
    assert io.fingerprint(tmp_path / "other") != io.fingerprint(folder)


def test_a_coder_without_weights_has_no_fingerprint(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(MatryoshkaError, match=r"weights\.safetensors: missing"):
        io.fingerprint(folder)
    with pytest.raises(MatryoshkaError, match="no coder"):
        io.fingerprint(folder / "nothing")


# a save that fails


def test_a_save_that_fails_leaves_the_old_coder(folder, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError("no space left on device")

    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", no_space)  # the weights are written by then, the config is not
        with pytest.raises(OSError, match="no space"):
            make(seed=1).save(folder)
    monkeypatch.setattr(io, "save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        make(seed=1).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_first_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(OSError, match="no space"):
        make().save(tmp_path / "new")
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
    refused(folder, str(folder / "config.json"), "JSON")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, "not a coder"),
        ({"format": None}, "not a coder"),
        ({"version": 3}, "version 3"),
        ({"version": None}, "version None"),
        ({"temperature": 1.0}, "unknown field 'temperature'"),
        ({"coder": None}, "coder"),
        ({"card": {"model": "a/model"}}, "card.model"),
    ],
)
def test_a_foreign_config_is_refused_by_the_field(folder, changes, named):
    rewrite(folder, **changes)
    refused(folder, str(folder / "config.json"), named)


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        (["coder"], {"d_sae": None}, "coder.d_sae"),
        (["coder"], {"d_sae": "wide"}, "coder.d_sae"),
        (["coder"], {"activation": {"kind": "gelu"}}, "coder.activation"),
        (["coder"], {"temperature": 1.0}, "coder.temperature: unknown field"),
        (["coder", "activation"], {"bandwidth": 1.0}, "bandwidth: unknown field"),
        (["card"], {"nickname": "x"}, "card.nickname: unknown field"),
        (["card"], {"two\nlines": "x"}, "card.two lines: unknown field"),
        (["card", "model"], {"weight": "x"}, "card.model.weight: unknown field"),
        (["card", "trained"], {"text_hash": None}, "card.trained.text_hash"),
        (["card"], {"context": 0}, "card.context"),
        (["card"], {"sources": []}, "card.sources"),
    ],
)
def test_a_foreign_field_of_coder_or_card_is_refused_by_name(folder, section, changes, named):
    rewrite(folder, *section, **changes)
    refused(folder, str(folder / "config.json"), named)
    with pytest.raises(MatryoshkaError):
        io.load_card(folder)


def test_version_1_is_refused_with_what_to_do(folder):
    """As 0.1 wrote it: the coder's fields stood beside format and version."""
    old = {"d_in": 5, "d_out": 3, "d_sae": 16, "widths": [4, 16], "activation": "topk", "k": 3, "metadata": {}}
    (folder / "config.json").write_text(json.dumps({"format": "matryoshka-coder", "version": 1, **old}))
    refused(folder, str(folder / "config.json"), "version 1", "reads version 2", "train anew")


@pytest.mark.parametrize("content", ["[" * 200_000, "9" * 5000])
def test_json_that_no_reader_takes_is_one_line(folder, content):
    (folder / "config.json").write_text(f'{{"format": "matryoshka-coder", "card": {content}')
    refused(folder, str(folder / "config.json"), "not JSON")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"W_enc": None}, "lack W_enc"),
        ({"activation.threshold": None}, "lack activation.threshold"),
        ({"b_dec": None}, "lack b_dec"),
        ({"scale_out": torch.ones(())}, "unknown tensor scale_out"),
        ({"W_other": torch.ones(2)}, "unknown tensor W_other"),
        ({"W_skip": torch.ones(5, 3)}, "unknown tensor W_skip"),
        ({"W_dec": torch.ones(3, 16)}, "W_dec has shape [3, 16], expected [16, 3]"),
        ({"b_enc": torch.ones(1)}, "b_enc has shape [1], expected [16]"),
        ({"b_dec": torch.tensor([0.0, float("nan"), 0.0])}, "b_dec holds NaN or Inf"),
        ({"W_dec": torch.full((16, 3), -float("inf"))}, "W_dec holds NaN or Inf"),
        ({"activation.threshold": torch.tensor(-0.5)}, "activation.threshold is -0.5, expected 0 or more"),
    ],
)
def test_wrong_tensors_are_refused_by_name(folder, changes, named):
    reweigh(folder, **changes)
    refused(folder, str(folder), named)


def test_weights_of_another_size_than_the_config_are_refused(folder):
    rewrite(folder, "coder", reads=[6])
    refused(folder, str(folder), "W_enc has shape [5, 16], expected [6, 16]")


def test_a_batchtopk_coder_is_not_read_as_another_activation(folder):
    for activation in ("relu", "topk", "jumprelu"):
        rewrite(folder, "coder", activation=ACTIVATIONS[activation])
        refused(folder, str(folder), "activation.")


def test_a_card_that_does_not_fit_its_coder_is_refused(folder):
    rewrite(folder, "card", "rows", largest_norms={"8.mlp_in": 1.0, "9.mlp_out": 1.0})
    refused(folder, "card", "9.mlp_out", "neither reads nor writes")


def test_a_dead_latent_beyond_the_dictionary_is_refused(folder):
    rewrite(folder, "card", "trained", dead=[3, 16])
    refused(folder, "card.trained.dead", "latent 16 of 16")
