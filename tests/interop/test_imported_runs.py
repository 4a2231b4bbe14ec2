"""Coders of others become runs: whole or not at all, and only where it is known what they are of."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_folder import HubFolder, same, write_saelens

import matryoshka
from matryoshka.coder import pretrained
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.files import checksum
from matryoshka.interop import importing
from matryoshka.interop.foreign import Facts, Foreign
from matryoshka.interop.hub import fetch, fetch_folders, parse
from matryoshka.interop.importing import import_coder, import_run, new_run
from matryoshka.run import Run
from matryoshka.study.opening import read_card
from matryoshka.version import __version__


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubFolder:
    monkeypatch.chdir(tmp_path)
    return HubFolder(tmp_path).serve(monkeypatch)


@pytest.fixture
def ours(trained: Run) -> SparseCoder:
    return SparseCoder.load(trained.path)


@pytest.fixture
def folder(ours: SparseCoder, tmp_path: Path) -> Path:
    return write_saelens(tmp_path / "theirs", ours, out="blocks.1.hook_mlp_out")


def left(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_a_folder_becomes_a_run_that_says_where_it_is_from(
    folder: Path, ours: SparseCoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = import_run("theirs")
    assert run.path == Path("runs/imported/bundled/theirs")
    coder, card = SparseCoder.load(run.path), read_card(run.coder)
    assert same(coder, ours, 192)
    assert coder.widths == ours.widths == (32, 96, 256)
    assert (card.sources[0].reads, card.sources[0].writes) == (("1.mlp_in",), ("1.mlp_out",))
    assert (card.model.name, card.context, card.prepend_bos, card.origin) == ("bundled", 64, True, "sae-lens 6.54.12")
    said = json.loads(run.provenance.read_text())
    assert said["source"] == str(folder)
    assert said["format"] == "saelens"
    assert said["versions"] == {"matryoshka-sae": __version__}
    assert said["files"] == {file.name: checksum(file) for file in sorted(folder.iterdir())}
    assert left(run.path) == ["coder", "provenance.json"]


def test_a_file_is_its_folder(folder: Path, tmp_path: Path) -> None:
    for n, words in enumerate([(folder / "cfg.json",), (folder, "cfg.json"), (tmp_path, "theirs/cfg.json")]):
        assert import_run(*map(str, words), out=tmp_path / str(n)).members()
    with pytest.raises(MatryoshkaError, match=r"absent\.json: no such file"):
        import_run(folder, "absent.json")


def test_what_the_files_do_not_say_is_asked_for_before_anything_is_written(ours: SparseCoder, tmp_path: Path) -> None:
    mute = write_saelens(tmp_path / "mute", ours, hook="blocks.0.attn.hook_z", model_name=None)
    with pytest.raises(MatryoshkaError, match=r"mute: does not say where .*'blocks.0.attn.hook_z'.*--model and --read"):
        import_run(mute, out=tmp_path / "run")
    with pytest.raises(MatryoshkaError, match=r"does not say its model.*give --model"):
        import_run(mute, read="1.mlp_in", out=tmp_path / "run")
    with pytest.raises(MatryoshkaError, match=r"unknown site '1\.mlp_im' \(did you mean '1\.mlp_in'\?\)"):
        import_run(mute, model="bundled", read="1.mlp_im", out=tmp_path / "run")
    assert left(tmp_path) == ["mute"]
    run = import_run(mute, model="bundled", read="blocks.3.hook_mlp_out", write="3.resid_post", out=tmp_path / "run")
    source = read_card(run.coder).sources[0]
    assert (source.reads, source.writes) == (("3.mlp_out",), ("3.resid_post",))


def test_a_models_folder_is_found_from_any_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    run = import_run(folder, model="./model", out="run")
    assert read_card(run.coder).model.name == str(tmp_path / "model")


def of_set(ours: SparseCoder, *labels: str) -> list[Foreign]:
    facts = [Facts("bundled", matryoshka.Site("mlp_in", n), matryoshka.Site("mlp_out", n)) for n in range(len(labels))]
    return [Foreign(label, ours, fact, "someone") for label, fact in zip(labels, facts, strict=True)]


def test_several_coders_become_members(ours: SparseCoder, tmp_path: Path) -> None:
    run = new_run(iter(of_set(ours, "layer_0", "layer_1")), "set", {"source": "x"}, out=tmp_path / "run")
    assert [member.path.name for member in run.members()] == ["layer_0", "layer_1"]
    assert read_card(run.member("layer_1").coder).sources[0].reads == ("1.mlp_in",)
    alone = new_run(iter(of_set(ours, "layer_7")), "set", {"source": "x"}, out=tmp_path / "alone")
    assert alone.members() == [alone]
    assert left(alone.path) == ["coder", "provenance.json"]


def test_one_is_in_memory_at_a_time(ours: SparseCoder, tmp_path: Path) -> None:
    """The next is read when the one before is gone."""
    import gc
    import weakref

    alive: list[weakref.ref] = []

    class OneByOne:
        def __init__(self) -> None:
            self.labels = iter(["a", "b", "c"])

        def __iter__(self) -> "OneByOne":
            return self

        def __next__(self) -> Foreign:
            label = next(self.labels)
            gc.collect()
            assert [reference() for reference in alive if reference() is not None] == []
            coder = SparseCoder.of(ours.weights, ours.config.activation, ours.widths)
            alive.append(weakref.ref(coder))
            return Foreign(label, coder, Facts("bundled", matryoshka.Site("mlp_in", 1)), "someone")

    run = new_run(OneByOne(), "set", {"source": "x"}, out=tmp_path / "run")
    assert len(run.members()) == len(alive) == 3


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["layer_0", "../escaped"], "which is no name of a folder"),
        (["/tmp/absolute", "layer_1"], "which is no name of a folder"),
        (["..", "layer_1"], "which is no name of a folder"),
        (["layer_0", "layer_0"], "twice"),
    ],
)
def test_labels_are_no_paths(labels: list[str], line: str, ours: SparseCoder, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=line):
        new_run(iter(of_set(ours, *labels)), "set", {"source": "x"}, out=tmp_path / "run")
    assert left(tmp_path) == []


def test_sites_are_asked_for_one_coder(ours: SparseCoder, tmp_path: Path) -> None:
    asked = Facts(read=matryoshka.Site("mlp_in", 3))
    with pytest.raises(MatryoshkaError, match=r"holds several coders.*choose it with --part"):
        new_run(iter(of_set(ours, "a", "b")), "set", {"source": "x"}, asked, out=tmp_path / "run")
    assert left(tmp_path) == []


def test_a_later_coder_that_cannot_be_read_leaves_nothing(ours: SparseCoder, tmp_path: Path) -> None:
    def coders():
        yield of_set(ours, "layer_0")[0]
        raise MatryoshkaError("layer_1.safetensors: damaged")

    with pytest.raises(MatryoshkaError, match="damaged"):
        new_run(coders(), "set", {"source": "x"}, out=tmp_path / "run")
    assert left(tmp_path) == []


def test_what_lies_there_is_left_alone(folder: Path, ours: SparseCoder, tmp_path: Path) -> None:
    run = import_run(folder, out=tmp_path / "run")
    (run.path / "features.sqlite").write_text("labels")
    with pytest.raises(MatryoshkaError, match=r"exists already; give another .*--out, or --overwrite"):
        import_run(folder, out=run.path)
    assert (run.path / "features.sqlite").is_file()
    import_run(folder, out=run.path, overwrite=True)
    assert left(run.path) == ["coder", "provenance.json"]
    for here in (folder, tmp_path):  # somebody's files are no run
        with pytest.raises(MatryoshkaError, match="not a run, so --overwrite leaves it alone"):
            import_run(folder, out=here, overwrite=True)
    with pytest.raises(MatryoshkaError, match="cannot be made or written into"):
        import_run(folder, out="/proc/x")


def test_what_is_no_foreign_coder_is_said(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"a coder of matryoshka, which every command takes as a run as it is"):
        import_run(trained.coder)
    with pytest.raises(MatryoshkaError, match=r"holds no coder in a format known here \(saelens"):
        import_run(tmp_path)
    with pytest.raises(MatryoshkaError, match=r"unknown format 'sealens' \(did you mean 'saelens'\?\)"):
        import_run(tmp_path, format="sealens")
    with pytest.raises(MatryoshkaError, match=r"\./absent: no such folder or file"):
        import_run("./absent")


KILLED = """
import os, signal, sys
from matryoshka.coder.coder import SparseCoder
from matryoshka.interop.importing import import_run
save = SparseCoder.save
SparseCoder.save = lambda coder, folder: (save(coder, folder), os.kill(os.getpid(), signal.SIGKILL))
import_run(sys.argv[1], out=sys.argv[2])
"""


def test_killed_half_way_there_is_no_run_and_the_next_one_sweeps(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out" / "run")])
    assert done.returncode == -9
    assert not (tmp_path / "out" / "run").exists()
    assert len(os.listdir(tmp_path / "out")) == 1, "what was being written"
    import_run(folder, out=tmp_path / "out" / "run")
    assert os.listdir(tmp_path / "out") == ["run"]


def test_a_repository_is_asked_for_one_folder_at_one_commit(
    hub: HubFolder, folder: Path, ours: SparseCoder, tmp_path: Path
) -> None:
    (tmp_path / "repository").mkdir()
    shutil.move(folder, tmp_path / "repository" / "blocks.1.mlp")
    shutil.copytree(tmp_path / "repository" / "blocks.1.mlp", tmp_path / "repository" / "blocks.1.mlp" / "below")
    (tmp_path / "repository" / "README.md").write_text("large")
    first = hub.add("some/coders", tmp_path / "repository")
    shutil.rmtree(tmp_path / "repository" / "blocks.1.mlp")
    hub.add("some/coders", tmp_path / "repository")

    run = import_run(f"some/coders/blocks.1.mlp@{first}", out="run")
    said = json.loads(run.provenance.read_text())
    assert (said["source"], said["revision"]) == (f"some/coders/blocks.1.mlp@{first}", first)
    assert hub.fetched == ["blocks.1.mlp/cfg.json", "blocks.1.mlp/sae_weights.safetensors"]
    assert same(SparseCoder.load(run.path), ours, 192)
    again = import_run(said["source"])
    assert again.path == Path("runs/imported/bundled/coders-blocks.1.mlp")
    with pytest.raises(MatryoshkaError, match=r"some/coders: holds no 'blocks\.1\.mlp'"):
        import_run("some/coders/blocks.1.mlp", out="other")
    assert not Path("other").exists()


def test_of_a_file_its_folder_alone_is_fetched(hub: HubFolder, folder: Path, tmp_path: Path) -> None:
    for name in ("layer_1/width_1k", "layer_1/width_2k"):
        shutil.copytree(folder, tmp_path / "repository" / name)
    hub.add("some/coders", tmp_path / "repository")
    import_run("some/coders", "layer_1/width_1k/sae_weights.safetensors", out="run")
    assert {Path(name).parent.as_posix() for name in hub.fetched} == {"layer_1/width_1k"}
    with pytest.raises(MatryoshkaError, match=r"holds no 'layer_1/width_3k/sae.*there are: layer_1/width_[12]k"):
        import_run("some/coders", "layer_1/width_3k/sae_weights.safetensors", out="other")


def test_weights_that_lie_a_folder_below_are_fetched_too(hub: HubFolder, tmp_path: Path) -> None:
    """Llama Scope's."""
    for name in ("L0/hyperparams.json", "L0/checkpoints/final.safetensors", "L1/hyperparams.json"):
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text("{}")
    hub.add("some/coders", tmp_path / "repository")
    both = ["L0/hyperparams.json", "L0/checkpoints/final.safetensors"]
    fetch_folders("some/coders", ["L0"])
    assert hub.fetched == both
    hub.fetched.clear()
    fetch(parse("some/coders", "L0/checkpoints/final.safetensors"))
    assert sorted(set(hub.fetched)) == sorted(both)


