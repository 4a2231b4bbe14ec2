"""Whether a language model's activations tell which letter a word begins with, layer by layer.

    python benchmarks/spelling.py --model MODEL [--layers 0 4 8 …] [--words 20000] [--cache DIR]
                                  [--json FILE] [--save]

Absorption of the first letter is to be measured where the model can spell: SAEBench asks for 20 letters or more whose
probes have an F1 of 0.6. Here, of the --words most frequent words of the vocabulary and of resid_post of each layer:

1. read     each word alone behind BOS, and in lists of words with their first letters (spelt_words.py), in bfloat16
            where the processor multiplies it; all layers in one pass, whose rows are kept in --cache
2. probe    each letter that begins enough words against the rest (letter_probes.py): F1 on 30 % of the words, with a
            space and without it on one side
3. hold     the same F1 against three others: with the C that absorption's own probes have; of no more words than
            absorption takes (those with a space, EVALUATION_WORDS a letter), with that C and with the one tuned to
            them; and with all words that share their first STEM letters on one side, so that " resigned" is not told
            by " resign"

--model takes what a recipe takes. Both prompts of 20,000 words are 280,000 tokens; probes take
some 30 s a layer and prompt.
"""

import argparse
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import machine, multiplies_bfloat16, publish
from jaxtyping import Bool
from letter_probes import HOUSE_C, held_out_f1, tuned_strength
from spelt_words import PROMPTS, SpeltRows, Word, read_words, vocabulary_words
from torch import Tensor

from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.absorption import MIN_PROBE_F1
from matryoshka.evaluation.shared.labelled import is_test
from matryoshka.evaluation.shared.spelling import MIN_WORDS
from matryoshka.lm.model import load

ENOUGH_LETTERS = 20
EVALUATION_WORDS = 80
"""Of a letter, as `first_letters` takes them."""
STEM = 4
LAYERS = 9
"""Spread over the model where --layers does not say which."""
COLUMNS = {
    "tuned": "C tuned",
    "house": f"C {HOUSE_C:g}",
    "stems": "C tuned, stems apart",
    "few": f"{EVALUATION_WORDS} words a letter, C {HOUSE_C:g}",
    "few_tuned": f"{EVALUATION_WORDS} words a letter, C tuned",
}
"""Of the table, by the name in the JSON."""


class Labels(NamedTuple):
    """What the rows are of."""

    letters: list[str]
    yes: Bool[Tensor, "rows letters"]
    test: Bool[Tensor, " rows"]
    validation: Bool[Tensor, " rows"]
    """Training words that C is chosen by."""
    stems_test: Bool[Tensor, " rows"]

    @classmethod
    def of(cls, words: Sequence[Word]) -> "Labels":
        """Rows of these words."""
        count = Counter(word.letter for word in words)
        letters = sorted(letter for letter in count if count[letter] >= MIN_WORDS)
        test = torch.tensor([word.is_test for word in words])
        fifth = torch.tensor([zlib.crc32(word.text.strip().encode()) % 5 == 0 for word in words])
        yes = torch.tensor([[word.letter == letter for letter in letters] for word in words])
        stems = torch.tensor([is_test(word.text.strip()[:STEM]) for word in words])
        return cls(letters, yes, test, fifth & ~test, stems)

    def at(self, rows: Tensor) -> "Labels":
        """Of these rows alone."""
        return Labels(self.letters, *(part[rows] for part in self[1:]))


def measure(model: str, layers: Sequence[int], count: int, cache: Path) -> dict[str, Any]:
    """F1 of each letter at each layer, for both prompts."""
    dtype = "bfloat16" if multiplies_bfloat16("cpu") else "float32"
    lm = load(model, dtype=dtype, device="cpu")
    last = lm.info.n_layers - 1
    layers = layers or sorted({round(i * last / (LAYERS - 1)) for i in range(LAYERS)})
    words = vocabulary_words(lm.token_bytes, count)
    places = []
    for prompt in PROMPTS:
        name = f"{Path(model).stem}-{prompt}-{len(words)}-{'.'.join(map(str, layers))}-{dtype}.safetensors"
        places += measure_prompt(words, prompt, read_words(lm, words, prompt, layers, cache / name))
    return {
        "machine": machine("cpu", torch.get_num_threads()),
        "model": Path(model).name,
        "dtype": dtype,
        "words": len(words),
        "places": places,
    }


