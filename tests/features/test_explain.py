"""Explanations and their scores, on a coder whose features fire on one known token each, with models that know it."""

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import typed
from fake_endpoint import FakeEndpoint, Reply, always, contexts, failure, is_explaining, oracle
from small_store import SILENT, WIDTHS, make_store

from matryoshka import api
from matryoshka.coder.architecture import CoderConfig, JumpReLUConfig
from matryoshka.coder.card import Card, ModelCard, SourceCard
from matryoshka.coder.coder import SparseCoder
from matryoshka.errors import MatryoshkaError
from matryoshka.features import prompts
from matryoshka.features import trials as shown_contexts
from matryoshka.features.chat import ChatModel, Choice, Malformed
from matryoshka.features.collection import collected
from matryoshka.features.endpoint import Cost, Endpoint
from matryoshka.features.explain import (
    DETECTION,
    FUZZING,
    Explained,
    Judged,
    _others,
    choose,
    explain,
    prepare,
    scores,
)
from matryoshka.features.naming import name_by_rules, rule_name
from matryoshka.features.store import FeatureStore
from matryoshka.features.trials import LEAST, LENGTH, TESTS, TRAINING, Context, Evidence, Trial
from matryoshka.lm.model import LanguageModel
from matryoshka.run import Run
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.scores.saved import load
from matryoshka.study.hooked import HookedCoder
from matryoshka.study.opening import studied

WORDS = [
    " have", " by", " were", " which", " they", " this", " from", " had", " been", " them", " him", " unto", " upon",
    " LORD", " its", " States", " said", " people", " such", " very", " made", " shall",
]  # fmt: skip
"""Tokens that are whole words wherever they stand, so that a reader of the text knows where they are."""
RINGS = (4, 24)
NEVER = 23
"""A feature that never fires; 22 is another."""
EVERY, SOME = Choice(per_ring=100), Choice(per_ring=2)


def planted_coder(lm: LanguageModel) -> SparseCoder:
    """Feature i fires on WORDS[i] and nothing else: a linear readout of the token's embedding, which the first site
    is, and a threshold between this token and all others, whatever their positions."""
    embedding, d = lm.model.get_input_embeddings().weight, lm.info.d_model
    config = CoderConfig(reads=(d,), writes=(d,), d_sae=24, widths=RINGS, activation=JumpReLUConfig(k=1))
    site = SourceCard(reads=("0.resid_pre",), writes=("0.resid_pre",))
    model = ModelCard(name="bundled")
    coder = SparseCoder(
        config, Card(model=model, sources=(site,), context=64, prepend_bos=lm.bos is not None, origin="by hand")
    ).eval()
    whiten = torch.linalg.inv(torch.cov(embedding.T) + 1e-4 * torch.eye(d))
    for i, word in enumerate(WORDS):
        token = lm.tokenizer(word, add_special_tokens=False)["input_ids"][-1]
        row = whiten @ (embedding[token] - embedding.mean(0))
        pre = (embedding - embedding.mean(0)) @ row
        others = pre[torch.arange(len(pre)) != token].max()
        coder.W_enc.data[:, i] = row / (pre[token] - others)
        coder.b_enc.data[i] = -(embedding.mean(0) @ row + others) / (pre[token] - others)
    coder.activation.log_growth.data.fill_(np.log(0.5))  # pyright: ignore
    coder.activation.log_growth.data[NEVER] = 9.0  # pyright: ignore
    coder.W_dec.data[:, :24] = torch.eye(24)
    return coder


@pytest.fixture(scope="module")
def planted(trained: Run, lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("planted") / "run")
    shutil.copytree(trained.path, run.path)
    shutil.rmtree(run.coder)
    planted_coder(lm).save(run.coder)
    api.features(run.path, 80_000, text="bundled")
    return run


