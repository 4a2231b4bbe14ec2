"""From a coder's card to what it is studied with: its language model, and a text.

The card knows the model and, where the coder was trained here, the text: of that, only held-out documents are measured
on. A coder that knows none is given one, and any coder may be given another. Coders of one model and text have the same
`key`: they are studied together.

The card of a coder of synthetic activations knows their features: it is studied on fresh samples (`Known`), by what
needs no language model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matryoshka.coder import io
from matryoshka.coder.card import Card
from matryoshka.config import merged
from matryoshka.data.documents import check_source
from matryoshka.data.sections import SyntheticConfig, TextConfig
from matryoshka.data.tokens import Split, Tokens, tokenise
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.info import describe
from matryoshka.lm.model import LanguageModel, Vocabulary, load, load_vocabulary

AnotherText = str | Mapping[str, str]
"""A source of text, or that and how it is read: `{"source": "mine.jsonl", "field": "body"}`, as in a recipe."""


class Studied(NamedTuple):
    """A coder's folder, its card, and the text that it is studied on."""

    folder: Path
    card: Card
    text: TextConfig
    trained_on: bool
    """Whether that is the text that the card names: it has to be the same one still."""

    @property
    def key(self) -> str:
        """The same for coders of one language model, read in the same way on the same text."""
        card = self.card
        return f"{card.model.model_dump_json()} {card.context} {card.prepend_bos} {self.text.model_dump_json()}"

    def open_lm(self, device: str) -> LanguageModel:
        """The card's language model."""
        return Models(device).of(self.card)

    def open_vocabulary(self) -> Vocabulary:
        """Its tokenizer alone."""
        model = self.card.model
        return load_vocabulary(describe(model.name, model.revision), self.card.prepend_bos)

    def open_tokens(self, vocabulary: Vocabulary, split: Split = "held_out", least: int = 0) -> Tokens:
        """The text's tokens, made now if they are not there yet; read on until there are some `least` of `split`, or to
        the text's end. Windows are no longer than the model reads, whatever the card of a coder from elsewhere says.

        Raises MatryoshkaError where the text that the coder was trained on is another one by now.
        """
        needed = (least, 0) if split == "train" else (0, least)
        text, trained = self.text.read_on(*needed) if least else self.text, self.card.trained
        longest = describe(self.card.model.name, self.card.model.revision).context
        tokens = tokenise(text.model_copy(update={"context": min(text.context, longest)}), *vocabulary)
        if self.trained_on and trained is not None and tokens.text_hash != trained.text_hash:
            raise MatryoshkaError(
                f"{self.folder}: was trained on another text: {self.text.source} gives {tokens.text_hash} now, and gave"
                f" {trained.text_hash} then; give a text with --text"
            )
        return tokens


class Known(NamedTuple):
    """A coder's folder, its card, and the synthetic features that its activations are made of."""

    folder: Path
    card: Card
    synthetic: SyntheticConfig

    @property
    def key(self) -> str:
        """The same for coders of the same features."""
        return self.synthetic.hash


def subject_of(folder: Path, text: AnotherText | None = None) -> Studied | Known:
    """What the coder in a run's folder is studied with, whatever it is of. Raises MatryoshkaError as `studied` does,
    and for a text given to a coder that reads none."""
    card = read_card(folder)
    if card.model.synthetic is None:
        return studied(folder, text)
    if text is not None:
        raise MatryoshkaError(f"{folder}: is of synthetic features and reads no text; leave --text out")
    try:
        return Known(folder, card, SyntheticConfig.build(card.model.synthetic))
    except MatryoshkaError as error:  # any program may have written it
        raise MatryoshkaError(f"{folder}: its card's synthetic features: {error}") from None


def is_synthetic(folder: Path) -> bool:
    """Whether the coder in a run's folder is of synthetic features."""
    card = io.load_card(folder)[1]
    return card is not None and card.model.synthetic is not None


def refuse_synthetic(folder: Path) -> None:
    """Raise MatryoshkaError where there is no language model behind a coder."""
    if is_synthetic(folder):
        raise MatryoshkaError(
            f"{folder}: is of synthetic features, and this needs a language model; what can be measured of it:"
            " matryoshka eval"
        )


def studied(folder: Path, text: AnotherText | None = None) -> Studied:
    """The coder in a run's folder, to be studied on `text`, or on the text that its card knows.

    Raises MatryoshkaError for a coder without a card, without a language model, without any text, or with one that
    cannot be read.
    """
    refuse_synthetic(folder)
    card = read_card(folder)
    known = {} if card.trained is None else card.trained.text
    if text is None and not known:
        raise MatryoshkaError(f"{folder}: its card knows no text to study it on; give one with --text")
    other: dict[str, Any] = {}
    if text is not None:
        parts = {"source": text} if isinstance(text, str) else dict(text)
        if "source" not in parts:
            raise MatryoshkaError(f"--text.{min(parts)} says of a text how it is read: give --text too")
        # which part of a data set the known text was is not said of another
        other = {"limit": None, "subset": None, "split": "train", **parts}
    try:
        config = TextConfig.build(merged({"context": card.context, **known}, other))
    except MatryoshkaError as error:  # the card does not know what a text has: any program may have written it
        raise MatryoshkaError(f"{folder}: its card's text: {error}") from None
    check_source(config)
    return Studied(folder, card, config, trained_on=text is None)


class Models:
    """The language models of cards, on one device; each is loaded once, when it is needed first."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._loaded: dict[str, LanguageModel] = {}

    def of(self, card: Card) -> LanguageModel:
        """In the card's precision, with texts that begin as it says."""
        model, key = card.model, f"{card.model.model_dump_json()} {card.prepend_bos}"
        if key not in self._loaded:
            self._loaded[key] = load(model.name, model.revision, model.dtype, self.device, card.prepend_bos)
        return self._loaded[key]


def read_card(folder: Path) -> Card:
    """The card of the coder in a run's folder or a coder's own, which every coder needs that is to be studied. Raises
    MatryoshkaError where there is none."""
    card = io.load_card(folder)[1]
    if card is None:
        raise MatryoshkaError(f"{folder}: its config.json has no card, so nobody knows which model it is of")
    return card
