"""What tokens stand for, and how a sequence of them is shown."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, describe, load_vocabulary
from matryoshka.lm.vocabulary import alone, pieces, token_bytes

BUNDLED = load_vocabulary(describe("bundled")).tokenizer
VOCABULARY = token_bytes(BUNDLED)
SCRIPTS = ["é", "日本", "שלום", "مرحبا", "👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"]
ODDITIES = ["e\u0301", "\0", "\u200e", "\ufffd", "\ufeff", " \t\r\n", "Ġ▁", "<|endoftext|>"]
TEXTS = st.lists(st.text() | st.sampled_from(SCRIPTS + ODDITIES)).map("".join)


def ids_of(text: str) -> list[int]:
    return BUNDLED(text, add_special_tokens=False)["input_ids"]


def decoded(ids: list[int]) -> str:
    return BUNDLED.decode(ids, clean_up_tokenization_spaces=False)


# --- byte-level


@given(TEXTS)
def test_the_pieces_of_a_text_are_the_text(text: str):
    ids = ids_of(text)
    shown = pieces(ids, VOCABULARY)
    assert len(shown) == len(ids)
    assert "".join(shown) == decoded(ids) == text


@given(st.lists(st.integers(0, len(VOCABULARY) - 1)))
def test_the_pieces_of_any_tokens_are_what_the_tokenizer_decodes(ids: list[int]):
    shown = pieces(ids, VOCABULARY)
    assert len(shown) == len(ids)
    assert "".join(shown) == decoded(ids)


def test_every_token_of_the_bundled_model_is_what_it_decodes_to(lm: LanguageModel):
    assert len(VOCABULARY) == len(BUNDLED) == lm.info.d_vocab
    assert {token for token in VOCABULARY if len(token) == 1} == {bytes([byte]) for byte in range(256)}
    for number, token in enumerate(VOCABULARY):
        assert token.decode(errors="replace") == decoded([number])


def test_a_special_token_is_its_own_text():
    assert VOCABULARY[0] == b"<|endoftext|>"
    assert pieces([0, *ids_of("a"), 0], VOCABULARY) == ["<|endoftext|>", "a", "<|endoftext|>"]


def test_an_emoji_of_several_tokens_is_shown_at_the_last():
    ids = ids_of("a🙂b")
    shown = pieces(ids, VOCABULARY)
    assert [piece for piece in shown if piece] == ["a", "🙂", "b"]
    assert len(ids) > 3
    assert shown[-2] == "🙂"
    assert shown[1:-2] == [""] * (len(ids) - 3)


def test_holes_and_added_tokens(with_added: PreTrainedTokenizerFast):
    vocabulary = token_bytes(with_added)
    assert vocabulary == [b"a", b" ", b"", b"\xf0", b"", b"<x y>", "éĠ".encode(), b"Z"]
    assert len(vocabulary) == 1 + max(with_added.get_vocab().values())


@pytest.fixture
def with_added() -> PreTrainedTokenizerFast:
    """Byte-level: ids 2 and 4 stand for nothing, 5 and 6 are added (6 with characters of the byte table)."""
    vocabulary = {"a": 0, "Ġ": 1, "ð": 3, "Z": 7}
    tokens = {5: AddedToken("<x y>", special=True), 6: AddedToken("éĠ", special=False, normalized=False)}
    backend = Tokenizer(models.BPE(vocabulary | {token.content: i for i, token in tokens.items()}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(tokens.values()))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


# --- SentencePiece


def sentencepiece(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer built as Gemma's or Llama-2's tokenizer.json is, or with Metaspace."""
    tokens = ["<unk>", "<bos>", "▁▁", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁athe", "▁t", "▁th", "é", "日"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁", "▁")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens([AddedToken("<unk>"), AddedToken("<bos>"), AddedToken("<▁>")])
    backend.add_tokens([AddedToken("▁▁", normalized=False, special=False)])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    match style:
        case "gemma":
            backend.normalizer = normalizers.Replace(" ", "▁")
            backend.decoder = decoders.Sequence(parts)
        case "llama2":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        case "metaspace":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
            backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>")


@pytest.mark.parametrize("style", ["gemma", "llama2", "metaspace"])
def test_sentencepiece_tokens_are_spaces_bytes_and_text(style: str):
    tokenizer = sentencepiece(style)
    vocabulary = token_bytes(tokenizer)
    meaning = {token: vocabulary[number] for token, number in tokenizer.get_vocab().items()}
    assert len(vocabulary) == len(meaning)
    assert meaning["▁th"] == b" th"
    assert meaning["<0x0A>"] == b"\n"
    assert meaning["<0xF0>"] == b"\xf0"
    assert meaning["é"] == "é".encode()
    assert meaning["<bos>"] == b"<bos>"
    assert meaning["<▁>"] == "<▁>".encode()
    assert meaning["▁▁"] == b"  "


