"""The server, spoken to over sockets: what it answers, what it refuses, and that nothing leaves the page's folder."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from planted_analyses import plant
from small_store import make_store

from matryoshka.errors import MatryoshkaError
from matryoshka.features.reading import Reading
from matryoshka.features.store import NOTE_LENGTH, FeatureStore
from matryoshka.report import data
from matryoshka.report.page_analyses import map_view, pair_examples, tree_view
from matryoshka.report.page_results import results
from matryoshka.report.server import LARGEST_BODY, WEB, Shown, serve
from matryoshka.run import Run

JSON = {"Content-Type": "application/json"}


def read(text: str) -> Reading:
    """Stands for a language model: each character a token, and a feature that fires on the second."""
    if not text:
        raise MatryoshkaError("the text is too short:\n  nothing there")
    if text == "fail":
        raise RuntimeError("a bug")
    return Reading(list(text), [i > 0 for i in range(len(text))], {3: ([1], [2.0]), 9: ([1, 2], [0.5, 30.0])})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "features.sqlite"


@pytest.fixture(scope="module")
def store(path: Path) -> FeatureStore:
    return make_store(path)


@pytest.fixture(scope="module")
def run(store: FeatureStore) -> Run:
    run = Run(store.path.parent)
    plant(run, store)
    (run.path / "report").mkdir()
    (run.path / "report" / "report.html").write_text("<style>p {color: red}</style><p>found</p>")
    return run


@pytest.fixture(scope="module")
def port(run: Run, store: FeatureStore) -> int:
    found: Queue[str] = Queue()
    shown = [Shown("a </script> run", run, store, read), Shown("second", Run(run.path / "none"), store, read)]
    threading.Thread(target=serve, args=(shown, 0, found.put), daemon=True).start()
    return int(found.get(timeout=20).split(":")[2].strip("/"))


class Answer:
    """A response, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


Ask = Callable[..., Answer]