@pytest.fixture
def run(planted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy, and an empty cache of answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-mine")
    monkeypatch.setattr("matryoshka.features.endpoint.cache_dir", lambda: tmp_path / "cache")
    shutil.copytree(planted.path, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def hooked(planted: Run, lm: LanguageModel) -> HookedCoder:
    return collected(planted, api.store(planted).about, lm)


def explained(
    run: Run,
    lm: LanguageModel,
    server: FakeEndpoint,
    wanted: Choice = EVERY,
    **settings: object,
) -> Result:
    hooked = collected(run, api.store(run).about, lm)
    asked = Endpoint(ChatModel("fake", server.url, **settings), run.path.parent / "answers", first_wait=0.01)  # pyright: ignore
    return explain(prepare(api.store(run), lm, hooked, asked, wanted))


def test_the_features_are_as_planted(planted: Run) -> None:
    """What the tests below stand on."""
    store = api.store(planted)
    for i, word in enumerate(WORDS):
        assert [each.token for each in store[i].top_tokens] == [word], word
        assert store[i].statistics.count > 60
    assert store[NEVER].statistics.count == 0


# --- scores


def test_who_knows_the_tokens_scores_one_and_by_another_explanation_half(run: Run, lm: LanguageModel) -> None:
    api.store(run).annotate(2, "mine", "a note")
    with FakeEndpoint(oracle) as server:
        result = explained(run, lm, server)
    assert {(each.measure, each.width) for each in result.scores} == {
        (m, w) for m in (DETECTION, FUZZING) for w in RINGS
    }
    assert [row for row in result.details["features"] if row["detection"]["balanced accuracy"] < 1] == []
    for each in result.scores:
        assert each.value == 1
        assert each.interval == (1, 1)
        assert each.units == tuple(map(str, range(len(WORDS))))[: each.width]
        # a little below: a context in which a feature is silent lies around a firing of one of the 21 others
        assert each.null == pytest.approx(0.48, abs=0.12 if each.width == 4 else 0.05)
    store = api.store(run)
    for i, word in enumerate(WORDS):
        assert (store[i].explanation, store[i].explained_by) == (f"the token <{word}>", "fake")
    assert (store[2].label, store[2].note, store[2].name) == ("mine", "a note", "mine")
    assert store[3].name == "the token < which>"
    assert store.search("token < whi") == [3]
    assert [row["explanation"] for row in result.details["features"]] == [f"the token <{word}>" for word in WORDS]
    json.dumps(result.details, allow_nan=False)


@pytest.mark.parametrize("said", [True, False])
def test_who_always_says_the_same_scores_half(said: bool, run: Run, lm: LanguageModel) -> None:
    with FakeEndpoint(always(said)) as server:
        result = explained(run, lm, server, SOME)
    assert [(each.value, each.null) for each in result.scores] == [(0.5, 0.5)] * 4


def test_answers_of_the_wrong_form_are_counted_and_not_guessed(run: Run, lm: LanguageModel) -> None:
    def answer(messages: list[dict[str, str]]) -> str:
        said = oracle(messages)
        if is_explaining(messages):
            return "I would say: " + said if "⟦ were⟧" in messages[1]["content"] else f"```json\n{said}\n```"
        if "< by>" in messages[1]["content"]:
            return json.dumps(dict(list(json.loads(said).items())[:-1]))  # one is missing
        if "< have>" in messages[1]["content"] and len(messages) == 2:
            return "<think>well {</think>" + said.replace("true", "yes").replace("false", "no")
        return said

    with FakeEndpoint(answer) as server:
        result = explained(run, lm, server, Choice([0, 1, 2, 3]))
    assert result.details["no explanation of the right form"] == [2]
    rows = {row["feature"]: row for row in result.details["features"]}
    assert rows.keys() == {0, 1, 3}
    assert rows[0]["detection"]["balanced accuracy"] == 1
    assert rows[1]["detection"]["balanced accuracy"] is None
    assert rows[1]["detection"]["failed"] == 2 * TESTS
    # its own two tests, and those of the one feature that is judged by its explanation
    lost = [judged["failed"] for row in rows.values() for judged in row.values() if isinstance(judged, dict)]
    assert [n > 0 for n in lost].count(True) == 4
    assert result.details["contexts without a judgement of the right form"] == sum(lost)
    assert all(each.units == ("0", "3") and each.value == 1 for each in result.scores)
    with FakeEndpoint(lambda messages: "no JSON") as server, pytest.raises(NotMeasurable, match="fake: none of its"):
        explained(run, lm, server)


def test_a_list_of_one_has_no_other_explanation(run: Run, lm: LanguageModel) -> None:
    with FakeEndpoint(oracle) as server:
        result = explained(run, lm, server, Choice([5]))
    assert [(each.width, each.value, each.null, each.units) for each in result.scores] == [(24, 1, None, ("5",))] * 2


def judged(right: int, wrong: int) -> Judged:
    return Judged(10, right, 10, wrong)


def test_rings_count_as_much_as_they_have_living_features() -> None:
    rng = np.random.default_rng(0)
    found = [
        Explained(index, ring, "", {"detection": judged(*rng.integers(0, 11, 2).tolist()), "fuzzing": judged(10, 0)},
                  {"detection": judged(*rng.integers(0, 11, 2).tolist()), "fuzzing": None})
        for index, ring in [(1, 0), (3, 0), (7, 0), (12, 1), (25, 1), (44, 2)]
    ]  # fmt: skip
    found.append(
        Explained(
            50, 2, "", {"detection": Judged(0, 0, 9, 9, 11), "fuzzing": None}, {"detection": None, "fuzzing": None}
        )
    )
    living, widths = [9, 4, 30], (10, 30, 70)
    for each in scores(found, living, widths):
        inside = [one for one in found if one.index < each.width and one.own[each.measure.name]]  # pyright: ignore
        mean, null = ([], [], []), ([], [], [])
        for one in inside:
            for ring_means, side in ((mean, one.own), (null, one.other)):
                of = side[each.measure.name]  # pyright: ignore
                if of is not None and of.right:
                    ring_means[one.ring].append((of.right_found / 10 + of.wrong_found / 10) / 2)
        for rings, value in ((mean, each.value), (null, each.null)):
            filled = [(living[ring], np.mean(values)) for ring, values in enumerate(rings) if values]
            if filled:
                assert value == pytest.approx(sum(n * m for n, m in filled) / sum(n for n, _ in filled))
            else:
                assert value is None
    assert len(scores(found, living, widths)) == 6
    assert scores(found, [], widths)[2].value == pytest.approx(
        np.mean([one.own["detection"].balanced_accuracy for one in found[:-1]])  # pyright: ignore
    )
    assert [each.width for each in scores(found[4:5], living, widths)] == [30, 70] * 2


def test_unequal_numbers_of_contexts_do_not_help_who_always_says_the_same() -> None:
    truth = [True] * 8 + [False] * 2
    assert Judged().plus(truth, [True] * 10).balanced_accuracy == 0.5
    assert Judged().plus(truth, [False] * 10).plus([True] * 7, None).balanced_accuracy == 0.5
    assert Judged().plus(truth, truth).balanced_accuracy == 1
    assert Judged().plus([True] * 3, [True] * 3).balanced_accuracy is None


def test_the_other_explanation_is_another_text() -> None:
    assert _others({1: "a", 2: "a", 3: "b"}, 0) == {1: "b", 2: "b", 3: "a"}
    assert _others({1: "a", 2: "a"}, 0) == {1: None, 2: None}
    many = _others({i: f"{i}" for i in range(50)}, 0)
    assert sorted(many.values(), key=lambda text: int(text or 0)) == [f"{i}" for i in range(50)]
    assert all(text != f"{i}" for i, text in many.items())


# --- what is shown


@pytest.fixture(scope="module")
def shown(planted: Run, lm: LanguageModel, hooked: HookedCoder) -> list[Evidence]:
    store = api.store(planted)
    known = shown_contexts.silence(store, lm, hooked, range(22), 0)
    return [shown_contexts.evidence(store[i], known, 0) for i in range(22)]


def trials(each: Evidence) -> Iterator[Trial]:
    yield from each.detection
    yield from each.fuzzing


def test_tests_are_of_other_documents_and_windows(planted: Run, shown: list[Evidence]) -> None:
    for each in shown:
        training, tests = each.training, [trial.context for trial in trials(each)]
        assert not {c.window for c in training} & {c.window for c in tests}
        assert not {c.document for c in training} & {c.document for c in tests}
        assert len({c.window for c in training}) == len(training) > TRAINING // 2
        assert len({c.document for c in training}) > 3


def test_where_it_fires_and_where_not(planted: Run, shown: list[Evidence], lm: LanguageModel) -> None:
    windows = studied(planted.coder, "bundled").open_tokens(lm.vocabulary).windows("held_out")
    for each, word in zip(shown, WORDS, strict=False):
        token = lm.tokenizer(word, add_special_tokens=False)["input_ids"][-1]
        assert Counter(trial.right for trial in each.detection) == {True: TESTS, False: TESTS}
        kinds = Counter(trial.right for trial in each.fuzzing)
        assert LEAST < kinds[True] == kinds[False] <= TESTS
        for trial in trials(each):
            context = trial.context
            ids = windows[context.window][0][context.start : context.start + LENGTH]
            assert (
                windows.documents(context.window).min() <= context.document <= windows.documents(context.window).max()
            )
            there = tuple(np.flatnonzero(ids == token).tolist())
            if trial in each.detection:
                assert bool(there) == trial.right
            elif trial.right:
                assert context.marks == there
            else:
                assert context.marks
                assert not set(context.marks) & set(there)
        windows_of = {right: {t.context.window for t in each.fuzzing if t.right == right} for right in (True, False)}
        assert not windows_of[True] & windows_of[False]


def test_neither_place_nor_number_of_marks_tells(shown: list[Evidence]) -> None:
    marks = {
        right: [t.context.marks for each in shown for t in each.fuzzing if t.right == right] for right in (True, False)
    }
    assert Counter(map(len, marks[True])) == Counter(map(len, marks[False]))
    places = {right: np.array([mark for each in found for mark in each]) for right, found in marks.items()}
    assert np.mean(places[True]) == pytest.approx(np.mean(places[False]), abs=0.3)
    assert np.std(places[True]) == pytest.approx(np.std(places[False]), abs=0.3)
    assert len(np.unique(places[True])) > 20
    assert {trial.right for each in shown for trial in each.detection[:3]} == {True, False}, "in random order"


def test_firing_is_what_was_collected(planted: Run, lm: LanguageModel, hooked: HookedCoder) -> None:
    store = api.store(planted)
    examples = [example for i in range(8) for example in store[i].groups[0].examples]
    text = store.windows(example.window for example in examples)
    rows = np.array([text[example.window] for example in examples])
    fires = shown_contexts.firing(lm, hooked, rows, [3, 0, 5])
    for i in (3, 0, 5):
        known = {e.window: e.positions for group in store[i].groups for e in group.examples}
        for row, example in zip(fires[i], examples, strict=True):
            if example.window in known:
                assert np.flatnonzero(row).tolist() == known[example.window]
    assert sum(map(np.sum, fires.values())) > 50


def test_examples_are_of_all_quantile_groups(featured: Run) -> None:
    """On a trained coder, whose activations differ."""
    store = api.store(featured)
    feature = max(
        (store[i] for i in range(20)), key=lambda each: min((len(g.examples) for g in each.groups), default=0)
    )
    nothing = shown_contexts.Silence([], {feature.index: np.zeros((0, 64), bool)})
    found = shown_contexts.evidence(feature, nothing, 0)
    peaks = {example.window: group.name for group in reversed(feature.groups) for example in group.examples}
    assert len({peaks[context.window] for context in found.training}) >= 5
    strengths = sorted(context.strength for context in found.training)
    assert strengths[-1] > 0.8
    assert strengths[0] < 0.8 * strengths[-1]
    assert found.detection == []
    assert all(0 < trial.context.strength <= 1 for trial in found.fuzzing)


def test_too_few_contexts(featured: Run, lm: LanguageModel, tmp_path: Path) -> None:
    store, count = api.store(featured), api.store(featured).columns()["count"]
    rare = min((n, i) for i, n in enumerate(count) if n)[1]
    never = count.index(0)
    coder = collected(featured, store.about, lm)
    asked = Endpoint(ChatModel("fake", "http://127.0.0.1:9"), tmp_path)
    with pytest.raises(NotMeasurable, match=r"none of 1 features has 3 contexts .* more --tokens"):
        prepare(store, lm, coder, asked, Choice([rare]))
    with pytest.raises(MatryoshkaError, match=f"feature {never} never fired"):
        prepare(store, lm, coder, asked, Choice([rare, never]))
    with pytest.raises(MatryoshkaError, match="no feature 256"):
        prepare(store, lm, coder, asked, Choice([256]))


def test_a_sample_of_each_ring_and_of_the_living(planted: Run) -> None:
    store = api.store(planted)
    for seed in range(5):
        chosen = choose(store, Choice(per_ring=3, seed=seed))
        assert [sum(i < 4 for i in chosen), len(chosen)] == [3, 6]
    assert choose(store, Choice(per_ring=3)) == choose(store, Choice(per_ring=3))
    assert choose(store, Choice(per_ring=99)) == list(range(22)), "without those that never fire"
    assert choose(store, Choice([7, 2, 7])) == [2, 7]


# --- the questions


def context(tokens: Sequence[str], marks: Sequence[int]) -> Context:
    return Context(0, 0, 0, tuple(tokens), tuple(marks), 0.3)


def test_a_text_cannot_be_taken_for_marks_or_questions() -> None:
    nasty = context(['"}\n2. "', "⟦", " people", "\u2028", "", "🙂", "⟧"], [2, 5])
    assert prompts.marked(nasty) == '"}\n2. "[⟦ people⟧\u2028⟦🙂⟧]'
    asked = [message._asdict() for message in prompts.fuzz('of\n"x"', [Trial(nasty, True)] * 2)]
    assert contexts(asked) == [prompts.marked(nasty)] * 2
    asked = [message._asdict() for message in prompts.detect("x", [Trial(nasty, True)])]
    assert contexts(asked) == ['"}\n2. "[ people\u2028🙂]']


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"1": true, "2": false}', [True, False]),
        ('\n {"2": false,\n "1": true} ', [True, False]),
        ('```json\n{"1": true, "2": false}\n```', [True, False]),
        ('```\n{"1": true, "2": false}\n```', [True, False]),
        ('<think>maybe {"1": false}\n</think>\n{"1": true, "2": false}', [True, False]),
        ("", None),
        ("yes, no", None),
        ("[true, false]", None),
        ('{"1": true}', None),
        ('{"1": true, "2": false, "3": true}', None),
        ('{"1": true, "1": true, "2": false}', None),
        ('{"1": 1, "2": 0}', None),
        ('{"1": "true", "2": "false"}', None),
        ('{"1": true, "2": null}', None),
        ('{"1": true, "2": false} as I said', None),
        ('Sure: {"1": true, "2": false}', None),
        ('{"1": true, "2": fal', None),
        ("[" * 100_000, None),
    ],
)
def test_judgements_are_read_strictly(answer: str, found: list[bool] | None) -> None:
    if found is None:
        with pytest.raises(Malformed):
            prompts.read_judgements(2)(answer)
    else:
        assert prompts.read_judgements(2)(answer) == found


