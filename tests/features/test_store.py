"""The store gives back what was written, finds what is there, keeps what is noted, and refuses what is no store."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from small_store import ABOUT, COUNTED, SILENT, TEXTS, VOCABULARY, WIDTHS, make_store, row, windows

from matryoshka.errors import MatryoshkaError
from matryoshka.features.feature import BINS, FLAGS, TokenShare, edges, printable, summarise, well_formed
from matryoshka.features.schema import STATISTICS
from matryoshka.features.store import LABEL_LENGTH, NOTE_LENGTH, FeatureStore
from matryoshka.features.writer import Writer
from matryoshka.lm.vocabulary import pieces


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[FeatureStore]:
    found = make_store(path)
    yield found
    found.close()


def refusal(path: Path, job: Callable[[], object]) -> str:
    """The one line that `job` is refused with, which names the file."""
    with pytest.raises(MatryoshkaError) as caught:
        job()
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    return said


# --- what was written


def test_a_feature_is_what_was_written(store: FeatureStore) -> None:
    texts = {number: tokens.tolist() for number, tokens in windows()}
    assert len(store) == len(list(store)) == WIDTHS[-1]
    assert store.about == ABOUT
    for index, feature in enumerate(store):
        written = row(index)
        arrays, statistics = written.arrays, written.statistics
        assert (feature.index, feature.ring) == (index, statistics["ring"])
        assert (feature.label, feature.note, feature.summary) == ("", "", written.summary)
        assert feature.flags == (["dense", "redundant"] if index % 2 else [])
        for name in ("density", "count", "mean", "mean_square", "max", "entropy", "first"):
            assert getattr(feature.statistics, name) == statistics[name], name
        assert [(each.token, each.share, each.count) for each in feature.top_tokens] == [
            (pieces([i], VOCABULARY)[0], share, 3)
            for i, share in zip(arrays["top_tokens"].tolist(), arrays["top_shares"].tolist(), strict=True)
        ]
        examples = [each for group in feature.groups for each in group.examples]
        assert [each.window for each in examples] == arrays["example_window"].tolist()
        assert [each.document for each in examples] == arrays["example_document"].tolist()
        assert [each.peak for each in examples] == arrays["example_peak"].tolist()
        assert [p for each in examples for p in each.positions] == arrays["positions"].tolist()
        assert [v for each in examples for v in each.values] == arrays["values"].tolist()
        for each in examples:
            assert each.tokens == pieces(texts[each.window], VOCABULARY)
            assert each.activation == each.values[each.positions.index(each.peak)]
        assert feature.logits is not None
        assert [(e.token, e.effect) for e in feature.logits.top] == [(TEXTS[0], 2.0), (TEXTS[1], 1.0)]
        assert [(e.token, e.effect) for e in feature.logits.bottom] == [(TEXTS[2], -3.0), (TEXTS[3], -2.0)]
    assert store[7].histogram.counts == list(range(1, BINS + 1))
    assert store[7].histogram.edges == pytest.approx(edges(0.5, 8.0))


def test_groups_are_named_by_their_quantiles(store: FeatureStore) -> None:
    groups = store[0].groups
    assert [(g.name, len(g.examples)) for g in groups] == [("strongest", 2), ("50–100 %", 1), ("0–50 %", 2)]
    assert [(g.low, g.high) for g in groups[1:]] == [(2, 3), (1, 2)]
    assert groups[0].high == groups[0].examples[0].activation
    assert groups[0].low == groups[0].examples[-1].activation


def test_relations_have_both_probabilities_and_lift(store: FeatureStore) -> None:
    counts = store.columns()["count"]
    for index in (0, 11, 40, 41, 12, 2):
        feature = store[index]
        for other in [*feature.coactive, *feature.parents, *feature.children]:
            both = other.given_this * counts[index]
            assert other.lift == pytest.approx(both * COUNTED / (counts[index] * counts[other.index]))
            if other.given_this < 1:  # these made-up counts are not of real pairs
                assert other.given_other == pytest.approx(min(1, both / counts[other.index]))
            assert other.ring == store[other.index].ring
            assert other.name == store[other.index].summary
    assert [(p.index, p.given_this) for p in store[40].parents] in ([(12, 0.75), (2, 0.5)], [(2, 0.5), (12, 0.75)])
    assert {(c.index, c.given_other) for c in store[12].children} == {(40, 0.75), (41, 1.0)}
    assert [(c.index, c.value) for c in store[0].cosine] == [(1, 0.5), (7, 0.5)]
    store.annotate(1, "of mine")
    assert store[0].cosine[0].name == store[0].coactive[0].name == "of mine"


def test_a_character_of_several_tokens_shows_on_the_last(store: FeatureStore) -> None:
    for feature in store:
        for group in feature.groups:
            assert all(each.tokens[3:6] == ["", "", "🙂"] for each in group.examples)
    assert store.pieces([1, 4, 5, 1, 3, 2]) == pieces([1, 4, 5, 1, 3, 2], VOCABULARY)
    for wrong in ([-1], [0, len(VOCABULARY)]):
        refusal(store.path, lambda wrong=wrong: store.pieces(wrong))


def test_a_silent_feature_has_no_evidence(store: FeatureStore) -> None:
    feature = store[SILENT]
    assert (feature.summary, feature.groups, feature.top_tokens, feature.coactive) == ("", [], [], [])
    assert (feature.histogram.counts, feature.statistics.mean, feature.statistics.density) == ([], None, 0)


def test_no_such_feature(store: FeatureStore) -> None:
    for job in (store.__getitem__, store.annotate, lambda i: store.brief([0, i])):
        for index in (-1, WIDTHS[-1], 10**30):
            assert f"no feature {index}; there are 0 to 69" in refusal(store.path, lambda i=index, job=job: job(i))
    assert store[np.int64(3)].index == 3  # pyright: ignore[reportArgumentType]
    assert store.brief(np.array([3]))[3].ring == 0  # pyright: ignore[reportArgumentType]


# --- tables, order, search


def test_tables(store: FeatureStore, tmp_path: Path) -> None:
    import pandas
    import pyarrow.parquet

    store.annotate(3, "a label", "a note")
    written = [row(i) for i in range(WIDTHS[-1])]
    columns = store.columns()
    assert columns["index"] == list(range(WIDTHS[-1]))
    for name in STATISTICS:
        assert columns[name] == [each.statistics[name] for each in written], name
    assert columns["tokens"] == [each.tokens for each in written]
    assert columns["label"][3], columns["note"][3] == ("a label", "a note")
    table = store.table()
    assert table.index.name == "index"
    assert table.label[3] == "a label"
    assert table[["dense", "redundant"]].to_numpy().tolist() == [[i % 2 == 1] * 2 for i in range(WIDTHS[-1])]
    assert set(FLAGS) <= set(table.columns)
    assert all(table[name].dtype == "float64" for name in ("density", "mean", "entropy", "cosine"))
    assert np.isnan(table["mean"][SILENT])
    file = tmp_path / "features.parquet"
    pyarrow.parquet.write_table(store.arrow(), file)
    pandas.testing.assert_frame_equal(pandas.read_parquet(file).set_index("index"), table, check_dtype=False)


@pytest.mark.parametrize("by", STATISTICS)
def test_ranking(store: FeatureStore, by: str) -> None:
    values = store.columns()[by]
    for descending in (True, False):
        order = sorted(
            range(WIDTHS[-1]),
            key=lambda i: (values[i] is None, 0 if values[i] is None else -values[i] if descending else values[i], i),
        )
        assert store.ranking(by, descending) == order
    with pytest.raises(MatryoshkaError, match="did you mean 'density'"):
        store.ranking("densitty")


def test_search_finds_every_substring_and_nothing_else(store: FeatureStore) -> None:
    store.annotate(8, 'my "own" LABEL', "first line\nsecond *line* -- OR x")
    store.annotate(9, "мой ярлык", "𝕄ath 100% \u200f")
    texts = [
        "\n".join([each.tokens, each.summary, *store.annotations().get(i, ())]).replace("\0", "␀").casefold()
        for i, each in enumerate(map(row, range(WIDTHS[-1])))
    ]
    whole = sorted({text[i : i + n] for text in texts for i in range(0, 60, 2) for n in (1, 2, 3, 4, 7, 60)} - {""})
    for sought in [
        *whole,
        "PEOPLE",
        "strasse",
        "STRASSE",
        'no"such',
        "label OR people",
        "peop*",
        "",
        "  ",
        "%",
        "_",
        "*",
    ]:
        folded = sought.casefold()
        expected = [i for i, text in enumerate(texts) if folded in text]
        assert store.search(sought) == expected, sought
    assert len(store.search("")) == WIDTHS[-1]
    assert store.search("\ud800") == store.search("qq\udfff\ud800q") == []


# --- labels and notes


def test_labels_and_notes_stay(path: Path, store: FeatureStore) -> None:
    assert store.annotate(3, label="  first  ", note=" kept as it is\n") == ("first", " kept as it is\n")
    assert store.annotate(3, label="second") == ("second", " kept as it is\n")
    assert store.annotate(4, note="</script>\0\u2028") == ("", "</script>\0\u2028")
    again = FeatureStore(path)
    assert (again[3].label, again[3].note) == ("second", " kept as it is\n")
    assert again.annotations() == {3: ("second", " kept as it is\n"), 4: ("", "</script>\0\u2028")}
    assert (again.search("second"), again.search("first"), again.search("as it is")) == ([3], [], [3])
    assert again.brief([3, 6])[3].name == "second"
    again.annotate(3, "", "")
    assert list(store.annotations()) == [4], "what is removed is not there"
    assert store.search("second") == []


def test_a_text_that_is_no_text(store: FeatureStore) -> None:
    """JSON may hold one half of a surrogate pair."""
    assert store.annotate(3, "a\ud800b", "\udfff \ud83d\ude42") == ("a\ufffdb", "\ufffd 🙂")
    assert store[3].label == well_formed("a\ud800b")
    store.annotate(3, "x" * LABEL_LENGTH, "🙂" * NOTE_LENGTH)
    for wrong in ({"label": "x" * (LABEL_LENGTH + 1)}, {"note": "x" * (NOTE_LENGTH + 1)}):
        with pytest.raises(MatryoshkaError, match=f"feature 3: a {next(iter(wrong))} of .* characters; at most"):
            store.annotate(3, **wrong)


def test_two_processes_write_at_once(path: Path, store: FeatureStore) -> None:
    """One writes labels, one notes, of the same features: a label does not bring the old note back."""
    program = (
        "import sys, time; from matryoshka.features.store import FeatureStore; store = FeatureStore(sys.argv[1])\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for turn in range(4):\n"
        "    for i in range(30): store.annotate(i, **{sys.argv[2]: f'{turn} {i}'})"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, path, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("label", "note")
    ]
    for each in started:
        assert each.stdout
        each.stdout.readline()
    for each in started:
        assert each.stdin
        each.stdin.write(b"\n")
        each.stdin.close()
    for turn in range(20):
        store.annotate(40 + turn, f"here {turn}")
    for each in started:
        assert each.wait(60) == 0
        assert each.stdout
        each.stdout.close()
    found = store.annotations()
    assert [found[i] for i in range(30)] == [(f"3 {i}", f"3 {i}") for i in range(30)]
    assert [found[40 + turn][0] for turn in range(20)] == [f"here {turn}" for turn in range(20)]


def test_threads_read_while_one_writes(store: FeatureStore) -> None:
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for i in range(60):
                assert store[i].index == i
                store.search("label")
                store.columns()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for i in range(60):
        store.annotate(i, f"label {i}")
    for each in threads:
        each.join()
    assert not failed
    assert store.search("label") == list(range(60))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o444, 0o666], ids=["file", "folder"])
def test_a_read_only_store_is_read_but_not_changed(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        path = Path(folder) / "features.sqlite"
        make_store(path, {3: ("mine", "")}).close()
        path.chmod(mode)
        path.parent.chmod(0o555)
        with as_nobody():
            store = FeatureStore(path)
            assert (store[3].label, store.search("mine"), len(store.columns()["index"])) == ("mine", [3], 70)
            assert "cannot be used" in refusal(path, lambda: store.annotate(3, "yours"))
            assert store[3].label == "mine"
            store.close()
        path.parent.chmod(0o755)


def test_a_store_collected_anew_while_open_takes_no_labels(path: Path, store: FeatureStore) -> None:
    """They would be lost with the old file."""
    store.annotate(3, "old")
    make_store(path, store.annotations()).close()
    assert store[3].label == "old"
    assert "has been replaced" in refusal(path, lambda: store.annotate(4, "lost"))
    assert FeatureStore(path).annotations() == {3: ("old", "")}
    path.unlink()
    assert "has been replaced" in refusal(path, lambda: store.annotate(4, "lost"))


# --- writing


def test_a_store_appears_whole_or_not_at_all(path: Path) -> None:
    make_store(path).close()
    before = path.read_bytes()
    writer = Writer(path, VOCABULARY)
    writer.features(row(i) for i in range(WIDTHS[-1]))
    assert path.read_bytes() == before
    assert len(os.listdir(path.parent)) == 2
    writer.abandon()
    assert os.listdir(path.parent) == [path.name]
    writer = Writer(path, VOCABULARY)
    with pytest.raises(ZeroDivisionError):
        writer.features(row(6 // (3 - i)) for i in range(9))
    writer.abandon()
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, [path.name])


def test_labels_are_taken_over_and_found(path: Path) -> None:
    kept = {i: (f"label {i}", "a note" if i % 2 else "") for i in range(WIDTHS[-1])}
    store = make_store(path, kept)
    assert store.annotations() == kept
    assert store.search("label 69") == [69]


def test_a_journal_of_the_old_store_does_not_spoil_the_new_one(path: Path) -> None:
    """As a kill in the middle of `annotate` leaves it."""
    make_store(path, {3: ("first", "")}).close()
    code = (
        "import os, sys, sqlite3; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE'); db.execute(\"UPDATE annotations SET label = 'never'\")\n"
        "db.execute('UPDATE details SET arrays = zeroblob(9000)'); os._exit(9)"  # more than it keeps in memory
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert path.with_name("features.sqlite-journal").stat().st_size > 0
    store = make_store(path, {3: ("second", "")})
    assert store[3].label == "second"
    assert all(feature.summary == row(i).summary for i, feature in enumerate(store))


@pytest.mark.parametrize("name", ["a b#c?d%20e.sqlite", "é🙂.sqlite"])
def test_a_path_with_what_means_something_in_an_address(name: str, tmp_path: Path) -> None:
    make_store(tmp_path / name).close()
    store = FeatureStore(str(tmp_path / name))
    store.annotate(1, "here")
    assert FeatureStore(tmp_path / name)[1].label == "here"
    assert os.listdir(tmp_path) == [name]


# --- what is no store


def everything(path: Path) -> None:
    """Open it and use all that reads or writes."""
    store = FeatureStore(path)
    try:
        for _ in store:
            pass
        store.columns()
        store.annotations()
        for text in ("people", "th", "qqqq"):
            store.search(text)
        for name in STATISTICS:
            store.ranking(name)
        for i in range(0, len(store), 5):
            store.annotate(i, "label", "note")
    finally:
        store.close()


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.sqlite", tmp_path):
        assert "no features here" in refusal(path, lambda path=path: FeatureStore(path))
    assert os.listdir(tmp_path) == []


def test_foreign_files(path: Path) -> None:
    for content in (b"", b"{}", b"SQLite format 3\0" + bytes(4096), os.urandom(10_000)):
        path.write_bytes(content)
        assert "not a store of features" in refusal(path, lambda: FeatureStore(path))
        assert path.read_bytes() == content
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE features (id)")
    assert "a database of something else" in refusal(path, lambda: FeatureStore(path))


def test_a_newer_store(path: Path, store: FeatureStore) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 3")
    assert "features of version 3, this matryoshka reads versions 1 to 2" in refusal(path, lambda: FeatureStore(path))


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE about",
        "DELETE FROM about",
        "UPDATE about SET json = '{}'",
        "UPDATE about SET json = x'ff'",
        "DROP TABLE details",
        "DROP TABLE search",
        "DROP TABLE explanations",
        "DELETE FROM windows WHERE id = 50",
        "DELETE FROM vocabulary WHERE id > 20",
        "DELETE FROM details WHERE id = 30",
        "UPDATE details SET arrays = substr(arrays, 1, 100)",
        "UPDATE details SET arrays = x''",
        "UPDATE windows SET tokens = 'text'",
        "UPDATE features SET summary = CAST(x'ff' AS TEXT)",
        "UPDATE features SET count = 'many'",
        "UPDATE features SET count = 0",
        "INSERT INTO parents VALUES (3, 1000, 0.5)",
    ],
)
def test_damage_inside(change: str, path: Path, store: FeatureStore) -> None:
    store.close()
    with sqlite3.connect(path) as db:
        db.execute(change)
    refusal(path, lambda: everything(path))


@pytest.mark.parametrize("arrays", [b"", b"\0" * 9, b"{}", bytes([8, *bytes(7)]) + b"{}      "])
def test_damaged_arrays(arrays: bytes, path: Path, store: FeatureStore) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE details SET arrays = ? WHERE id = 9", (zlib.compress(arrays),))
    assert "damaged" in refusal(path, lambda: store[9])
    assert store[10].index == 10


def test_truncated_anywhere(path: Path, store: FeatureStore) -> None:
    store.close()
    content = path.read_bytes()
    for size in range(1, len(content), len(content) // 17):
        path.write_bytes(content[:size])
        refusal(path, lambda: everything(path))


def test_overwritten_anywhere(path: Path, store: FeatureStore) -> None:
    """Not all damage can be seen, but what is seen is said in one line."""
    store.close()
    content, rng, seen = path.read_bytes(), np.random.default_rng(0), 0
    for start in rng.integers(100, len(content) - 700, 60).tolist():
        path.write_bytes(content[:start] + rng.bytes(600) + content[start + 600 :])
        said = ""
        with suppress(MatryoshkaError):
            try:
                everything(path)
            except MatryoshkaError as error:
                said = str(error)
                raise
        seen += str(path) in said
        assert "\n" not in said
        assert str(path) in said or not said
    assert seen > 20


def test_found_only_at_reading(path: Path, store: FeatureStore) -> None:
    """The file of an open store is damaged in the middle."""
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle - middle % 4096)
        file.write(os.urandom(40_000))
    assert "damaged" in refusal(path, lambda: list(store))


def test_closed(path: Path, store: FeatureStore) -> None:
    store.close()
    assert "closed" in refusal(path, lambda: store[0])
    assert "damaged" not in refusal(path, lambda: store.annotate(0, "x"))


# --- words


def test_names_fit_on_one_line() -> None:
    for text in TEXTS:
        shown = printable(text)
        assert shown.isprintable()
        assert summarise([TokenShare(text, 0.9, 1)]).isprintable()
    assert printable("a\n\0\t\u202e\u2028") == "a↵␀⇥\\u202e\\u2028"


def test_nothing_is_written_into_a_store_that_is_being_replaced(tmp_path: Path) -> None:
    make_store(tmp_path / "features.sqlite").close()
    old, waiting = FeatureStore(tmp_path / "features.sqlite"), FeatureStore(tmp_path / "features.sqlite")
    refused: list[str] = []

    def write() -> None:
        try:
            waiting.annotate(3, label="late")
        except MatryoshkaError as error:
            refused.append(str(error))

    thread = threading.Thread(target=write)
    with old.frozen():
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it waits"
        make_store(tmp_path / "features.sqlite", {3: ("of before", "")}).close()
    thread.join(20)
    assert refused
    assert "has been replaced since it was opened" in refused[0]
    assert FeatureStore(tmp_path / "features.sqlite")[3].label == "of before"
