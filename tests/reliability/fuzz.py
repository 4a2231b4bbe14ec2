"""Damage every file that is read, at random, and see that only one-line errors of our own come out.

    python tests/reliability/fuzz.py [--seconds N] [--seed N] [READER ...]     `make fuzz`: ten minutes of all

What is damaged is real: files of a small run. A reader may find nothing wrong (not every byte matters); what it may not
do is raise anything else, take more than a few seconds, or say more than a line.
"""

import argparse
import gzip
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import zstandard

from matryoshka import api
from matryoshka.coder.coder import SparseCoder
from matryoshka.data import cache
from matryoshka.data.documents import documents
from matryoshka.data.sections import TextConfig
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.shared import labelled
from matryoshka.features.store import FeatureStore
from matryoshka.lm.info import BUNDLED, describe
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Site
from matryoshka.run import Run
from matryoshka.scores import saved
from matryoshka.study.opening import read_card, studied
from matryoshka.study.recording import Recording
from matryoshka.training import checkpoint
from matryoshka.training.log import JsonLines
from matryoshka.training.plan import check
from matryoshka.training.provenance import recorded_hash
from matryoshka.training.recipe import Config
from matryoshka.training.session import new_trainees

SLOW = 20.0
"""Seconds that a reader may take for a small file."""
TEXTS = "".join(f'{{"text": "document {i} of some words", "n": [{i}, 1.5, null]}}\n' for i in range(200)).encode()
LABELS = b"".join(b'{"text": "a %d", "path": ["animal", "dog"], "group": "%d"}\n' % (i, i) for i in range(20))