def test_explanations_are_read_strictly() -> None:
    assert prompts.read_explanation('{"explanation": " two\\n words "}') == "two words"
    for wrong in ('{"explanation": ""}', '{"explanation": 3}', '{"explanation": "a", "more": 1}', '"a"',
                  json.dumps({"explanation": "x" * 301})):  # fmt: skip
        with pytest.raises(Malformed):
            prompts.read_explanation(wrong)


# --- what it costs, and what it asks again


def test_the_cost_is_what_is_asked_then(run: Run, lm: LanguageModel, hooked: HookedCoder) -> None:
    told: list[Cost] = []
    with FakeEndpoint(oracle) as server:
        for _ in range(2):
            asked = Endpoint(ChatModel("fake", server.url, concurrency=3), run.path.parent / "answers")
            plan = prepare(api.store(run), lm, hooked, asked, Choice(per_ring=2))
            told.append(plan.cost)
            explain(plan)
        assert server.most_at_once <= 3
        assert told[0].requests == len(server.asked) == 4 * (1 + 2 * 2 * 2)
        sent = sum(len(message["content"]) for messages in server.asked for message in messages) / 4
        assert sent <= told[0].tokens_in <= 1.5 * sent
        assert told[0].tokens_out == 500 * told[0].requests
        assert told[1] == Cost(), "nothing is asked twice"
        more = prepare(api.store(run), lm, hooked, asked, Choice(per_ring=3)).cost
        # the two more features, and four whose other explanation may be another one now
        assert 2 * 9 <= more.requests <= 2 * 9 + 4 * 4
        assert len(server.asked) == told[0].requests, "nothing is asked by counting"


