"""The README.md of a repository of coders: a header for the hub, then what people want to know before they load one.

The header begins at the first byte and says `library_name: saelens`, by which the hub shows how SAELens loads it.
Numbers are those that `matryoshka eval` has saved of the same weights; without any the card says so.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import yaml

from matryoshka.coder import io
from matryoshka.coder.card import Card
from matryoshka.config import read_yaml
from matryoshka.data.documents import is_local
from matryoshka.errors import MatryoshkaError
from matryoshka.report.cells import cell
from matryoshka.run import Run
from matryoshka.scores.result import Result
from matryoshka.scores.saved import load
from matryoshka.study.hooked import wiring_of
from matryoshka.study.opening import read_card
from matryoshka.version import __version__

CARD = "README.md"
SET = "circuit-tracer"
"""The folder of the same coders as a set for circuit-tracer."""
TAGS = ("sparse-autoencoder", "matryoshka", "mechanistic-interpretability", "saelens")
MEASURES = ("FVU", "CE recovered", "KL recovered", "L0")
"""Columns of the numbers, by the names of their scores."""
CITED = """\
@article{bussmann2025matryoshka,
  title = {Learning Multi-Level Features with Matryoshka Sparse Autoencoders},
  author = {Bussmann, Bart and Nabeshima, Noa and Karvonen, Adam and Nanda, Neel},
  journal = {arXiv preprint arXiv:2503.17547},
  year = {2025}
}"""
CITED_OF_TRANSCODERS = """\
@article{dunefsky2024transcoders,
  title = {Transcoders Find Interpretable {LLM} Feature Circuits},
  author = {Dunefsky, Jacob and Chlenski, Philippe and Nanda, Neel},
  journal = {arXiv preprint arXiv:2406.11944},
  year = {2024}
}"""


class Shared(NamedTuple):
    """A coder of a repository."""

    place: str
    """Its folder there, which is its id."""
    run: Run
    prefix: int | None
    """How many of its first latents it is; None: all."""
    figure: str | None
    """A picture of its numbers, in the repository."""


def card_text(repository: str, shared: Sequence[Shared], license: str | None, with_set: bool) -> str:
    """The whole file. `with_set`: the same coders lie in `SET` too."""
    cards = [read_card(coder.run.coder) for coder in shared]
    kind = "transcoders" if any(_transcodes(card) for card in cards) else "sparse autoencoders"
    blocks = [
        _header(cards, license),
        f"# {repository.split('/')[1]}",
        f"Matryoshka {kind} of {', '.join(dict.fromkeys(card.model.name for card in cards))}, made with matryoshka"
        f" {__version__}: nested prefixes of the dictionary each reconstruct on their own.",
        "## Coders",
        *(block for coder, card in zip(shared, cards, strict=True) for block in _coder(coder, card)),
        "## How to load them",
        _loading(repository, shared[0].place, cards[0], with_set),
        "## Citation",
        f"```bibtex\n{CITED}\n{CITED_OF_TRANSCODERS if any(map(_transcodes, cards)) else ''}".rstrip() + "\n```",
    ]
    return "\n\n".join(blocks) + "\n"


def _header(cards: Sequence[Card], license: str | None) -> str:
    models = [card.model.name for card in cards if not is_local(card.model.name)]
    sources = [str(card.trained.text["source"]) for card in cards if card.trained and card.trained.text]
    fields: dict[str, Any] = {"library_name": "saelens", "tags": list(TAGS)}
    if models:
        fields["base_model"] = list(dict.fromkeys(models))
    if data_sets := [source for source in dict.fromkeys(sources) if not is_local(source)]:
        fields["datasets"] = data_sets
    if license is not None:
        fields["license"] = license
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _transcodes(card: Card) -> bool:
    return any(source.reads != source.writes for source in card.sources)


def _coder(coder: Shared, card: Card) -> Iterator[str]:
    """What one coder is, its numbers, how it was trained."""
    config, _ = io.load_card(coder.run.coder)
    widths = [width for width in config.widths if coder.prefix is None or width <= coder.prefix]
    wiring, k = wiring_of(card), "" if config.k is None else f", trained for {config.k} active a token"
    yield f"### `{coder.place}`"
    yield (
        f"Reads `{wiring.reads[0]}`, writes `{wiring.writes[0]}`; {config.activation.kind}{k}; {widths[-1]:,} latents,"
        f" nested prefixes {', '.join(f'{width:,}' for width in widths)}"
        + (f" (the first {coder.prefix:,} of {config.d_sae:,})." if widths[-1] < config.d_sae else ".")
    )
    yield _numbers(coder.run, widths)
    if coder.figure:
        yield f"![FVU and CE recovered of each prefix]({coder.figure})"
    yield _training(coder.run, card)


def _numbers(run: Run, widths: Sequence[int]) -> str:
    """Its scores on held-out text, a row a prefix, with 95 % intervals."""
    result = None
    with suppress(MatryoshkaError):
        saved = load(run.evaluation, "reconstruction")
        result = saved.result if saved.identity.get("coder") == io.fingerprint(run.coder) else None
    if result is None or not result.scores:
        return "Not measured yet."
    names = [name for name in MEASURES if any(score.measure.name == name for score in result.scores)]
    rows = [f"| first | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    rows += [f"| {width:,} | {' | '.join(_cell(result, name, width) for name in names)} |" for width in widths]
    tokens = f"{result.details['tokens']:,}"
    return "\n".join(rows) + f"\n\nOn {tokens} held-out tokens; in brackets 95 % intervals by documents."


def _cell(result: Result, name: str, width: int) -> str:
    value, interval, _ = cell([score for score in result.of(name) if score.width == width])
    return f"{value} ({interval})" if interval else value


def _training(run: Run, card: Card) -> str:
    """What it saw, and how it learned where that is known."""
    said = [f"Windows of {card.context:,} tokens{', beginning with BOS' if card.prepend_bos else ''}."]
    if card.trained is None:
        return f"It was made by {card.origin}; what it was trained on is not known here. {said[0]}"
    trained, source = card.trained, card.trained.text.get("source")
    text = f" of {f'`{source}`' if not is_local(str(source)) or source == 'bundled' else 'a text of its own'}"
    said.insert(0, f"Trained on {trained.tokens:,} tokens{text}; BOS and attention sinks are left out.")
    if run.config_file.is_file():
        training = read_yaml(run.config_file).get("training", {})
        settings = {name: training[name] for name in ("lr", "batch", "seed") if name in training}
        said.append(f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.")
    said.append(f"Dead at the end: {len(trained.dead):,} latents (not fired in {trained.dead_after_tokens:,} tokens).")
    return " ".join(said)


def _loading(repository: str, place: str, card: Card, with_set: bool) -> str:
    """In SAELens, here, and in circuit-tracer."""
    blocks = [
        f"""```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repository}", "{place}")
```""",
        f"""```python
import matryoshka  # pip install matryoshka-sae

coder = matryoshka.SparseCoder.from_pretrained("{repository}", "{place}")  # with its prefixes
```""",
        f"`matryoshka pull {repository}` makes a run of them, to be evaluated, looked at and steered with.",
        "Activations are those of the raw model: in TransformerLens `from_pretrained_no_processing`.",
    ]
    if with_set:
        blocks.insert(2, f"As a set for circuit-tracer: `--transcoder_set {repository}/{SET}`.")
    return "\n\n".join(blocks)
