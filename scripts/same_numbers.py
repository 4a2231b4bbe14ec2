"""Whether the code computes what it computed: small fixed recipes of the bundled model against recorded numbers.

    python scripts/same_numbers.py                    # compare with same_numbers.json: exit code 1 if anything differs
    python scripts/same_numbers.py --only sae eval    # some recipes
    python scripts/same_numbers.py --record           # write the file, in the commit that moves numbers and says why

Each recipe runs the command line of this working tree in a folder of its own. The run's files then become numbers:
metrics.jsonl without wall-clock times, a hash of each tensor of the coder, every score of every evaluation, the columns
of the store of features; and so does what `steer` prints. Each is held against the recorded one to the last bit.

Nothing of the package is imported, so that it may be rebuilt: only the command line, the fields of recipes and a run's
files are relied on. The processes have one thread and no instructions beyond AVX2, since sums depend on both, so that
processors with AVX-512 or AMX give the numbers of those without. Other versions of torch or numpy may give others in
the last digits, and so do processors of another maker, for which MKL has sums of its own (these numbers are of an AMD
EPYC): there, record those of the commit before (`--record`), and compare with them. `--tolerance 1e-4` allows it too.
"""

import argparse
import hashlib
import json
import math
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

RECORDED = Path(__file__).with_suffix(".json")
SOURCE = Path(__file__).parents[1] / "src"
COMMAND = "from matryoshka.cli import main; main()"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "NO_COLOR": "1", "COLUMNS": "1000",
}  # fmt: skip
"""One thread, nothing beyond AVX2 in any library, no network, and printed lines that are never wrapped."""
SMALL = {
    "model": {"device": "cpu"}, "text": {"context": 64}, "activations": {"chunk": 8192}, "evaluation": {"tokens": 1024},
    "coder": {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 256, "k": 6, "widths": [32, 96, 256]},
    "training": {
        "tokens": 20_480, "batch": 512, "lr": 3e-3, "dead_after_tokens": 5000, "evaluate_every": 20,
        "select": "float32",
    },
}  # fmt: skip
"""A transcoder that trains in seconds, in two chunks and a half; latents die, so that there is an aux loss."""
TRAININGS: dict[str, dict[str, Any]] = {
    "transcoder": {},
    "sae": {"coder": {"read": "2.resid_post", "write": None}},
    "skip": {"coder": {"skip": True}},
    "jumprelu": {"coder": {"activation": "jumprelu"}},
    "topk": {"coder": {"activation": "topk"}, "training": {"loss": "saelens", "decay": "cosine"}},
    "random_widths": {"coder": {"random_widths": True}},
    "several": {"variants": [
        {"k": 12}, {"seed": 1, "widths": [256]}, {"read": "0.attn_in", "write": "2.resid_post"},
        {"read": "0.mlp_out", "write": None, "d_sae": 128, "widths": [0.5, 1.0]},
    ]},
    "cached": {"text": {"limit": 12_000, "held_out": 0.4}, "activations": {"chunk": 4096, "cache": "activations"}},
    "resumed": {"training": {"checkpoint_every": 7}},
}  # fmt: skip
"""What is different in each from SMALL. `cached` reads its text twice, `resumed` is interrupted."""
KINDS = {"dog": "animal", "cat": "animal", "axe": "tool", "saw": "tool"}
ENDS = (" there.", " again.", " once.", " at noon.", " then.", " here.")
"""Labelled text whose concepts the bundled model tells, for an absorption that can be measured."""
ABOUT = ("windows", "documents", "tokens", "tokens_left_out", "largest_norms")
"""What a store of features says of its text; the rest are names, dates and settings."""
TABLES = "type = 'table' AND name NOT LIKE 'search%' AND name NOT IN ('about', 'vocabulary')"
PLACES = re.compile(r"^.*?/(?=(metrics|weights|evaluation|features|steer)/)|@\d+|/\d+(?=/|$)")
"""What is left out of a number's name to find its like: recipe and coder, width, step and element."""
Number = float | int | str | None
Numbers = dict[str, Number]