def test_the_same_call_gives_the_same_numbers(run: Run, lm: LanguageModel) -> None:
    found = []
    for _ in range(2):
        with FakeEndpoint(guessing) as server:
            shutil.rmtree(run.path.parent / "answers", ignore_errors=True)
            found.append(explained(run, lm, server, SOME))
    assert [each.as_json() for each in found[0].scores] == [each.as_json() for each in found[1].scores]
    assert found[0].details["features"] == found[1].details["features"]
    assert 0.2 < found[0].scores[0].value < 0.8


def guessing(messages: list[dict[str, str]]) -> str:
    """By the characters of the text alone."""
    if is_explaining(messages):
        return json.dumps({"explanation": str(sum(map(ord, messages[1]["content"])))})
    return json.dumps({str(i): sum(map(ord, text)) % 2 == 0 for i, text in enumerate(contexts(messages), start=1)})


def test_explanations_that_a_refusal_ends_stay(run: Run, lm: LanguageModel) -> None:
    def answer(messages: list[dict[str, str]]) -> str | Reply:
        return oracle(messages) if is_explaining(messages) else failure(403, "no more money")

    with FakeEndpoint(answer) as server, pytest.raises(MatryoshkaError, match="no more money"):
        explained(run, lm, server, Choice([3, 4]))
    assert api.store(run)[3].explanation == "the token < which>"


