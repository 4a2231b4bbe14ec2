"""Every number of a summary against the plainest computation of it: loops over a dense table."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from matryoshka.coder.latents import Latents, Pattern
from matryoshka.features.feature import BINS, edges
from matryoshka.features.relations import coactive
from matryoshka.features.summary import AFTER, BEFORE, TOP_TOKENS, Summary, Wanted, summarise
from matryoshka.study.recorder import CoderRows, Recorder
from matryoshka.study.recording import Head, RecordedCoder, Recording

CONTEXT, WINDOWS, FEATURES, VOCABULARY = 16, 40, 30, 12
WIDTHS = (8, 16, 30)


def sparse(dense: np.ndarray) -> Latents:
    rows, indices = np.nonzero(dense)
    offsets = np.searchsorted(rows, np.arange(len(dense) + 1))
    values = torch.from_numpy(dense[rows, indices].astype(np.float32))
    return Latents(Pattern(torch.from_numpy(indices), torch.from_numpy(offsets), dense.shape[1]), values)


class Made:
    """A recording of random activations, and the dense table that it came from."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(7)
        self.tokens = rng.integers(0, VOCABULARY, (WINDOWS, CONTEXT))
        self.documents = np.sort(rng.integers(0, 17, WINDOWS * CONTEXT)).reshape(WINDOWS, CONTEXT)
        self.kept = rng.random((WINDOWS, CONTEXT)) > 0.1
        self.kept[:, 0] = False
        rate = np.geomspace(0.6, 0.002, FEATURES)
        rate[[11, 29]] = 0.0, 0.0  # silent, the last one too
        values = np.round(rng.lognormal(size=(WINDOWS * CONTEXT, FEATURES)), 1) + 0.1  # many ties
        fires = rng.random((WINDOWS * CONTEXT, FEATURES)) < rate
        # the second half repeats the first, in other documents
        half = WINDOWS // 2
        self.tokens[half:], self.kept[half:] = self.tokens[:half], self.kept[:half]
        for table in (values, fires):
            table[half * CONTEXT :, :10] = table[: half * CONTEXT, :10]
        fires[:, 20] = fires[:, 2] & (rng.random(WINDOWS * CONTEXT) < 0.3)  # 2 covers 20
        self.dense = (values * fires * self.kept.reshape(-1, 1)).astype(np.float32)
        head = Head(of={}, context=CONTEXT, total=WINDOWS, coders={"coder": FEATURES}, columns={})
        recorder = Recorder(folder / "recording", head)
        for start in range(0, WINDOWS, 3):
            chosen = slice(start, start + 3)
            rows = self.dense.reshape(WINDOWS, CONTEXT, FEATURES)[chosen][self.kept[chosen]]
            made = CoderRows(self.kept[chosen], np.zeros_like(self.kept[chosen]), sparse(rows))
            recorder.append(self.tokens[chosen], self.documents[chosen], {"coder": made})
        recorder.commit()
        recorder.close()
        self.recording = RecordedCoder(Recording(folder / "recording"), "coder")

    def places(self, f: int) -> np.ndarray:
        return np.flatnonzero(self.dense[:, f])

    def around(self, place: int) -> tuple:
        window, position = divmod(place, CONTEXT)
        span = range(position - BEFORE, position + AFTER + 1)
        return tuple(self.tokens[window, p] if 0 <= p < CONTEXT else -1 for p in span)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture(params=[8_000_000, 400], ids=["one block", "many blocks"])
def parts(made: Made, request: pytest.FixtureRequest) -> list[Summary]:
    found = list(summarise(made.recording, Wanted(top=4, groups=3, members=3), at_once=request.param))
    assert (len(found) > 1) == (request.param == 400)
    assert np.concatenate([each.first + np.arange(len(each.count)) for each in found]).tolist() == list(range(FEATURES))
    return found


def each_feature(parts: list[Summary]) -> list[tuple[int, Summary, int]]:
    return [(part.first + i, part, i) for part in parts for i in range(len(part.count))]


def test_statistics(made: Made, parts: list[Summary]) -> None:
    at_first = np.zeros((WINDOWS, CONTEXT), bool)
    for window in range(WINDOWS):
        at_first[window, np.flatnonzero(made.kept[window])[0]] = True
    assert made.recording.rows == made.kept.sum()
    for f, part, i in each_feature(parts):
        values = made.dense[made.places(f), f].astype(np.float64)
        assert part.count[i] == len(values)
        if not len(values):
            assert part.mean[i] == part.max[i] == part.entropy[i] == 0
            continue
        assert part.mean[i] == pytest.approx(values.mean(), rel=1e-12)
        assert part.mean_square[i] == pytest.approx((values**2).mean(), rel=1e-12)
        assert (part.min[i], part.max[i]) == (values.min(), values.max())
        assert part.first_position[i] == pytest.approx(at_first.reshape(-1)[made.places(f)].mean())
        assert part.histogram[i].sum() == len(values)
        limits = edges(values.min(), values.max())
        for b in np.flatnonzero(part.histogram[i]):
            inside = (values >= limits[b] * (1 - 1e-6)) & (values <= limits[b + 1] * (1 + 1e-6))
            assert inside.sum() >= part.histogram[i, b]
    assert parts[0].histogram.shape[1] == BINS


