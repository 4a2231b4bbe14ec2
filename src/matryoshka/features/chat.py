"""A chat model: its name, its address, its key, what is said to it, and about which features.

The key comes from the environment and goes into the request's header, and nowhere else; without encryption it is sent
to this machine alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from matryoshka.errors import MatryoshkaError

OPENAI = "https://api.openai.com/v1"


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Messages = tuple[Message, ...]


class Malformed(ValueError):
    """An answer is not of the form that was asked for; the text says what is wrong, to the model."""


class Choice(NamedTuple):
    """Which features it is asked about: those of `features`, or `per_ring` living ones of each ring."""

    features: Sequence[int] | None = None
    per_ring: int = 10
    seed: int = 0


@dataclass(frozen=True)
class ChatModel:
    """Which model to ask, where, and how."""

    name: str
    base_url: str = OPENAI
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    temperature: float | None = 0.0
    """None: the server's own, which some models insist on."""
    max_tokens: int = 500
    """In one answer, a reasoning model's thoughts included."""
    concurrency: int = 8
    timeout: float = 120.0
    """Seconds until an answer must have come."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        _refuse_address(self.base_url)
        if self.concurrency < 1 or self.max_tokens < 1:
            raise MatryoshkaError(
                f"concurrency and max_tokens are at least 1, got {self.concurrency} and {self.max_tokens}"
            )

    @property
    def host(self) -> str:
        """The name or number of the machine."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return _is_loopback(self.host)

    @property
    def parameters(self) -> dict[str, Any]:
        """What is sent beside the messages."""
        # OpenAI's own models refuse the older name, most other servers do not know the newer one
        limit = "max_completion_tokens" if self.host == urlsplit(OPENAI).hostname else "max_tokens"
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        return {"model": self.name, limit: self.max_tokens, **temperature}

    @property
    def key(self) -> str:
        """The key that the environment holds. Raises MatryoshkaError if there is none and the machine is another."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.is_here:
            return "none"
        if not key:
            raise MatryoshkaError(f"no key for {self.base_url}: set the environment variable {self.key_variable}")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise MatryoshkaError(f"the environment variable {self.key_variable} holds what cannot be a key")
        return key


def _refuse_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise MatryoshkaError(f"{url!r} is no address of a chat model; expected one such as {OPENAI}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MatryoshkaError(f"the address for {host} has more than a path: a key belongs into the environment")
    if parts.scheme == "http" and not _is_loopback(host):
        raise MatryoshkaError(f"{url}: the key would travel unencrypted; expected https, or a server on this machine")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
