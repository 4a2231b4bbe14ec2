"""Features of a real little coder, collected from real text, against what the coder itself says about that text."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.features.collection import collected, make_store, needs
from matryoshka.features.reading import read_text
from matryoshka.features.store import FeatureStore
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.unembed import direct_logits
from matryoshka.lm.vocabulary import alone, token_bytes
from matryoshka.run import Run
from matryoshka.study.hooked import hook_all
from matryoshka.study.reader import spread_windows
from matryoshka.study.recorder import record
from matryoshka.study.recording import Head, Recording
from matryoshka.training.recipe import Config

TOKENS = 9000
"""What the fixture `featured` was collected from."""


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def run(featured: Run) -> Run:
    return featured


class Plain:
    """The folded coder's dense latents of all windows that were read."""

    def __init__(self, run: Run, lm: LanguageModel, windows: Windows) -> None:
        [hooked] = hook_all([run.path], lm, windows)
        coder, [read] = hooked.coder, hooked.wiring.reads
        n = TOKENS // windows.context
        self.numbers = np.arange(n) * len(windows) // n
        self.tokens = windows[self.numbers]
        self.documents = windows.documents(self.numbers)
        activations = lm.read(torch.from_numpy(self.tokens), hooked.wiring.sites)
        self.kept = hooked.keep(torch.from_numpy(self.tokens), activations).numpy()
        self.latents = np.zeros((*self.tokens.shape, 256), np.float32)
        with torch.no_grad():
            self.latents[self.kept] = coder.encode(activations[read][torch.from_numpy(self.kept)]).dense().numpy()
        self.W_dec = coder.decoder_rows()


@pytest.fixture(scope="module")
def plain(run: Run, lm: LanguageModel, tokens: Tokens) -> Plain:
    return Plain(run, lm, tokens.windows("held_out"))


def test_statistics_and_top_windows_are_those_of_the_dense_latents(run: Run, plain: Plain) -> None:
    store = api.store(run)
    assert len(store) == 256
    assert store.about.tokens == plain.kept.sum()
    assert store.about.tokens + store.about.tokens_left_out == plain.tokens.size
    assert store.about.documents == len(np.unique(plain.documents[plain.kept]))
    silent = whole = 0
    for feature in (store[i] for i in range(256)):
        own = plain.latents[..., feature.index]
        fires = own > 0
        assert feature.ring == (0 if feature.index < 32 else 1 if feature.index < 96 else 2)
        assert abs(feature.statistics.count - fires.sum()) <= 1  # a value beside the threshold may round either way
        if feature.statistics.count < 5:
            silent += feature.statistics.count == 0
            continue
        assert feature.statistics.density == pytest.approx(feature.statistics.count / plain.kept.sum())
        assert feature.statistics.max == pytest.approx(own.max(), rel=1e-3)
        assert feature.statistics.mean == pytest.approx(own[fires].mean(), rel=0.02)
        strongest = feature.groups[0].examples
        best = {document: own[plain.documents == document].max() for document in np.unique(plain.documents[fires])}
        expected = iter(sorted(best.values(), reverse=True))
        for example in strongest:  # in order; others may have been dropped as near-duplicates
            assert any(example.activation == pytest.approx(value, rel=1e-3) for value in expected)
        if len(strongest) < 32 and len(strongest) == len(best):
            whole += 1
        assert len({example.document for example in strongest}) == len(strongest)
    assert silent < 200
    assert whole > 0, "of some features every document is shown"


def test_examples_show_the_text_of_their_windows(run: Run, plain: Plain, lm: LanguageModel) -> None:
    feature = api.store(run)[api.store(run).ranking("count")[0]]
    assert [group.name for group in feature.groups] == [
        "strongest", "80–100 %", "60–80 %", "40–60 %", "20–40 %", "0–20 %",
    ]  # fmt: skip
    for example in (example for group in feature.groups for example in group.examples):
        row = int(np.flatnonzero(plain.numbers == example.window)[0])
        assert "".join(example.tokens) == lm.tokenizer.decode(plain.tokens[row])
        own = plain.latents[row, :, feature.index]
        assert example.positions == np.flatnonzero(own).tolist()
        assert example.values == pytest.approx(own[own > 0].tolist(), rel=1e-3)
        assert example.document == plain.documents[row, example.peak]
        assert own[example.peak] == pytest.approx(example.activation, rel=1e-3)