@pytest.fixture
def ask(port: int) -> Ask:
    def ask(method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """As the page asks; headers by name, with _ for -; None leaves one out."""
        sent = {"Host": f"127.0.0.1:{port}"}
        if body is not None:
            sent |= JSON | {"Origin": f"http://127.0.0.1:{port}"}
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return Answer(connection.getresponse())

    return ask


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


# --- what it answers


def test_runs_overview_and_cards(ask: Ask, store: FeatureStore) -> None:
    assert ask("GET", "/api/runs").json == {
        "live": True,
        "runs": [
            {"key": "0", "name": "a </script> run", "features": 70},
            {"key": "1", "name": "second", "features": 70},
        ],
    }
    overview = ask("GET", "/api/runs/1").json
    assert overview == json.loads(data.to_json(data.overview(store, "1", "second")))
    assert overview["columns"]["tokens"] == store.columns()["tokens"], "whatever is in them"
    assert {len(column) for column in overview["columns"].values()} == {70}
    for i in range(70):
        assert ask("GET", f"/api/runs/0/features/{i}").json == json.loads(data.to_json(data.card(store, i)))


def test_what_was_found_of_a_run(ask: Ask, run: Run, store: FeatureStore) -> None:
    for part, view in (("results", results), ("map", map_view), ("tree", tree_view)):
        assert ask("GET", f"/api/runs/0/{part}").json == json.loads(data.to_json(view(run, store)))
    assert ask("GET", "/api/runs/0/pairs/0").json == json.loads(data.to_json(pair_examples(run, store, 0)))
    for wrong, status in (
        ("0/pairs/9", 400),
        ("0/pairs/x", 404),
        ("0/pairs/-1", 404),
        ("1/pairs/0", 400),
        ("7/map", 404),
    ):
        answer = ask("GET", f"/api/runs/{wrong}")
        assert answer.status == status
        assert "\n" not in answer.json["error"]
    assert "matryoshka analyze RUN" in ask("GET", "/api/runs/1/tree").json["why"]


def test_a_report_may_style_itself_and_no_more(ask: Ask) -> None:
    answer = ask("GET", "/api/runs/0/report")
    assert answer.body == b"<style>p {color: red}</style><p>found</p>"
    assert answer.headers["content-type"].startswith("text/html")
    [policy] = answer.headers.get_all("content-security-policy", [])
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ask("GET", "/api/runs/1/report").status == 404


def test_a_card_is_what_the_page_expects(store: FeatureStore) -> None:
    card, feature = data.card(store, 12), store[12]
    assert list(card["statistics"]) == ["density", "count", "mean", "mean_square", "max", "entropy", "first"]
    assert len(card["histogram"]["edges"]) == len(card["histogram"]["counts"]) + 1
    assert card["groups"][0]["examples"][0]["tokens"] == feature.groups[0].examples[0].tokens
    assert card["groups"][0]["examples"][0]["values"] == [
        float(f"{x:.5g}") for x in feature.groups[0].examples[0].values
    ]
    assert list(card["children"][0]) == ["index", "ring", "name", "given_this", "given_other", "lift"]
    assert "logits_why" not in card
    assert set(card) == {
        "index", "ring", "label", "note", "explanation", "explained_by", "summary", "flags", "statistics", "histogram",
        "top_tokens", "groups", "logits", "cosine", "coactive", "parents", "children",
    }  # fmt: skip


def test_labels_and_notes_are_written(ask: Ask, path: Path) -> None:
    nasty = "</script><b>\u202e\u200b\u2028\0 🙂🏽"
    assert ask("PUT", "/api/runs/0/features/3", {"label": " a label ", "note": nasty}).json == {
        "label": "a label",
        "note": nasty,
    }
    assert ask("PUT", "/api/runs/0/features/3", {"note": "another"}).json == {"label": "a label", "note": "another"}
    assert ask("PUT", "/api/runs/0/features/3", {}).json == {"label": "a label", "note": "another"}
    assert FeatureStore(path).annotations()[3] == ("a label", "another")
    assert ask("GET", "/api/runs/0").json["columns"]["label"][3] == "a label"
    assert ask("GET", "/api/runs/1/features/3").json["note"] == "another"
    lone = ask("PUT", "/api/runs/0/features/4", b'{"label": "a\\ud800b", "note": "\\ud83d\\ude42\\udc00"}')
    assert lone.json == {"label": "a\ufffdb", "note": "🙂\ufffd"}
    longest = "🙂" * NOTE_LENGTH
    assert (
        ask("PUT", "/api/runs/0/features/5", json.dumps({"note": longest}, ensure_ascii=False).encode()).status == 200
    )


def test_a_text_is_read(ask: Ask) -> None:
    found = ask("POST", "/api/runs/0/try", b'{"text": "<\\ud800\\u0000x"}').json
    assert (found["tokens"], found["counted"]) == (["<", "\ufffd", "\0", "x"], [False, True, True, True])
    assert {each["index"]: (each["max"], each["positions"]) for each in found["features"]} == {
        3: (2.0, [1]),
        9: (30.0, [1, 2]),
    }
    relative = [each["max"] / (each["typical_max"] or each["max"]) for each in found["features"]]
    assert relative == sorted(relative, reverse=True)
    refused = ask("POST", "/api/runs/0/try", {"text": ""})
    assert (refused.status, refused.json) == (400, {"error": "the text is too short: nothing there"})
    assert ask("POST", "/api/runs/0/try", {}).status == 400


def test_a_bug_is_answered_too(ask: Ask) -> None:
    failed = ask("POST", "/api/runs/0/try", {"text": "fail"})
    assert (failed.status, failed.json) == (500, {"error": "RuntimeError: a bug"})


def test_the_page_and_its_files(ask: Ask) -> None:
    page = ask("GET", "/")
    assert page.body == ask("GET", "/index.html").body == (WEB / "index.html").read_bytes()
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode()):
        answer = ask("GET", f"/{name}")
        assert (answer.status, answer.body) == (200, (WEB / name).read_bytes())
        kind = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}[Path(name).suffix]
        assert kind in answer.headers["content-type"], "nosniff: a browser takes nothing else"