class Reader(NamedTuple):
    """A file, and what reads it."""

    file: Path
    read: Callable[[], object]


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader of files, each with a whole file of its own below `folder`."""
    config = Config.build(
        {
            "text": {"context": 64},
            "activations": {"chunk": 2048, "cache": str(folder / "activations")},
            "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 64, "k": 4},
            "training": {"tokens": 2560, "batch": 256, "lr": 1e-2},
            "evaluation": {"tokens": 512},
        }
    )
    run = api.train(config, folder / "run")
    api.features(run, 3000)[0].close()
    lm = load("bundled")
    return _of_run(run, config, lm) | _of_text(folder) | _of_model(folder)


def _of_run(run: Run, config: Config, lm: LanguageModel) -> dict[str, Reader]:
    tokens = studied(run.coder).open_tokens(lm.vocabulary)
    kept = checkpoint.latest(run.checkpoints)
    activations = run.path.parent / "activations"
    identity = {}

    def read_store() -> None:
        store = FeatureStore(run.features_file)
        try:
            list(store)
            store.search("the")
        finally:
            store.close()

    def read_checkpoint() -> None:
        trainees = new_trainees(config, check(config)[1], torch.device("cpu"))
        checkpoint.load(checkpoint.latest(run.checkpoints), trainees, config.steps)

    def read_recording() -> None:
        recording = Recording(run.recording)
        for key in recording.head.coders:
            recording.mapped(f"{key}/values").sum()

    def read_activations() -> None:
        stored = cache.CachedChunks(activations, identity, [Site("mlp_in", 1)], torch.device("cpu"))
        stored.chunk(0, 0, 0)

    def read_tokens() -> None:
        windows = Tokens(tokens.folder, 64, tokens.bos).windows("held_out")
        windows.documents(slice(0, 8))

    return {
        "recipe": Reader(run.config_file, lambda: Config.load(run.config_file)),
        "coder's config": Reader(run.coder / "config.json", lambda: (SparseCoder.load(run.path), read_card(run.coder))),
        "coder's weights": Reader(run.coder / "weights.safetensors", lambda: SparseCoder.load(run.path)),
        "checkpoint's state": Reader(kept / "state.json", read_checkpoint),
        "checkpoint's tensors": Reader(kept / "coder.safetensors", read_checkpoint),
        "latest checkpoint": Reader(run.checkpoints / "latest", read_checkpoint),
        "metrics": Reader(run.metrics, lambda: JsonLines(run.metrics, 5).close()),
        "provenance": Reader(run.provenance, lambda: recorded_hash(run.provenance, "tokens")),
        "result": Reader(run.evaluation / "reconstruction.json", lambda: saved.load(run.evaluation, "reconstruction")),
        "store": Reader(run.features_file, read_store),
        "recording's head": Reader(run.recording / "recording.json", read_recording),
        "recording's tokens": Reader(run.recording / "tokens.bin", read_recording),
        "activations' index": Reader(activations / "index.json", read_activations),
        "activations": Reader(activations / "chunk_0.safetensors", read_activations),
        "tokens' meta": Reader(tokens.folder / "meta.json", read_tokens),
        "tokens": Reader(tokens.folder / "held_out.bin", read_tokens),
        "tokens' documents": Reader(tokens.folder / "held_out.documents.npy", read_tokens),
    }


def _of_text(folder: Path) -> dict[str, Reader]:
    packed = {
        ".txt": TEXTS,
        ".jsonl": TEXTS,
        ".jsonl.gz": gzip.compress(TEXTS),
        ".jsonl.zst": zstandard.ZstdCompressor().compress(TEXTS),
    }
    of_text = {}
    for ending, content in packed.items():
        file = folder / f"text{ending}"
        file.write_bytes(content)
        config = TextConfig(source=str(file))
        of_text[f"text{ending}"] = Reader(file, lambda config=config: list(documents(config)))
    file = folder / "labels.jsonl"
    file.write_bytes(LABELS)
    return of_text | {"labels": Reader(file, lambda: labelled.load(file))}


def _of_model(folder: Path) -> dict[str, Reader]:
    shutil.copytree(BUNDLED, folder / "model")
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    return {
        "model's config": Reader(folder / "model" / "config.json", lambda: describe(str(folder / "model"))),
        "model's tokenizer": Reader(folder / "model" / "tokenizer.json", lambda: load(str(folder / "model"))),
        "model's weights": Reader(folder / "model" / "model.safetensors", lambda: load(str(folder / "model"))),
    }


def damages(content: bytes, generator: random.Random) -> Iterator[bytes]:
    """`content`, damaged in one way after the other, for ever."""
    while True:
        start = generator.randrange(max(1, len(content)))
        end = min(len(content), start + generator.choice([1, 2, 8, 100]))
        odd = generator.choice(ODD)
        yield generator.choice(
            [
                content[:start],
                content[:start] + content[end:],
                content[:start] + bytes(generator.randrange(256) for _ in range(end - start)) + content[end:],
                content[:start] + odd + content[start:],
                content[:start] + odd + content[end:],
                content[:start] + content[start:end] * 3 + content[end:],
                content[: end // 2] + content[start:],
                _with_another_number(content, generator),
            ]
        )


ODD = [
    b"", b"\0", b"\xff\xfe", b"null", b"-1", b"1e999", b"NaN", b"99999999999999999999999", b"[" * 5000, b'{"a":' * 3000,
    b"{}", b"[]", b'""', b"\n", b"../../etc", b"\xed\xa0\x80", b"true", b"&a [*a,*a]", b"!!python/object", b"0",
]  # fmt: skip


def _with_another_number(content: bytes, generator: random.Random) -> bytes:
    digits = [i for i, byte in enumerate(content[:100_000]) if 48 <= byte < 58]
    if not digits:
        return content[::-1]
    place = generator.choice(digits)
    return content[:place] + generator.choice([b"-7", b"9999999999", b"0.5", b"1e400"]) + content[place + 1 :]


def fuzz(reader: Reader, seconds: float, generator: random.Random) -> int:
    """Damage the reader's file for so long; how often. Raises AssertionError for anything but our own one line."""
    whole = {file: file.read_bytes() for file in reader.file.parent.iterdir() if file.is_file()}
    count, started = 0, time.monotonic()
    for damaged in damages(whole[reader.file], generator):
        if time.monotonic() - started > seconds:
            break
        reader.file.write_bytes(damaged)
        try:
            _read(reader, damaged)
        finally:
            for file, content in whole.items():  # some readers mend what they read
                if not file.exists() or file.read_bytes() != content:
                    file.write_bytes(content)
        count += 1
    return count


def _read(reader: Reader, damaged: bytes) -> None:
    began = time.monotonic()
    try:
        reader.read()
    except MatryoshkaError as error:
        said = str(error)
        assert "\n" not in said.strip(), f"more than a line: {said[:300]!r}, of {damaged[:200]!r}"
        assert len(said) < 2000, f"too long a line: {said[:300]!r}"
    except Exception as error:
        keep = Path(tempfile.gettempdir()) / f"damaged-{reader.file.name}"
        keep.write_bytes(damaged)
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]} (the file lies in {keep})") from error
    assert time.monotonic() - began < SLOW, f"took too long: {damaged[:200]!r}"


def main() -> None:
    """Damage the files of the readers that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--seconds", type=float, default=25.0, help="for each reader [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known = readers(Path(folder))
        failed = False
        for name in arguments.readers or known:
            try:
                count = fuzz(known[name], arguments.seconds, random.Random(arguments.seed))
                print(f"{name}: {count} damaged files, each read or refused in one line", flush=True)
            except AssertionError as error:
                failed = True
                print(f"{name}: {error}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
