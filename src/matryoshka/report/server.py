"""The page, live: on this machine only, and changing nothing but labels and notes.

    GET   /  and the page's files
    GET   /api/runs                          which runs there are
    GET   /api/runs/KEY                      a run's facts and columns
    GET   /api/runs/KEY/results              its training's curves and its scores
    GET   /api/runs/KEY/report               its report, where there is one
    GET   /api/runs/KEY/map                  where its features lie, and in what communities
    GET   /api/runs/KEY/tree                 their parents and children
    GET   /api/runs/KEY/pairs/NUMBER         passages of some pairs of the tree
    GET   /api/runs/KEY/features/INDEX       a feature
    PUT   /api/runs/KEY/features/INDEX       its label and note
    POST  /api/runs/KEY/try                  a text of one's own, and what fires on it

It listens on the loopback only. A request under another Host is refused with 403 (another site's name may be made to
point here), and one that changes or runs something also under a foreign or missing Origin.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from matryoshka.errors import MatryoshkaError
from matryoshka.features.feature import well_formed
from matryoshka.features.reading import Reading
from matryoshka.features.store import FeatureStore
from matryoshka.report import data
from matryoshka.report.data import WEB
from matryoshka.report.page_analyses import map_view, pair_examples, tree_view
from matryoshka.report.page_results import REPORT, results
from matryoshka.run import Run

HOST = "127.0.0.1"
LARGEST_BODY = 200_000
PATIENCE = 10
"""Seconds for a connection to send a whole request's head, and to stay open after an answer."""
MOST_CONNECTIONS = 200
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
"""Of the report, which is one file: it styles itself, and runs and fetches nothing."""


class Shown(NamedTuple):
    """A run on the page; `read` takes a text through the language model and the coder."""

    name: str
    run: Run
    store: FeatureStore
    read: Callable[[str], Reading]


def application(shown: Sequence[Shown], port: int) -> ASGIApp:
    """The page of these runs, as it is to be served on `port`."""
    runs = {str(i): run for i, run in enumerate(shown)}

    def run_of(request: Request) -> tuple[str, Shown]:
        key = request.path_params["key"]
        if key not in runs:
            raise HTTPException(404, f"there is no run {key!r}")
        return key, runs[key]

    def list_runs(request: Request) -> Any:
        entries = [{"key": key, "name": run.name, "features": len(run.store)} for key, run in runs.items()]
        return {"live": True, "runs": entries}

    def overview(request: Request) -> Any:
        key, run = run_of(request)
        return data.overview(run.store, key, run.name)

    def feature_of(request: Request) -> tuple[FeatureStore, int]:
        store, index = run_of(request)[1].store, request.path_params["index"]
        if not (index.isascii() and index.isdigit() and len(index) < 10 and int(index) < len(store)):
            raise HTTPException(404, f"there is no feature {index[:20]!r}; there are 0 to {len(store) - 1}")
        return store, int(index)

    def card(request: Request) -> Any:
        return data.card(*feature_of(request))

    def annotate(request: Request, body: Mapping[str, Any]) -> Any:
        store, index = feature_of(request)
        label, note = store.annotate(index, **_texts(body, "label", "note"))
        return {"label": label, "note": note}

    def try_text(request: Request, body: Mapping[str, Any]) -> Any:
        run = run_of(request)[1]
        return data.reading(run.store, *run.read(_texts(body, "text").get("text", "")))

    app = Starlette(
        routes=[
            Route("/api/runs", _answer(list_runs)),
            Route("/api/runs/{key}", _answer(overview)),
            *_found_routes(run_of),
            Route("/api/runs/{key}/features/{index}", _answer(card)),
            Route("/api/runs/{key}/features/{index}", _answer(annotate), methods=["PUT"]),
            Route("/api/runs/{key}/try", _answer(try_text), methods=["POST"]),
            Route("/{path:path}", _files()),
        ],
        exception_handlers=dict.fromkeys((MatryoshkaError, HTTPException, ClientDisconnect, Exception), _failed),
    )
    return _guarded(app, port)