def test_every_answer_has_the_headers_that_protect_it(ask: Ask) -> None:
    for answer in (ask("GET", "/"), ask("GET", "/api/runs"), ask("GET", "/none"), ask("GET", "/", Host="evil.example")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["access-control-allow-origin"] is None


def test_head_has_no_body(ask: Ask) -> None:
    for name in ("/", "/api/runs", "/api/runs/0/features/1"):
        answer = ask("HEAD", name)
        assert (answer.status, answer.body) == (200, b"")


# --- whom it answers


def test_other_hosts_are_refused(ask: Ask, port: int) -> None:
    """Another site's name may be made to point here."""
    assert ask("GET", "/api/runs", Host=f"localhost:{port}").status == 200
    for host in (
        "evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1:{port}.evil.example",
        f"127.0.0.2:{port}", f"[::1]:{port}", f"0.0.0.0:{port}", f"localhost.:{port}", "",
    ):  # fmt: skip
        for name in ("/", "/api/runs", "/api/runs/0/features/1"):
            answer = ask("GET", name, Host=host)
            assert answer.status == 403, host
            assert list(answer.json) == ["error"]
    assert b" 403 " in raw(port, b"GET /api/runs HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    two = f"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n".encode()
    assert b" 400 " in raw(port, two).split(b"\r\n")[0]
    forwarded = ask("GET", "/api/runs", Host="evil.example", X_Forwarded_Host=f"127.0.0.1:{port}")
    assert forwarded.status == 403


@pytest.mark.parametrize("origin", [None, "null", "", "http://evil.example", "https://127.0.0.1:{}", "http://127.0.0.1",
                                    "http://127.0.0.1:{}.evil.example", "http://127.0.0.1:{}/"])  # fmt: skip
def test_changes_of_other_origins_are_refused(ask: Ask, port: int, store: FeatureStore, origin: str | None) -> None:
    given: Any = origin and origin.format(port)
    before = store.annotations()
    for method, name, body in (
        ("PUT", "/api/runs/0/features/7", {"label": "theirs"}),
        ("POST", "/api/runs/0/try", {"text": "theirs"}),
        ("DELETE", "/api/runs/0/features/7", {}),
        ("OPTIONS", "/api/runs/0/features/7", {}),
    ):
        assert ask(method, name, body, Origin=given).status == 403
    assert store.annotations() == before
    assert ask("PUT", "/api/runs/0/features/60", {"label": "ours"}, Origin=f"http://localhost:{port}").status == 200


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
                                  "text/plain; application/json", "application/jsonx"])  # fmt: skip
def test_only_json_is_taken(ask: Ask, store: FeatureStore, kind: Any) -> None:
    assert ask("PUT", "/api/runs/0/features/7", {"label": "x"}, Content_Type=kind).status == 415
    assert 7 not in store.annotations()
    assert (
        ask("PUT", "/api/runs/0/features/61", {"label": "x"}, Content_Type="Application/JSON; charset=utf-8").status
        == 200
    )


def test_other_methods_are_refused(ask: Ask) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        for name in ("/", "/api/runs", "/api/runs/0", "/index.html", "/card.js"):
            assert ask(method, name, {}).status == 405, (method, name)
    for method in ("POST", "DELETE", "PATCH"):
        assert ask(method, "/api/runs/0/features/1", {}).status == 405
    assert ask("PUT", "/api/runs/0/try", {}).status == 405


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"1", b"\xff\xfe", b"[" * 100_000, b'{"label": 1}', b'{"label": null}',
     b'{"label": ["a"]}', b'{"index": "1"}', b'{"\\ud800": "1"}', b'{"label": NaN}', b'{"text": "x"}',
     b'{"label": "' + b"x" * 201 + b'"}', b'{"note": "' + b"x" * 20_001 + b'"}'],
    ids=range(17),
)  # fmt: skip
def test_bodies_that_are_not_expected(ask: Ask, store: FeatureStore, body: bytes) -> None:
    answer = ask("PUT", "/api/runs/0/features/7", body)
    assert answer.status == 400
    assert "\n" not in answer.json["error"]
    assert 7 not in store.annotations()


def test_large_bodies_are_refused(ask: Ask, port: int, store: FeatureStore) -> None:
    assert ask("PUT", "/api/runs/0/features/7", b" " * (LARGEST_BODY + 1)).status == 413
    head = f"PUT /api/runs/0/features/7 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    endless = head + "Connection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b" 413 " in raw(port, endless.encode() + 4 * chunk).split(b"\r\n")[0]
    assert 7 not in store.annotations()


def test_what_is_not_there(ask: Ask) -> None:
    for name in (
        "/api", "/api/", "/api/runs/", "/api/runs/2", "/api/runs/-1", "/api/runs/x%00", "/api/runs/0/features",
        "/api/runs/0/features/70", "/api/runs/0/features/-1", "/api/runs/0/features/1.0", "/api/runs/0/features/x",
        "/api/runs/0/features/%D9%A3", "/api/runs/0/features/" + "9" * 5000, "/api/runs/9/features/1", "/none.js",
        "/%00", "/x%00.js", "/" + "x" * 5000, "/%ff%fe", "/%ED%A0%80", "/fonts", "/fonts/",
    ):  # fmt: skip
        answer = ask("GET", name)
        assert answer.status == 404, name
        assert len(answer.json["error"]) < 1000
    assert ask("PUT", "/api/runs/0/features/70", {"label": "x"}).status == 404


