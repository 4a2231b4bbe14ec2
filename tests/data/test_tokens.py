"""Text becomes tokens once, whole or not at all, and nothing held out is ever trained on."""

import gzip
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from matryoshka.data import documents as documents_module
from matryoshka.data import encoding
from matryoshka.data import tokens as tokens_module
from matryoshka.data.documents import source_fingerprint
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import PROVED, Tokens, check_source, documents, is_held_out, tokenise
from matryoshka.errors import MatryoshkaError

TEXTS = [f"document {i}: Ünï©ode,\nlines\r\nand\u2028{'words ' * (i % 7)}." for i in range(40)]
BOS, SEPARATOR = 7, 256


def byte_tokenizer(words: int = 0) -> PreTrainedTokenizerFast:
    """One id a byte, then `<|endoftext|>` = 256, then `words` more that make the vocabulary large."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    backend.add_tokens([f"@{i}@" for i in range(words)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATRYOSHKA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def json_lines(texts: list[Any]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def write_txt(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:03}.txt").write_bytes(text.encode())
    return folder


def write_bytes(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def write_jsonl(folder: Path, texts: list[str]) -> Path:
    return write_bytes(folder.with_suffix(".jsonl"), json_lines(texts))


def write_gzip(folder: Path, texts: list[str]) -> Path:
    return write_bytes(folder.with_suffix(".jsonl.gz"), gzip.compress(json_lines(texts)))


def write_zstd(folder: Path, texts: list[str]) -> Path:
    zstandard = pytest.importorskip("zstandard")
    frames = zstandard.compress(json_lines(texts)[:333]) + zstandard.compress(json_lines(texts)[333:])
    return write_bytes(folder.with_suffix(".jsonl.zst"), frames)


def write_data_set(folder: Path, texts: list[str]) -> Path:
    """A folder of Parquet files made by `datasets`."""
    made = pytest.importorskip("datasets").Dataset.from_dict({"text": texts, "id": list(range(len(texts)))})
    for i in range(2):
        folder.mkdir(exist_ok=True)
        made.shard(2, i, contiguous=True).to_parquet(str(folder / f"train-{i}-of-2.parquet"))
    return folder


WRITERS = [write_txt, write_jsonl, write_gzip, write_zstd, write_data_set]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text", TEXTS)


def text_config(source: Path | str, **given: Any) -> TextConfig:
    return TextConfig(**{"source": str(source), "context": 16, "held_out": 0.3, **given})


def stream(tokens: Tokens, split: str) -> np.ndarray:
    return np.fromfile(tokens.folder / f"{split}.bin", dtype=np.dtype(tokens.meta.dtype).newbyteorder("<"))


def split_texts(tokens: Tokens, tokenizer: PreTrainedTokenizerFast, split: str) -> list[str]:
    """The documents of a split, read back from its stream by their starts."""
    ids, starts = stream(tokens, split), np.load(tokens.folder / f"{split}.documents.npy")
    assert all(ids[starts] == SEPARATOR)
    return [str(tokenizer.decode(part[1:].tolist())) for part in np.split(ids, starts[1:])]


def refusal(call: Callable[[], Any]) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(MatryoshkaError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading documents


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_documents(write: Callable[..., Path], tmp_path: Path) -> None:
    assert list(documents(text_config(write(tmp_path / "text", TEXTS)))) == TEXTS


def test_bundled_text_is_found() -> None:
    assert next(documents(TextConfig())).startswith("Fellow-Citizens")


def test_folders_are_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ["b/2.txt", "a/1.txt", "c.txt", ".hidden.txt", ".git/x.txt", "notes.md"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    assert list(documents(text_config(tmp_path / "in"))) == ["a/1.txt", "b/2.txt", "c.txt"]


def test_empty_documents_are_skipped(tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "t.jsonl", b"\n" + json_lines(["", "one", " \n", None, "two"]))
    assert list(documents(text_config(file))) == ["one", "two"]


def test_lone_surrogates_are_readable(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_bytes(tmp_path / "t.jsonl", json_lines(["half \ud83d of a pair", *TEXTS]))
    assert tokenise(text_config(file), tokenizer, BOS, None).meta.documents["train"] > 0


def test_missing_paths_name_the_nearest_and_never_try_the_hub(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "hub_revision", lambda name: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    for wrong in [str(tmp_path / "texd.jsonl"), "texd.jsonl", "./texd.jsonl"]:
        assert "did you mean 'text.jsonl'" in refusal(lambda wrong=wrong: check_source(text_config(wrong)))
    assert "no such file" in refusal(lambda: check_source(text_config("~/no-such-thing-here")))
    assert "no such file" in refusal(lambda: check_source(text_config("/no/such/thing/here")))
    (tmp_path / "owner").mkdir()
    source.rename(tmp_path / "owner" / "name.jsonl")
    assert list(documents(text_config("owner"))) == TEXTS


def test_unreadable_sources_name_the_endings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".hidden.txt").write_text("hidden")
    (tmp_path / "in" / "a.csv").write_text("a,b")
    for wrong in [tmp_path / "in", tmp_path / "in" / "a.csv"]:
        assert ".txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet" in refusal(
            lambda wrong=wrong: check_source(text_config(wrong))
        )


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_zstd, write_data_set])
def test_a_missing_field_names_the_nearest(write: Callable[..., Path], tmp_path: Path) -> None:
    config = text_config(write(tmp_path / "text", TEXTS), field="txt")
    assert "'txt' (did you mean 'text'?)" in refusal(lambda: list(documents(config)))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b'["text"]', "found list"),
        (b'{"text": 3}', "holds int"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: bytes, why: str, tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "t.jsonl", json_lines(["one", "two"]) + line + b"\n")
    message = refusal(lambda: list(documents(text_config(file))))
    assert f"{file}:3" in message
    assert why in message


@pytest.mark.parametrize("write", [write_gzip, write_zstd, write_data_set])
def test_truncated_files_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write(tmp_path / "text", [os.urandom(200).hex() for _ in range(50)])
    file = source if source.is_file() else min(source.iterdir())
    whole = file.read_bytes()
    for size in (len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:size])
        assert str(file) in refusal(lambda: list(documents(text_config(source))))


def test_zstd_cut_after_a_whole_line_is_refused(tmp_path: Path) -> None:
    whole = write_zstd(tmp_path / "text", TEXTS).read_bytes()
    file = write_bytes(tmp_path / "cut.jsonl.zst", whole + whole[:20])
    assert "middle of a frame" in refusal(lambda: list(documents(text_config(file))))


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "latin.txt", "Grüße".encode("latin-1"))
    assert f"{file}: not UTF-8" in refusal(lambda: list(documents(text_config(file))))


def test_deep_nesting_is_refused_by_line(tmp_path: Path) -> None:
    deep = b'{"text": "b", "meta": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
    file = write_bytes(tmp_path / "deep.jsonl", json_lines(["a"]) + deep)
    assert f"{file}:2: " in refusal(lambda: list(documents(text_config(file))))


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_zstd(tmp_path / "text", TEXTS)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'matryoshka-sae[hub]'" in refusal(lambda: list(documents(text_config(file))))
    assert "pip install 'matryoshka-sae[hub]'" in refusal(lambda: list(documents(text_config("owner/name"))))


def test_subset_and_split_of_a_file_are_refused(source: Path) -> None:
    assert "text.subset" in refusal(lambda: check_source(text_config(source, subset="en")))
    assert "text.split" in refusal(lambda: check_source(text_config(source, split="test")))


@pytest.mark.parametrize("wrong", [{"context": 1}, {"held_out": 0.0}, {"held_out": 1.0}, {"limit": 0}, {"sorce": "x"}])
def test_impossible_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TextConfig(**wrong)


# --- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The hub stood in for by a data set on disk: what was asked of it, and its revision."""
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder, real = write_data_set(tmp_path / "remote", TEXTS), datasets.load_dataset
    state: dict[str, Any] = {"revision": "a" * 40, "asked": []}

    class Api:
        def dataset_info(self, name: str, timeout: float) -> Any:
            if state["revision"] is None:
                raise ConnectionError("no route\nto host")
            return type("Info", (), {"sha": state["revision"]})

    def load_dataset(name: str, subset: str | None, split: str, revision: str, streaming: bool) -> Any:
        state["asked"].append((name, subset, split, revision, streaming))
        return real("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=streaming)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_hub_data_sets_are_streamed_at_the_fingerprinted_revision(hub: dict[str, Any]) -> None:
    config = text_config("owner/name", subset="en", split="test")
    assert list(documents(config)) == TEXTS
    assert hub["asked"] == [("owner/name", "en", "test", "a" * 40, True)]
    assert "row 1: no field" in refusal(lambda: list(documents(text_config("owner/name", field="txt"))))


def test_hub_tokens_follow_the_revision_and_survive_without_a_network(
    hub: dict[str, Any], tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    config = text_config("owner/name")
    first = tokenise(config, tokenizer, BOS, SEPARATOR)
    hub["revision"] = "b" * 40
    second = tokenise(config, tokenizer, BOS, SEPARATOR)
    hub["revision"] = None
    assert tokenise(config, tokenizer, BOS, SEPARATOR).hash == second.hash != first.hash
    assert len(hub["asked"]) == 2
    assert "taking the revision seen last" in caplog.text


def test_an_unreachable_hub_is_one_line(hub: dict[str, Any]) -> None:
    hub["revision"] = None
    message = refusal(lambda: source_fingerprint(text_config("owner/name")))
    assert "'owner/name'" in message
    assert "no route" in message
    assert "did you mean 'bundled'" in refusal(lambda: source_fingerprint(text_config("bundeld")))
    assert "no name of a hub data set" in refusal(lambda: check_source(text_config("a b")))


def test_the_real_client_offline_is_one_line(tmp_path: Path) -> None:
    """No stand-in: huggingface_hub itself, told to stay offline (which it reads when imported)."""
    script = (
        "from matryoshka.data.tokens import TextConfig, tokenise\n"
        "from matryoshka.errors import MatryoshkaError\n"
        "import test_tokens\n"
        "try: tokenise(TextConfig(source='owner/name'), test_tokens.byte_tokenizer(), None, None)\n"
        "except MatryoshkaError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([*sys.path, *here()])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "'owner/name': no file or folder here" in done.stdout


# --- splits


def test_nothing_held_out_is_in_train(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    train, held_out = (split_texts(tokens, tokenizer, split) for split in ("train", "held_out"))
    assert train == [text for text in TEXTS if not is_held_out(text, 0.3)]
    assert held_out == [text for text in TEXTS if is_held_out(text, 0.3)]
    assert 5 < len(held_out) < 20
    assert tokens.meta.documents == {"train": len(train), "held_out": len(held_out)}


def test_copies_of_a_document_fall_on_one_side(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenise(text_config(write_jsonl(tmp_path / "t", TEXTS * 3)), tokenizer, BOS, SEPARATOR)
    train, held_out = (split_texts(tokens, tokenizer, split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 3 * len(TEXTS)
    assert not set(train) & set(held_out)


@pytest.mark.parametrize("write", WRITERS)
def test_the_split_depends_on_neither_order_nor_layout(
    write: Callable[..., Path], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = tokenise(text_config(write(tmp_path / "other", TEXTS[::-1])), tokenizer, BOS, SEPARATOR)
    assert split_texts(tokens, tokenizer, "held_out") == [t for t in TEXTS[::-1] if is_held_out(t, 0.3)]


def test_a_larger_share_holds_out_a_superset(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = [
        set(split_texts(tokenise(text_config(source, held_out=h), tokenizer, BOS, SEPARATOR), tokenizer, "held_out"))
        for h in (0.1, 0.4, 0.8)
    ]
    assert held_out[0] < held_out[1] < held_out[2]


def test_the_limit_bounds_the_training_split(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    limited = tokenise(text_config(source, limit=500), tokenizer, BOS, SEPARATOR)
    assert limited.meta.tokens["train"] == 500
    assert (stream(limited, "train") == stream(whole, "train")[:500]).all()
    assert 0 < limited.meta.tokens["held_out"] < whole.meta.tokens["held_out"]
    assert tokenise(text_config(source, limit=10**9), tokenizer, BOS, SEPARATOR).meta.tokens == whole.meta.tokens


def test_with_the_limit_reached_it_reads_on_for_what_is_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = sorted((f"document {i} " * 20 for i in range(400)), key=lambda text: is_held_out(text, 0.1))
    source = write_jsonl(tmp_path / "held out at the end", texts)
    config = text_config(source, held_out=0.1)
    config = config.model_copy(update={"limit": config.reaching(1000)})
    made = tokenise(config, tokenizer, BOS, SEPARATOR)
    assert made.meta.tokens["train"] == config.limit
    assert 1000 <= made.meta.tokens["held_out"] < 1400
    assert made.meta.documents["held_out"] < sum(is_held_out(text, 0.1) for text in texts)


# --- windows


@pytest.mark.parametrize("bos", [BOS, 0, None])
def test_windows_in_order_reproduce_the_stream(
    bos: int | None, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = tokenise(text_config(source), tokenizer, bos, SEPARATOR)
    for split in ("train", "held_out"):
        windows, ids = tokens.windows(split), stream(tokens, split)
        read = windows[:]
        assert read.shape == (len(windows), 16)
        assert read.dtype == np.int64
        if bos is not None:
            assert (read[:, 0] == bos).all()
            read = read[:, 1:]
        assert len(ids) - read.size < read.shape[1]
        assert (read.ravel() == ids[: read.size]).all()


def test_any_window_by_index(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = tokenise(text_config(source), tokenizer, BOS, None).windows("train")
    assert (windows[3] == windows[3:4]).all()
    assert windows[3].shape == (1, 16)
    assert (windows[np.array([5, 2])] == np.concatenate([windows[5], windows[2]])).all()
    assert (windows[-1] == windows[[len(windows) - 1]]).all()
    assert windows[np.array([], dtype=int)].shape == (0, 16)
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.parametrize("bos", [BOS, None])
def test_a_token_knows_its_document(bos: int | None, source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = tokenise(text_config(source), tokenizer, bos, SEPARATOR).windows("train")
    first, seen = int(bos is not None), -1
    documents = windows.documents(slice(None))
    assert documents.shape == (len(windows), 16)
    for i in range(len(windows)):
        for position, token in enumerate(windows[i][0].tolist()):
            seen += token == SEPARATOR and position >= first
            if position >= first:
                assert documents[i, position] == seen
        assert documents[i, 0] == documents[i, first]
    assert (windows.documents([3, 1]) == documents[[3, 1]]).all()
    with pytest.raises(IndexError):
        windows.documents(len(windows))


def test_separators_stand_before_each_document_or_nowhere(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with_them = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    without = tokenise(text_config(source), tokenizer, BOS, None)
    ids = stream(with_them, "train")
    assert ids[0] == SEPARATOR
    assert (ids == SEPARATOR).sum() == with_them.meta.documents["train"]
    assert (ids[ids != SEPARATOR] == stream(without, "train")).all()


def paragraphs(n: int) -> str:
    return "".join(f"Paragraph {i}. {'It goes on. ' * 40}\n\n" for i in range(n))


def test_one_plain_text_is_cut_into_paragraphs_so_that_some_are_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    book = paragraphs(300)
    file = write_bytes(tmp_path / "book.txt", book.encode())
    blocks = list(documents(text_config(file)))
    assert "".join(blocks) == book
    assert all(block.endswith("\n\n") and len(block) <= documents_module.BLOCK for block in blocks)
    made = tokenise(text_config(file, held_out=0.2), tokenizer, BOS, SEPARATOR)
    assert made.meta.documents["held_out"] == sum(is_held_out(block, 0.2) for block in blocks) > 3
    assert f"{file}: few plain texts" in caplog.text


def test_many_plain_texts_are_a_document_each(tmp_path: Path) -> None:
    folder = write_txt(tmp_path / "many", [paragraphs(20)] * documents_module.FEW_FILES)
    assert list(documents(text_config(folder))) == [paragraphs(20)] * documents_module.FEW_FILES


def test_a_long_document_is_tokenised_in_bounded_pieces(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 64)
    calls: list[int] = []

    class Watched:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            calls.append(sum(map(len, texts)))
            return tokenizer(texts, **options)

    text, unbroken = paragraphs(1), "x" * 1000
    encoded = dict(encoding.encoded(["short", text, unbroken], Watched()))  # pyright: ignore[reportArgumentType]
    assert max(calls) <= 64
    for each, ids in encoded.items():
        assert ids.tolist() == tokenizer([each], add_special_tokens=False)["input_ids"][0]


def test_linked_folders_are_read_once_and_dangling_links_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_txt(tmp_path / "in", ["a"])
    other = write_txt(tmp_path / "else", ["b"])
    (folder / "linked").symlink_to(other)
    (folder / "round").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    assert list(documents(text_config(folder))) == ["a", "b"]
    assert f"{folder / 'gone.txt'}: left out" in caplog.text


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "LONGEST_LINE", 1000)
    lines = json_lines(["short", "x" * 5000])
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(ending[6:], bytes)
    file = write_bytes(tmp_path / f"t{ending}", packed(lines))
    assert f"{file}:2: the line has more than 1,000 bytes" in refusal(lambda: list(documents(text_config(file))))


def test_special_tokens_spelt_out_are_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "before<|endoftext|>after"
    file = write_jsonl(tmp_path / "t", [text])
    tokens = tokenise(text_config(file, held_out=1e-9), tokenizer, BOS, None)
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == SEPARATOR
    assert SEPARATOR not in stream(tokens, "train")
    assert tokenizer.decode(stream(tokens, "train").tolist()) == text


def test_too_little_text_says_how_much_is_needed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_jsonl(tmp_path / "t", ["0123456789"])
    tokens = tokenise(text_config(file, held_out=1e-9), tokenizer, BOS, None)
    message = refusal(lambda: tokens.windows("train"))
    assert "10 tokens" in message
    assert "needs 15" in message
    assert "raise text.held_out" in refusal(lambda: tokens.windows("held_out"))
    assert "did you mean 'held_out'" in refusal(lambda: tokens.windows("heldout"))  # pyright: ignore[reportArgumentType]
    assert len(Tokens(tokens.folder, 11, BOS).windows("train")) == 1


@pytest.mark.parametrize(("words", "dtype"), [(0, "uint16"), (2**16 - 257, "uint16"), (2**16 - 256, "uint32")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(words: int, dtype: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(words)
    last = f"@{words - 1}@" if words else "@"
    tokens = tokenise(text_config(write_jsonl(tmp_path / "t", [f"a{last}b", *TEXTS])), tokenizer, None, SEPARATOR)
    assert tokens.meta.dtype == dtype
    assert (tokens.folder / "train.bin").stat().st_size == tokens.meta.tokens["train"] * (2 if dtype == "uint16" else 4)
    texts = split_texts(tokens, tokenizer, "train") + split_texts(tokens, tokenizer, "held_out")
    assert sorted(texts) == sorted([f"a{last}b", *TEXTS])


# --- the cache


class Raising(PreTrainedTokenizerFast):
    def __call__(self, *given: Any, **named: Any) -> Any:
        raise AssertionError("tokenised again")


def test_tokens_are_made_once(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    raising = Raising(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|endoftext|>")
    reused = tokenise(text_config(source, context=8), raising, None, SEPARATOR)
    assert (reused.folder, reused.context, reused.bos) == (made.folder, 8, None)
    assert made.folder.name == made.hash
    assert len(made.hash) == 16
    with pytest.raises(AssertionError, match="tokenised again"):
        tokenise(text_config(source, limit=10), raising, BOS, SEPARATOR)


def test_the_hash_follows_all_that_decides_the_tokens(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def made(separator: int | None = SEPARATOR, tokenizer: Any = tokenizer, **given: Any) -> str:
        return tokenise(text_config(source, **given), tokenizer, BOS, separator).hash

    hashes = [made(), made(None), made(held_out=0.2), made(limit=99), made(tokenizer=byte_tokenizer(3))]
    source.write_bytes(source.read_bytes().replace(b'"id"', b'"di"'))
    hashes.append(made())
    assert len(set(hashes)) == len(hashes)


def test_calling_the_tokenizer_otherwise_does_not_change_the_hash(source: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    first = tokenise(text_config(source), tokenizer, BOS, SEPARATOR).hash
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    assert tokenise(text_config(source), tokenizer, BOS, SEPARATOR).hash == first
    assert tokenise(text_config(source, limit=300), tokenizer, BOS, SEPARATOR).meta.tokens["train"] == 300


def truncate(folder: Path) -> None:
    os.truncate(folder / "train.bin", 100)


def flip(folder: Path) -> None:
    content = bytearray((folder / "held_out.bin").read_bytes())
    content[4] ^= 1
    (folder / "held_out.bin").write_bytes(content)


def reverse(folder: Path) -> None:
    file = folder / "train.documents.npy"
    np.save(file, np.load(file)[::-1])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != PROVED}


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "bin truncated": truncate,
    "bin changed": flip,
    "documents reversed": reverse,
    "bin missing": lambda folder: (folder / "held_out.bin").unlink(),
    "documents missing": lambda folder: (folder / "train.documents.npy").unlink(),
    "meta missing": lambda folder: (folder / "meta.json").unlink(),
    "meta truncated": lambda folder: os.truncate(folder / "meta.json", 50),
    "meta foreign": lambda folder: (folder / "meta.json").write_text('{"format": 9}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folders_are_reported_and_rebuilt(
    damage: Callable[[Path], Any],
    source: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    before = contents(made.folder)
    damage(made.folder)
    assert str(made.folder) in refusal(lambda: Tokens(made.folder, 16, BOS))
    with caplog.at_level(logging.WARNING):
        again = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    assert contents(again.folder) == before
    assert len(caplog.messages) == 1
    assert "tokenising again" in caplog.messages[0]
    assert [entry.name for entry in made.folder.parent.iterdir()] == [made.hash]


def here() -> list[str]:
    return [str(Path(__file__).parent)]


KILLED = """
import sys, time
import test_tokens
from matryoshka.data import tokens
real = tokens.documents
def stalling(config):
    for i, text in enumerate(real(config)):
        if i == 3000:
            time.sleep(600)
        yield text
tokens.documents = stalling
tokens.tokenise(test_tokens.text_config(sys.argv[1]), test_tokens.byte_tokenizer(), 7, 256)
"""


def test_a_killed_writer_leaves_nothing_that_is_read(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = write_jsonl(tmp_path / "many", [f"{i} {TEXTS[i % 40]}" for i in range(4000)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, *here()])}
    half: Path | None = None
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(source)], env=environment)
    try:
        for _ in range(600):
            half = next((cache / "tokens").glob("*/train.bin"), None)
            if (half and half.stat().st_size) or writer.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert half is not None
    assert half.stat().st_size > 0
    assert half.parent.name.startswith(".new-")
    tokens = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    assert sum(tokens.meta.documents.values()) == 4000
    assert not half.parent.exists()


def test_a_failing_writer_leaves_nothing(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_bytes(tmp_path / "t.jsonl", json_lines(TEXTS) + b"{")
    assert ":41" in refusal(lambda: tokenise(text_config(file), tokenizer, BOS, SEPARATOR))
    assert list((cache / "tokens").iterdir()) == []


def test_the_slower_of_two_writers_discards_its_own(
    source: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writer begins and ends while the first is reading documents."""
    inner: list[tuple[Tokens, int]] = []

    def interrupted(config: TextConfig) -> Any:
        monkeypatch.setattr(tokens_module, "documents", documents)
        first = tokenise(config, tokenizer, BOS, SEPARATOR)
        inner.append((first, first.folder.stat().st_ino))
        yield from documents(config)

    monkeypatch.setattr(tokens_module, "documents", interrupted)
    outer = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    assert (outer.folder, outer.folder.stat().st_ino) == (inner[0][0].folder, inner[0][1])
    assert [entry.name for entry in outer.folder.parent.iterdir()] == [outer.hash]


def test_meta_tells_what_the_tokens_are(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenise(text_config(source), tokenizer, BOS, SEPARATOR)
    meta = json.loads((tokens.folder / "meta.json").read_text())
    for split in ("train", "held_out"):
        data = (tokens.folder / f"{split}.bin").read_bytes()
        assert meta["sha256"][f"{split}.bin"] == hashlib.sha256(data).hexdigest()
        assert meta["bytes"][f"{split}.bin"] == len(data) == 2 * meta["tokens"][split]
    assert meta["config"]["source"] == str(source)
    assert meta["separator"] == SEPARATOR
