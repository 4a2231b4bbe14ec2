"""Asking a chat model: what passes is asked again, what was answered never, and nobody but the server sees the key."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, Reply, completion, failure

from matryoshka.errors import MatryoshkaError
from matryoshka.features import endpoint as module
from matryoshka.features.chat import OPENAI, ChatModel, Malformed, Message, Messages
from matryoshka.features.endpoint import ATTEMPTS, REPAIRS, Cost, Endpoint

KEY = "sk-secret-4711"
SOON = 0.01


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def question(text: str) -> Messages:
    return Message("system", "be brief"), Message("user", text)


def asking(server: FakeEndpoint, folder: Path, **settings: object) -> Endpoint:
    return Endpoint(ChatModel("fake", server.url, **settings), folder, first_wait=SOON)  # pyright: ignore


def in_turn(*replies: str | Reply) -> Callable[[list[dict[str, str]]], str | Reply]:
    """One reply after the other, the last for ever."""
    left = list(replies)
    return lambda messages: left.pop(0) if len(left) > 1 else left[0]


def echo(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]


def test_what_was_answered_is_never_asked_again(tmp_path: Path) -> None:
    with FakeEndpoint(echo) as server:
        assert asking(server, tmp_path).cached(question("é🙂\n")) is None
        assert [asking(server, tmp_path).ask(question("é🙂\n")) for _ in range(3)] == ["é🙂\n"] * 3
        assert len(server.asked) == 1
        assert asking(server, tmp_path).cached(question("é🙂\n")) == "é🙂\n"
        asking(server, tmp_path).ask(question("another"))
        asking(server, tmp_path, temperature=None).ask(question("another"))
        asking(server, tmp_path, max_tokens=7).ask(question("another"))
        assert len(server.asked) == 4, "other words and other parameters are other questions"
    assert server.bodies[-2].keys() == {"model", "max_tokens", "messages"}
    assert server.bodies[-1] == {
        "model": "fake",
        "max_tokens": 7,
        "temperature": 0.0,
        "messages": [message._asdict() for message in question("another")],
    }


def test_a_damaged_answer_is_none(tmp_path: Path) -> None:
    with FakeEndpoint(echo) as server:
        asking(server, tmp_path).ask(question("x"))
        (file,) = tmp_path.rglob("*.json")
        for content in (b"", file.read_bytes()[:40], b"[]", b'{"answer": 3}', b"\xff"):
            file.write_bytes(content)
            assert asking(server, tmp_path).cached(question("x")) is None
        assert asking(server, tmp_path).ask(question("x")) == "x"
        assert json.loads(file.read_text())["answer"] == "x"


@pytest.mark.parametrize(
    "passing",
    [
        [failure(429, "slow down", retry_after="0")],
        [failure(500, "oh"), failure(500, "oh")],
        [failure(502, "oh"), Reply(503, "<html>"), failure(504, "oh"), failure(529, "overloaded")],
        [Reply(body=completion("half of it"), cut=True)],
        [Reply(body="", cut=True)],
        [Reply(body="{not json")],
        [Reply(body='{"error": {"message": "the model behind has failed"}}')],
        [Reply(body='{"choices": []}')],
        [Reply(body="[1]")],
        [Reply(seconds=1.5)],
    ],
    ids=["429", "500", "many", "cut", "empty", "no-json", "relay", "no-choice", "list", "time-out"],
)
def test_what_passes_is_asked_again(passing: list[Reply], tmp_path: Path) -> None:
    with FakeEndpoint(in_turn(*passing, "at last")) as server:
        assert asking(server, tmp_path, timeout=0.5).ask(question("x")) == "at last"
        assert len(server.asked) == len(passing) + 1
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_it_waits_as_long_as_the_server_says(tmp_path: Path) -> None:
    with FakeEndpoint(in_turn(failure(429, "slow down", retry_after="0.4"), "a")) as server:
        started = time.monotonic()
        assert asking(server, tmp_path).ask(question("x")) == "a"
        assert time.monotonic() - started >= 0.4
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    with FakeEndpoint(in_turn(failure(503, "at noon", retry_after=soon), "b")) as server:
        started = time.monotonic()
        assert asking(server, tmp_path).ask(question("x")) == "b"
        assert time.monotonic() - started >= 1  # a date has whole seconds
    with FakeEndpoint(in_turn(failure(429, "tomorrow", retry_after="86400"), "c")) as server:
        with pytest.raises(MatryoshkaError, match="status 429: tomorrow, and asks to wait 86,400 seconds"):
            asking(server, tmp_path).ask(question("y"))
        assert len(server.asked) == 1


def test_waits_double_and_end(tmp_path: Path) -> None:
    with FakeEndpoint(lambda messages: failure(500, "never")) as server:
        started = time.monotonic()
        with pytest.raises(MatryoshkaError, match=f"status 500: never.*{ATTEMPTS} attempts.*goes on with the rest"):
            asking(server, tmp_path).ask(question("x"))
        least = SOON * (2 ** (ATTEMPTS - 1) - 1) / 2
        assert time.monotonic() - started >= least
        assert len(server.asked) == ATTEMPTS
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "no such parameter"), (401, "is the key in"), (403, "may the key"), (404, "is there a model 'fake'")],
)
def test_a_refusal_stops_at_once_in_one_line(status: int, hint: str, tmp_path: Path) -> None:
    with FakeEndpoint(lambda messages: failure(status, f"no such parameter,\nor {KEY}")) as server:
        with pytest.raises(MatryoshkaError) as caught:
            asking(server, tmp_path, concurrency=1).converse_all({question(str(i)): str for i in range(9)})
        assert len(server.asked) == 1
    said = str(caught.value)
    assert hint in said
    assert str(status) in said
    assert "\n" not in said
    assert KEY not in said


def test_a_page_instead_of_an_answer(tmp_path: Path) -> None:
    page = Reply(body="<html>welcome</html>", headers={"Content-Type": "text/html"})
    with FakeEndpoint(lambda messages: page) as server:
        with pytest.raises(MatryoshkaError, match="answers with a page"):
            asking(server, tmp_path).ask(question("x"))
        assert len(server.asked) == 1


def test_nobody_is_there(tmp_path: Path) -> None:
    with FakeEndpoint(echo) as server:
        gone = asking(server, tmp_path)
    with pytest.raises(MatryoshkaError, match="no connection"):
        gone.ask(question("x"))


def test_never_more_at_once_than_allowed(tmp_path: Path) -> None:
    with FakeEndpoint(lambda messages: Reply(body=completion("1"), seconds=0.05)) as server:
        questions = {question(str(i)): int for i in range(20)}
        done: list[tuple[int, int]] = []
        found = asking(server, tmp_path, concurrency=3).converse_all(questions, lambda *each: done.append(each))
        assert found == dict.fromkeys(questions, 1)
        assert done == [(i, 20) for i in range(1, 21)]
        assert server.most_at_once == 3


def number(answer: str) -> int:
    if not answer.isdigit():
        raise Malformed("it is no number")
    return int(answer)


def test_a_malformed_answer_goes_back_and_is_counted_as_none_if_it_stays_so(tmp_path: Path) -> None:
    with FakeEndpoint(in_turn("seven", "7")) as server:
        endpoint = asking(server, tmp_path)
        assert endpoint.known(question("x"), number) == (False, None)
        assert endpoint.converse(question("x"), number) == 7
        assert [turn["role"] for turn in server.asked[1]] == ["system", "user", "assistant", "user"]
        assert server.asked[1][2]["content"] == "seven"
        assert "it is no number" in server.asked[1][3]["content"]
        assert endpoint.known(question("x"), number) == (True, 7)
    for stubborn in ("seven", ""):
        with FakeEndpoint(lambda messages, stubborn=stubborn: stubborn) as server:
            endpoint = asking(server, tmp_path)
            assert endpoint.converse(question("y"), number) is None
            assert endpoint.converse(question("y"), number) is None
            assert len(server.asked) == 1 + REPAIRS
            assert endpoint.known(question("y"), number) == (True, None)
            assert endpoint.cost({question("y"): number}) == Cost()


def test_cost_counts_what_is_not_known(tmp_path: Path) -> None:
    with FakeEndpoint(lambda messages: "7") as server:
        endpoint = asking(server, tmp_path, max_tokens=50)
        questions = {question("x" * 400): number, question("y" * 40): number}
        assert endpoint.cost(questions) == Cost(2, (2 + 4 + 100 + 4) + (2 + 4 + 10 + 4), 100)
        endpoint.converse(question("x" * 400), number)
        assert endpoint.cost(questions) == Cost(1, 20, 50)
        assert Cost(1, 2_000_000, 500_000).price(1.5, 4.0) == 5


PROGRAM = """
import sys
from pathlib import Path
from matryoshka.features.chat import ChatModel, Message
from matryoshka.features.endpoint import Endpoint
questions = {(Message("user", str(i)),): str for i in range(12)}
endpoint = Endpoint(ChatModel("fake", sys.argv[1], concurrency=int(sys.argv[3])), Path(sys.argv[2]))
try:
    print(sorted(map(int, endpoint.converse_all(questions).values())))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("end", "concurrency"), [(signal.SIGKILL, 3), (signal.SIGINT, 1)])
