"""The first-letter task: words whose first letter a language model is asked for (Chanin et al. 2024, arXiv:2409.14507).

    "\\n heart has the first letter: H\\n river has the first letter: R\\n … \\n stone"       row: the token of " stone"

1. words are single tokens of the model's own vocabulary: a space and three or more small letters, up to
   `words_per_letter` of each letter in the order of the vocabulary, which puts frequent ones first
2. SHOTS other words with their answers stand before each, drawn anew for each; the prompt is SAEBench's (Karvonen et
   al. 2025, arXiv:2503.09532), cut off at the word: a causal model's row there does not know what follows
3. the path is (letter, word), and a word is its own group: probes are judged by words that they were not trained on

Other than in SAEBench 0.6 the rows are found by the word's characters and not by counting six tokens from the end,
which other tokenizers may make five or seven; " Stone" and "stone" beside " stone", one of them in training and one in
the test, are left out, and so are parts of words, which begin with no space; letters weigh alike, as far as there are
words; and the words of a prompt depend on nothing but its own word.
"""

import random
import re
from collections import defaultdict

from matryoshka.evaluation.shared.labelled import LabelledExample, LabelledText
from matryoshka.lm.model import LanguageModel
from matryoshka.scores.result import NotMeasurable

NAME = "first_letter"
SHOTS = 10
MIN_WORDS = 20
"""Of a letter: fewer leave some five to test with."""
MIN_LETTERS = 10
_WORD = re.compile(rb" [a-z]{3,}")
_QUESTION = "{word} has the first letter:"


def first_letters(lm: LanguageModel, words_per_letter: int = 80) -> LabelledText:
    """The prompts of `lm`'s own words, one a word.

    Raises NotMeasurable where fewer than MIN_LETTERS letters begin MIN_WORDS words of its vocabulary.
    """
    by_letter = words(lm.token_bytes)
    enough = {letter: its for letter, its in by_letter.items() if len(its) >= MIN_WORDS}
    if len(enough) < MIN_LETTERS:
        total = sum(map(len, by_letter.values()))
        raise NotMeasurable(
            f"{lm.info.name}: spelling needs {MIN_WORDS} words that are single tokens of each of {MIN_LETTERS} letters;"
            f" its vocabulary has so many of {len(enough)}, and {total} words in all"
        )
    chosen = [word for letter in sorted(enough) for word in enough[letter][:words_per_letter]]
    return LabelledText(NAME, tuple(_example(word, chosen) for word in chosen))


def words(vocabulary: list[bytes]) -> dict[str, list[str]]:
    """The words among the tokens of a vocabulary, leading space included, by their first letter, in its order."""
    by_letter: dict[str, list[str]] = defaultdict(list)
    for token in dict.fromkeys(vocabulary):
        if _WORD.fullmatch(token):
            by_letter[chr(token[1])].append(token.decode())
    return dict(by_letter)


def _example(word: str, others: list[str]) -> LabelledExample:
    draw = random.Random(word)
    shown = [other for other in draw.sample(others, SHOTS + 1) if other != word][:SHOTS]
    lines = "".join(f"\n{_QUESTION.format(word=other)} {other[1].upper()}" for other in shown)
    text = f"{lines}\n{word}"
    # its space lies in the token or before it: the letters are what no tokenizer puts elsewhere
    return LabelledExample(text, (len(text) - len(word) + 1, len(text)), (word[1], word.strip()), word.strip())
