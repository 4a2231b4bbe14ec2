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
from matryoshka.data.activations import RowFilter
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.placed import Placed
from matryoshka.features.collect import collect, needs, record_share
from matryoshka.features.reading import read_text
from matryoshka.features.recording import Recording
from matryoshka.features.store import FeatureStore
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.lm.unembed import direct_logits
from matryoshka.lm.vocabulary import alone, token_bytes
from matryoshka.run import Run
from matryoshka.training.config import Config

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
        coder = SparseCoder.load(run.path).fold()
        read = Site.parse("1.mlp_in")
        sites = [read, Site.parse("1.mlp_out")]
        n = TOKENS // windows.context
        self.numbers = np.arange(n) * len(windows) // n
        self.tokens = windows[self.numbers]
        self.documents = windows.documents(self.numbers)
        activations = lm.read(torch.from_numpy(self.tokens), sites)
        self.kept = RowFilter.measure(lm, windows, sites)(torch.from_numpy(self.tokens), activations).numpy()
        self.latents = np.zeros((*self.tokens.shape, 256), np.float32)
        with torch.no_grad():
            self.latents[self.kept] = coder.encode(activations[read][torch.from_numpy(self.kept)]).dense().numpy()
        self.W_dec = coder.W_dec.detach()


@pytest.fixture(scope="module")
def plain(run: Run, lm: LanguageModel, tokens: Tokens) -> Plain:
    return Plain(run, lm, tokens.windows("held_out"))


def test_statistics_and_top_windows_are_those_of_the_dense_latents(run: Run, plain: Plain) -> None:
    store = api.store(run)
    assert len(store) == 256
    assert store.about.tokens == plain.kept.sum()
    assert store.about.tokens + store.about.tokens_left_out == plain.tokens.size
    assert store.about.documents == len(np.unique(plain.documents[plain.kept]))
    silent = 0
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
        expected = sorted(best.values(), reverse=True)[: len(strongest)]
        if len(strongest) == min(32, len(best)):  # nothing was dropped as a near-duplicate
            assert [example.activation for example in strongest] == pytest.approx(expected, rel=1e-3)
        assert len({example.document for example in strongest}) == len(strongest)
    assert silent < 200


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
    coder = SparseCoder.load(run.path).fold()
    placed = Placed(coder, Site.parse("1.mlp_in"), Site.parse("1.mlp_out"))
    text = "".join(api.store(run).pieces(plain.tokens[3][1:].tolist()))
    reading = read_text(lm, placed, api.store(run).about, text)
    assert "".join(reading.tokens[1:]) == text
    assert not reading.counted[0]
    again = lm.tokens(text)[0].numpy()
    if (again == plain.tokens[3]).all():  # text may be tokenised in another way than it was cut
        assert reading.counted == plain.kept[3].tolist()
        for index, (positions, values) in reading.firings.items():
            assert positions == np.flatnonzero(plain.latents[3, :, index]).tolist()
            assert values == pytest.approx(plain.latents[3, positions, index].tolist(), rel=1e-3)
    with pytest.raises(MatryoshkaError, match="too short"):
        read_text(lm, placed, api.store(run).about, "")
    with pytest.raises(MatryoshkaError, match="reads"):
        read_text(lm, placed, api.store(run).about, "word " * 3000)


def contents(store: FeatureStore) -> dict[str, Any]:
    columns = store.columns()
    return {"columns": columns, "features": [store[i] for i in range(len(store))], "about": store.about}


COLLECT = """
import sys
from matryoshka.features import recording
recording.COMMIT_SECONDS = 0.0
from matryoshka.cli import main
main(["features", *sys.argv[1:]])
"""


