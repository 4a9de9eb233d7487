"""`loraplex build` refuses a bad recipe at once: every problem with its file and line, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex.build.document import Problems, convert, read_yaml
from loraplex.build.errors import RecipeInvalid
from loraplex.build.recipe import Recipe
from loraplex.build.validation import check_output, read_recipe, validate
from tests.awq import make_awq
from tests.build.command import BuildHere, build
from tests.checkpoints import make_adapter, make_checkpoint
from tests.cli import Cli


@pytest.fixture
def build_here(cli: Cli) -> BuildHere:
    """The command in this process. Nothing here gets as far as to a step."""
    return BuildHere(cli)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint `llama`, rows and an adapter of a wider checkpoint. Read only."""
    folder = tmp_path_factory.mktemp("recipes")
    make_checkpoint(folder / "llama", "llama", hidden_size=128, intermediate_size=256)
    wider = make_checkpoint(folder / "wider", "llama", hidden_size=256)
    make_adapter(wider, folder / "stranger")
    make_adapter(make_checkpoint(folder / "gpt", "qwen2"), folder / "biased", bias="all")
    make_awq(folder / "llama", folder / "awq")
    (folder / "rows.jsonl").write_text('{"prompt": "w9", "response": "w10"}\n' * 4)
    (folder / "empty.jsonl").write_text("\n")
    (folder / "broken.jsonl").write_text('{"prompt": "w9"}\n{"prompt": \n[1]\n')
    (folder / "gap.json").write_text('[{"prompt": "w9"}, {"response": "w9"}]')
    return folder


BAD = """\
base: llama
nmae: x
quantization: {algorithm: awk, group_size: 33}
adapters:
  empty:
    data: empty.jsonl
    text_template: "{prompt}"
  missing:
    data: nowhere.jsonl
    text_template: "{prompt} {"
  broken:
    data: broken.jsonl
    text_template: "{prompt}"
  gap:
    data: gap.json
    text_template: "{prompt}"
  column:
    data: rows.jsonl
    text_template: "{promt}"
  training:
    data: rows.jsonl
    text_template: "{prompt} {response}"
    response_template: "<|assistant|>"
    target_modules: [qkv_proj]
    training: {max_step: 3, learning_rate: fast, output_dir: x, max_steps: 0}
  stranger:
    peft: stranger
    rank: 4
  nothing: {}
  "a space":
    peft: nowhere
  column:
    peft: stranger
evaluation:
  data: nowhere.jsonl
"""
FOUND = """\
{folder}/broken.jsonl:2: is not JSON: Expecting value
{folder}/broken.jsonl:3: is not a JSON object
{folder}/gap.json: row 2 has no prompt
recipe.yaml:2: nmae: there is no such field
recipe.yaml:3: quantization.algorithm: 'awk' is none of awq, rtn, k_quant, none
recipe.yaml:3: quantization.group_size: 33 is none of 16, 32, 64, 128, 256
recipe.yaml:6: adapters.empty.data: {folder}/empty.jsonl is empty
recipe.yaml:9: adapters.missing.data: there is no file {folder}/nowhere.jsonl
recipe.yaml:10: adapters.missing.text_template: is not a template
recipe.yaml:23: adapters.training.response_template: row 1 has no '<|assistant|>'
recipe.yaml:24: adapters.training.target_modules: there is no qkv_proj, there are q_proj
recipe.yaml:25: adapters.training.training.learning_rate: is a number, not 'fast'
recipe.yaml:25: adapters.training.training.max_step: is no argument of transformers.TrainingArguments
recipe.yaml:25: adapters.training.training.max_steps: must be positive, not 0
recipe.yaml:25: adapters.training.training.output_dir: is set by the build
recipe.yaml:27: adapters.stranger.peft: {folder}/stranger: model.layers.0.mlp.down_proj maps
recipe.yaml:28: adapters.stranger.rank: is for training
recipe.yaml:29: adapters.nothing: give either peft
recipe.yaml:30: adapters.a space: 'a space' cannot be a name
recipe.yaml:31: adapters.a space.peft: there is no folder {folder}/nowhere
recipe.yaml:32: adapters.column: stands here a second time
recipe.yaml:35: evaluation.data: there is no file {folder}/nowhere.jsonl
"""