@pytest.mark.parametrize("step", ["..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..%00", "%c0%ae%c0%ae", "....", "..;"])
@pytest.mark.parametrize("slash", ["/", "%2f", "%5c", "\\", "//", "%252f"])
def test_nothing_outside_of_the_page_is_read(port: int, step: str, slash: str) -> None:
    up, secret = step + slash, Path(__file__).parents[1] / "conftest.py"
    names = ["server.py", "data.py", slash.join(secret.parts[1:])]
    for depth, name in ((1, names[0]), (2, names[1]), (1, slash.join(["report", names[0]])), (12, names[2])):
        for front in ("/", "/fonts/", "//", "/api/runs/", "/fonts" + slash):
            request = f"GET {front}{up * depth}{name} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            answer = raw(port, request.encode())
            assert answer.split(b" ")[1] in (b"404", b"400"), request
            assert b"import" not in answer
    for whole in (
        f"/{secret}",
        f"/%2f{str(secret)[1:]}",
        f"//{secret}",
        f"http://127.0.0.1:{port}{secret}",
        f"/file://{secret}",
    ):
        request = f"GET {whole} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        assert raw(port, request.encode()).split(b" ")[1] in (b"404", b"400"), whole


def test_no_websocket(ask: Ask) -> None:
    answer = ask(
        "GET",
        "/api/none",
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="eA==",
    )
    assert answer.status == 404


# --- files that fail under it


def test_a_store_damaged_under_the_server(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite"
    store, found = make_store(path), Queue()
    threading.Thread(
        target=serve, args=([Shown("run", Run(store.path.parent), store, read)], 0, found.put), daemon=True
    ).start()
    port = int(found.get(timeout=20).split(":")[2].strip("/"))
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle - middle % 4096)
        file.write(os.urandom(40_000))
    said = set()
    for i in range(70):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("GET", f"/api/runs/0/features/{i}")
            answer = Answer(connection.getresponse())
            if answer.status != 200:
                assert answer.status == 400
                said.add(answer.json["error"])
    assert said
    assert all(str(path) in each and "damaged" in each and "\n" not in each for each in said)


# --- the process


def started(folder: Path, program: str) -> tuple[subprocess.Popen[str], str]:
    """A process that serves a small store in `folder` as `program` says, and its address."""
    make_store(folder / "features.sqlite").close()
    setup = "import sys; from matryoshka.report import server\nfrom matryoshka.features.store import FeatureStore\n"
    setup += "from matryoshka.run import Run\n"
    shown = "store = FeatureStore(sys.argv[1]); shown = [server.Shown('run', Run(store.path.parent), store, None)]\n"
    process = subprocess.Popen(
        [sys.executable, "-c", setup + shown + program, folder / "features.sqlite"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_this_machine_only_and_an_orderly_end(tmp_path: Path) -> None:
    server, address = started(
        tmp_path,
        "try: server.serve(shown, 0, lambda at: print(at, flush=True))\nexcept KeyboardInterrupt: print('ended')",
    )
    port = int(address.split(":")[2].strip("/"))
    assert address == f"http://127.0.0.1:{port}/"
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/api/runs")
        assert connection.getresponse().status == 200
    with pytest.raises(ConnectionRefusedError):  # what listens on all addresses answers here
        socket.create_connection(("127.0.0.2", port), timeout=5)
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=20)
    assert (server.returncode, out.strip(), err) == (0, "ended", "")


def test_connections_that_say_nothing_are_closed_and_those_that_leave_are_not_talked_of(tmp_path: Path) -> None:
    process, address = started(
        tmp_path,
        "server.PATIENCE = 1\n"
        "try: server.serve(shown, 0, lambda at: print(at, flush=True))\nexcept KeyboardInterrupt: pass",
    )
    port = int(address.split(":")[2].strip("/"))
    head = f"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    for begun in ("", head, f"{head}\r\n", f"{head}\r\n{head}"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(begun.encode())
            answered = b""
            while received := connection.recv(2**16):
                answered += received
            assert answered.startswith(b"HTTP/1.1 200") == begun.endswith("\r\n\r\n") or begun.count("GET") == 2
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        origin = f"Origin: http://127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
        connection.sendall((head.replace("GET /api/runs", "POST /api/runs/0/try") + origin + '{"text": "half').encode())
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/api/runs")
        assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""


def test_a_port_that_cannot_be_had(port: int, store: FeatureStore) -> None:
    for wrong in (port, 70_000, -1):
        with pytest.raises(MatryoshkaError, match=f"port {wrong}: .*; give another --port, or 0 for any"):
            serve([Shown("run", Run(store.path.parent), store, read)], wrong, print)