# --- names by rules


def test_what_fires_on_one_token_keeps_that_as_its_name(run: Run) -> None:
    store = api.store(run)
    store.annotate(2, "mine")
    store.explain({4: ("by somebody else", "gpt"), 5: ("of before", "rule")})
    assert name_by_rules(store) == (0, 21, 1)
    assert (store[2].name, store[4].name, store[NEVER].name) == ("mine", "by somebody else", "")
    assert store[5].name == f"‘{WORDS[5].strip()}’", "its own names it makes anew"


def test_a_rule_takes_the_place_of_top_tokens_that_tell_less() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [b" the", *(b" word%d" % i for i in range(30))]
    tokens = rng.integers(0, 31, (60, 32))

    def named(fires: np.ndarray, top: list[int], examples: int) -> str:
        return rule_name(tokens[:examples], fires[:examples], top, vocabulary)

    after = np.pad(tokens == 0, ((0, 0), (1, 0)))[:, :-1]
    assert named(after, [3, 4], 60) == 'after " the" (AUC 1.00, 1.00 to 1.00)'
    assert named(after, [3, 4], 12) == "", "too few examples to say so"
    noisy = after & (rng.random(after.shape) < 0.7) | (rng.random(after.shape) < 0.01)
    text = named(noisy, [3, 4], 60)
    auc, low, high = map(float, re.findall(r"\d\.\d+", text))
    assert text.startswith('after " the"')
    assert low < auc < high < 1
    assert named(np.isin(tokens, [3, 4, 5, 6]), [3, 4, 5, 6], 60) == "", "the top tokens say it all"
    assert named(rng.random(tokens.shape) < 0.1, [3], 60) == "", "nothing tells"


