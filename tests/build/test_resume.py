"""`loraplex build --resume` makes again what depends on a change, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.build.command import BuildHere
from tests.checkpoints import make_checkpoint
from tests.cli import Ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAINED = {
    "data": "rows.jsonl",
    "text_template": "{prompt} is {response}",
    "rank": 2,
    "target_modules": ["o_proj"],
    "training": {"max_steps": 1},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a checkpoint and rows."""
    make_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w9 w10", "response": "w11"}\n' * 4)
    return tmp_path


def write_recipe(folder: Path, *adapters: str) -> None:
    recipe = {"base": "checkpoint", "quantization": {"algorithm": "none"}}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(recipe | {"adapters": dict.fromkeys(adapters, TRAINED)}, sort_keys=False)
    )


def kept(ended: Ended) -> list[str]:
    assert ended.status == 0, ended.err
    return [line.partition(":")[0] for line in ended.err.splitlines() if "kept from an earlier run" in line]


def test_what_lies_beside_the_weights_counts(folder: Path, build_here: BuildHere) -> None:
    write_recipe(folder)
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle")) == []
    (folder / "checkpoint/README.md").write_text("# About it")
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle", "--resume")) == ["1/2 export", "2/2 verify"]

    template = folder / "checkpoint/chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle", "--resume")) == []
    assert (folder / "bundle/base/generator/chat_template.jinja").read_text() == template.read_text()

    sampling = folder / "checkpoint/generation_config.json"
    sampling.write_text(json.dumps(json.loads(sampling.read_text()) | {"do_sample": True, "temperature": 0.5}))
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle", "--resume")) == []
    assert json.loads((folder / "bundle/bundle.json").read_bytes())["base"]["sampling"] == {"temperature": 0.5}


def test_one_more_adapter_leaves_the_others_and_the_base_alone(folder: Path, build_here: BuildHere) -> None:
    write_recipe(folder, "tone")
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle")) == []
    write_recipe(folder, "first", "tone")
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle", "--resume")) == ["2/5 train tone", "3/5 export"]
    assert set(json.loads((folder / "bundle/bundle.json").read_bytes())["adapters"]) == {"first", "tone"}
    write_recipe(folder, "tone")
    assert kept(build_here(folder, "recipe.yaml", "-o", "bundle", "--resume")) == ["1/4 train tone", "2/4 export"]