def test_relations_and_logits(run: Run, plain: Plain, lm: LanguageModel) -> None:
    store = api.store(run)
    rows = torch.nn.functional.normalize(plain.W_dec, dim=1)
    fires = plain.latents[plain.kept] > 0
    texts = [alone(token) for token in token_bytes(lm.tokenizer)]
    linked = 0
    for index in store.ranking("count")[:40]:
        feature = store[index]
        cosine = rows @ rows[index]
        cosine[index] = -2
        best = cosine.topk(10)
        assert [each.index for each in feature.cosine] == best.indices.tolist()
        assert [each.value for each in feature.cosine] == pytest.approx(best.values.tolist(), abs=1e-5)
        for partner in feature.coactive:
            own, other = fires[:, index].sum(), fires[:, partner.index].sum()
            both = (fires[:, index] & fires[:, partner.index]).sum()
            error = 0.005 if own <= 1000 else 0.06  # 1,000 firings are counted at most
            assert partner.given_this == pytest.approx(both / own, abs=error)
            assert partner.given_other == pytest.approx(both / other, abs=error * max(1, own / other))
            assert partner.lift == pytest.approx(partner.given_this / fires[:, partner.index].mean(), rel=0.02)
        for parent in feature.parents:
            assert parent.ring < feature.ring
            assert index in [child.index for child in store[parent.index].children]
            linked += 1
        logits = direct_logits(lm, plain.W_dec[index : index + 1], 1.0)[0]
        assert feature.logits is not None
        assert [e.token for e in feature.logits.top] == [texts[i] for i in logits.topk(10).indices.tolist()]
        lowest = logits.topk(10, largest=False).indices.tolist()
        assert [e.token for e in feature.logits.bottom] == [texts[i] for i in lowest]
        effects = torch.tensor([effect.effect for effect in feature.logits.top])
        assert torch.allclose(effects / effects[0], logits.topk(10).values / logits.max(), atol=1e-4)
    assert store.columns()["cosine"][0] == pytest.approx(store[0].cosine[0].value)


def test_flags_say_what_they_say(run: Run, plain: Plain) -> None:
    table = api.store(run).table()
    assert (table["silent"] == (table["count"] == 0)).all()
    assert (table["dense"] == (table["density"] > 0.1)).all()
    assert (table["redundant"] == (table["cosine"] > 0.9)).all()
    assert not (table["dead"] & ~table["silent"]).any()
    for index in table.index[table["single-token"]]:
        assert api.store(run)[index].top_tokens[0].share >= 0.9
    assert list(table["label"].unique()) == [""]
    assert api.store(run).arrow().num_rows == 256


def test_a_text_of_ones_own_fires_what_the_store_knows(run: Run, plain: Plain, lm: LanguageModel) -> None:
    hooked = collected(run, api.store(run).about, lm)
    text = "".join(api.store(run).pieces(plain.tokens[3][1:].tolist()))
    reading = read_text(lm, hooked, text)
    assert "".join(reading.tokens[1:]) == text
    assert not reading.counted[0]
    again = lm.tokens(text)[0].numpy()
    if (again == plain.tokens[3]).all():  # text may be tokenised in another way than it was cut
        assert reading.counted == plain.kept[3].tolist()
        for index, (positions, values) in reading.firings.items():
            assert positions == np.flatnonzero(plain.latents[3, :, index]).tolist()
            assert values == pytest.approx(plain.latents[3, positions, index].tolist(), rel=1e-3)
    with pytest.raises(MatryoshkaError, match="too short"):
        read_text(lm, hooked, "")
    long = read_text(lm, hooked, text + " word" * 1000)
    first = lm.info.context
    assert len(long.counted) == len(long.tokens) > 2 * first
    assert [i for i, counted in enumerate(long.counted) if not counted and i % first] == [], "a window's first alone"
    head = read_text(lm, hooked, text)
    assert {i for i in long.firings if any(place < len(head.tokens) - 2 for place in long.firings[i][0])} >= {
        i for i in head.firings if any(place < len(head.tokens) - 2 for place in head.firings[i][0])
    }


def contents(store: FeatureStore) -> dict[str, Any]:
    columns = store.columns()
    return {"columns": columns, "features": [store[i] for i in range(len(store))], "about": store.about}


RECORD = """
import sys
from pathlib import Path
from matryoshka.study.hooked import hook_all
from matryoshka.study.opening import studied
from matryoshka.study.reader import spread_windows
from matryoshka.study.recorder import record
coder, recording, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
its = studied(coder)
lm = its.open_lm("cpu")
windows = its.open_tokens(lm.vocabulary).windows("held_out")
record(lm, windows, spread_windows(windows, tokens), hook_all([coder], lm, windows), recording, commit_seconds=0.0)
"""
"""The first half of `features`, which commits all the time."""


