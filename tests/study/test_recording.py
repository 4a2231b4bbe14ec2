"""Recordings of several coders: what they hold, going on after a kill, shares, damage, columns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coders import plain, random_coder

from matryoshka.coder.latents import Latents, Pattern
from matryoshka.data.tokens import Tokens, Windows
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel
from matryoshka.lm.sites import Site
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.reader import Rows
from matryoshka.study.recorder import CoderRows, ExtraColumn, Recorder, record
from matryoshka.study.recording import Head, RecordedCoder, Recording

NUMBERS = np.arange(0, 100, 2)
"""Windows: four batches, the last not full."""
LAST = Site("resid_post", 3)


def last_residual(rows: Rows) -> torch.Tensor:
    return rows.activations[LAST] / 100


COLUMN = ExtraColumn("residual", 192, last_residual, (LAST,))


@pytest.fixture(scope="module")
def windows(tokens: Tokens) -> Windows:
    return tokens.windows("held_out")


@pytest.fixture(scope="module")
def coders(lm: LanguageModel, windows: Windows) -> list[HookedCoder]:
    """Of different sites and filters; two differ in their filter alone."""
    return [
        random_coder(lm, windows, "0.resid_post", "0.resid_post"),
        random_coder(lm, windows, "2.mlp_in", "2.mlp_out"),
        random_coder(lm, windows, "2.mlp_in", "2.mlp_out", largest=14.0),
    ]


@pytest.fixture(scope="module")
def whole(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], tmp_path_factory: pytest.TempPathFactory
) -> Recording:
    folder = tmp_path_factory.mktemp("whole") / "recording"
    record(lm, windows, NUMBERS, coders, folder, [COLUMN])
    return Recording(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_each_coder_is_recorded_with_its_own_rows_beside_the_shared_text(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], whole: Recording
) -> None:
    assert np.array_equal(whole.tokens, windows[NUMBERS].ravel())
    assert np.array_equal(whole.documents, windows.documents(NUMBERS).ravel())
    tokens = torch.from_numpy(windows[NUMBERS[:16]])
    for hooked in coders:
        kept, _, latents = plain(lm, hooked, tokens)
        recorded = whole.of(hooked)
        assert np.array_equal(recorded.kept[: kept.numel()], kept.flatten().numpy())
        dense = np.zeros((kept.numel(), 64), np.float32)
        for place in range(kept.numel()):
            entries = slice(*recorded.offsets[place : place + 2])
            dense[place, recorded.indices[entries]] = recorded.values[entries]
        assert np.array_equal(dense[kept.flatten().numpy()], latents.relu().numpy())
        assert not dense[~kept.flatten().numpy()].any()
        assert recorded.row_counts == (len(whole.tokens), len(whole.tokens) - recorded.rows, 0)
    assert whole.of(coders[1]).rows != whole.of(coders[2]).rows, "each has its own filter"
    residual = lm.read(tokens, [LAST])[LAST].flatten(0, 1) / 100
    assert np.array_equal(whole.column("residual")[: len(residual)], residual.half().numpy())


def test_killed_it_goes_on_to_the_same_recording(
    lm: LanguageModel,
    windows: Windows,
    coders: list[HookedCoder],
    whole: Recording,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "recording"

    def killed(done: int, total: int) -> None:
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(lm, windows, NUMBERS, coders, folder, [COLUMN], progress=killed, commit_seconds=0.0)
    assert json.loads((folder / "recording.json").read_text())["windows"] == 32
    with pytest.raises(MatryoshkaError, match="no whole recording"):
        Recording(folder)
    for file in folder.rglob("*.bin"):
        with file.open("ab") as opened:
            opened.write(b"half a wri")  # what was not committed is cut off
    done: list[int] = []
    record(lm, windows, NUMBERS, coders, folder, [COLUMN], progress=lambda now, total: done.append(now))
    assert done == [48, 50]
    assert contents(folder) == contents(whole.folder)


class NobodyToWaitFor(World):
    """Processes that run one after another."""

    def barrier(self) -> None:
        """All others are done."""


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_several_processes_join_to_the_same_recording(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], whole: Recording, tmp_path: Path, size: int
) -> None:
    folder = tmp_path / "recording"
    for rank in reversed(range(size)):
        record(lm, windows, NUMBERS, coders, folder, [COLUMN], NobodyToWaitFor(rank, size))
    assert contents(folder) == contents(whole.folder)
    assert [file.name for file in tmp_path.iterdir()] == ["recording"]


def test_what_is_there_is_taken_and_what_is_of_something_else_is_replaced(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], tmp_path: Path
) -> None:
    folder = tmp_path / "recording"
    told: list[int] = []

    def asked(numbers: np.ndarray, which: list[HookedCoder], *columns: ExtraColumn) -> bool:
        """Whether the text was read."""
        told.clear()
        record(lm, windows, numbers, which, folder, columns, progress=lambda done, total: told.append(done))
        return bool(told)

    few = NUMBERS[:3]
    assert asked(few, coders, COLUMN)
    assert not asked(few, coders, COLUMN)
    assert not asked(few, coders[1:2]), "less than is there"
    assert asked(NUMBERS[1:4], coders[:2]), "other windows"
    assert not asked(NUMBERS[1:4], coders[:2])
    assert asked(NUMBERS[1:4], coders[:2], COLUMN), "a column that is not there"
    assert asked(NUMBERS[1:4], coders), "a coder that is not there"
    [values] = (folder / coders[0].key).glob("values.bin")
    values.write_bytes(values.read_bytes()[:-1])
    with pytest.raises(MatryoshkaError, match="no whole recording"):
        Recording(folder)
    assert asked(NUMBERS[1:4], coders), "damaged"
    (folder / "recording.json").write_text("{")
    assert asked(NUMBERS[1:4], coders), "damaged"
    with pytest.raises(MatryoshkaError, match=r"holds nothing of a coder 0\.resid_post → 0\.resid_post"):
        Recording(folder).of(coders[0]._replace(fingerprint="another"))


def test_a_number_is_measured_once(whole: Recording) -> None:
    assert whole.number("scale", lambda: 2.5) == 2.5
    assert Recording(whole.folder).number("scale", lambda: 1 / 0) == 2.5


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_half_a_recording_that_is_damaged_is_made_anew_and_that_is_said(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], whole: Recording, tmp_path: Path, damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "recording"

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > 2 * total // 3:
            raise Killed

    with pytest.raises(Killed):
        record(lm, windows, NUMBERS, coders, folder, [COLUMN], progress=kill, commit_seconds=0.0)
    file = folder / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content if damage == "changed" else content[:100])
    record(lm, windows, NUMBERS, coders, folder, [COLUMN])
    made, expected = contents(folder), contents(whole.folder)
    assert made.keys() == expected.keys()
    assert [name for name in made if name != "recording.json" and made[name] != expected[name]] == []
    assert "recording anew" in caplog.text


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (8, True)])
def test_rows_that_are_not_finite_are_counted_apart_and_refused_past_one_per_cent(
    lm: LanguageModel, windows: Windows, coders: list[HookedCoder], tmp_path: Path, bad: int, refused: bool
) -> None:
    def break_some(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, 10 : 10 + bad] = float("inf")
        return x

    def go() -> None:
        with lm.replace(Site("mlp_in", 2), break_some):
            record(lm, windows, NUMBERS[:8], coders[:2], tmp_path / "recording")

    if refused:
        for _ in range(2):
            with pytest.raises(MatryoshkaError, match=r"8 of 512 rows at 2\.mlp_in, 2\.mlp_out are NaN or Inf"):
                go()
        return
    go()
    recording = Recording(tmp_path / "recording")
    assert [recording.of(hooked).row_counts.not_finite for hooked in coders[:2]] == [0, bad]
    assert not recording.of(coders[1]).kept[10]


@pytest.mark.parametrize("d_sae", [65_536, 65_537])
def test_dictionaries_of_any_size_are_recorded_exactly(d_sae: int, tmp_path: Path) -> None:
    features = torch.tensor([0, 40_000, d_sae - 1, 3])
    latents = Latents(Pattern(features, torch.tensor([0, 3, 4]), d_sae), torch.tensor([1.0, 2.0, 3.0, 0.0]))
    recorder = Recorder(tmp_path / "wide", Head(of={}, context=3, total=1, coders={"wide": d_sae}, columns={}))
    table, kept = np.array([[5, 6, 7]]), np.array([[False, True, True]])
    recorder.append(table, table, {"wide": CoderRows(kept, np.zeros_like(kept), latents)})
    recorder.commit()
    recorder.close()
    recorded = RecordedCoder(Recording(tmp_path / "wide"), "wide")
    assert recorded.indices.tolist() == [0, 40_000, d_sae - 1]  # what does not fire is no entry
    assert recorded.features_of(torch.tensor([2, 1], dtype=torch.int32)).tolist() == [d_sae - 1, 40_000]
    assert recorded.counts.tolist() == [-1, 3, 0]
    assert recorded.rows == 2