def test_ended_half_way_it_goes_on_with_the_rest(end: signal.Signals, concurrency: int, tmp_path: Path) -> None:
    stuck, go = threading.Semaphore(0), threading.Event()

    def answer(messages: list[dict[str, str]]) -> str:
        if int(messages[0]["content"]) >= 5 and not go.is_set():
            stuck.release()
            go.wait(20)
        return echo(messages)

    with FakeEndpoint(answer) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path), str(concurrency)]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(concurrency):
            assert stuck.acquire(timeout=30)
        before = dict(server.times_asked)
        first.send_signal(end)
        if end == signal.SIGKILL:
            first.wait(20)
        else:
            time.sleep(0.3)  # what is under way is waited for
        go.set()
        out, _ = first.communicate(timeout=20)
        assert out.strip() == ("interrupted" if end == signal.SIGINT else "")
        assert set(before.values()) == {1}
        assert len(before) == 5 + concurrency
        answered = 5 + (concurrency if end == signal.SIGINT else 0)
        assert len(list(tmp_path.rglob("*.json"))) == answered
        second = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert second.stdout.strip() == str(list(range(12)))
        asked = server.times_asked
    assert len(asked) == 12
    assert sum(asked.values()) == 12 + (12 - answered) - (12 - len(before)), "nothing that was answered is asked again"
    for text in range(5):
        assert asked[json.dumps([{"role": "user", "content": str(text)}])] == 1


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTHER_KEY", f" {KEY}-2\n")
    with (
        caplog.at_level(logging.DEBUG),
        FakeEndpoint(in_turn(failure(500, KEY), "a", failure(401, f"{KEY}-2"))) as server,
    ):
        asking(server, tmp_path).ask(question("x"))
        with pytest.raises(MatryoshkaError) as caught:
            asking(server, tmp_path, key_variable="OTHER_KEY").ask(question("y"))
        assert server.keys == [f"Bearer {KEY}"] * 2 + [f"Bearer {KEY}-2"]
    seen = [caplog.text, *capsys.readouterr(), str(caught.value), repr(ChatModel("fake", server.url))]
    seen += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert "fake" in "".join(seen)
    assert not any(KEY in text for text in seen)