def in_a_process(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COLLECT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_in_the_middle_it_goes_on_to_the_same_features(trained: Run, tmp_path: Path) -> None:
    whole, killed = copied(trained, tmp_path / "whole"), copied(trained, tmp_path / "killed")
    [expected] = api.features(whole.path, 60_000)
    process = in_a_process(killed.path, "--tokens", 60_000)
    progress = killed.recording / "0-of-1" / "progress.json"
    for _ in range(3000):
        if progress.is_file() and json.loads(progress.read_text())["windows"] >= 200:
            break
        time.sleep(0.005)
    process.kill()
    process.communicate()
    done = json.loads(progress.read_text())["windows"]
    assert 200 <= done < 60_000 // 64, "it really was interrupted"
    assert not killed.features_file.exists()
    with (progress.parent / "values.bin").open("ab") as file:
        file.write(b"half a wri")  # what was not committed is cut off
    reads = []
    read = LanguageModel.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "read", lambda self, *given: reads.append(1) or read(self, *given))
        [resumed] = api.features(killed.path, 60_000)
    assert len(reads) < (60_000 // 64 - done) / 16 + 8, "it went on, and did not begin again"
    assert contents(resumed) == contents(expected)
    assert not killed.recording.exists()


def test_a_recording_of_another_coder_is_not_gone_on_with(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    lm_folder = run.recording / "0-of-1"
    lm_folder.mkdir(parents=True)
    (lm_folder / "identity.json").write_text('{"coder": "another"}')
    (lm_folder / "progress.json").write_text('{"windows": 100, "entries": 5}')
    (run.recording / "1-of-2").mkdir()  # left by a run of two processes
    [store] = api.features(run.path, TOKENS)
    assert store.about.windows == TOKENS // 64
    assert not run.recording.exists()


def test_two_processes_make_the_same_store(trained: Run, run: Run, tmp_path: Path) -> None:
    both = copied(trained, tmp_path / "both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "matryoshka", "features", str(both.path), "--tokens", str(TOKENS)]
    subprocess.run(command, check=True, capture_output=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert contents(api.store(both)) == contents(api.store(run))
    assert not both.recording.exists()


def test_shares_are_the_same_windows_in_the_same_order(
    trained: Run, lm: LanguageModel, tokens: Tokens, tmp_path: Path
) -> None:
    coder = SparseCoder.load(trained.path)
    placed, windows = Placed(coder, Site.parse("1.mlp_in"), Site.parse("1.mlp_out")), tokens.windows("held_out")
    record_share(lm, windows, placed, 3000, tmp_path / "whole")
    parts = []
    for rank in range(3):
        record_share(lm, windows, placed, 3000, tmp_path / str(rank), World(rank, 3))
        parts.append(Recording(tmp_path / str(rank), 64, 256))
    whole = Recording(tmp_path / "whole", 64, 256)
    assert np.concatenate([part.tokens for part in parts]).tolist() == whole.tokens.tolist()
    assert sum(part.rows for part in parts) == whole.rows


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
    config = {"coder": {"read": "1.mlp_in", "d_sae": 64, "k": 4}, "training": {"tokens": 1024, "batch": 512}}
    run = api.train(Config.build(config), tmp_path / "run")
    [store] = api.features(run.path, 2000)
    assert not store.about.direct_path
    assert store[0].logits is None


def test_nothing_half_made_is_left_when_the_disk_is_full(
    trained: Run, lm: LanguageModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = Placed(SparseCoder.load(trained.path), Site.parse("1.mlp_in"), Site.parse("1.mlp_out"))
    windows = tokens.windows("held_out")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(MatryoshkaError, match=r"GB free.*give fewer --tokens"):
        record_share(lm, windows, placed, 3000, tmp_path / "recording")
    monkeypatch.undo()
    record_share(lm, windows, placed, 3000, tmp_path / "recording")

    def fails(done: int, total: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        collect(lm, windows, placed, tmp_path / "recording", tmp_path / "features.sqlite", "x", progress=fails)
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
    coder = SparseCoder.load(trained.path)
    placed, windows = Placed(coder, Site.parse("1.mlp_in"), Site.parse("1.mlp_out")), tokens.windows("held_out")
    record_share(lm, windows, placed, TOKENS, tmp_path / "recording")
    taken = sum(file.stat().st_size for file in (tmp_path / "recording").iterdir())
    assert 0.4 * needs(coder, windows, TOKENS).disk < taken < needs(coder, windows, TOKENS).disk
