"""The house of docs/architecture.md holds: names mean one thing, files and functions stay small, leaves are leaves."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "matryoshka"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
LONGEST_FUNCTION, LONGEST_FILE = 50, 350


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    return ((file, node) for file, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kinds))


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(set)
    for file, node in nodes(ast.ClassDef):
        if not node.name.startswith("_"):
            places[node.name].add(str(file.relative_to(SOURCE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_a_file_name_means_one_thing() -> None:
    """But for packages' faces and the verbs of the command line, which are called as what they start."""
    places = defaultdict(set)
    for file in FILES:
        if file.name != "__init__.py" and "cli" not in file.parts:
            places[file.name].add(str(file.relative_to(SOURCE).parent))
    # the operations stand in one file a device, and a kernel's file is called as the reference's part
    assert {name: rooms for name, rooms in places.items() if len(rooms) > 1} == {}


def test_functions_and_files_stay_small() -> None:
    functions = {
        f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > LONGEST_FUNCTION} == {}
    sizes = {str(file.relative_to(SOURCE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: lines for name, lines in sizes.items() if lines > LONGEST_FILE} == {}


def test_nobody_outside_the_coders_room_touches_a_parameter() -> None:
    touched = {
        f"{file.relative_to(SOURCE)}:{node.lineno}"
        for file, node in nodes(ast.Attribute)
        if node.attr in {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "log_growth"}
        and not {"coder", "interop"} & set(file.parts)  # the latter holds plain tensors of files, never a coder's
    }
    assert touched == set()


def test_only_one_place_reads_torchruns_environment() -> None:
    readers = {
        str(file.relative_to(SOURCE))
        for file, node in nodes(ast.Constant)
        if node.value in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    }
    assert readers == {"distributed.py"}


def test_texts_are_read_in_one_place() -> None:
    """But for training's stream, the rule that is measured before there are rows, and what splices: it goes on from
    rows, or reads a prompt that grows."""
    callers = {
        str(file.relative_to(SOURCE))
        for file, node in nodes(ast.Call)
        if isinstance(node.func, ast.Attribute)
        and node.func.attr == "read"
        and ast.unparse(node.func.value).split(".")[-1] == "lm"
    }
    assert callers == {
        "data/rowfilter.py",
        "data/stream.py",
        "interventions/changes.py",
        "interventions/steering.py",
        "interventions/succession.py",
        "study/final_norm.py",
        "study/reader.py",
    }
