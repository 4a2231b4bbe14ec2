"""A chat model behind any OpenAI-compatible address, asked at most once for each answer.

    1. what has been answered before lies in the cache, a file an answer, named by a hash of all that was asked
    2. the rest is asked for, at most `concurrency` at a time; what passes by itself (429, 5xx, time-outs, cut
       connections) is asked again after waits that double, or after as long as the server says
    3. an answer is written, whole or not at all, before anybody sees it: whatever ends the program, the next one asks
       for the rest only
    4. an answer of the wrong form goes back with what is wrong about it, at most REPAIRS times; then there is none

The model, its address and its key: `chat`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, NoReturn, TypeVar

from matryoshka.errors import MatryoshkaError
from matryoshka.features.chat import ChatModel, Malformed, Message, Messages
from matryoshka.files import cache_dir, read_json, write_text
from matryoshka.progress import Progress, silent

T = TypeVar("T")
ATTEMPTS = 8
"""Of one request, until it is given up: with waits of 1, 2, 4 … seconds some two minutes."""
LONGEST_WAIT = 120.0
"""Seconds. Who is told to wait longer is better told to come back."""
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses that may be others soon."""
REPAIRS = 2
COMPLAINT = "This is not the JSON that was asked for: {}. Answer again, with that JSON and nothing else."
CHARACTERS = 4
"""In a token, for estimates."""