class Work:
    """The folder that all recipes run in, and the processes that do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str) -> Popen[str]:
        """The command of this working tree, started in the folder."""
        own = {"PYTHONPATH": str(SOURCE), "MATRYOSHKA_CACHE": str(self.folder / "cache")}
        command, environment = [sys.executable, "-c", COMMAND, *arguments], os.environ | ENVIRONMENT | own
        return Popen(command, cwd=self.folder, env=environment, stdout=PIPE, stderr=PIPE, text=True)

    def finish(self, process: Popen[str], code: int = 0) -> str:
        """What it has printed at its end. Another exit code ends everything, with what it said."""
        out, errors = process.communicate()
        if process.returncode != code:
            sys.exit(f"{process.args}: exit code {process.returncode}, not {code}\n{errors[-3000:]}")
        return out

    def run(self, *arguments: str) -> str:
        """What the command prints."""
        return self.finish(self.start(*arguments))

    def trained(self, name: str) -> Path:
        """The run of one of TRAININGS, trained now unless it was."""
        run, changes = self.folder / name, TRAININGS[name]
        if run.exists():
            return run
        recipe = changes | {section: {**fields, **changes.get(section, {})} for section, fields in SMALL.items()}
        (self.folder / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        process = self.start("train", f"{name}.yaml", "--out", name)
        if name == "resumed":  # stopped once something is logged
            log = run / "metrics.jsonl"
            while process.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            self.finish(process, 128 + signal.SIGTERM)
            process = self.start("resume", name)
        self.finish(process)
        return run


def of_coders(run: Path, *readers: Callable[[Path], Numbers]) -> Numbers:
    """What `readers` find in the folder of each coder of a run."""
    numbers: Numbers = {}
    for folder in [run] if (run / "coder").is_dir() else sorted(path.parent for path in run.glob("*/coder")):
        for key, number in (item for reader in readers for item in reader(folder).items()):
            numbers["/".join([*folder.relative_to(run).parts, key])] = number
    return numbers


def features(work: Work, name: str) -> Numbers:
    """The features of each coder of the run `name`, explained by rules."""
    work.run("features", work.trained(name).name, "--tokens", "9000")
    work.run("explain", name)
    return of_coders(work.folder / name, store)


def evaluation(work: Work) -> Numbers:
    """All evaluations, with labelled text of the user's own as well."""
    rows = [
        {"text": f"Not the {word}{end}", "span": [8, 8 + len(word)], "path": [kind, word], "group": f"{word}{i}"}
        for word, kind in KINDS.items()
        for i, end in enumerate(ENDS * 10)
    ]
    (work.folder / "animals.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    work.run("eval", work.trained("transcoder").name, "--tokens", "1024", "--labels", "animals.jsonl", "--overwrite")
    return evaluations(work.folder / "transcoder")


def steering(work: Work) -> Numbers:
    """What is printed: both texts, the feature's maximum, the KL."""
    said = re.sub(r"[\s─]+", " ", work.run("steer", work.trained("transcoder").name, "60"))
    maximum, kl = re.findall(r"(?:tokens is|next token:) ([\d.e+-]+)", said)
    return flat("steer", {"text": said, "maximum": float(maximum), "KL": float(kl)})


RECIPES: dict[str, Callable[[Work], Numbers]] = {
    **{n: lambda work, n=n: of_coders(work.trained(n), metrics, weights, evaluations) for n in TRAININGS},
    "features": lambda work: features(work, "transcoder"),
    "features_of_several": lambda work: features(work, "several"),
    "steer": steering,
    "eval": evaluation,
}


def metrics(folder: Path) -> Numbers:
    """Every number of metrics.jsonl but wall-clock times."""
    numbers: Numbers = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        record.pop("tokens_per_second", None)
        numbers |= flat(
            "metrics/held_out" if record.pop("held_out", False) else "metrics", {record.pop("step"): record}
        )
    return numbers


def weights(folder: Path) -> Numbers:
    """A hash of each tensor. In safetensors: the header's length, the header (JSON), the tensors at its offsets."""
    content = (folder / "coder" / "weights.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    spans = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
    return {f"weights/{name}": digest(content[start + low : start + high]) for name, (low, high) in spans.items()}


def evaluations(folder: Path) -> Numbers:
    """Every score of evaluation/*.json; of the details single numbers, and one hash of what lies deeper."""
    numbers: Numbers = {}
    for file in sorted((folder / "evaluation").glob("*.json")):
        content, where = json.loads(file.read_text(encoding="utf-8")), f"evaluation/{file.stem}"
        if not isinstance(content, dict):  # the table of the report, made of the same scores
            continue
        numbers[f"{where}/reason"] = content["reason"]
        for score in content["scores"]:
            parts = {part: score[part] for part in ("value", "low", "high", "null", "units")}
            numbers |= flat(f"{where}/{score['name']}@{score['width']}", parts)
        for name, detail in content["details"].items():
            inside = [number for number in flat("", detail).values() if isinstance(number, int | float)]
            if inside:
                numbers[f"{where}/details/{name}"] = inside[0] if len(inside) == 1 else digest(repr(inside).encode())
    return numbers


def store(folder: Path) -> Numbers:
    """A hash of each column of a store of features, and the sums of numbers. Blobs are hashed without their zlib."""
    database = sqlite3.connect(folder / "features.sqlite")
    about = json.loads(database.execute("SELECT json FROM about").fetchone()[0])
    numbers = flat("features/about", {name: about[name] for name in ABOUT})
    for (table,) in database.execute(f"SELECT name FROM sqlite_master WHERE {TABLES} ORDER BY 1").fetchall():
        cursor = database.execute(f"SELECT * FROM {table} ORDER BY 1")
        for (name, *_), column in zip(cursor.description, zip(*cursor, strict=True), strict=False):
            values = [zlib.decompress(value) if isinstance(value, bytes) else value for value in column]
            numbers[f"features/{table}.{name}"] = digest(repr(values).encode())
            floats = [value for value in values if isinstance(value, float)]
            numbers |= {f"features/{table}.{name}/sum": math.fsum(floats)} if floats else {}
    database.close()
    return numbers


def flat(name: str, value: Any) -> Numbers:
    """The plain values in lists and mappings, by name."""
    if not isinstance(value, list | dict):
        return {name: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: number for part, inner in inside for key, number in flat(f"{name}/{part}", inner).items()}


def digest(content: bytes) -> str:
    """sha256, as much of it as tells any two apart."""
    return hashlib.sha256(content).hexdigest()[:32]


def distance(old: Number, new: Number) -> float:
    """Relative difference of two numbers; infinity for anything else."""
    if isinstance(old, str | None) or isinstance(new, str | None):
        return math.inf
    return abs(old - new) / (max(abs(old), abs(new)) or 1.0)


def report(old: Numbers, new: Numbers, tolerance: float) -> bool:
    """Print what differs; whether nothing does, or none relatively by more than `tolerance`."""
    pairs = {key: (old.get(key, "nothing"), new.get(key, "nothing")) for key in old | new}
    far = {key: distance(*pair) for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
    print(f"{len(pairs) - len(far):,} of {len(pairs):,} numbers are equal bit for bit")
    for recipe, count in Counter(key.split("/")[0] for key in far).items():
        print(f"  {recipe}: {count:,} differ")
    families: dict[str, list[str]] = defaultdict(list)
    for key in far:
        families[PLACES.sub("", key)].append(key)
    for family, keys in families.items():
        worst = max(keys, key=far.__getitem__)
        size = f", relatively by {far[worst]:.2g} at most" if math.isfinite(far[worst]) else ""
        print(f"{family}: {len(keys):,} differ{size}\n    {worst}: {pairs[worst][0]!r} → {pairs[worst][1]!r}")
    return not far or (tolerance > 0 and all(size <= tolerance for size in far.values()))


def machine() -> Numbers:
    """What numbers may depend on: shown where they differ."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy", "scipy", "scikit-learn")}
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return flat("machine", versions | {"processor": ", ".join({*models})})


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=RECIPES, default=[*RECIPES], metavar="NAME", help=f"of: {', '.join(RECIPES)}")
    add("--record", action="store_true", help=f"write {RECORDED.name}, or the part of it that --only names")
    add("--tolerance", type=float, default=0.0, metavar="X", help="relative; hashes and texts are not compared then")
    options = parser.parse_args()
    new: Numbers = {}
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as folder:
        work = Work(Path(folder))
        for name in options.only:
            start = time.monotonic()
            new |= {f"{name}/{key}": number for key, number in RECIPES[name](work).items()}
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    recorded: Numbers = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}
    old = {key: number for key, number in recorded.items() if key.split("/")[0] in options.only}
    if options.record:
        content = {key: number for key, number in recorded.items() if key not in old} | new | machine()
        RECORDED.write_text(json.dumps(content, indent=0, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(new):,} numbers recorded in {RECORDED}")
        return
    if options.tolerance:
        old, new = (Numbers((key, x) for key, x in numbers.items() if not isinstance(x, str)) for numbers in (old, new))
    if not report(old, new, options.tolerance):
        for name, here in machine().items():
            if here != recorded.get(name):
                print(f"{name}: recorded with {recorded.get(name)}, here {here}")
        sys.exit(1)


if __name__ == "__main__":
    main()