def test_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with FakeEndpoint(echo) as server:  # a server on this machine mostly wants none
        assert asking(server, tmp_path).ask(question("x")) == "x"
    with pytest.raises(MatryoshkaError, match=r"no key for https://example.org/v1: set .* OPENAI_API_KEY"):
        Endpoint(ChatModel("fake", "https://example.org/v1/"), tmp_path).check()
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(MatryoshkaError, match="OPENAI_API_KEY holds what cannot be a key") as caught:
        Endpoint(ChatModel("fake"), tmp_path).check()
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://example.org/v1", "would travel unencrypted"),
        ("http://127.0.0.1.example.org/v1", "would travel unencrypted"),
        ("http://10.0.0.1:8000/v1", "would travel unencrypted"),
        ("ftp://example.org", "is no address"),
        ("example.org/v1", "is no address"),
        ("https://", "is no address"),
        ("http://localhost:port/v1", "is no address"),
        (f"https://me:{KEY}@example.org/v1", "has more than a path"),
        (f"https://example.org/v1?key={KEY}", "has more than a path"),
    ],
)
def test_addresses_that_a_key_is_not_sent_to(url: str, line: str) -> None:
    with pytest.raises(MatryoshkaError, match=line) as caught:
        ChatModel("fake", url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", [OPENAI, "http://localhost:11434/v1", "http://[::1]:8000/v1/", "http://127.0.0.2/v1"])
def test_addresses_that_are_fine(url: str) -> None:
    model = ChatModel("fake", url)
    assert model.base_url == url.rstrip("/")
    assert model.is_here == (url != OPENAI)
    assert ("max_completion_tokens" in model.parameters) == (url == OPENAI)


def test_no_proxy_sees_what_is_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint(echo) as proxy, FakeEndpoint(echo) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert asking(server, tmp_path).ask(question("x")) == "x"
        assert (len(server.asked), len(proxy.asked)) == (1, 0)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MatryoshkaError, match=r"needs openai: pip install 'matryoshka-sae\[autointerp\]'"):
        Endpoint(ChatModel("fake"), tmp_path).check()


def test_the_package_is_imported_only_when_something_is_asked() -> None:
    code = "import sys; from matryoshka import api, cli; sys.exit('openai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_answers_lie_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATRYOSHKA_CACHE", str(tmp_path))
    with FakeEndpoint(echo) as server:
        Endpoint(ChatModel("fake", server.url)).ask(question("x"))
    assert [file.parent.parent.name for file in tmp_path.rglob("*.json")] == ["answers"]
    assert module.LONGEST_WAIT >= 60
