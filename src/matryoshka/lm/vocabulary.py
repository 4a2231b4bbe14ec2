"""How tokens are shown: the bytes that each id stands for, and the text that each token of a sequence adds; and which
text a tokenizer takes.

vocabulary = token_bytes(lm.tokenizer)
pieces(ids, vocabulary)                  # ["The", " people", "", "", "🙂"]: an emoji of three tokens
"""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

from matryoshka.errors import MatryoshkaError

BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def tokenisable(text: str) -> str:
    """`text` with `?` for each lone half of a surrogate pair, which tokenizers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each id stands for: index = id, up to the largest id; b"" for an id without a token.

    Byte-level BPE (GPT-2, Llama-3, SmolLM2, Qwen, Pythia): each character of a token is one byte. SentencePiece pieces
    (Gemma, Llama-2): "▁" is a space, `<0x0A>` one byte. Added tokens stand for their own text. The space that some of
    these tokenizers put before a text, and take away again when they decode it, stays. A tokenizer (as transformers
    loads it) of neither sort is refused with MatryoshkaError.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MatryoshkaError(f"tokenizer {type(tokenizer).__name__}: only fast tokenizers tell what their tokens are")
    decoders = _steps(backend.decoder)
    if any(step["type"] == "ByteLevel" for step in [*decoders, *_steps(backend.pre_tokenizer)]):
        meaning, added_meaning = _byte_level, str.encode
    elif space := _space(decoders):
        meaning = added_meaning = partial(_sentencepiece, space)
    else:
        kinds = " + ".join(step["type"] for step in decoders) or "none"
        raise MatryoshkaError(
            f"tokenizer {type(tokenizer).__name__}: its tokens are neither bytes nor SentencePiece pieces"
            f" (its decoder: {kinds}), so the text that each of them adds is not known"
        )
    by_id = {number: meaning(token) for token, number in backend.get_vocab(with_added_tokens=False).items()}
    for number, token in backend.get_added_tokens_decoder().items():
        # Gemma's runs of "▁" are added tokens too, but not special ones: they do mean spaces
        by_id[number] = token.content.encode() if token.special else added_meaning(token.content)
    return [by_id.get(number, b"") for number in range(max(by_id, default=-1) + 1)]


def pieces(ids: Iterable[int], vocabulary: Sequence[bytes]) -> list[str]:
    """The text that each token adds: joined, the tokens' bytes decoded as UTF-8 with errors="replace".

    A character of several tokens is the piece of the last of them; the others are "". Bytes that are no character
    become U+FFFD, at the last of the tokens that hold them. `ids`: Python integers (`tensor.tolist()`); one outside of
    `vocabulary`, which is from `token_bytes`, is a MatryoshkaError.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts: list[str] = []
    partial = b""  # the beginning of a character
    for number in ids:
        if not 0 <= number < len(vocabulary):
            raise MatryoshkaError(f"token {number} is not in the vocabulary: its tokens are 0 to {len(vocabulary) - 1}")
        token = vocabulary[number]
        if partial and not _continues(partial, token):
            texts[-1] += decoder.decode(b"", final=True)
            partial = b""
        text = whole(token)
        if text is None:
            text = decoder.decode(token)
            partial = decoder.getstate()[0]
        texts.append(text)
    if partial:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def alone(token: bytes) -> str:
    """A token by itself, in a table: its text, or where it is only a part of a character, its bytes as \\xf0\\x9f."""
    text = whole(token)
    return "".join(f"\\x{byte:02x}" for byte in token) if text is None else text


@cache
def whole(token: bytes) -> str | None:
    """The text of a token that is whole characters, None of one that is not."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _continues(partial: bytes, token: bytes) -> bool:
    """Whether the character that `partial` begins can go on with the first byte of `token`."""
    return len((partial + token[:1]).decode(errors="replace")) == 1


# --- what the tokens of the two sorts stand for


def _byte_table() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 is itself, the others are 256, 257, … in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_table()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(map(BYTE_OF.__getitem__, token))
    except KeyError:  # a token beside the table stands for itself
        return token.encode()


def _sentencepiece(space: str, token: str) -> bytes:
    if token.startswith("<0x") and (byte := BYTE_PIECE.fullmatch(token)):
        return bytes.fromhex(byte[1])
    return token.replace(space, " ").encode()


def _steps(component: Any) -> list[dict[str, Any]]:
    """What a decoder or pre-tokenizer of the `tokenizers` library is made of, as tokenizer.json writes it."""
    if component is None:
        return []
    step: dict[str, Any] = json.loads(component.__getstate__())
    return step.get("decoders") or step.get("pretokenizers") or [step]


def _space(decoders: list[dict[str, Any]]) -> str | None:
    """The character that stands for a space, None if these decoders know none."""
    for step in decoders:
        if step["type"] == "Metaspace":
            return step["replacement"]
        if step["type"] == "Replace" and step["content"] == " ":
            return step["pattern"].get("String")
    return None
