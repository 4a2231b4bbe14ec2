"""Recipes and flags: one line for each mistake, before anything is loaded."""

import argparse
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from matryoshka.cli import main
from matryoshka.cli.flags import RECIPE_ONLY, _fields, add_flags, overrides
from matryoshka.coder.architecture import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, TopKConfig
from matryoshka.config import merged, sections
from matryoshka.errors import MatryoshkaError
from matryoshka.lm.info import describe
from matryoshka.lm.sites import Site
from matryoshka.training.plan import check, plan
from matryoshka.training.recipe import Config, TokensConfig

CODER = {"read": "1.mlp_in", "write": "1.mlp_out", "d_sae": 64, "k": 4}


def build(**values: Any) -> Config:
    return Config.build(merged({"coder": CODER}, values))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"coder": {"kk": 3}}, r"^coder\.kk: unknown field \(did you mean 'k'\?\)$"),
        ({"trainning": {}}, r"^trainning: unknown field \(did you mean 'training'\?\)$"),
        ({"coder": {"k": "many"}}, r"^coder\.k: input should be a valid integer.*got 'many'$"),
        ({"coder": {"k": 0}}, r"^coder\.k: .*greater than or equal to 1, got 0$"),
        ({"coder": {"read": "1.mlp_inn"}}, r"^coder\.read: .*did you mean '1\.mlp_in'"),
        (
            {"coder": {"activation": "topkk"}},
            r"^coder\.activation: .*'topk', 'batchtopk' or 'jumprelu', got 'topkk'$",
        ),
        ({"coder": {"read": ["1.mlp_in", "1.mlp_inn"]}}, r"^coder\.read: .*did you mean '1\.mlp_in'"),
        ({"coder": {"read": ["1.mlp_in", "2.mlp_in", "1.mlp_in"]}}, r"^coder\.read: 1\.mlp_in is named twice$"),
        ({"coder": {"write": ["blocks.1.hook_mlp_out", "1.mlp_out"]}}, r"^coder\.write: 1\.mlp_out is named twice$"),
        ({"coder": {"read": ["1.mlp_in", 5]}}, r"^coder\.read"),
        ({"coder": {"read": []}}, r"^coder\.read"),
        ({"coder": {"widths": ["x"]}}, r"^coder\.widths\.0: "),
        ({"coder": {"widths": [1.5]}}, r"^coder\.widths\.0: .*got 1\.5"),
        ({"training": {"lr": -1}}, r"^training\.lr: .*greater than 0, got -1$"),
        ({"text": {"held_out": 2}}, r"^text\.held_out: "),
        ({"variants": [{"kk": 3}]}, r"^variants\.0\.kk: unknown field \(did you mean 'k'\?\)$"),
        ({"variants": [{"k": -3}]}, r"^variants\.0\.k: "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(values: dict[str, Any], line: str) -> None:
    with pytest.raises(MatryoshkaError, match=line) as refused:
        build(**values)
    assert "\n" not in str(refused.value)


def test_a_missing_field_says_how_to_give_it() -> None:
    with pytest.raises(MatryoshkaError, match=r"^coder\.d_sae is needed .*--coder\.d_sae"):
        Config.build({"coder": {"read": "1.mlp_in"}})
    both = r"^coder\.read and coder\.d_sae are needed .*--coder\.read --coder\.d_sae"
    with pytest.raises(MatryoshkaError, match=both):
        Config.build({})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"coder": {"read": "9.mlp_in"}}, r"^coder\.read: .*4 layers"),
        ({"coder": {"write": "4.mlp_out"}}, r"^coder\.write: .*4 layers"),
        ({"coder": {"read": ["1.mlp_in", "9.mlp_in"]}}, r"^coder\.read: .*4 layers"),
        ({"coder": {"k": 65}}, r"^coder\.k: 65 .*coder\.d_sae is 64"),
        ({"coder": {"widths": [8, 8, 64]}}, r"^coder\.widths must ascend"),
        ({"coder": {"widths": [8, 32]}}, r"^coder\.widths must end with coder\.d_sae = 64"),
        ({"text": {"context": 1024}}, r"^text\.context: 1024 tokens, but bundled takes at most 256$"),
        ({"variants": [{"k": 2}, {"k": 2}]}, r"^variants: 'k=2' is named twice$"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_from_its_config_alone(values: dict[str, Any], line: str) -> None:
    config = build(**values)
    with pytest.raises(MatryoshkaError, match=line):
        check(config)


def test_tokens_alone_need_no_coder() -> None:
    assert TokensConfig.build({"text": {"context": 32}}).text.context == 32
    with pytest.raises(MatryoshkaError, match=r"^text\.contxt: unknown field \(did you mean 'context'"):
        TokensConfig.build({"text": {"contxt": 32}})


def test_counts_may_be_written_as_people_do() -> None:
    assert build(training={"tokens": "2e7"}).training.tokens == 20_000_000
    assert build(training={"tokens": "16_400_000"}).training.tokens == 16_400_000
    with pytest.raises(MatryoshkaError, match=r"training\.tokens"):
        build(training={"tokens": "1.5"})


def test_widths_are_numbers_or_fractions() -> None:
    def widths(*given: float | str) -> tuple[int, ...]:
        return plan(build(coder={"widths": list(given)}), describe("bundled"))[0].coder.widths

    assert widths(0.25, 0.5, 1.0) == (16, 32, 64)
    assert widths(8, 16, 64) == (8, 16, 64)
    assert widths("8", "0.5", "64") == (8, 32, 64), "as flags give them"
    assert widths() == (64,), "a plain coder"


def test_sizes_come_from_the_model() -> None:
    (transcoder,) = plan(build(), describe("bundled"))
    assert (transcoder.coder.d_in, transcoder.coder.d_out) == (192, 192)


def test_without_write_it_is_an_sae() -> None:
    (sae,) = plan(build(coder={"write": None}), describe("bundled"))
    assert sae.wiring.reads == sae.wiring.writes == (Site("mlp_in", 1),)


def test_several_sites_make_a_crosscoder() -> None:
    reads, writes = ["1.mlp_in", "blocks.2.hook_resid_pre"], ["1.mlp_out", "2.mlp_out", "3.mlp_out"]
    (crosscoder,) = plan(build(coder={"read": reads, "write": writes}), describe("bundled"))
    assert crosscoder.wiring.reads == (Site("mlp_in", 1), Site("resid_pre", 2))
    assert crosscoder.wiring.writes == tuple(Site("mlp_out", layer) for layer in (1, 2, 3))
    assert len(crosscoder.wiring.sources) == 1
    assert crosscoder.coder.reads == (192, 192)
    assert crosscoder.coder.writes == (192, 192, 192)
    assert (crosscoder.coder.d_in, crosscoder.coder.d_out) == (384, 576)

    (same,) = plan(build(coder={"read": reads, "write": None}), describe("bundled"))
    assert same.wiring.writes == same.wiring.reads == crosscoder.wiring.reads


def test_a_list_of_one_site_is_that_site() -> None:
    assert build(coder={"read": ["1.mlp_in"], "write": ["1.mlp_out"]}) == build()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("topk", TopKConfig(k=4)),
        ("batchtopk", BatchTopKConfig(k=4)),
        ("jumprelu", JumpReLUConfig(k=4, bandwidth=0.2)),
    ],
)
def test_each_activation_is_planned_with_its_own_parameters(activation: str, expected: NonlinearityConfig) -> None:
    config = build(coder={"activation": activation, "bandwidth": 0.2})
    assert plan(config, describe("bundled"))[0].coder.activation == expected


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    several = ["1.mlp_in", "2.mlp_in"]
    config = build(variants=[{"k": 2}, {"seed": 1, "read": several}], training={"tokens": "1e5", "warm_up": 7})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert Config.load(file) == config