def test_a_file_of_several_is_one_coder_whatever_lies_beside_it(hub: HubFolder, tmp_path: Path) -> None:
    """Qwen-Scope's: what was fetched of a commit before lies in the same folder."""
    (tmp_path / "repository").mkdir()
    for n in range(3):
        tensors = {
            "W_enc": torch.randn(64, 8),
            "W_dec": torch.randn(8, 64),
            "b_enc": torch.ones(64),
            "b_dec": torch.ones(8) * n,
        }
        torch.save(tensors, tmp_path / "repository" / f"layer{n}.sae.pt")
    hub.add("Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", tmp_path / "repository")
    for n in range(3):
        run = import_run(f"qwen-scope-qwen3-8b-base-w64k-l0_50/layer{n}", out=str(n))
        assert hub.fetched == [f"layer{m}.sae.pt" for m in range(n + 1)]
        assert read_card(run.coder).sources[0].reads == (f"{n}.resid_post",)
        assert list(json.loads(run.provenance.read_text())["files"]) == [f"layer{n}.sae.pt"]
        assert SparseCoder.load(run.path).weights.b_dec.tolist() == [n] * 8


def test_a_release_is_known_by_its_name_and_by_its_repository(
    hub: HubFolder, ours: SparseCoder, tmp_path: Path
) -> None:
    """What the registry knows, its files need not say."""
    id, facts = "blocks.1.hook_resid_pre", ("openai-community/gpt2", ("1.resid_pre",))
    write_saelens(tmp_path / "repository" / id, ours, hook="unheard of", model_name=None)
    commit = hub.add("jbloom/GPT2-Small-SAEs-Reformatted", tmp_path / "repository")
    for n, source in enumerate([f"gpt2-small-res-jb/{id}", f"jbloom/GPT2-Small-SAEs-Reformatted/{id}@{commit}"]):
        card = read_card(import_run(source, out=str(n)).coder)
        assert (card.model.name, card.sources[0].reads) == facts
    assert read_card(import_run(f"gpt2-small-res-jb/{id}", read="0.resid_pre", out="r").coder).sources[0].reads == (
        "0.resid_pre",
    )
    with pytest.raises(MatryoshkaError, match="leave --file out"):
        import_run(f"gpt2-small-res-jb/{id}", file="cfg.json")


