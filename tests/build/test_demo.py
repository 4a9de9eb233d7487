"""The way to the demo bundle, from nothing: as its README tells, with a corpus and trainings that are cut short."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from loraplex.build.demo import base, corpus, evaluation, readme, rows
from loraplex.build.demo.evaluation import Figure
from loraplex.build.demo.skills import SKILLS
from loraplex.build.findings import read_findings
from loraplex.server.bundle import Bundle
from tests.build.command import build

ROOT = Path(__file__).parents[2]


def test_the_rows_of_this_repository_can_be_made_again(tmp_path: Path) -> None:
    rows.write(tmp_path)
    for skill in SKILLS:
        for file in ("train.jsonl", "heldout.jsonl"):
            assert (tmp_path / skill.name / file).read_bytes() == (ROOT / "adapters" / skill.name / file).read_bytes()


def test_the_recipe_is_for_what_is_asked_of_the_bundle() -> None:
    recipe = yaml.safe_load((ROOT / "adapters/recipes/demo.yaml").read_text())
    assert recipe["name"] == evaluation.BASE
    assert list(recipe["adapters"]) == [skill.name for skill in SKILLS]
    for skill in SKILLS:
        template = recipe["adapters"][skill.name]["text_template"]
        assert f"<|user|>{{{skill.prompt}}}<|end|><|assistant|>{{{skill.response}}}<|end|>" in template


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_nothing_to_a_bundle(tmp_path: Path) -> None:
    work, recipes = tmp_path / ".cache/demo", tmp_path / "adapters/recipes"
    rows.write(tmp_path / "adapters")
    corpus.write_rows(work)
    corpus.write(work, 600)
    for heldout in (work / "heldout.jsonl", *(tmp_path / "adapters").glob("*/heldout.jsonl")):
        heldout.write_text("".join(heldout.read_text().splitlines(keepends=True)[:8]))
    assert 0 < base.train(work, steps=2, sequences=2, length=256) < 2 * math.log(1600)
    recipes.mkdir()
    recipe = yaml.safe_load((ROOT / "adapters/recipes/demo.yaml").read_text())
    # AWQ takes minutes on a CPU.
    recipe["quantization"] = {"algorithm": "k_quant", "group_size": recipe["quantization"]["group_size"]}
    for adapter in recipe["adapters"].values():
        adapter["training"] |= {"max_steps": 2, "per_device_train_batch_size": 2}
    (recipes / "demo.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    bundle = tmp_path / "adapters/demo"
    result = build(tmp_path, "adapters/recipes/demo.yaml", "--output", "adapters/demo")
    assert result.returncode == 0, result.stderr
    assert list(Bundle.open(bundle).manifest.adapters) == ["travel", "tone", "json"]
    assert read_findings(bundle).passed
    readme.write(bundle, [Figure("tone", "accuracy", 0.5, 0.25, 4)], "a command")
    text = (bundle / "README.md").read_text()
    assert "| `tone` | Names the feeling in a phrase: sadness, joy, fear or surprise. | 4 | q_proj, k_proj" in text
    assert "four bits (k_quant, groups of 32)" in text
    assert "| tone | accuracy | 50.0% | 25.0% | 4 |" in text