def test_yaml_that_builds_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("coder: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(MatryoshkaError, match=r"evil\.yaml: not YAML"):
        Config.load(file)


def test_a_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("")
    with pytest.raises(MatryoshkaError, match=r"tinny\.yaml: cannot read .*did you mean '.*tiny\.yaml'"):
        Config.load(tmp_path / "tinny.yaml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["train", "--coder.kk", "3"],
            "error: matryoshka train: unknown argument '--coder.kk' (did you mean '--coder.k'?)",
        ),
        (["train", "--k", "abc", "--read", "1.mlp_in", "--d-sae", "64"], "error: coder.k: "),
        (["train", "--read", "1.mlp_in", "--d-sae", "64", "--text", "/no/such/file.txt"], "error: "),
        (["train", "--read", "1.mlp_in", "--d-sae", "64", "--model", "./no-such-model"], "error: "),
        (["train", "--read"], "error: matryoshka train: argument --coder.read"),
        (["trian"], "error: unknown command 'trian' (did you mean 'train'?)"),
        (["eval", "no-such-run"], "error: no-such-run: no run here"),
        (["resume", "no-such-run"], "error: no-such-run: no run here"),
    ],
)
def test_the_command_line_refuses_in_one_line_with_exit_code_2(
    arguments: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    shown = capsys.readouterr()
    assert exit_.value.code == 2
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())

    def fields(model: Any, prefix: str = "") -> list[str]:
        below = sections(model)
        return [
            name
            for field in model.model_fields
            for name in (fields(below[field], f"{field}.") if field in below else [prefix + field])
        ]

    named = [name for name in fields(Config) if name != "variants"]
    assert len(named) > 40
    for name in named:
        section, _, field = name.rpartition(".")
        model: Any = sections(Config)[section] if section else Config
        description = model.model_fields[field].description
        assert description, f"{name} has no help"
        assert f"--{name} " in shown
        assert " ".join(description.split())[:40] in shown


