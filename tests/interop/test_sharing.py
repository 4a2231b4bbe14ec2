"""Coders on the hub: what lies there loads by name, says what it is, and comes back the same, prefixes included."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hub_folder import HubFolder, same, write_saelens
from written_coders import random_coder, saved

import matryoshka
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.interop.importing import import_run
from matryoshka.interop.sharing import pull, push
from matryoshka.run import Run
from matryoshka.study.opening import read_card

TRANSCODER = "blocks.1.mlp.hook_in"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubFolder:
    monkeypatch.chdir(tmp_path)
    return HubFolder(tmp_path).serve(monkeypatch)


def header(readme: str) -> dict:
    front = re.match(r"\A---\n(.*?)\n---\n", readme, re.DOTALL)
    assert front, "it begins at the first byte"
    return yaml.safe_load(front[1])


def test_what_is_pushed_comes_back_the_same(hub: HubFolder, featured: Run) -> None:
    pushed = push(featured, "me/coders", license="apache-2.0", private=True)
    assert hub.created == {"me/coders": True}
    assert (pushed.places, pushed.card) == ((TRANSCODER,), True)
    assert pushed.address == "https://huggingface.co/me/coders"
    assert hub.list_repo_files("me/coders") == [
        "README.md",
        *(f"{TRANSCODER}/{name}" for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")),
    ]
    ours, theirs = SparseCoder.load(featured.path), matryoshka.SparseCoder.from_pretrained("me/coders", TRANSCODER)
    assert same(ours, theirs, 192)
    assert theirs.widths == ours.widths
    run = pull("me/coders")
    assert run.path == Path("runs/imported/bundled/coders")
    assert same(SparseCoder.load(run.path), ours, 192)
    said = json.loads(run.provenance.read_text())
    assert said["source"] == f"me/coders@{pushed.commit}"
    assert set(said["files"]) >= {f"{TRANSCODER}/cfg.json"}


def test_the_model_card_says_what_it_is_in_measured_numbers(hub: HubFolder, trained: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(trained.path, tmp_path / "mine")))
    (run.path / "figures").mkdir()
    (run.path / "figures" / "fvu-per-prefix.png").write_bytes(b"\x89PNG picture")
    push(run, "me/coders", license="cc-by-4.0")
    readme = (hub.commit("me/coders") / "README.md").read_text()
    fields = header(readme)
    assert fields["library_name"] == "saelens"
    assert fields["license"] == "cc-by-4.0"
    assert {"sparse-autoencoder", "matryoshka", "saelens"} <= set(fields["tags"])
    assert "base_model" not in fields, "the bundled model is no id of the hub"
    for width, fvu in zip((32, 96, 256), matryoshka.results(run).values("FVU"), strict=True):
        assert re.search(rf"^\| {width} \| {fvu:.3f} \(\d.\d+ – \d.\d+\) \|", readme, re.MULTILINE)
    assert "Trained on 20,480 tokens" in readme
    assert f'SAE.from_pretrained("me/coders", "{TRANSCODER}")' in readme
    assert "![FVU and CE recovered of each prefix](figures/blocks.1.mlp.hook_in.png)" in readme
    assert (hub.commit("me/coders") / "figures" / "blocks.1.mlp.hook_in.png").read_bytes() == b"\x89PNG picture"
    assert "@article{bussmann2025matryoshka," in readme

    config = run.path / "evaluation" / "reconstruction.json"  # of other weights
    config.write_text(config.read_text().replace(json.loads(config.read_text())["identity"]["coder"], "0" * 64))
    push(run, "me/others")
    assert "Not measured yet." in (hub.commit("me/others") / "README.md").read_text()


def test_a_card_names_model_and_text_where_the_hub_has_them(hub: HubFolder, tmp_path: Path) -> None:
    run = saved(random_coder("jumprelu", "8.resid_post", model="openai-community/gpt2"), tmp_path / "run")
    card = json.loads((run.coder / "config.json").read_text())
    card["card"]["trained"] = {
        "tokens": 10, "left_out": 0, "not_finite": 0, "text": {"source": "some/text: # [x]"}, "text_hash": "0",
        "dead_after_tokens": 5, "dead": [1],
    }  # fmt: skip
    (run.coder / "config.json").write_text(json.dumps(card))
    push(run, "me/coders")
    fields = header((hub.commit("me/coders") / "README.md").read_text())
    assert fields["base_model"] == ["openai-community/gpt2"]
    assert fields["datasets"] == ["some/text: # [x]"]


def test_transcoders_of_every_layer_are_a_set_for_circuits_too(hub: HubFolder, kinds: dict[str, Run]) -> None:
    layers = [kinds[f"layer {n}"] for n in range(4)]
    pushed = push(layers, "me/coders", prefix=96)
    assert pushed.places == tuple(f"blocks.{n}.mlp.hook_in" for n in range(4))
    files = hub.list_repo_files("me/coders")
    assert {f"circuit-tracer/layer_{n}.safetensors" for n in range(4)} | {"circuit-tracer/config.yaml"} <= set(files)
    assert "me/coders/circuit-tracer" in (hub.commit("me/coders") / "README.md").read_text()
    as_set = import_run("me/coders/circuit-tracer", out="set")
    pulled = pull("me/coders", out="pulled")
    names = [member.path.name for member in pulled.members()]
    assert names == [f"blocks.{n}.mlp.hook_in" for n in range(4)]
    for n, layer in enumerate(layers):
        ours = SparseCoder.load(layer.path).prefix(96)
        for coder in (as_set.member(f"layer_{n}"), pulled.member(names[n])):
            assert same(SparseCoder.load(coder.path), ours, 192)
            assert read_card(coder.coder).sources == read_card(layer.coder).sources
    assert SparseCoder.load(pulled.member(names[0]).path).widths == (32, 96)

    some = push(layers[:3], "me/some")
    assert not [name for name in hub.list_repo_files("me/some") if name.startswith("circuit-tracer")]
    two = pull("me/some", [some.places[2], some.places[0]], out="two")
    assert [member.path.name for member in two.members()] == [some.places[0], some.places[2]]


def test_coders_of_one_hook_are_told_apart(hub: HubFolder, tmp_path: Path) -> None:
    runs = [saved(random_coder("jumprelu", seed=n), tmp_path / name) for n, name in enumerate(["wide", "narrow"])]
    pushed = push(runs, "me/coders")
    assert pushed.places == ("blocks.1.hook_resid_post/wide", "blocks.1.hook_resid_post/narrow")
    run = pull("me/coders", [pushed.places[1]], out="one")
    assert same(SparseCoder.load(run.path), random_coder("jumprelu", seed=1), 6)
    assert len(pull("me/coders", out="both").members()) == 2


def test_what_is_there_is_left_alone(hub: HubFolder, tmp_path: Path) -> None:
    first = saved(random_coder("jumprelu", "1.resid_post"), tmp_path / "first")
    second = saved(random_coder("jumprelu", "2.resid_post"), tmp_path / "second")
    push(first, "me/coders")
    before = (hub.commit("me/coders") / "README.md").read_text()
    with pytest.raises(MatryoshkaError, match=r"me/coders: holds blocks\.1\.hook_resid_post already; --overwrite"):
        push([first, second], "me/coders")
    assert len(list((hub.root / "me" / "coders").iterdir())) == 1, "no commit"
    assert push(second, "me/coders").card is False
    assert (hub.commit("me/coders") / "README.md").read_text() == before
    stale = hub.commit("me/coders") / "blocks.1.hook_resid_post" / "sparsity.safetensors"
    stale.write_text("of other weights")
    assert push(first, "me/coders", overwrite=True).card is True
    assert "blocks.1.hook_resid_post/sparsity.safetensors" not in hub.list_repo_files("me/coders")
    assert "blocks.2.hook_resid_post/cfg.json" in hub.list_repo_files("me/coders")


@pytest.mark.parametrize("repository", ["coders", "me/../coders", "me/co--ders", "https://x/y", "", "me/a/b", "-me/x"])
def test_repositories_that_are_none(repository: str, hub: HubFolder, tmp_path: Path) -> None:
    run = saved(random_coder("jumprelu"), tmp_path / "run")
    with pytest.raises(MatryoshkaError, match="no id of a repository on the hub"):
        push(run, repository)
    assert hub.created == {}


def test_what_cannot_be_written_is_refused_before_a_repository_is_made(hub: HubFolder, tmp_path: Path) -> None:
    run = saved(random_coder("topk", "1.mlp_in", "1.mlp_out"), tmp_path / "run")
    with pytest.raises(MatryoshkaError, match="SAELens has no TopK transcoder"):
        push(run, "me/coders")
    sae = saved(random_coder("jumprelu"), tmp_path / "sae")
    with pytest.raises(MatryoshkaError, match=r"--license 'GPL 3!': expected a name as the hub has it"):
        push(sae, "me/coders", license="GPL 3!")
    with pytest.raises(MatryoshkaError, match="prefix 7 is none of the coder's"):
        push(sae, "me/coders", prefix=7)
    assert hub.created == {}
    hub.reachable = False
    with pytest.raises(MatryoshkaError, match="the Hugging Face hub cannot be reached"):
        push(sae, "me/coders")


def test_pulls_that_cannot_be(hub: HubFolder, tmp_path: Path) -> None:
    (tmp_path / "repository" / "notes").mkdir(parents=True)
    (tmp_path / "repository" / "notes" / "cfg.json").write_text("{}")
    hub.add("me/notes", tmp_path / "repository")
    with pytest.raises(MatryoshkaError, match=r"holds no folder with cfg.json and sae_weights.safetensors; for other"):
        pull("me/notes")
    with pytest.raises(MatryoshkaError, match=r"gpt2-small-res-jb: has several coders; they are called"):
        pull("gpt2-small-res-jb")
    with pytest.raises(MatryoshkaError, match=r"is no path within a repository"):
        pull("me/notes", ["../x"])
    with pytest.raises(MatryoshkaError, match=r"me/notes: holds no 'nots'"):
        pull("me/notes", ["nots"])
    assert not Path("runs").exists()


def test_coders_of_a_release_are_pulled_at_one_commit(hub: HubFolder, tmp_path: Path) -> None:
    for n in range(2):
        write_saelens(
            tmp_path / "r" / f"blocks.{n}.hook_resid_pre", random_coder("jumprelu"), hook="x", model_name=None
        )
    commit = hub.add("jbloom/GPT2-Small-SAEs-Reformatted", tmp_path / "r")
    run = pull(f"gpt2-small-res-jb@{commit}", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_pre"])
    assert run.path == Path("runs/imported/gpt2/gpt2-small-res-jb")
    assert [read_card(member.coder).sources[0].reads[0] for member in run.members()] == ["0.resid_pre", "1.resid_pre"]
    assert json.loads(run.provenance.read_text())["revision"] == commit


def test_a_branch_that_moves_meanwhile_is_read_at_one_commit(
    hub: HubFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_saelens(tmp_path / "r" / name, random_coder("jumprelu", seed=1))
        write_saelens(tmp_path / "later" / name, random_coder("jumprelu", seed=2))
    first, download = hub.add("me/coders", tmp_path / "r"), hub.snapshot_download

    def moving(repo_id: str, **asked: object) -> str:
        snapshot = download(repo_id, **asked)  # type: ignore[arg-type]
        hub.add("me/coders", tmp_path / "later")
        return snapshot

    monkeypatch.setattr("huggingface_hub.snapshot_download", moving)
    run = pull("me/coders", ["a", "b"], out="run")
    assert json.loads(run.provenance.read_text())["revision"] == first
    for member in run.members():
        assert same(SparseCoder.load(member.path), random_coder("jumprelu", seed=1), 6)