def test_killed_in_the_middle_it_goes_on_to_the_same_features(trained: Run, tmp_path: Path) -> None:
    whole, killed = copied(trained, tmp_path / "whole"), copied(trained, tmp_path / "killed")
    [expected] = api.features(whole.path, 60_000)
    words = map(str, (killed.coder, killed.recording, 60_000))
    process = subprocess.Popen([sys.executable, "-c", RECORD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    progress = killed.recording / "recording.json"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if progress.is_file() and json.loads(progress.read_text())["windows"] >= 200:
            break
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert progress.is_file(), errors.decode()
    done = json.loads(progress.read_text())["windows"]
    assert 200 <= done < 60_000 // 64, "it really was interrupted"
    assert not killed.features_file.exists()
    [values] = killed.recording.glob("*/values.bin")
    with values.open("ab") as file:
        file.write(b"half a wri")  # what was not committed is cut off
    reads = []
    read = LanguageModel.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "read", lambda self, *given: reads.append(1) or read(self, *given))
        [resumed] = api.features(killed.path, 60_000)
    assert len(reads) < (60_000 // 64 - done) / 16 + 8, "it went on, and did not begin again"
    assert contents(resumed) == contents(expected)


def passes(patch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward pass of a language model from now on."""
    counted: list[int] = []
    forward = LanguageModel._forward
    patch.setattr(LanguageModel, "_forward", lambda self, tokens: counted.append(1) or forward(self, tokens))
    return counted


FOUR = [
    {"read": "0.resid_post", "write": "0.resid_post", "k": 4},
    {"read": "1.mlp_in", "write": "1.mlp_out", "k": 4},
    {"read": "1.mlp_in", "write": "1.mlp_out", "k": 8},
    {"read": "2.mlp_in", "write": "2.mlp_out", "k": 4},
]


def trained_on(folder: Path, variants: list[dict[str, Any]]) -> Run:
    values = {
        "text": {"context": 64},
        "coder": {"d_sae": 64, **variants[-1]},
        "variants": variants if len(variants) > 1 else [],
        "training": {"tokens": 1024, "batch": 512},
        "evaluation": {"tokens": 1024},
    }
    return api.train(Config.build(values), folder)


def test_four_coders_take_no_more_passes_of_the_language_model_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, four = trained_on(tmp_path / "one", FOUR[3:]), trained_on(tmp_path / "four", FOUR)
    counted = passes(monkeypatch)
    api.features(one, 3000)
    alone = len(counted)
    counted.clear()
    assert len(api.features(four, 3000)) == 4
    assert len(counted) == alone
    counted.clear()
    both = api.features([one, four], 3000, overwrite=True)
    assert len(both) == 5
    assert len(counted) == alone
    assert contents(both[0]) == contents(api.features(one, 3000, overwrite=True)[0])


def test_the_same_again_reads_no_text(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(trained, tmp_path / "run")
    counted = passes(monkeypatch)
    [first] = api.features(run, 20_000)
    before = contents(first)
    assert len(counted) > 20_000 // 64 // 16
    counted.clear()
    [again] = api.features(run, 20_000, overwrite=True)
    assert len(counted) <= 2, "the check of the model at load, and which rows count"
    assert contents(again) == before
    api.features(run, 10_000, overwrite=True)  # of another text: replaced
    assert Recording(run.recording).head.total == 10_000 // 64
    counted.clear()
    api.features(run, 10_000, overwrite=True, keep_recording=False)
    assert len(counted) <= 2
    assert not run.recording.exists()


def test_a_damaged_recording_is_made_anew(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(trained, tmp_path / "run")
    [store] = api.features(run, 3000)
    expected = contents(store)
    [values] = run.recording.glob("*/values.bin")
    values.write_bytes(values.read_bytes()[:-4])
    counted = passes(monkeypatch)
    [again] = api.features(run, 3000, overwrite=True)
    assert len(counted) > 3
    assert contents(again) == expected


def test_a_recording_of_another_coder_is_not_gone_on_with(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    run.recording.mkdir()
    half = Head(of={}, context=64, total=200, coders={"another": 256}, columns={}, windows=0)
    (run.recording / "recording.json").write_text(half.model_dump_json())
    run.recording.with_name(".recording-1-of-2").mkdir()  # left by a run of two processes
    [store] = api.features(run.path, TOKENS)
    assert store.about.windows == TOKENS // 64
    assert Recording(run.recording).head.total == TOKENS // 64
    assert not [file.name for file in run.path.iterdir() if file.name.startswith(".")]


def test_two_processes_make_the_same_store(trained: Run, run: Run, tmp_path: Path) -> None:
    both = copied(trained, tmp_path / "both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "matryoshka", "features", str(both.path), "--tokens", str(TOKENS)]
    subprocess.run(command, check=True, capture_output=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert contents(api.store(both)) == contents(api.store(run))
    assert sorted(file.name for file in both.path.iterdir()) == sorted(file.name for file in run.path.iterdir())


def test_labels_outlive_collecting_anew(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    [store] = api.features(run.path, 3000)
    store.annotate(7, label="my label", note="a note")
    with pytest.raises(MatryoshkaError, match="exists already"):
        api.features(run.path, 3000)
    [again] = api.features(run.path, 6000, overwrite=True)
    assert (again[7].label, again[7].note) == ("my label", "a note")
    assert again.search("MY LABEL") == [7]
    other = SparseCoder.load(run.path)
    with torch.no_grad():
        other.W_dec.mul_(1.5)
    other.save(run.coder)
    with pytest.raises(MatryoshkaError, match="labels and notes for another coder"):
        api.features(run.path, 3000, overwrite=True)
    assert api.store(run)[7].label == "my label"


def test_another_text_and_split(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    text = tmp_path / "emoji.jsonl"
    nasty = "<script>alert(1)</script> 🙂🏽 \u202eRTL\u202c zero\u200bwidth \0 "
    text.write_text("\n".join(json.dumps({"text": f"{nasty} {i} " * 40}) for i in range(9)))
    [store] = api.features(run.path, 100_000, text=str(text), split="train")
    assert (store.about.text, store.about.split) == (str(text), "train")
    examples = [example for group in store[store.ranking("count")[0]].groups for example in group.examples]
    assert len(examples) > 5
    for example in examples:
        assert "🙂" in (shown := "".join(example.tokens))
        assert "<script>" in shown
        assert "\ufffd" not in "".join(example.tokens[8:-8]), "an emoji may be cut by the window, nowhere else"
    with pytest.raises(MatryoshkaError, match="no such file"):
        api.features(run.path, 1000, text=str(tmp_path / "absent.txt"), overwrite=True)
    assert len(api.store(run)) == 256, "the old store is whole"


def test_a_site_without_a_direct_path_has_no_logit_effect(lm: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    config = {
        "coder": {"read": "1.mlp_in", "d_sae": 64, "k": 4},
        "training": {"tokens": 1024, "batch": 512},
        "evaluation": {"tokens": 1024},
    }
    run = api.train(Config.build(config), tmp_path / "run")
    [store] = api.features(run.path, 2000)
    assert not store.about.direct_path
    assert store[0].logits is None


def test_nothing_half_made_is_left_when_the_disk_is_full(
    trained: Run, lm: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = tokens.windows("held_out")
    [hooked] = hook_all([trained.path], lm, windows)
    numbers = spread_windows(windows, 3000)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(MatryoshkaError, match=r"GB free.*give fewer --tokens"):
        record(lm, windows, numbers, [hooked], tmp_path / "recording")
    monkeypatch.undo()
    record(lm, windows, numbers, [hooked], tmp_path / "recording")
    recording = Recording(tmp_path / "recording")

    def fails(done: int, total: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        make_store(lm, windows, hooked, recording, tmp_path / "features.sqlite", "x", progress=fails)
    assert [file.name for file in tmp_path.iterdir()] == ["recording"]


MEASURE = """
import re, sys
from pathlib import Path
from matryoshka import api
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
said = []
api.features(sys.argv[1], 2000, overwrite=True)
before = peak()
api.features(sys.argv[1], 190_000, overwrite=True, announce=said.append)
print(peak() - before, said[0].memory)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
def test_memory_stays_below_the_stated_bound(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(run.path)], capture_output=True, text=True, check=True, timeout=240
    )
    grown, stated = map(int, done.stdout.split()[-2:])
    print(f"peak grew by {grown / 1e9:.2f} GB, stated {stated / 1e9:.2f} GB")
    assert 0.05 * stated < grown < stated


def test_disk_stays_below_the_stated_bound(trained: Run, lm: LanguageModel, tokens: Tokens, tmp_path: Path) -> None:
    windows = tokens.windows("held_out")
    coders = hook_all([trained.path], lm, windows)
    record(lm, windows, spread_windows(windows, TOKENS), coders, tmp_path / "recording")
    taken = sum(file.stat().st_size for file in (tmp_path / "recording").rglob("*.bin"))
    assert 0.4 * needs(coders, windows, TOKENS).disk < taken < needs(coders, windows, TOKENS).disk