def measure_prompt(words: Sequence[Word], prompt: str, rows: SpeltRows) -> list[dict[str, Any]]:
    """Layer by layer."""
    its = [words[number] for number in rows.word.tolist()]
    labels, few = Labels.of(its), _few(its, rows.word)
    places = []
    for layer in sorted(rows.layers):
        x = rows.layers[layer]
        C, f1 = _f1(x, labels)
        few_C, few_f1 = _f1(x[few], Labels.of([its[row] for row in few.tolist()]))
        [stems] = held_out_f1(x, labels.yes, labels.stems_test, C)
        arms = f1 | {"stems": dict(zip(labels.letters, stems.tolist(), strict=True))}
        arms |= {"few": few_f1["house"], "few_tuned": few_f1["tuned"]}
        places.append({"prompt": prompt, "layer": layer, "rows": len(its), "C": C, "few_C": few_C, "f1": arms})
        print(f"{prompt}, layer {layer}: {_told(arms['tuned'])}", flush=True)
    return places


def _few(words: Sequence[Word], numbers: Tensor) -> Tensor:
    """The rows of the most frequent words with a space, EVALUATION_WORDS of each letter."""
    by_letter = defaultdict(list)
    for row in numbers.argsort().tolist():
        if words[row].text.startswith(" "):
            by_letter[words[row].letter].append(row)
    return torch.tensor([row for rows in by_letter.values() for row in rows[:EVALUATION_WORDS]])


def _f1(x: Tensor, labels: Labels) -> tuple[float, dict[str, dict[str, float]]]:
    """The C that was chosen; of each letter F1 with it, and with HOUSE_C."""
    training = labels.at(~labels.test)
    C = tuned_strength(x[~labels.test], training.yes, training.validation)
    tuned, house = (
        dict(zip(labels.letters, values.tolist(), strict=True))
        for values in held_out_f1(x, labels.yes, labels.test, C, HOUSE_C)
    )
    return C, {"tuned": tuned, "house": house}


def _told(f1: dict[str, float]) -> str:
    enough = sum(value >= MIN_PROBE_F1 for value in f1.values())
    return f"{enough} of {len(f1)}, {sum(f1.values()) / len(f1):.3f}"


def markdown(results: dict[str, Any]) -> str:
    """The results as a table, and what they say of SAEBench's condition."""
    places = results["places"]
    lines = [
        f"# First letters: {results['model']}",
        "",
        f"Letters with F1 ≥ {MIN_PROBE_F1} of those tried, and macro-F1, of held-out words; {results['words']:,} words,"
        f" {results['dtype']}, {results['machine']['hardware']}, {results['machine']['threads']} threads.",
        "",
        f"| prompt | layer | C | {' | '.join(COLUMNS.values())} |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for place in places:
        cells = [_told(place["f1"][name]) for name in COLUMNS]
        lines.append(f"| {place['prompt']} | {place['layer']} | {place['C']:g} | {' | '.join(cells)} |")
    best = max(places, key=lambda place: sum(place["f1"]["tuned"].values()))
    letters = ", ".join(f"{letter} {value:.2f}" for letter, value in best["f1"]["tuned"].items())
    lines += ["", f"Best: {best['prompt']}, layer {best['layer']}: {letters}.", "", _verdict(places)]
    return "\n".join(lines) + "\n"


def _verdict(places: Sequence[dict[str, Any]]) -> str:
    enough = [
        f"{place['prompt']} {place['layer']}"
        for place in places
        if sum(value >= MIN_PROBE_F1 for value in place["f1"]["tuned"].values()) >= ENOUGH_LETTERS
    ]
    where = ", ".join(enough) if enough else "nowhere"
    return f"{ENOUGH_LETTERS} letters or more at F1 ≥ {MIN_PROBE_F1}: {where}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", help="language model")
    parser.add_argument("--layers", nargs="+", type=int, metavar="LAYER", help=f"of resid_post (default: {LAYERS})")
    parser.add_argument("--words", type=int, default=20_000, help="the most frequent ones of the vocabulary")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "matryoshka" / "spelling", metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--save", action="store_true", help="write results/DATE-HARDWARE-spelling.json and .md")
    arguments = parser.parse_args()
    try:
        results = measure(arguments.model, arguments.layers, arguments.words, arguments.cache)
    except MatryoshkaError as error:
        raise SystemExit(str(error)) from error
    publish(results, markdown(results), arguments.json, arguments.save, f"-spelling-{Path(arguments.model).stem}")


if __name__ == "__main__":
    main()