def test_rules_that_tell_little_name_nothing(featured: Run, tmp_path: Path) -> None:
    shutil.copy(featured.features_file, tmp_path / "features.sqlite")
    store = FeatureStore(tmp_path / "features.sqlite")
    named = name_by_rules(store)
    assert named.by_rule + named.without_rule == sum(count > 0 for count in store.columns()["count"])
    assert named.without_rule
    for text, _ in store.explanations().values():
        assert float(re.search(r"AUC ([\d.]+)", text)[1]) >= 0.75  # pyright: ignore


# --- in the store


def test_explanations_stay_beside_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store.sqlite")
    store.annotate(3, "a label", "a note")
    store.explain({3: ("  zyx  ", "gpt"), 4: ("wvu" * 1000, "rule"), 5: ("tsr\ud800", "rule")})
    store.explain({5: ("", "rule")})
    again = FeatureStore(store.path)
    assert again.explanations() == {3: ("zyx", "gpt"), 4: (("wvu" * 1000)[:1000], "rule")}
    assert (again[3].label, again[3].note, again[3].explanation, again[3].explained_by) == (
        "a label",
        "a note",
        "zyx",
        "gpt",
    )
    assert (again[3].name, again[4].name[:3], again[6].name) == ("a label", "wvu", again[6].summary)
    assert (again.search("zyx"), again.search("a label"), again.search("tsr")) == ([3], [3], [])
    assert again.brief([3, 4])[4].name == again[4].explanation
    again.annotate(3, label="")
    assert (again[3].name, again.search("zyx")) == ("zyx", [3])
    assert again.columns()["explanation"][3] == "zyx"
    for wrong in ({-1: ("x", "y")}, {WIDTHS[-1]: ("x", "y")}):
        with pytest.raises(MatryoshkaError, match="no feature"):
            again.explain({6: ("not this either", "rule"), **wrong})
    assert 6 not in again.explanations()