def serve(shown: Sequence[Shown], port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready(address)` is called once the port is ours. Port 0 takes any free one. Raises
    MatryoshkaError if the port is taken."""
    with socket.socket() as listening:
        # accepted sockets inherit it; otherwise each answer's body waits 40 ms for its head to be acknowledged
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if os.name == "posix":  # elsewhere it would let a second server take the same port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MatryoshkaError(f"port {port}: {reason}; give another --port, or 0 for any") from error
        port = listening.getsockname()[1]
        listening.listen(128)
        ready(f"http://{HOST}:{port}/")
        config = uvicorn.Config(
            application(shown, port), log_level="warning", access_log=False, lifespan="off", ws="none",
            proxy_headers=False, server_header=False, http=_Patient, timeout_keep_alive=PATIENCE,
            limit_concurrency=MOST_CONNECTIONS,
        )  # fmt: skip
        uvicorn.Server(config).run([listening])


class _Patient(H11Protocol):
    """HTTP that closes connections which send no whole request's head: uvicorn's own waits for ever for the first."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        waiting = self.timeout_keep_alive_task
        super().data_received(data)
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self._wait(waiting)

    def _wait(self, waiting: asyncio.TimerHandle | None = None) -> None:
        """Until the same moment as before, where there is one: a byte now and then gains no time."""
        at = waiting.when() if waiting is not None else self.loop.time() + PATIENCE
        self.timeout_keep_alive_task = self.loop.call_at(at, self.timeout_keep_alive_handler)


def _answer(function: Callable[..., Any]) -> Callable[[Request], Any]:
    """`function(request)`, or `function(request, body)` of a request with JSON, in a thread; its result as JSON."""

    async def endpoint(request: Request) -> Response:
        arguments = (request,) if request.method in ("GET", "HEAD") else (request, await _body(request))
        return await run_in_threadpool(lambda: _json(function(*arguments)))

    return endpoint


def _json(value: Any, status: int = 200) -> Response:
    return Response(data.to_json(value).encode("utf-8", errors="replace"), status, media_type="application/json")


async def _body(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected application/json")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes")
    try:
        body = json.loads(received)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def _texts(body: Mapping[str, Any], *names: str) -> dict[str, str]:
    if unknown := body.keys() - set(names):
        raise HTTPException(400, f"unknown field {min(unknown)!r}, expected {', '.join(names)}")
    for name, value in body.items():
        if not isinstance(value, str):
            raise HTTPException(400, f"{name}: expected a text")
    return {name: well_formed(value) for name, value in body.items()}


def _files() -> Callable[[Request], Any]:
    """The page's files, by the names they have now: whatever else a path says, nothing else is opened."""
    files = {file.relative_to(WEB).as_posix(): file for file in WEB.rglob("*") if file.is_file()}

    async def file(request: Request) -> Response:
        if (path := request.path_params["path"] or "index.html") not in files:
            raise HTTPException(404, f"there is no {path[:200]!r}")
        return FileResponse(files[path])

    return file


def _found_routes(run_of: Callable[[Request], tuple[str, Shown]]) -> list[Route]:
    """Of what evaluations and analyses have found of a run, and of its report."""

    def of_run(view: Callable[[Run, FeatureStore], Any]) -> Callable[[Request], Any]:
        return lambda request: view(*run_of(request)[1][1:3])

    def pairs(request: Request) -> Any:
        return of_run(partial(pair_examples, number=request.path_params["number"]))(request)

    async def report(request: Request) -> Response:
        file = run_of(request)[1].run.path / REPORT
        if not file.is_file():
            raise HTTPException(404, "there is no report yet; matryoshka analyze RUN writes it")
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    return [
        Route("/api/runs/{key}/results", _answer(of_run(results))),
        Route("/api/runs/{key}/report", report),
        Route("/api/runs/{key}/map", _answer(of_run(map_view))),
        Route("/api/runs/{key}/tree", _answer(of_run(tree_view))),
        Route("/api/runs/{key}/pairs/{number:int}", _answer(pairs)),
    ]


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code)
    kind, status = ("", 400) if isinstance(error, MatryoshkaError) else (f"{type(error).__name__}: ", 500)
    return _json({"error": " ".join(f"{kind}{error}".split())}, status)


def _guarded(app: ASGIApp, port: int) -> ASGIApp:
    """`app` for requests of this page alone, with the headers that every answer carries."""
    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
    origins = {f"http://{host}" for host in hosts}

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        changes = request.method not in ("GET", "HEAD")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                stated = {name for name, _ in message["headers"]}
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] += [header for header in headers if header[0] not in stated]
            await send(message)

        if request.headers.get("host") not in hosts:
            answer: ASGIApp = _json({"error": "this page is served under its own address only"}, 403)
        elif changes and request.headers.get("origin") not in origins:
            answer = _json({"error": "changes are taken from this page only"}, 403)
        else:
            answer = app
        await answer(scope, receive, send_with_headers)

    return guarded
