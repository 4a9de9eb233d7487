"""Recipes built by the real Olive workflow, on tiny checkpoints: what the bundle answers, resuming, failing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from loraplex.build.findings import read_findings
from loraplex.build.record import read_records
from tests.build.command import BuildHere
from tests.build.generation import Runner, expected_tokens
from tests.checkpoints import CHAT_TEMPLATE, Family, make_adapter, make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]
TEMPLATE = "<s> <|user|> {prompt} <|end|> <|assistant|> {response} <|end|>"
STEPS = {"max_steps": 3, "learning_rate": "2e-2", "logging_steps": 1, "per_device_train_batch_size": 4}


def prepare(folder: Path, family: Family, algorithm: str) -> None:
    """Write a checkpoint, rows, a finished adapter and recipe.yaml with two adapters to train and that one."""
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256} | (
        {"vocab_size": 320} if family == "qwen2" else {}
    )
    checkpoint = make_checkpoint(folder / "checkpoint", family, **shape)
    if family == "qwen2":
        make_byte_tokenizer(checkpoint, 320)
    packed = family == "phi3"
    make_adapter(
        checkpoint,
        folder / "finished",
        targets=["qkv_proj", "down_proj"] if packed else ["k_proj", "down_proj"],
        rank_pattern={"qkv_proj" if packed else "k_proj": 3},
        alpha_pattern={"layers.1.mlp.down_proj": 24},
        use_rslora=True,
    )
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(8, 160)}" for _ in range(count))

    for name in ("travel", "tone", "heldout"):
        rows = ({"prompt": words(6), "response": words(8)} for _ in range(48))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base": "checkpoint",
        "name": "tiny",
        "quantization": {"algorithm": algorithm, "group_size": 32},
        "adapters": {
            "travel": {
                "data": "travel.jsonl",
                "evaluation_data": "heldout.jsonl",
                "text_template": TEMPLATE,
                "response_template": "<|assistant|>",
                "method": "qlora" if algorithm == "none" else "lora",
                "rank": 4,
                "alpha": 8,
                "training": STEPS,
            },
            "tone": {
                "data": "tone.jsonl",
                "text_template": "{prompt} is {response}",
                "rank": 2,
                "target_modules": ["o_proj"],
                "use_rslora": True,
                "training": STEPS,
            },
            "finished": {"peft": "finished", "description": "Made elsewhere."},
        },
    }
    if algorithm == "none":
        del recipe["quantization"]["group_size"]  # type: ignore[attr-defined]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def make_byte_tokenizer(folder: Path, size: int) -> None:
    """transformers loads the tokenizer of a Qwen2 checkpoint as byte-level BPE, whatever its files say."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" w{number}" for number in range(160)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def peft(folder: Path) -> dict[str, Path]:
    trained = {name: folder / f"bundle.work/train-{name}" for name in ("travel", "tone")}
    return {name: step / "output/model/adapter" for name, step in trained.items()} | {"finished": folder / "finished"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_awq_with_trained_and_finished_adapters(family: Family, tmp_path: Path, build_here: BuildHere) -> None:
    prepare(tmp_path, family, "awq")
    result = build_here(tmp_path, "recipe.yaml", "--output", "bundle")
    assert result.status == 0, result.err
    findings = read_findings(tmp_path / "bundle")
    assert findings.passed
    assert findings.base.quantization.method == "awq"
    config = json.loads((tmp_path / "bundle/base/generator/genai_config.json").read_bytes())
    assert config["search"]["do_sample"] is False, "the checkpoint's own way is kept"
    exact = {found.model: found for found in findings.agreements if found.lane == "exact"}
    assert set(exact) == {"tiny", "travel", "tone", "finished"}
    assert all(found.same + found.ties == found.tokens > 20 for found in exact.values())
    weights = {found.weights for found in findings.perplexities if found.text == found.model == "travel"}
    assert {"float", "awq", "rtn", "as served"} <= weights
    assert [step.name for step in findings.steps] == [
        *("quantize", "train travel", "train tone", "export", "adapters", "verify"),
    ]
    assert all(step.seconds > 0 and step.peak_bytes > 1e8 and step.output_bytes > 0 for step in findings.steps)
    losses = json.loads((peft(tmp_path)["travel"] / "losses.json").read_bytes())
    assert [entry["step"] for entry in losses] == [1, 2, 3]


def test_a_float_bundle_gives_pefts_tokens_and_is_not_built_twice(tmp_path: Path, build_here: BuildHere) -> None:
    prepare(tmp_path, "llama", "none")
    assert build_here(tmp_path, "recipe.yaml", "--output", "bundle").status == 0
    folders = peft(tmp_path)
    files = {name: tmp_path / "bundle/adapters" / name / f"{name}.onnx_adapter" for name in folders}
    runner = Runner(tmp_path / "bundle/base/generator", files)
    base = runner.tokens(PROMPT, 24)
    assert base == expected_tokens(tmp_path / "checkpoint", None, PROMPT, 24)
    for name, folder in folders.items():
        tokens = runner.tokens(PROMPT, 24, name)
        assert tokens == expected_tokens(tmp_path / "checkpoint", folder, PROMPT, 24)
        assert tokens != base

    before = records(tmp_path)
    refused = build_here(tmp_path, "recipe.yaml", "--output", "bundle")
    assert refused.status == 2
    assert "holds steps of an earlier build: go on from them with --resume" in refused.err
    again = build_here(tmp_path, "recipe.yaml", "--output", "bundle", "--resume")
    assert again.status == 0
    assert again.err.count("kept from an earlier run") == 5
    assert records(tmp_path) == before

    # One adapter's rows change: the other's training and the export are kept.
    with (tmp_path / "tone.jsonl").open("a") as file:
        file.write('{"prompt": "w8", "response": "w9"}\n')
    changed = build_here(tmp_path, "recipe.yaml", "--output", "bundle", "--resume")
    assert changed.status == 0
    kept = [line for line in changed.err.splitlines() if "kept from" in line]
    assert [line.split(":")[0] for line in kept] == ["1/5 train travel", "3/5 export"]


def records(folder: Path) -> list[bytes]:
    return [msgspec.json.encode(each) for each in read_records(sorted((folder / "bundle.work").glob("*/record.json")))]


def test_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path, build_here: BuildHere) -> None:
    prepare(tmp_path, "llama", "none")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["adapters"] = {"tone": recipe["adapters"]["tone"]}
    recipe["adapters"]["tone"]["training"] = STEPS | {"max_steps": 400, "save_steps": 20}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-W", "ignore", "-m", "loraplex.server", "build", "recipe.yaml", "-o", "bundle"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, process_group=0)
    step = tmp_path / "bundle.work/train-tone"
    while not (step / "checkpoints/checkpoint-20/trainer_state.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted; go on with: loraplex build recipe.yaml -o bundle --resume" in told
    assert not (tmp_path / "bundle").exists()
    assert not (step / "record.json").exists()
    (step / "checkpoints/checkpoint-390").mkdir()  # as one looks whose writing was interrupted
    result = build_here(tmp_path, "recipe.yaml", "-o", "bundle", "--resume")
    assert result.status == 0, result.err
    assert "Resuming training at" in (step / "log.txt").read_text()
    losses = json.loads((step / "output/model/adapter/losses.json").read_bytes())
    assert losses[-1]["step"] == 400


def test_a_failing_step_is_named_and_nothing_is_left_under_the_final_name(
    tmp_path: Path, build_here: BuildHere
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    result = build_here(tmp_path, "--base", "checkpoint", "--quantization", "none", "--output", "bundle")
    assert result.status == 1
    first, log, again = result.err.splitlines()[-3:]
    assert first.startswith("loraplex: step 1/2 export failed: ")
    assert "not finite" in first
    assert log == f"  log: {tmp_path}/bundle.work/export/log.txt"
    assert again.endswith("build --base checkpoint --quantization none --output bundle --resume")
    assert not (tmp_path / "bundle").exists()


def test_merge_makes_a_bundle_of_the_base_alone(tmp_path: Path, build_here: BuildHere) -> None:
    prepare(tmp_path, "llama", "none")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe |= {"merge": True, "adapters": {"finished": recipe["adapters"]["finished"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = build_here(tmp_path, "recipe.yaml", "--output", "bundle")
    assert result.status == 0, result.err
    tokens = Runner(tmp_path / "bundle/base/generator").tokens(PROMPT, 24)
    assert tokens == expected_tokens(tmp_path / "checkpoint", tmp_path / "finished", PROMPT, 24)
    assert json.loads((tmp_path / "bundle/bundle.json").read_bytes())["base"]["merged"] == "finished"


def test_olive_runs_the_workflows_that_are_written(tmp_path: Path, build_here: BuildHere) -> None:
    prepare(tmp_path, "llama", "none")
    planned = build_here(tmp_path, "recipe.yaml", "--output", "bundle", "--dry-run")
    assert planned.status == 0
    assert "1. train travel: qlora on 48 rows, rank 4, q_proj" in planned.out
    assert not (tmp_path / "bundle.work").exists()
    result = build_here(tmp_path, "recipe.yaml", "--output", "bundle", "--emit-olive", "olive")
    assert result.status == 0, result.err
    commands = [line.split()[1:] for line in result.out.splitlines() if line.startswith("  olive run ")]
    assert len(commands) == 5
    environment = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}
    both = f"from olive.cli.launcher import main; main({commands[1]!r}); main({commands[2]!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", both], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "olive/train-tone/output/model/adapter/adapter_model.safetensors").is_file()
    assert (tmp_path / "olive/export/bundle/bundle.json").is_file()
