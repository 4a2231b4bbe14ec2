"""The coders of runs taken through the evaluations of the table.

    measured(members, …)  results of coders: saved ones that still answer what is asked, the others measured together
    recipes(members, …)   which of them are the same recipe with other seeds

Each result is saved as soon as it is there: an interrupted suite goes on with the evaluation that it was in.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from matryoshka.coder.card import Card
from matryoshka.coder.io import fingerprint
from matryoshka.config import read_yaml
from matryoshka.errors import MatryoshkaError
from matryoshka.evaluation.setting import Setting, content_hash
from matryoshka.evaluation.shared import labelled as labelled_text
from matryoshka.evaluation.shared import spelling
from matryoshka.evaluation.shared.labelled import LabelledText
from matryoshka.evaluation.shared.labels import shipped
from matryoshka.evaluation.subject import KnownSubject, Subject
from matryoshka.evaluation.table import Evaluation
from matryoshka.progress import progress_bar
from matryoshka.run import Run
from matryoshka.run import names as run_names
from matryoshka.scores.comparison import Target
from matryoshka.scores.result import NotMeasurable, Result
from matryoshka.scores.saved import answer, load, save


def measured(
    members: Sequence[Run], setting: Setting, names: Sequence[str], overwrite: bool = False
) -> list[dict[str, Result]]:
    """The results of these evaluations for the coder of each run, in their order. Those that are saved and still are
    what would be found are taken, unless `overwrite`; the others are measured now, the coders that lack any together,
    and each is saved at once. What says nothing in this setting has the reason as its result."""
    known = setting.evaluations
    foreign = {name: Result((), reason=setting.refusal) for name in names if name not in known}
    names = [name for name in names if name in known]
    identities, results = [], []
    for member in members:
        coder = fingerprint(member.coder)
        identities.append({name: setting.identity(coder, known[name]) for name in names})
        results.append({} if overwrite else _saved(member, identities[-1]))
    lacking = [i for i, saved in enumerate(results) if len(saved) < len(names)]
    if lacking:
        subjects = dict(zip(lacking, setting.subjects([members[i].coder for i in lacking]), strict=True))
        for name in names:
            for i in (i for i in lacking if name not in results[i]):
                results[i][name] = _measure(members[i], name, known[name], subjects[i])
                save(results[i][name], identities[i][name], members[i].evaluation, name)
    return [{name: of_member[name] for name in names} | foreign for of_member in results]


def _measure(member: Run, name: str, evaluation: Evaluation, subject: Subject | KnownSubject) -> Result:
    with progress_bar(f"{member.path.name}: {name}") as update:
        try:
            return evaluation.run(subject, update)
        except NotMeasurable as reason:
            return Result((), reason=str(reason))


def explained(member: Run) -> dict[str, Result]:
    """What a chat model's explanations of this coder scored, where `matryoshka explain` has measured it."""
    try:
        result, identity = load(member.evaluation, "detection")
    except MatryoshkaError:
        return {}
    return {"detection": result} if identity["coder"] == fingerprint(member.coder) else {}


def _saved(member: Run, identities: Mapping[str, dict[str, Any]]) -> dict[str, Result]:
    """What is saved, of these identities."""
    results = {}
    for name, identity in identities.items():
        if (result := answer(member.evaluation, name, identity)) is not None:
            results[name] = result
    return results


def labelled(files: Sequence[Path]) -> tuple[LabelledText, ...]:
    """The user's labelled text; each has a name of its own, by which its concepts are known."""
    taken = {text.name for text in shipped()} | {spelling.NAME}
    texts = []
    for file in files:
        texts.append(text := labelled_text.load(file))
        if text.name in taken:
            raise MatryoshkaError(f"{file}: there are labels of the name {text.name!r} already; give the file another")
        taken.add(text.name)
    return tuple(texts)


def recipes(members: Sequence[Run]) -> list[tuple[str, list[int]]]:
    """(name, numbers of its members) of each recipe: coders whose configurations differ in seeds alone are one, and one
    that was not trained here is its own."""
    groups: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        groups.setdefault(_recipe(member), []).append(i)
    names = run_names(members)
    return [(_common([names[i] for i in group], members[group[0]].path), group) for group in groups.values()]


def _recipe(member: Run) -> str:
    """The same for runs whose configurations differ in name, log and seeds alone."""
    if not member.config_file.is_file():
        return str(member.path)
    recipe = read_yaml(member.config_file)
    for section, field in ((recipe, "name"), (recipe, "log"), (recipe["training"], "seed"), (recipe["coder"], "seed")):
        section.pop(field, None)
    return content_hash(recipe)


def target(card: Card) -> Target:
    """What a coder's reconstruction is of."""
    return Target(card.model.name, tuple(site for source in card.sources for site in source.writes))


def _common(names: Sequence[str], first: Path) -> str:
    """What the names of a recipe's seeds have in common, or else the run that they lie in; a single coder's name."""
    if len(names) == 1:
        return names[0]
    same = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )
    return re.sub(r"[\W_]*(seed)?[\W_]*$", "", same) or first.resolve().parent.name
