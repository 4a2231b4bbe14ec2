"""The stream of activations: shuffled, resumable, without what must not be trained on."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from matryoshka.data import cache
from matryoshka.data.rowfilter import RowCounts, RowFilter, refuse_not_finite
from matryoshka.data.stream import ActivationStream, Batch, Chunk, LiveChunks
from matryoshka.data.tokens import Tokens
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, load
from matryoshka.lm.sites import Site, Wiring

READ, WRITE = Site("mlp_in", 1), Site("mlp_out", 1)


class Rows:
    """Chunks of numbered rows: a stream needs no language model."""

    def __init__(self, chunks: int, rows: int) -> None:
        self.chunks, self.rows, self.keep, self.device = chunks, rows, RowFilter(None, {}), torch.device("cpu")

    def __len__(self) -> int:
        return self.chunks

    def chunk(self, seed: int, epoch: int, index: int) -> Chunk:
        positions = torch.arange(self.rows) + (epoch * self.chunks + index) * self.rows
        return Chunk(
            {READ: positions[:, None].float()}, positions, torch.arange(self.rows), RowCounts(self.rows + 1, 1)
        )


def take(stream: ActivationStream, n: int) -> list[Batch]:
    return list(itertools.islice(stream, n))


def same(a: Batch, b: Batch) -> bool:
    return a.positions.equal(b.positions) and all(
        a.activations[site].equal(b.activations[site]) for site in a.activations
    )


@pytest.fixture
def live(lm: LanguageModel, tokens: Tokens) -> LiveChunks:
    return LiveChunks(lm, tokens.windows("train"), [READ, WRITE], chunk_rows=2048)


def test_an_epoch_shows_every_row_of_a_chunk_at_most_once_and_all_whole_batches() -> None:
    stream = ActivationStream(Rows(chunks=3, rows=100), batch=30, seed=0)
    seen = torch.cat([batch.positions for batch in take(stream, 9)])
    assert len(seen.unique()) == 270
    assert seen.max() < 300
    assert next(stream).positions.min() >= 300, "the next epoch follows"


def test_a_batch_gives_a_coder_its_sites_side_by_side_and_copies_no_single_one() -> None:
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    batch = Batch({READ: x, WRITE: y}, torch.arange(5))
    read, written = batch.of(Wiring.of([READ], [WRITE]))
    assert read is x
    assert written is y
    read, written = batch.of(Wiring.of([WRITE, READ], [READ, WRITE]))
    assert read.equal(torch.cat([y, x], dim=1))
    assert written.equal(torch.cat([x, y], dim=1))


def test_rows_are_shuffled_and_the_seed_decides() -> None:
    a, b, c = (next(ActivationStream(Rows(1, 100), 100, seed)).positions for seed in (0, 0, 1))
    assert a.equal(b)
    assert not a.equal(c)
    assert not a.equal(torch.arange(100))


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_resumed_stream_goes_on_exactly(taken: int, ahead: bool) -> None:
    whole = ActivationStream(Rows(2, 100), 30, seed=3, ahead=ahead)
    expected = take(whole, 12)
    first = ActivationStream(Rows(2, 100), 30, seed=3)
    take(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    second = ActivationStream(Rows(2, 100), 30, seed=0, ahead=ahead)
    second.load_state_dict(state)
    rest = take(second, 12 - taken)
    assert all(same(a, b) for a, b in zip(expected[taken:], rest, strict=True))
    assert second.counts == whole.counts
    whole.close()
    second.close()


def test_peeking_changes_nothing() -> None:
    plain, peeked = (ActivationStream(Rows(2, 100), 30, seed=3) for _ in range(2))
    first = peeked.peek(10)
    batch = next(peeked)
    assert same(batch, next(plain))
    assert first.positions.equal(batch.positions[:10])


def test_live_rows_are_the_activations_of_their_positions(lm: LanguageModel, tokens: Tokens, live: LiveChunks) -> None:
    batch = next(ActivationStream(live, 64, seed=0))
    windows = tokens.windows("train")
    for row in range(0, 64, 13):
        window, place = divmod(int(batch.positions[row]), 64)
        read = lm.read(torch.from_numpy(windows[[window]]), [READ, WRITE])
        for site in (READ, WRITE):
            torch.testing.assert_close(batch.activations[site][row], read[site][0, place], rtol=1e-4, atol=1e-4)


def test_windows_are_permuted_over_the_whole_text_anew_each_epoch(live: LiveChunks) -> None:
    first, again, other = (live.chunk(0, epoch, 0).positions // 64 for epoch in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.float().mean() > 0.2 * len(live.windows), "windows come from all over the text"


def test_bos_and_sinks_are_left_out_and_counted(lm: LanguageModel, tokens: Tokens, live: LiveChunks) -> None:
    chunk = live.chunk(0, 0, 0)
    windows = tokens.windows("train")
    kept = chunk.positions[chunk.rows]
    numbers, places = kept // 64, kept % 64
    ids = torch.from_numpy(windows[numbers.numpy()])[torch.arange(len(places)), places]
    assert (ids != lm.bos).all()
    assert (places != 0).all()
    assert chunk.counts.read == len(chunk.positions) == live.per_chunk * 64
    assert chunk.counts.left_out == len(chunk.positions) - len(chunk.rows) >= live.per_chunk


def test_a_massive_norm_is_a_sink(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("train")
    keep = RowFilter.measure(lm, windows, [READ])
    batch = torch.from_numpy(windows[:2])
    read = lm.read(batch, [READ])
    before = keep(batch, read)
    place = before[0].nonzero()[5].item()
    read[READ] = read[READ].clone()
    read[READ][0, place] *= 100
    after = keep(batch, read)
    assert (before != after).nonzero().tolist() == [[0, place]]


def test_training_never_reads_a_held_out_document(lm: LanguageModel, tokens: Tokens, live: LiveChunks) -> None:
    held_out = lm.tokenizer.batch_decode(tokens.windows("held_out")[:200][:, 1:])
    chunk = live.chunk(0, 0, 0)
    numbers = (chunk.positions // 64).unique().numpy()
    trained = "\n".join(lm.tokenizer.batch_decode(tokens.windows("train")[numbers]))
    assert not any(text in trained for text in held_out)


def test_too_little_text_for_a_batch_is_refused_before_training() -> None:
    with pytest.raises(MatryoshkaError, match=r"100 rows, fewer than training\.batch = 101"):
        next(ActivationStream(Rows(1, 100), 101, seed=0))


def write(live: LiveChunks, folder: Path, count: int = 2, **identity: str) -> dict[str, str]:
    cache.write(live, folder, seed=0, count=count, identity=identity, progress=lambda done: None)
    return identity


def cached(folder: Path, identity: dict[str, str]) -> cache.CachedChunks:
    return cache.CachedChunks(folder, identity, [READ, WRITE], torch.device("cpu"))


def test_a_cached_epoch_equals_the_live_one_bit_for_bit(tmp_path: Path, live: LiveChunks) -> None:
    identity = write(live, tmp_path / "cache", model="bundled")
    streams = [ActivationStream(chunks, 256, seed=0) for chunks in (live, cached(tmp_path / "cache", identity))]
    for a, b in zip(*(take(stream, 12) for stream in streams), strict=True):
        assert same(a, b)
    assert streams[0].counts == streams[1].counts


def test_later_cached_epochs_come_in_another_order(tmp_path: Path, live: LiveChunks) -> None:
    chunks = cached(tmp_path / "cache", write(live, tmp_path / "cache", count=4))
    orders = [[chunks.chunk(0, epoch, i).positions[0].item() for i in range(4)] for epoch in range(4)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_a_damaged_or_foreign_cache_is_refused_by_name(tmp_path: Path, live: LiveChunks) -> None:
    folder = tmp_path / "cache"
    identity = write(live, folder, model="bundled")
    with pytest.raises(MatryoshkaError, match="cached with model = 'bundled', this run has 'gpt2'"):
        cached(folder, {"model": "gpt2"})
    with pytest.raises(MatryoshkaError, match=r"lacks 3\.mlp_in"):
        cache.CachedChunks(folder, identity, [Site("mlp_in", 3)], torch.device("cpu"))
    shard = folder / "chunk_1.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    chunks = cached(folder, identity)
    chunks.chunk(0, 0, 0)
    with pytest.raises(MatryoshkaError, match=r"chunk_1\.safetensors: damaged, its checksum differs"):
        chunks.chunk(0, 0, 1)
    shard.unlink()
    with pytest.raises(MatryoshkaError, match=r"chunk_1\.safetensors: missing"):
        cached(folder, identity).chunk(0, 0, 1)


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path, live: LiveChunks) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(live, tmp_path / "cache", 0, 2, {}, stop)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_finite_are_no_sinks_and_are_counted_apart(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("train")
    keep = RowFilter.measure(lm, windows, [READ])
    batch = torch.from_numpy(windows[:2])
    activations = {READ: lm.read(batch, [READ])[READ].clone()}
    activations[READ][0, 5, 3], activations[READ][1, 0, 0], activations[READ][1, 7] = torch.nan, torch.inf, torch.inf
    kept, not_finite = keep.sort(batch, activations)
    assert not_finite.nonzero().tolist() == [[0, 5], [1, 7]], "a window's first token never counts"
    assert not (kept & not_finite).any()
    assert kept.sum() == keep(batch, lm.read(batch, [READ])).sum() - 2


def test_more_than_a_few_rows_that_are_not_finite_are_refused(lm: LanguageModel) -> None:
    refuse_not_finite(RowCounts(10_000, 0, 100), [READ], lm)
    with pytest.raises(MatryoshkaError, match=r"101 of 10,000 rows at 1.mlp_in are NaN or Inf in float32"):
        refuse_not_finite(RowCounts(10_000, 0, 101), [READ], lm)


def test_the_rule_does_not_depend_on_how_many_windows_are_read_at_once(lm: LanguageModel, tokens: Tokens) -> None:
    windows = tokens.windows("train")
    rules = [LiveChunks(lm, windows, [READ], 2048, lm_batch).keep.largest for lm_batch in (1, 5, 64)]
    assert rules[0] == rules[1] == rules[2]


@pytest.mark.parametrize("lm_batch", [1, 5, 64])
def test_a_chunk_does_not_depend_on_how_many_windows_are_read_at_once(
    lm: LanguageModel, tokens: Tokens, live: LiveChunks, lm_batch: int
) -> None:
    at_once = LiveChunks(lm, tokens.windows("train"), [READ, WRITE], 2048, lm_batch)
    ours, theirs = live.chunk(0, 0, 1), at_once.chunk(0, 0, 1)
    assert ours.rows.equal(theirs.rows)
    assert ours.positions.equal(theirs.positions)
    assert ours.counts == theirs.counts
    for site in (READ, WRITE):
        torch.testing.assert_close(ours.activations[site], theirs.activations[site], rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_count_stay_in_the_chunk_and_come_into_no_batch(lm: LanguageModel, tokens: Tokens) -> None:
    live = LiveChunks(lm, tokens.windows("train"), [READ], chunk_rows=2048)
    chunk = live.chunk(0, 0, 0)
    stream = ActivationStream(live, 31, seed=0)
    seen = torch.cat([batch.positions for batch in take(stream, len(chunk.rows) // 31)])
    assert len(chunk.rows) < len(chunk.positions) == 2048
    assert set(seen.tolist()) <= set(chunk.positions[chunk.rows].tolist())
    assert len(seen.unique()) == len(seen)


def test_norms_are_those_of_the_rows_in_float32_whatever_the_dtype(lm: LanguageModel, tokens: Tokens) -> None:
    x = lm.read(torch.from_numpy(tokens.windows("train")[:4]), [READ])[READ]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rule = RowFilter.of(None, {READ: x.to(dtype)})
        assert rule.largest[READ] == 10 * x.to(dtype).float().norm(dim=-1)[:, 1:].median().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reading_ahead_on_a_gpu_gives_the_same_batches_and_holds_on_to_no_memory(tokens: Tokens) -> None:
    read = load("bundled", dtype="float32", device="cuda")
    live = LiveChunks(read, tokens.windows("train"), [READ, WRITE], chunk_rows=32_768, lm_batch=256)
    expected = [
        (batch.positions, batch.activations[READ].sum(0)) for batch in take(ActivationStream(live, 4096, 0), 99)
    ]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    stream = ActivationStream(live, 4096, seed=0, ahead=True)
    work = torch.randn(4096, 4096, device="cuda")
    got = []
    for batch in itertools.islice(stream, len(expected)):
        got.append((batch.positions, batch.activations[READ].sum(0)))
        for _ in range(20):
            work = (work @ work).tanh()  # the GPU is behind: it gathers a batch long after the host asked for it
    stream.close()
    for a, b in zip(itertools.chain(*got), itertools.chain(*expected), strict=True):
        assert a.equal(b)
    assert torch.cuda.memory_reserved() <= 1.3 * torch.cuda.max_memory_allocated() + 2**26


def test_a_cache_keeps_the_rule_that_it_was_written_by(live: LiveChunks, tmp_path: Path) -> None:
    cache.write(live, tmp_path / "cache", seed=0, count=1, identity={}, progress=lambda done: None)
    cached = cache.CachedChunks(tmp_path / "cache", {}, [READ, WRITE], torch.device("cpu"))
    assert cached.keep.largest == live.keep.largest
    assert cached.keep.bos == live.keep.bos