@given(TEXTS.filter(lambda text: "▁" not in text))
def test_the_pieces_of_gemmas_tokens_are_the_text(text: str):
    assert_shown(GEMMA, text)


@given(TEXTS.filter(lambda text: "▁" not in text))
def test_the_pieces_of_metaspace_tokens_are_the_text(text: str):
    assert_shown(METASPACE, text)


GEMMA, METASPACE = sentencepiece("gemma"), sentencepiece("metaspace")


def assert_shown(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = pieces(ids, token_bytes(tokenizer))
    assert len(shown) == len(ids)
    assert "".join(shown) == tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_space_that_llama_2_puts_before_a_text_stays():
    tokenizer = sentencepiece("llama2")
    ids = tokenizer("the a🙂", add_special_tokens=False)["input_ids"]
    assert pieces(ids, token_bytes(tokenizer)) == [" th", "e", " ", "a", "", "", "", "🙂"]
    assert tokenizer.decode(ids) == "the a🙂"


# --- sequences of bytes


def characters(data: bytes) -> Iterator[tuple[str, int]]:
    """Each character of `data` and where it ends, by a strict decoder that is asked again after each fault."""
    at = 0
    while at < len(data):
        try:
            good, fault = data[at:].decode(), 0
        except UnicodeDecodeError as error:
            good, fault = data[at : at + error.start].decode(), error.end - error.start
        for character in good:
            at += len(character.encode())
            yield character, at
        if fault:
            at += fault
            yield "\ufffd", at


BYTES = st.lists(st.sampled_from([*"aé日🙂".encode(), 0xC0, 0xED, 0xA0, 0xFF]), max_size=5).map(bytes)


@given(st.lists(BYTES | st.text(max_size=3).map(str.encode)))
def test_each_character_is_shown_at_the_token_with_its_last_byte(tokens: list[bytes]):
    data = b"".join(tokens)
    expected = [""] * len(tokens)
    last_bytes = [number for number, token in enumerate(tokens) for _ in token]
    for character, end in characters(data):
        expected[last_bytes[end - 1]] += character
    shown = pieces(range(len(tokens)), tokens)
    assert "".join(shown) == data.decode(errors="replace")
    if b"" not in tokens:  # where a broken character is flushed at a hole, no token shows it better than another
        assert shown == expected


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([b"\xf0\x9f", b"A"], ["\ufffd", "A"]),
        ([b"\xf0\x9f", b"\x99\x82!", b"\x82"], ["", "🙂!", "\ufffd"]),
        ([b"\xf0", b"<|endoftext|>", b"\x9f", b"b"], ["\ufffd", "<|endoftext|>", "\ufffd", "b"]),
        ([b"a\xe6", b"\xe6", b"\x97", b"\xa5"], ["a\ufffd", "", "", "日"]),
        ([b"\xef", b"\xbf", b"\xbd"], ["", "", "\ufffd"]),
        ([b"\xed", b"\xa0", b"\x80"], ["\ufffd", "\ufffd", "\ufffd"]),  # would be a surrogate
        ([b"\xed\xa0", b"\x80"], ["\ufffd\ufffd", "\ufffd"]),
        ([b"\xe6\x97"], ["\ufffd"]),
        ([], []),
    ],
)
def test_a_broken_character_shifts_nothing(tokens: list[bytes], shown: list[str]):
    assert pieces(range(len(tokens)), tokens) == shown


# --- what is refused


@pytest.mark.parametrize("wrong", [4096, -1])
def test_an_id_outside_of_the_vocabulary_is_refused(wrong: int):
    with pytest.raises(MatryoshkaError, match=f"token {wrong} is not in the vocabulary: its tokens are 0 to 4095"):
        pieces([1, wrong, 2], VOCABULARY)


def wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [(tiny_tokenizer(), "decoder: none"), (wordpiece(), "decoder: WordPiece"), (object(), "tokenizer object")],
    ids=["words", "wordpiece", "slow"],
)
def test_a_tokenizer_of_another_sort_is_refused(tokenizer: object, said: str):
    with pytest.raises(MatryoshkaError, match=said) as caught:
        token_bytes(tokenizer)
    assert "\n" not in str(caught.value)


def test_a_token_alone_shows_its_bytes_where_it_is_no_whole_character() -> None:
    assert alone(b" people") == " people"
    assert alone("🙂".encode()) == "🙂"
    assert alone("🙂".encode()[:2]) == "\\xf0\\x9f"
    assert alone(b"") == ""
