"""Several coders of one language model on the same tokens: one pass, one recording, and of each pair what is asked.

    1. together    coders of different models, texts or windows are refused: their tokens are not the same
    2. recording   the latents of all coders, in one pass, unless they are recorded already
    3. analysed    each pair; what is saved, and answers what is asked, is taken as it is

Each result is saved as soon as it is there. Where all are there already nothing is read.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from matryoshka.analysis import correspondence
from matryoshka.analysis.pair import Pair, Side, seeds_of_one_recipe
from matryoshka.coder.io import fingerprint
from matryoshka.data.tokens import Windows
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import LanguageModel, resolve_device
from matryoshka.progress import progress_bar
from matryoshka.run import Run, names
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.scores.saved import answer, save
from matryoshka.study.hooked import HookedCoder, hook_all
from matryoshka.study.opening import AnotherText, Studied, studied
from matryoshka.study.reader import spread_windows
from matryoshka.study.recorder import record
from matryoshka.study.recording import Recording
from matryoshka.version import __version__


def together(members: Sequence[Run], text: AnotherText | None) -> list[Studied]:
    """What each coder is studied with, on one text for all. Raises MatryoshkaError for a single coder, and for coders
    that do not read the same tokens."""
    if len(members) < 2:
        raise MatryoshkaError(
            f"{members[0].path}: is one coder; a comparison takes two or more: give another run as well"
        )
    wishes = [studied(member.coder, text) for member in members]
    for member, wish in zip(members[1:], wishes[1:], strict=True):
        both = f"{members[0].path} and {member.path}"
        _refuse_other_tokens(both, wishes[0], wish, "give one with --text" if text is None else "compare others")
    return wishes


def _refuse_other_tokens(both: str, first: Studied, other: Studied, otherwise: str) -> None:
    cards = first.card, other.card
    if first.card.model != other.card.model:
        models = ", ".join(_model(card.model.model_dump(exclude_none=True)) for card in cards)
        raise MatryoshkaError(f"{both}: are of different language models ({models}); compare coders of one model")
    windows = [f"{card.context} tokens {'with' if card.prepend_bos else 'without'} BOS" for card in cards]
    if windows[0] != windows[1]:
        raise MatryoshkaError(f"{both}: read windows of {' and of '.join(windows)}; compare coders of the same windows")
    texts = [wish.text.model_dump(exclude={"limit"}) for wish in (first, other)]  # how far it is read is no other text
    for name, value in texts[0].items():
        if value != texts[1][name]:
            raise MatryoshkaError(f"{both}: know different texts ({name}: {value}, {texts[1][name]}); {otherwise}")


def _model(model: dict[str, Any]) -> str:
    return " ".join(map(str, model.values()))


class Joint:
    """Coders that are studied together; each part is opened when it is needed first."""

    def __init__(
        self, members: Sequence[Run], text: AnotherText | None, tokens: int, folder: Path, device: str = "auto"
    ) -> None:
        """`tokens`: how much held-out text to read. `folder`: where recording and results lie. Raises MatryoshkaError
        as `together` does."""
        self.members, self.tokens, self.folder, self.device = members, tokens, folder, device
        self.studied = together(members, text)
        self.names = names(members)

    @cached_property
    def lm(self) -> LanguageModel:
        return self._least.open_lm(self.device)

    @cached_property
    def windows(self) -> Windows:
        """Of held-out text."""
        least = self._least
        return least.open_tokens(least.open_vocabulary(), "held_out", self.tokens).windows("held_out")

    @property
    def _least(self) -> Studied:
        """Whose text is read least far: what more is needed is read on."""
        return min(self.studied, key=lambda wish: wish.text.limit or 0)

    @cached_property
    def coders(self) -> list[HookedCoder]:
        return hook_all([member.coder for member in self.members], self.lm, self.windows)

    @cached_property
    def recording(self) -> Recording:
        """Of all coders; made now where it is not there."""
        numbers, path = spread_windows(self.windows, self.tokens), self.folder / "recording"
        with progress_bar(f"reading text for {len(self.members)} coders") as update:
            record(self.lm, self.windows, numbers, self.coders, path, progress=update)
        return Recording(path)

    def stem(self, first: int, second: int) -> str:
        """Of the names of a pair's files."""
        return "--".join(self.names[i].replace("/", "+") for i in (first, second))

    def analysed(self, first: int, second: int) -> Result:
        """What the pair of these numbers is like, saved in the folder."""
        name = self.stem(first, second)
        identity = self._identity(first, second)
        if (saved := answer(self.folder, name, identity)) is not None:
            return saved
        pair = self._pair(first, second)
        with progress_bar(f"comparing {pair.first.name} with {pair.second.name}") as update:
            try:
                result = correspondence.analyse(pair, update)
            except NotMeasurable as reason:
                result = Result((), reason=str(reason))
        save(result, identity, self.folder, name)
        return result

    def _pair(self, first: int, second: int) -> Pair:
        sides = [Side(self.names[i], self.coders[i], self.recording.of(self.coders[i])) for i in (first, second)]
        a, b = (side.hooked for side in sides)
        of_one = a.coder.config == b.coder.config and a.fingerprint != b.fingerprint
        cards = self.studied[first].card, self.studied[second].card
        return Pair(*sides, ceiling=of_one and seeds_of_one_recipe(*cards))

    def _identity(self, first: int, second: int) -> dict[str, Any]:
        """All that a result depends on."""
        return {
            "matryoshka": __version__,
            "analysis": correspondence.VERSION,
            "coders": [fingerprint(self.members[i].coder) for i in (first, second)],
            "names": [self.names[i] for i in (first, second)],
            "model": self.studied[first].card.model.model_dump(mode="json"),
            "device": resolve_device(self.device).type,
            "text": self.windows.tokens.hash,
            "context": self.windows.context,
            "tokens": self.tokens,
        }