def test_top_tokens_and_their_entropy(made: Made, parts: list[Summary]) -> None:
    for f, part, i in each_feature(parts):
        mass: dict[int, float] = defaultdict(float)
        counts: Counter[int] = Counter()
        for place in made.places(f):
            token = int(made.tokens.reshape(-1)[place])
            mass[token] += float(made.dense[place, f])
            counts[token] += 1
        best = sorted(mass.values(), reverse=True)[:TOP_TOKENS]
        assert part.top_shares[i][: len(best)] == pytest.approx(np.array(best) / max(1e-9, sum(mass.values())))
        known = part.top_tokens[i] >= 0
        assert known.sum() == len(best)
        for token, count, share in zip(
            part.top_tokens[i][known], part.top_counts[i][known], part.top_shares[i][known], strict=True
        ):
            assert count == counts[token]
            assert share == pytest.approx(mass[token] / sum(mass.values()))
        p = np.array(list(counts.values())) / max(1, sum(counts.values()))
        assert part.entropy[i] == pytest.approx(-(p * np.log2(p)).sum())


def test_top_windows_are_the_strongest_of_distinct_documents_without_near_duplicates(
    made: Made, parts: list[Summary]
) -> None:
    dropped = 0
    for f, part, _ in each_feature(parts):
        peaks: dict[int, int] = {}
        for place in made.places(f):  # ascending: the earliest of equal maxima stays
            document = int(made.documents.reshape(-1)[place])
            if document not in peaks or made.dense[place, f] > made.dense[peaks[document], f]:
                peaks[document] = int(place)
        expected, seen = [], set()
        for place in sorted(peaks.values(), key=lambda place: (-made.dense[place, f], place))[:8]:
            if made.around(place) not in seen:
                seen.add(made.around(place))
                expected.append(place)
            else:
                dropped += 1
        chosen = part.examples.place[(part.examples.feature == f) & (part.examples.group == 0)]
        assert chosen.tolist() == expected[:4], f
    assert dropped  # the case occurs


def test_quantile_groups_hold_random_firings_of_true_quantiles(made: Made, parts: list[Summary]) -> None:
    for f, part, i in each_feature(parts):
        places = sorted(made.places(f), key=lambda place: (made.dense[place, f], place))
        n = len(places)
        for group in (1, 2, 3):
            members = places[(3 - group) * n // 3 : (4 - group) * n // 3]
            chosen = part.examples.place[(part.examples.feature == f) & (part.examples.group == group)].tolist()
            assert set(chosen) <= set(members)
            assert len(chosen) <= 3
            assert len({place // CONTEXT for place in chosen}) == len({made.around(p) for p in chosen}) == len(chosen)
            if len({made.around(place) for place in members}) > 20:
                assert len(chosen) == 3
            if members:
                values = made.dense[members, f]
                assert part.limits[i, group - 1].tolist() == [values.min(), values.max()]


def test_members_are_drawn_evenly_and_depend_on_the_seed(made: Made) -> None:
    drawn: Counter[float] = Counter()
    places = sorted(made.places(0), key=lambda place: (made.dense[place, 0], place))
    middle = places[len(places) // 3 : 2 * len(places) // 3]
    for seed in range(200):
        part = next(summarise(made.recording, Wanted(4, 3, 3, seed)))
        chosen = part.examples.place[(part.examples.feature == 0) & (part.examples.group == 2)]
        drawn.update(middle.index(place) * 4 // len(middle) for place in chosen)
    assert len(drawn) == 4
    assert min(drawn.values()) > 0.7 * max(drawn.values())


def test_examples_carry_all_activations_of_their_window(made: Made, parts: list[Summary]) -> None:
    seen = 0
    for part in parts:
        examples = part.examples
        assert (np.diff(examples.feature) >= 0).all()
        for j, (f, place) in enumerate(zip(examples.feature, examples.place, strict=True)):
            window = made.dense.reshape(WINDOWS, CONTEXT, FEATURES)[place // CONTEXT, :, f]
            inside = slice(examples.offsets[j], examples.offsets[j + 1])
            assert examples.positions[inside].tolist() == np.flatnonzero(window).tolist()
            assert examples.values[inside].tolist() == window[window > 0].tolist()
            assert place % CONTEXT in examples.positions[inside]
            seen += 1
    assert seen > 200


def test_cofiring_is_counted_over_all_tokens(made: Made, parts: list[Summary]) -> None:
    fires = made.dense > 0
    both = fires.T.astype(np.int64) @ fires
    count, rows = fires.sum(0), made.recording.rows
    rings = np.searchsorted(WIDTHS, np.arange(FEATURES), side="right")
    some = 0
    for part in parts:
        partners, parents = coactive(made.recording, WIDTHS, count, part.first, part.sample)
        for i in range(len(part.count)):
            f = part.first + i
            jaccard = both[f] / np.maximum(1, count[f] + count - both[f])
            jaccard[f] = 0
            others = partners.other[i][partners.other[i] >= 0]
            assert jaccard[others] == pytest.approx(np.sort(jaccard[jaccard > 0])[::-1][:10])
            assert partners.value[i][: len(others)] == pytest.approx(both[f, others] / max(1, count[f]))
            expected = set()
            for p in range(FEATURES):
                n, share = count[f], both[f, p] / max(1, count[f])
                if n and rings[p] < rings[f] and share * rows >= 2 * count[p]:
                    z = 1.96
                    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
                    if (centre - half) / (1 + z * z / n) >= 0.5:
                        expected.add(p)
            found = set(parents.other[i][parents.other[i] >= 0].tolist())
            assert found == expected or (len(found) == 5 and found < expected)
            some += len(found)
    assert some  # the case occurs


def test_dense_features_are_sampled_evenly_over_the_pass(made: Made) -> None:
    part = next(summarise(made.recording, sampled=20))
    own = part.sample.places[part.sample.offsets[0] : part.sample.offsets[1]]
    places = made.places(0)
    assert len(own) == 20
    assert set(own) <= set(places)
    assert np.abs(np.searchsorted(places, own) / len(places) - (np.arange(20) + 0.5) / 20).max() < 0.01