def as_version_1(path: Path) -> Path:
    """A store as it was before there were explanations."""
    import sqlite3

    store = make_store(path, {3: ("mine", "")})
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE explanations")
        db.execute("PRAGMA user_version = 1")
    return path


@pytest.mark.parametrize(
    "change", [lambda store: store.explain({3: ("zyx", "rule")}), lambda store: store.annotate(4, "other")]
)
def test_an_older_store_opens_and_is_brought_up_to_date_by_a_change(
    change: Callable[[FeatureStore], None], tmp_path: Path
) -> None:
    path = as_version_1(tmp_path / "store.sqlite")
    before = path.read_bytes()
    store, beside = FeatureStore(path), FeatureStore(path)
    assert (store[3].label, store[3].explanation, store.explanations()) == ("mine", "", {})
    assert store.columns()["explanation"] == [""] * WIDTHS[-1]
    assert store.brief([SILENT, 3])[3].name == "mine"
    assert path.read_bytes() == before, "reading changes nothing"
    with pytest.raises(MatryoshkaError, match="no feature"):
        store.explain({99: ("x", "y")})
    change(store)
    beside.annotate(3, note="opened before the change")
    for each in (store, beside, FeatureStore(path)):
        assert each[3].label == "mine"
        assert each[3].note == "opened before the change"
        assert each.explanations() == store.explanations()
        assert each.search("zyx") == sorted(store.explanations())
    FeatureStore(path).explain({7: ("later", "rule")})
    assert beside.explanations()[7] == ("later", "rule") or replace(beside[7]).explanation == "later"


def test_collecting_anew_keeps_explanations(run: Run) -> None:
    api.store(run).explain({1: ("zyx", "gpt")})
    api.features(run.path, 5000, overwrite=True, text="bundled")
    assert api.store(run).explanations() == {1: ("zyx", "gpt")}
    assert api.store(run).search("zyx") == [1]


