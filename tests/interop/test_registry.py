"""What is known by name: every entry is sound, names lead where they say, and nothing leads out of a repository."""

import subprocess
import sys

import pytest

from matryoshka.errors import MatryoshkaError
from matryoshka.interop import FORMATS, registry
from matryoshka.interop.foreign import Facts, facts_of
from matryoshka.interop.registry import Release, find, known, releases
from matryoshka.lm.sites import Site

FIELDS = {"repository": "some/coders", "model": "gpt2", "what": "coders"}


@pytest.mark.parametrize("name", releases())
def test_every_release_is_sound(name: str) -> None:
    release = releases()[name]
    assert "/" not in name
    if release.refused:
        with pytest.raises(MatryoshkaError, match=name):
            find(f"{name}/x")
        return
    assert release.format in FORMATS
    id = release.example or (release.coders or "").format(
        layer=3, kind="resid_post", width="16k", l0="82", architecture="a", trainer=0
    )
    listed = find(f"{name}/{id}".rstrip("/"))
    assert listed is not None
    assert listed.repository == release.repository
    assert "{" not in f"{listed.folder} {listed.file}"
    facts_of(listed.model, listed.read, listed.write)  # sites that there are
    if not release.file:
        assert known(release.repository, listed.folder) == listed, "by its repository too"


def test_a_name_leads_to_its_folder_and_its_sites() -> None:
    matryoshka = find("gemma-2-2b-res-matryoshka-dc/blocks.12.hook_resid_post")
    assert matryoshka is not None
    assert matryoshka.folder == "standard/blocks.12.hook_resid_post"
    transcoder = find("gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_41")
    assert transcoder is not None
    assert facts_of(transcoder.model, transcoder.read, transcoder.write) == Facts(
        "google/gemma-2-2b", Site("ln2_normalized", 5), Site("mlp_out", 5)
    )
    assert find("llama_scope_lxr_8x/l12r_8x")._replace(release="") == known(  # type: ignore[union-attr]
        "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L12R-8x"
    )._replace(release="")  # type: ignore[union-attr]
    assert find("somebody/else") is None
    assert known("some/coders", "x") is None


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "gpt2-small-res-jb",
            r"has several coders; they are called gpt2-small-res-jb/blocks\.\{layer\}\.hook_resid_pre, such",
        ),
        ("gpt2-small-res-jb/blocks.x.hook_resid_pre", "has no coder 'blocks.x.hook_resid_pre'"),
        ("gemma-scope-2b-pt-res/layer_1/width_../average_l0_1/..", "has no coder"),
        ("gemma-scope-2b-pt-res/layer_1/width_a/b/average_l0_1", "has no coder"),
        ("gemma-scope-2-1b-pt/../layer_1_width_1_l0_1", "has no coder"),
        (
            "mwhanna-qwen3-4b-transcoders/layer_3",
            r"is one set: import mwhanna-qwen3-4b-transcoders alone.*--part layer_3",
        ),
        ("mntss-gemma-2-2b-2.5m-clt", "cross-layer transcoder"),
    ],
)
def test_what_a_release_has_not_is_said(source: str, line: str) -> None:
    with pytest.raises(MatryoshkaError, match=line):
        find(source)


@pytest.mark.parametrize(
    "fields",
    [
        {"coders": "../{layer}"},
        {"coders": "a/../../{layer}"},
        {"coders": "/etc/{layer}"},
        {"coders": "{layer}/*"},
        {"folder": "a//b"},
        {"repository": "some/../coders"},
        {"repository": "coders"},
        {"repositori": "x/y"},
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused(fields: dict[str, str]) -> None:
    Release.build(FIELDS)
    with pytest.raises(MatryoshkaError):
        Release.build({**FIELDS, **fields})


def test_releases_are_sought_by_any_of_their_words() -> None:
    assert list(releases("RES-JB")) == ["gpt2-small-res-jb"]
    assert {"gpt2-small-res-jb", "gpt2-small-resid-post-v5-32k"} == set(releases("openai-community"))
    assert len(releases()) == len(registry._all()) > 20
    with pytest.raises(
        MatryoshkaError, match=r"no release here is of 'gpt2-small-res-jd' \(did you mean 'gpt2-small-res-jb'"
    ):
        releases("gpt2-small-res-jd")


def test_the_list_is_read_without_anything_heavy() -> None:
    code = (
        "import sys; from matryoshka.interop.registry import releases; releases();"
        " sys.exit(bool({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