EXAMPLES: dict[str, list[Any]] = {
    "coder.widths": [[0.0625, 0.125, 0.25, 0.5, 1.0], [4, 16, 64], [0.5, 1.0]],
    "coder.read": ["2.mlp_in", ["1.mlp_in", "2.mlp_in"]],
    "coder.write": ["2.mlp_out", None],
    "training.batch": [12, "auto"],
    "training.lr": [0.5, "auto"],
    "training.dead_after_tokens": [12, "auto"],
    "training.warm_up": [0.5, 100, 1.0, 1],
    "training.decay_start": [1.0, 7],
    "training.betas": [[0.5, 0.75]],
    "training.aux_coefficient": [0.25, None],
    "training.aux_k": [7, None],
    "text.source": ["tests", "bundled"],
    "activations.cache": ["somewhere", None],
    "activations.lm_batch": [12, "auto"],
    "name": ["12", "a name", None],
    "model.revision": ["1e5", None],
    "log.wandb": ["007", None],
    "synthetic.features": [16_000],
    "synthetic.branching": [3],
    "synthetic.depth": [2],
    "synthetic.p_min": [0.25],
}


def examples(annotation: Any) -> list[Any]:
    """Values of a field that is not in EXAMPLES."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    kinds = {annotation, *get_args(annotation)}
    for kind, values in ((bool, [True, False]), (int, [12]), (float, [0.5]), (str, ["12", "cpu"])):
        if kind in kinds:
            return values
    raise AssertionError(f"no example of {annotation}")


def every_field() -> list[tuple[str, Any]]:
    return [
        (dotted, value)
        for dotted, field in _fields(Config)
        if dotted not in RECIPE_ONLY
        for value in EXAMPLES.get(dotted, examples(field.annotation) if dotted not in EXAMPLES else [])
    ]


@pytest.mark.parametrize(("dotted", "value"), every_field(), ids=str)
def test_a_field_means_the_same_in_python_in_a_recipe_and_as_a_flag(dotted: str, value: Any, tmp_path: Path) -> None:
    nested: Any = value
    for name in reversed(dotted.split(".")):
        nested = {name: nested}
    python = build(**nested)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(merged({"coder": CODER}, nested)), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_flags(parser)
    shown = [
        str(part).lower() if isinstance(part, bool) else str(part)
        for part in (value if isinstance(value, list) else [value])
    ]
    flags = overrides(parser.parse_args([f"--{dotted}", *(["none"] if value is None else shown)]))
    assert Config.load(recipe) == python
    assert Config.build(merged({"coder": CODER}, flags)) == python
    assert Config.build(yaml.safe_load(python.to_yaml())) == python


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("coder: {dsae: 64, read: 1.mlp_in}", r"^coder\.dsae: unknown field \(did you mean 'd_sae'\?\)$"),
        ("model: gpt2", r"^model: is a section; give its fields \(name, .*got 'gpt2'$"),
        ("variants: {a: {k: 3}}", r"^variants: should be a list, got"),
        ("training: {tokens: .inf}", r"^training\.tokens: "),
        ("training: {lr: .inf}", r"^training\.lr: "),
        ("training: {autocast: off}", r"^training\.autocast: is called training\.select now$"),
        ("training: {select: off}", r"^training\.select: .*'auto', 'fp8', 'bfloat16' or 'float32'"),
        ("training: {batch: 1}", r"^training\.batch: .*greater than or equal to 2"),
        ("training: {betas: [0.9, 1]}", r"^training\.betas\.1: .*less than 1"),
        ("training: {seed: 1000000000000000000000}", r"^training\.seed: .*less than 4294967296"),
        ("coder: {read: 1.mlp_in, d_sae: 1e10}", r"^coder\.d_sae: .*less than 2147483648"),
        ("name: ../evil", r"^name: "),
        ("name: ..", r"^name: "),
        ("name: 2024-13-45", r"recipe.yaml: not YAML: month must be in"),
        ("name: !!int abc", r"recipe.yaml: not YAML: "),
        ("a: &a [1]\nb: *a", r"recipe.yaml: not YAML: aliases"),
        ("a: " + "[" * 500 + "]" * 500, r"recipe.yaml: not YAML: nested more than"),
        ("a: " + "x" * 2_000_000, r"recipe.yaml: has 2,000,003 bytes"),
        ("name: [" + "1, " * 20_000 + "]", r"^name: .{10,400}$"),
    ],
    ids=lambda value: value[:30],
)
def test_a_recipe_that_is_none_is_one_short_line(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MatryoshkaError) as refused:
        Config.load(file, {} if text.startswith("coder") else {"coder": CODER})
    assert re.search(line, str(refused.value))
    assert len(str(refused.value)) < 500
