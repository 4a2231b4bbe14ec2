"""What the chat model is asked, and what its answers mean: JSON, read strictly and never guessed at.

explain    marked contexts → one explanation
detect     an explanation and contexts → in which the feature fires   ("detection", Paulo et al. 2024)
fuzz       an explanation and marked contexts → where the marks are right   ("fuzzing", Paulo et al. 2024)

Contexts are JSON strings, so that nothing in them can be taken for the question. What to answer is said last: small
models go on with what they read last.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from matryoshka.features.chat import Malformed, Message, Messages
from matryoshka.features.trials import Context, Trial

OPEN, CLOSE = "⟦", "⟧"
LONGEST_EXPLANATION = 300
"""Characters."""
BATCH = 10
"""Contexts in one question."""
FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

FEATURE = (
    "A feature is a number computed inside a language model at every token of a text. On most tokens it is zero; where"
    " it is above zero it fires. It depends on the token itself and on the text before it, never on the text after it."
)
EXPLAIN = f"""{FEATURE}

You are shown stretches of text, each a JSON string after the strength of its strongest firing (1 to 10). The tokens \
on which the feature fires stand between {OPEN} and {CLOSE}. Find what those tokens, or the text that leads to them, \
have in common, and say it in one phrase of at most 25 words, as specific as the stretches allow; do not speak of \
features, marks or examples."""
EXPLANATION = (
    f"What do the tokens between {OPEN} and {CLOSE}, or the text that leads to them, have in common? Answer with JSON"
    ' and nothing else: {"explanation": "..."}'
)
DETECT = f"""{FEATURE}

You are given an explanation of when one feature fires, and numbered stretches of text, each a JSON string. Say of \
each whether the feature fires on at least one token in it, going by the explanation alone."""
FUZZ = f"""{FEATURE}

You are given an explanation of when one feature fires, and numbered stretches of text, each a JSON string in which \
some tokens stand between {OPEN} and {CLOSE}. Say of each whether those are the tokens on which the feature fires, \
going by the explanation alone."""
JUDGEMENTS = 'Answer with JSON and nothing else, with every number once: {"1": true, "2": false, ...}'


def explain(training: Sequence[Context]) -> Messages:
    """The question for an explanation of what fires as marked."""
    strongest = sorted(training, key=lambda context: -context.strength)
    lines = [f"{max(1, round(10 * context.strength))}: {_quoted(marked(context))}" for context in strongest]
    return Message("system", EXPLAIN), Message("user", "\n".join([*lines, "", EXPLANATION]))


def detect(explanation: str, trials: Sequence[Trial]) -> Messages:
    """The question in which of these contexts the feature fires."""
    return _question(DETECT, explanation, ["".join(map(_plain, trial.context.tokens)) for trial in trials])


def fuzz(explanation: str, trials: Sequence[Trial]) -> Messages:
    """The question which of these contexts are rightly marked."""
    return _question(FUZZ, explanation, [marked(trial.context) for trial in trials])


def _question(task: str, explanation: str, texts: Sequence[str]) -> Messages:
    lines = [f"{i}. {_quoted(text)}" for i, text in enumerate(texts, start=1)]
    asked = [f"Explanation: {_quoted(explanation)}", "", *lines, "", JUDGEMENTS]
    return Message("system", task), Message("user", "\n".join(asked))


def marked(context: Context) -> str:
    """A context with its marks."""
    return "".join(
        f"{OPEN}{_plain(token)}{CLOSE}" if i in context.marks else _plain(token)
        for i, token in enumerate(context.tokens)
    )


def _plain(token: str) -> str:
    """A token that cannot be taken for a mark."""
    return token.replace(OPEN, "[").replace(CLOSE, "]")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def read_explanation(answer: str) -> str:
    """Raises Malformed for anything but an explanation."""
    content = _object(answer)
    if content.keys() != {"explanation"} or not isinstance(content["explanation"], str):
        raise Malformed('expected an object with the one field "explanation", a string')
    text = " ".join(content["explanation"].split())
    if not 1 <= len(text) <= LONGEST_EXPLANATION:
        raise Malformed(f"the explanation has {len(text)} characters, expected 1 to {LONGEST_EXPLANATION}")
    return text


def read_judgements(n: int) -> Callable[[str], list[bool]]:
    """Reads the answers to `n` numbered contexts; raises Malformed for anything else."""
    expected = [str(i) for i in range(1, n + 1)]

    def read(answer: str) -> list[bool]:
        content = _object(answer)
        if content.keys() != set(expected):
            raise Malformed(f"expected the numbers 1 to {n} as fields, each once")
        if not all(isinstance(value, bool) for value in content.values()):
            raise Malformed("expected true or false for each number")
        return [content[number] for number in expected]

    return read


def _object(answer: str) -> dict[str, Any]:
    """The JSON object that an answer is: alone, in one fence, or after thoughts that the server has left in it."""
    text = THOUGHT.sub("", answer).strip()
    if fence := FENCE.fullmatch(text):
        text = fence[1]
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error) if isinstance(error, Malformed) else "it is not JSON") from None
    if not isinstance(content, dict):
        raise Malformed("it is not a JSON object")
    return content


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) < len(pairs):
        raise Malformed("a field stands in it twice")
    return content
