"""A chat model's server on this machine: it speaks /v1/chat/completions over real sockets, and misbehaves as told."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Reply:
    """Something other than an answer."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Before it."""
    cut: bool = False
    """The connection is closed in the middle."""


Answer = Callable[[list[dict[str, str]]], str | Reply]
"""Of the messages."""


class FakeEndpoint:
    """Serves `answer` within a `with` block. `asked` has every request's messages, in order of arrival."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[list[dict[str, str]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def times_asked(self) -> Counter[str]:
        """How often each conversation has come."""
        return Counter(json.dumps(messages) for messages in self.asked)

    def __enter__(self) -> "FakeEndpoint":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                with endpoint._lock:
                    endpoint.asked.append(body["messages"])
                    endpoint.bodies.append(body)
                    endpoint.keys.append(self.headers["Authorization"])
                    endpoint._now += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
                try:
                    reply = endpoint.answer(body["messages"])
                    self._send(Reply(body=completion(reply)) if isinstance(reply, str) else reply)
                except OSError:  # who asked is gone
                    self.close_connection = True
                finally:
                    with endpoint._lock:
                        endpoint._now -= 1

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.seconds)
                content = reply.body.encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if reply.cut else content)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def completion(answer: str | None) -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice]})


def failure(status: int, said: str, **headers: str) -> Reply:
    """An error as such servers write it."""
    return Reply(status, json.dumps({"error": {"message": said}}), {k.replace("_", "-"): v for k, v in headers.items()})


# --- models that know what they are asked


def is_explaining(messages: list[dict[str, str]]) -> bool:
    """Whether an explanation is wanted."""
    return '"explanation"' in messages[1]["content"]


def contexts(messages: list[dict[str, str]]) -> list[str]:
    """The stretches of text of a question."""
    lines = messages[1]["content"].split("\n")
    return [json.loads(line.split(" ", 1)[1]) for line in lines if re.match(r"\d+[.:] ", line)]


def explanation(messages: list[dict[str, str]]) -> str:
    """The explanation that is judged by."""
    return json.loads(messages[1]["content"].split("\n")[0].removeprefix("Explanation: "))


def oracle(messages: list[dict[str, str]]) -> str:
    """Explains a feature by the token that is marked most often, and knows where this token is."""
    if is_explaining(messages):
        marked = Counter(re.findall("⟦(.*?)⟧", "".join(contexts(messages)), re.DOTALL))
        return json.dumps({"explanation": f"the token <{marked.most_common(1)[0][0]}>"})
    token = explanation(messages).removeprefix("the token <").removesuffix(">")
    asked_for_marks = "⟦" in messages[0]["content"]
    said = {}
    for number, text in enumerate(contexts(messages), start=1):
        whole = f"{re.escape(token)}(?![A-Za-z])"
        marks = re.findall("⟦(.*?)⟧", text, re.DOTALL)
        said[str(number)] = all(mark == token for mark in marks) if asked_for_marks else bool(re.search(whole, text))
    return json.dumps(said)


def always(said: bool) -> Answer:
    """Explains everything alike but for a number, and judges everything alike."""

    def answer(messages: list[dict[str, str]]) -> str:
        if is_explaining(messages):
            return json.dumps({"explanation": f"number {abs(hash(messages[1]['content'])) % 1000}"})
        return json.dumps({str(i): said for i in range(1, len(contexts(messages)) + 1)})

    return answer