def test_every_problem_is_told_with_its_line(base: Path) -> None:
    (base / "recipe.yaml").write_text(BAD)
    before = sorted(base.rglob("*"))
    result = build(base, "recipe.yaml", "--output", "bundle")
    assert result.returncode == 2
    told = [line.removeprefix("loraplex: ") for line in result.stderr.splitlines()]
    for wanted in FOUND.format(folder=base).splitlines():
        assert any(line.startswith(wanted) for line in told), "\n".join([wanted, "is not in", *told])
    assert sorted(base.rglob("*")) == before


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("base: [", "1: is not YAML"),
        ("", "1: is empty"),
        ("- a", "1: is not a mapping of fields to values"),
        ("adapters: {}", "1: base is missing"),
        ("base: nowhere/at/all", "1: base: there is no checkpoint folder"),
        ("base: stranger", "1: base: {folder}/stranger is not a checkpoint: it has no config.json"),
        ("base: llama\nmerge: true", "2: merge: takes exactly one adapter, there are 0"),
        ("base: llama\nadapters: {llama: {peft: stranger}}", "2: adapters.llama: is the name of the base too"),
        ("base: llama\nadapters: {a: {peft: biased}}", "2: adapters.a.peft: {folder}/biased: biases of the base"),
        ("base: llama\nexport: {variants: [paged]}", "2: export.variants: a bundle for cpu has generator"),
        ("base: llama\nexport: {precision: float16}", "2: export.precision: is float16 with quantization.algorithm"),
        ("base: llama\nquantization: {algorithm: awq}", "2: quantization: awq looks at text"),
        ("base: llama\nquantization: {group_size: 256}", "2: quantization.group_size:"),
        (
            "base: llama\nquantization: {algorithm: none, group_size: 32}",
            "2: quantization.group_size: is for quantization, and algorithm none quantizes nothing",
        ),
        (
            "base: llama\nquantization: {algorithm: none}\nexport: {head: int4}",
            "3: export.head: is int4, and quantization.algorithm none keeps every layer float",
        ),
        (
            "base: llama\nadapters: {a: {peft: stranger, response_template: x}}",
            "2: adapters.a.response_template: is for training, and peft names a finished adapter",
        ),
        (
            "base: awq\nquantization: {algorithm: awq, group_size: 64}",
            "2: quantization.group_size: is 64, but {folder}/awq is quantized in groups of 32 already: leave it out",
        ),
        ("base: azureml://models/x", "1: base: azureml://models/x is not azureml://registries/"),
    ],
)
def test_one_problem(base: Path, recipe: str, told: str) -> None:
    file = base / "one.yaml"
    file.write_text(recipe)
    found, problems = read_recipe(file)
    if found is not None:
        with pytest.raises(RecipeInvalid):
            validate(found, base, base / "bundle", base / "work", problems)
    messages = problems.messages()
    assert any(line.startswith(f"{file}:{told.format(folder=base)}") for line in messages), messages


def test_the_output_must_be_ours(base: Path, build_here: BuildHere) -> None:
    result = build_here(base, "--base", "llama", "--output", "wider")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "wider: exists and is not a bundle: move it away" in result.err
    problems = Problems(Path("command line"))
    check_output(base / "rows.jsonl" / "bundle", problems)
    assert problems.messages() == [f"{base}/rows.jsonl/bundle: cannot be made, {base}/rows.jsonl is a file"]
    problems = Problems(Path("command line"))
    (base / "new").mkdir()
    check_output(base / "new", problems)
    check_output(base / "newer" / "still", problems)
    assert problems.messages() == []


@pytest.mark.parametrize("option", ["--work", "--emit-olive"])
def test_what_is_to_be_a_folder_is_a_file(option: str, base: Path, build_here: BuildHere) -> None:
    result = build_here(base, "--base", "llama", "--output", "unmade", option, "rows.jsonl")
    assert (result.status, result.err) == (2, "loraplex: rows.jsonl: is a file: give a folder\n")
    below = build_here(base, "--base", "llama", "--output", "unmade", option, "rows.jsonl/below")
    assert below.status == 2
    assert f"rows.jsonl/below: cannot be made, {base}/rows.jsonl is a file" in below.err
    assert not (base / "unmade").exists()


def test_a_chat_template_with_which_no_server_would_start(tmp_path: Path, build_here: BuildHere) -> None:
    make_checkpoint(tmp_path / "llama")
    (tmp_path / "llama" / "chat_template.jinja").write_text("{% for message in messages %}")
    result = build_here(tmp_path, "--base", "llama", "--output", "bundle")
    assert result.status == 2
    assert f"--base: {tmp_path}/llama: the chat template does not work: " in result.err
    assert not (tmp_path / "bundle.work").exists()


def test_options_of_the_short_form_are_checked(base: Path, build_here: BuildHere) -> None:
    twice = ["--adapter", "a=stranger", "--adapter", "a=biased"]
    assert "two adapters are named a" in build_here(base, "--base", "llama", *twice, "--output", "x").err
    assert "is not NAME=FOLDER" in build_here(base, "--base", "llama", "--adapter", "a", "--output", "x").err
    (base / "fine.yaml").write_text("base: llama\n")
    both = build_here(base, "fine.yaml", "--base", "llama", "--output", "x")
    assert both.status == 2
    assert "--base and a recipe exclude each other" in both.err


def test_recipes_of_this_repository_are_read() -> None:
    for file in (Path(__file__).parents[2] / "adapters/recipes").glob("*.yaml"):
        problems = Problems(file)
        recipe: Recipe = convert(read_yaml(file, problems), Recipe, (), problems)
        assert problems.messages() == []
        for adapter in recipe.adapters.values():
            assert isinstance(adapter.data, str)
            assert (file.parent / adapter.data).is_file()


def test_the_short_form_names_its_options(base: Path, build_here: BuildHere) -> None:
    result = build_here(base, "llama", "--output", "x")
    assert result.err == "loraplex: llama is a folder: give a recipe, or a checkpoint's folder as --base\n"
    given = ["--base", "llama", "--adapter", "a=wider", "--group-size", "256", "--calibration", "nowhere.jsonl"]
    result = build_here(base, *given, "--output", "x")
    assert result.status == 2
    told = result.err.splitlines()
    assert any(line.startswith("loraplex: command line: --calibration: there is no file") for line in told), told
    assert any(line.startswith("loraplex: command line: --group-size: ") for line in told), told
    wanted = f"loraplex: command line: --adapter a: {base}/wider is not a PEFT adapter, it has no adapter_config.json"
    assert wanted in told