def test_from_pretrained_reads_repositories_and_releases(hub: HubFolder, ours: SparseCoder, tmp_path: Path) -> None:
    write_saelens(tmp_path / "repository" / "a" / "b", ours)
    commit = hub.add("some/coders", tmp_path / "repository")
    hub.add("some/coders", write_saelens(tmp_path / "other", ours.prefix(32)).parent / "other")
    coder = matryoshka.SparseCoder.from_pretrained("some/coders", "a/b", commit)
    assert same(coder, ours, 192)
    assert coder.card is not None
    assert coder.card.model.name == "bundled"
    with pytest.raises(MatryoshkaError, match="holds no 'a/b'"):
        matryoshka.SparseCoder.from_pretrained("some/coders", "a/b")
    with pytest.raises(MatryoshkaError, match=r"has no coder 'x'; they are called gpt2-small-res-jb/blocks"):
        matryoshka.SparseCoder.from_pretrained("gpt2-small-res-jb", "x")


def test_the_class_by_itself_says_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_registered", [])
    with pytest.raises(MatryoshkaError, match=r"take the class from the package, matryoshka\.SparseCoder"):
        SparseCoder.from_pretrained("some/coders", "a")
    code = (
        "from matryoshka import SparseCoder\n"
        "try: SparseCoder.from_pretrained('x', 'y')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout
    assert "MatryoshkaError" in said
    assert "x/y" in said


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("some/coders/../../etc", r"'\.\./\.\./etc' is no path within a repository"),
        ("some/coders//x", "no path within a repository"),
        ("some/coders/x*", "no path within a repository"),
        ("some/coders/a\\b", "no path within a repository"),
        ("some/co--ders", "no id of a repository on the hub: expected user/repo"),
        ("some /coders", "no id of a repository"),
        ("some/coders@", "expected user/repo, user/repo/folder or"),
        ("some/absent", "there is no such repository on the hub, or it is private"),
        ("some/coders@v9", "has no revision 'v9'"),
        ("gpt2-small-res-jd", r"neither a folder here nor a release.*did you mean 'gpt2-small-res-jb'"),
        ("gpt2-small-res-jd/blocks.8.hook_resid_pre", r"no such repository.*did you mean 'gpt2-small-res-jb'"),
        ("gpt2-small-res-jb/../x", "has no coder"),
        ("gpt2-small-resid-post-v5-32k/v5_32k_layer_1", "normalises each token by itself"),
        ("", "no coder in a format known here|no such"),
    ],
)
def test_sources_that_are_none(source: str, line: str, hub: HubFolder, tmp_path: Path) -> None:
    (tmp_path / "repository" / "x").mkdir(parents=True)
    (tmp_path / "repository" / "x" / "notes.json").write_text("{}")
    hub.add("some/coders", tmp_path / "repository")
    with pytest.raises(MatryoshkaError, match=line) as raised:
        import_run(source, out="run")
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_files_of_a_repository_are_no_paths_elsewhere(hub: HubFolder, tmp_path: Path) -> None:
    with pytest.raises(MatryoshkaError, match=r"'\.\./\.\./cfg\.json' is no path within a repository"):
        import_run("some/coders", "../../cfg.json")


def test_without_a_network_the_cache_is_taken(hub: HubFolder, folder: Path, ours: SparseCoder) -> None:
    hub.add("some/coders", folder)
    hub.reachable = False
    with pytest.raises(MatryoshkaError, match=r"the Hugging Face hub cannot be reached.*\(folders need no network\)"):
        import_run("some/coders", out="run")


def test_import_coder_asks_which_of_several(ours: SparseCoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(import_coder(folder), ours, 192)
    several = of_set(ours, "layer_0", "layer_1")
    monkeypatch.setattr(importing, "foreign_coders", lambda path, format: iter(several))
    with pytest.raises(MatryoshkaError, match=r"holds several coders, 'layer_0' and 'layer_1' among them"):
        import_coder(folder)
    with pytest.raises(MatryoshkaError, match=r"no coder 'layer_2' \(did you mean 'layer_"):
        import_coder(folder, part="layer_2")
    card = import_coder(folder, part="layer_1").card
    assert card is not None
    assert card.sources[0].reads == ("1.mlp_in",)
    assert torch.is_grad_enabled()