class Cost(NamedTuple):
    """What is still to be asked; tokens are estimates, those out an upper bound."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def price(self, per_million_in: float, per_million_out: float) -> float:
        """At these prices of a million tokens."""
        return (self.tokens_in * per_million_in + self.tokens_out * per_million_out) / 1e6


class _Passing(Exception):
    """Asking failed in a way that may pass; `wait` is what the server says, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Endpoint:
    """A ChatModel and the answers that it has given.

    `folder`: of the answers. `first_wait`: seconds before something is asked for the second time.
    """

    def __init__(self, model: ChatModel, folder: Path | None = None, first_wait: float = 1.0) -> None:
        self.model, self.folder, self._first_wait = model, folder or cache_dir() / "answers", first_wait
        self._stop = Event()

    def check(self) -> None:
        """Raises MatryoshkaError if nothing could be asked: there is no key, or no package to ask with."""
        _ = self._client

    # --- what has been answered

    def cached(self, messages: Messages) -> str | None:
        """The answer, if it has been given already."""
        try:
            answer = read_json(self._file(messages))["answer"]
        except (MatryoshkaError, LookupError, TypeError):  # a damaged file is none
            return None
        return answer if isinstance(answer, str) else None

    def known(self, messages: Messages, parse: Callable[[str], T]) -> tuple[bool, T | None]:
        """(whether nothing needs to be asked, the outcome if so) of a conversation: see `converse`."""
        return _outcome(messages, parse, self.cached)

    def cost(self, conversations: Mapping[Messages, Callable[[str], object]]) -> Cost:
        """Of what is not known of these conversations, if every answer is of the right form."""
        asked = [messages for messages, parse in conversations.items() if not self.known(messages, parse)[0]]
        tokens = sum(-(-len(message.content) // CHARACTERS) + 4 for messages in asked for message in messages)
        return Cost(len(asked), tokens, len(asked) * self.model.max_tokens)

    def _file(self, messages: Messages) -> Path:
        digest = hashlib.sha256(json.dumps(self._request(messages), sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"

    def _request(self, messages: Messages) -> dict[str, Any]:
        """All that the answer depends on."""
        said = [message._asdict() for message in messages]
        return {"base_url": self.model.base_url, **self.model.parameters, "messages": said}

    # --- asking

    def converse_all(
        self, conversations: Mapping[Messages, Callable[[str], T]], progress: Progress = silent
    ) -> dict[Messages, T | None]:
        """Each conversation's outcome (see `converse`), at most `concurrency` at a time.

        Ctrl-C, or a refusal, ends it when the requests under way are answered; what was answered stays in the cache.
        """
        outcomes: dict[Messages, T | None] = {}
        failures: list[Exception] = []

        def one(messages: Messages) -> T | None:
            try:
                return self.converse(messages, conversations[messages])
            except Exception as error:
                failures.append(error)
                self._stop.set()  # here: before this thread takes the next conversation
                raise

        try:
            with ThreadPoolExecutor(self.model.concurrency) as pool:
                futures = {pool.submit(one, messages): messages for messages in conversations}
                try:
                    for future in as_completed(futures):
                        outcomes[futures[future]] = future.result()
                        progress(len(outcomes), len(futures))
                finally:
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        except Exception as error:
            raise (failures or [error])[0] from None  # the others only say that they were stopped
        finally:
            self._stop.clear()
        return outcomes

    def converse(self, messages: Messages, parse: Callable[[str], T]) -> T | None:
        """`parse(answer)`; an answer that it calls Malformed goes back, and None is the outcome if it stays so."""
        return _outcome(messages, parse, self.ask)[1]

    def ask(self, messages: Messages) -> str:
        """The answer, from the cache if it lies there.

        Raises MatryoshkaError where asking again would not help: the key, the model's name or the request is refused,
        or ATTEMPTS have failed.
        """
        if (known := self.cached(messages)) is not None:
            return known
        answer = self._asked(messages)
        file = self._file(messages)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**self._request(messages), "answer": answer}, ensure_ascii=False, indent=1))
        return answer

    def _asked(self, messages: Messages) -> str:
        """From the server, again and again while what fails may pass."""
        why = "stopped"
        for attempt in range(ATTEMPTS):
            if self._stop.is_set():
                break
            try:
                return self._once(messages)
            except _Passing as error:
                # doubling, each time by chance up to half less, so that many do not come back at once
                doubling = min(LONGEST_WAIT, self._first_wait * 2**attempt) * random.uniform(0.5, 1.0)
                why, wait = str(error), doubling if error.wait is None else error.wait
            if wait > LONGEST_WAIT:
                raise MatryoshkaError(
                    f"{self.model.base_url}: {why}, and asks to wait {wait:,.0f} seconds; the same command goes on"
                    " then with what is not yet answered"
                )
            if attempt < ATTEMPTS - 1:
                self._stop.wait(wait)
        raise MatryoshkaError(
            f"{self.model.base_url}: {why} ({ATTEMPTS} attempts); what was answered is kept, and the same"
            " command goes on with the rest"
        )

    def _once(self, messages: Messages) -> str:
        openai = _package()
        said: Any = [message._asdict() for message in messages]
        completion: Any = None
        try:
            completion = self._client.chat.completions.create(messages=said, **self.model.parameters)
        except openai.APIStatusError as error:
            self._refuse(error)
        except openai.APITimeoutError:
            raise _Passing(f"no answer within {self.model.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            # its cause may quote the header: only its name is told
            raise _Passing(f"no connection ({type(error.__cause__ or error).__name__})") from None
        except (ValueError, openai.APIResponseValidationError):
            pass  # no JSON
        if isinstance(completion, str):
            raise MatryoshkaError(
                f"{self.model.base_url}: answers with a page and no chat completion; such addresses mostly end in /v1"
            )
        try:
            content = completion.choices[0].message.content
        except (AttributeError, LookupError, TypeError):  # as some relays say that the model behind them has failed
            raise _Passing("its answer is no chat completion") from None
        return content or ""

    def _refuse(self, error: Any) -> NoReturn:
        """Raise what an HTTP status means."""
        body = error.body if isinstance(error.body, dict) else {}
        said = " ".join(str(body.get("message") or error.message).split())
        why = f"status {error.status_code}: {said.replace(self.model.key, '…')[:300]}"
        if error.status_code in PASSING:
            raise _Passing(why, _retry_after(error.response.headers.get("retry-after", "")))
        hint = {
            401: f"; is the key in {self.model.key_variable} right?",
            403: f"; may the key in {self.model.key_variable} use it?",
            404: f"; is there a model {self.model.name!r} at {self.model.base_url}?",
        }.get(error.status_code, "")
        raise MatryoshkaError(f"{self.model.base_url} refuses, {why}{hint}") from None

    @cached_property
    def _client(self) -> Any:
        openai, model = _package(), self.model
        # a proxy would see the key of an unencrypted request, which is for this machine only
        here = {"http_client": openai.DefaultHttpxClient(trust_env=False)} if model.is_here else {}
        return openai.OpenAI(api_key=model.key, base_url=model.base_url, timeout=model.timeout, max_retries=0, **here)


def _outcome(
    messages: Messages, parse: Callable[[str], T], answered: Callable[[Messages], str | None]
) -> tuple[bool, T | None]:
    """(whether all turns are answered, what the first well-formed answer of at most 1 + REPAIRS means)."""
    for _ in range(1 + REPAIRS):
        if (answer := answered(messages)) is None:
            return False, None
        try:
            return True, parse(answer)
        except Malformed as error:
            complaint = COMPLAINT.format(error)
        said = [Message("assistant", answer)] if answer else []  # of an empty turn some servers want to know nothing
        messages = (*messages, *said, Message("user", complaint))
    return True, None


def _retry_after(header: str) -> float | None:
    """Seconds, of which the header says how many or until when; None where it says neither."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError):
        until = parsedate_to_datetime(header)
        return max(0.0, (until - datetime.now(UTC if until.tzinfo else None)).total_seconds())
    return None


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise MatryoshkaError("asking a chat model needs openai: pip install 'matryoshka-sae[autointerp]'") from None
    return openai