# --- the command


def test_the_command_without_a_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed(capsys, "explain", run.path)
    assert (code, err) == (0, "")
    assert "0 features named by an n-gram that tells clearly better than their top tokens" in out
    assert "22 keep their top tokens" in out
    assert api.store(run)[3].name == "‘which’"


def test_the_command_with_a_model(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["explain", run.path, "--model", "fake", "--per-ring", "1", "--price-in", "10", "--price-out", "100"]
    with FakeEndpoint(oracle) as server:
        words += ["--base-url", server.url]
        code, out, err = typed(capsys, *words)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "--yes goes on without a question" in err
        assert "18 questions to fake: about" in out
        assert "at most 9,000 of answers, at most 1.0" in out
        assert not server.asked
        code, out, err = typed(capsys, *words, "--yes")
        assert (code, err) == (0, "")
        assert re.search(r"first 4 +detection +1\.000", out)
        assert re.search(r"first 24 +fuzzing +1\.000", out)
        assert len(server.asked) == 18
        code, out, _ = typed(capsys, *words)
        assert "0 questions to fake" in out, "without a question, as nothing is asked"
        assert code == 0
    saved = load(run.evaluation, "detection")
    assert [(each.measure.name, each.width, each.value) for each in saved.result.scores] == [
        (name, width, 1) for name in ("detection", "fuzzing") for width in RINGS
    ]
    assert saved.identity["coder"] == api.store(run).about.coder
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(b"secret-of-mine" in file.read_bytes() for file in files)
    assert server.keys == ["Bearer secret-of-mine"] * 18


@pytest.mark.parametrize(("said", "asked"), [("n", 0), ("", 0), ("y", 18)])
def test_on_a_terminal_it_asks(
    said: str, asked: int, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: said)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with FakeEndpoint(oracle) as server:
        code, _, err = typed(
            capsys, "explain", run.path, "--model", "fake", "--per-ring", "1", "--base-url", server.url
        )
        assert len(server.asked) == asked
    assert code == (0 if asked else 2)
    assert ("nothing was asked" in err) != bool(asked)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent"], "absent: no run here"),
        (["{bare}"], "no features here; collect them with: matryoshka features"),
        (["{bare}", "--model", "fake"], "no features here"),
        (["{run}", "--base-url", "http://127.0.0.1:1/v1"], "give its name by --model"),
        (["{run}", "--features", "3"], "give its name by --model"),
        (["{run}", "--model", "fake", "--base-url", "http://example.org/v1"], "would travel unencrypted"),
        (["{run}", "--model", "fake", "--key-variable", "NO_SUCH"], "set the environment variable NO_SUCH"),
        (["{run}", "--model", "fake", "--features", "3", "99"], "no feature 99; there are 0 to 23"),
        (["{run}", "--model", "fake", "--features", "23"], "feature 23 never fired"),
        (["{run}", "--model", "fake", "--temperature", "warm"], "--temperature"),
        (["{run}", "--model", "fake", "--concurrency", "0"], "--concurrency"),
        (["{run}", "--modle", "fake"], "did you mean '--model'"),
        (["{run}", "--model", "fake", "--base-url", "{gone}", "--features", "3", "--yes"], "refuses, status 404"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, run: Run, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(lambda messages: failure(404, "not here")) as server:
        names = {"run": run.path, "bare": trained.path, "gone": server.url}
        code, _, err = typed(capsys, "explain", *(word.format(**names) for word in words))
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert api.store(run).explanations() == {}
    assert not (run.evaluation / "detection.json").exists()


def test_what_cannot_be_measured_is_said_and_saved(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeEndpoint(lambda messages: "no JSON") as server:
        words = ("--model", "fake", "--base-url", server.url, "--features", "3", "--yes")
        code, out, _ = typed(capsys, "explain", run.path, *words)
    assert code == 0
    assert "not measured: fake: none of its answers was an explanation" in out
    assert api.results(run, "detection").scores == ()
