"""Coders of one language model on the same tokens: one pass, one recording, and of each coder or pair what is asked.

    1. together    coders of different models, texts or windows are refused: their tokens are not the same
    2. recording   the latents of all coders, in one pass, unless they are recorded already
    3. found       in each coder, by an analysis of the catalogue; `matched`: in each pair; `chained`: from each coder
                   to the next

Each result is saved as soon as it is there, and what is saved and answers what is asked is taken as it is: where all
are there already nothing is read.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka.analysis import chains, correspondence
from matryoshka.analysis.catalogue import module_of
from matryoshka.analysis.corpus import Corpus, evenly
from matryoshka.analysis.observed import Observed, Pair, seeds_of_one_recipe
from matryoshka.coder.io import fingerprint
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.model import resolve_device
from matryoshka.progress import Progress, progress_bar
from matryoshka.run import Run, names
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.scores.saved import answer, save
from matryoshka.study.hooked import HookedCoder, hook_all
from matryoshka.study.opening import AnotherText, Studied, studied
from matryoshka.study.recorder import record
from matryoshka.study.recording import Recording
from matryoshka.version import __version__


def together(
    members: Sequence[Run], text: AnotherText | None, refuse: Callable[[str, Studied, Studied, str], None]
) -> list[Studied]:
    """What each coder is studied with, on one text for all. `refuse` raises MatryoshkaError for two coders that cannot
    be studied together: which they are, both, and what to do otherwise."""
    wishes = [studied(member.coder, text) for member in members]
    for member, wish in zip(members[1:], wishes[1:], strict=True):
        both = f"{members[0].path} and {member.path}"
        refuse(both, wishes[0], wish, "give one with --text" if text is None else "compare others")
    return wishes


def refuse_other_tokens(both: str, first: Studied, other: Studied, otherwise: str) -> None:
    cards = first.card, other.card
    if first.card.model != other.card.model:
        models = ", ".join(_model(card.model.model_dump(exclude_none=True)) for card in cards)
        raise MatryoshkaError(f"{both}: are of different language models ({models}); compare coders of one model")
    windows = [
        f"{wish.text.context} tokens {'with' if wish.card.prepend_bos else 'without'} BOS" for wish in (first, other)
    ]
    if windows[0] != windows[1]:
        raise MatryoshkaError(f"{both}: read windows of {' and of '.join(windows)}; compare coders of the same windows")
    refuse_other_text(both, first, other, otherwise)


def refuse_other_text(both: str, first: Studied, other: Studied, otherwise: str) -> None:
    """The same for two coders that do not know one text."""
    texts = [wish.text.model_dump(exclude={"limit", "context"}) for wish in (first, other)]  # how it is read
    for name, value in texts[0].items():
        if value != texts[1][name]:
            raise MatryoshkaError(f"{both}: know different texts ({name}: {value}, {texts[1][name]}); {otherwise}")


def _model(model: dict[str, Any]) -> str:
    return " ".join(map(str, model.values()))


class Joint:
    """Coders that are studied together; each part is opened when it is needed first."""

    refuse = staticmethod(refuse_other_tokens)
    """Which coders are not, and why."""

    def __init__(
        self,
        members: Sequence[Run],
        text: AnotherText | None,
        tokens: int,
        recording: Path,
        device: str = "auto",
        overwrite: bool = False,
        choose: Callable[[Corpus], np.ndarray] = evenly,
    ) -> None:
        """`tokens`: how much held-out text to read. `recording`: the folder where the latents on it lie, or will.
        `overwrite`: find anew what is saved. `choose`: which windows of the text are read. Raises MatryoshkaError as
        `together` does."""
        self.members, self._recording, self._overwrite = members, recording, overwrite
        self.studied = together(members, text, self.refuse)
        self.names = names(members)
        # whose text is read least far: what more is needed is read on
        self.corpus = Corpus(min(self.studied, key=lambda wish: wish.text.limit or 0), tokens, device, choose)

    @cached_property
    def coders(self) -> list[HookedCoder]:
        return hook_all([member.coder for member in self.members], self.corpus.lm, self.corpus.windows)

    @cached_property
    def recording(self) -> Recording:
        """Of all coders; made now where it is not there."""
        corpus = self.corpus
        with progress_bar(
            f"reading text for {len(self.members)} {'coders' if self.members[1:] else 'coder'}"
        ) as update:
            record(corpus.lm, corpus.windows, corpus.numbers, self.coders, self._recording, progress=update)
        return Recording(self._recording)

    def found(self, name: str, number: int) -> Result:
        """What the analysis `name` of the catalogue finds of one coder, saved in its run's analysis/."""
        module = module_of(name)

        def analyse(progress: Progress) -> Result:
            return module.analyse(self._observed(number), self.corpus, progress)

        folder, said = self.members[number].analysis, f"{name} of {self.names[number]}"
        return self._answer(folder, name, self._identity(module.VERSION, number), said, analyse)

    def matched(self, first: int, second: int, folder: Path) -> Result:
        """What matches what between two coders, saved in `folder` as `stem` says."""
        identity = self._identity(correspondence.VERSION, first, second)
        said = f"comparing {self.names[first]} with {self.names[second]}"
        stem = self.stem(first, second)
        return self._answer(
            folder, stem, identity, said, lambda progress: correspondence.analyse(self._pair(first, second), progress)
        )

    def chained(self, matches: Sequence[Result], folder: Path) -> Result:
        """The chains of all coders, one after the other; `matches`: of each with the next. Saved in `folder` as
        `chains`."""
        numbers = range(len(self.members))
        identity = self._identity(chains.VERSION, *numbers) | {"correspondence": correspondence.VERSION}

        def analyse(progress: Progress) -> Result:
            return chains.analyse([self._observed(i) for i in numbers], matches, self.corpus, progress)

        return self._answer(folder, "chains", identity, f"chains of {len(numbers)} coders", analyse)

    def stem(self, first: int, second: int) -> str:
        """Of the names of a pair's files."""
        return "--".join(self.names[i].replace("/", "+") for i in (first, second))

    def _answer(
        self, folder: Path, name: str, identity: dict[str, Any], said: str, analyse: Callable[[Progress], Result]
    ) -> Result:
        """What is saved, if it is of this identity; otherwise what is found now, saved."""
        if not self._overwrite and (saved := answer(folder, name, identity)) is not None:
            return saved
        with progress_bar(said) as update:
            try:
                result = analyse(update)
            except NotMeasurable as reason:
                result = Result((), reason=str(reason))
        save(result, identity, folder, name)
        return result

    def _observed(self, number: int) -> Observed:
        return Observed(self.names[number], self.coders[number], self.recording.of(self.coders[number]))

    def _pair(self, first: int, second: int) -> Pair:
        sides = self._observed(first), self._observed(second)
        a, b = (side.hooked for side in sides)
        of_one = a.coder.config == b.coder.config and a.fingerprint != b.fingerprint
        cards = self.studied[first].card, self.studied[second].card
        return Pair(*sides, ceiling=of_one and seeds_of_one_recipe(*cards))

    def _identity(self, version: int, *numbers: int) -> dict[str, Any]:
        """All that a result on these coders depends on."""
        return {
            "matryoshka": __version__,
            "analysis": version,
            "coders": [fingerprint(self.members[i].coder) for i in numbers],
            "names": [self.names[i] for i in numbers],
            "model": self.studied[numbers[0]].card.model.model_dump(mode="json"),
            "device": resolve_device(self.corpus.device).type,
            "text": self.corpus.windows.tokens.hash,
            "context": self.corpus.windows.context,
            "tokens": self.corpus.tokens,
        }
