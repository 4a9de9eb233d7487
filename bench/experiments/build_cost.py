"""What every step of a build costs at Phi-3.5-mini's size: AWQ, two adapters of a hundred steps, export, verification.

    python -m loraplex.bench.experiments.build_cost WORK

Makes a checkpoint of exactly that shape with random weights in the folder WORK, and rows of random words, and builds a
bundle for CUDA of them by `loraplex build`, going on where an earlier run was stopped. Prints the costs that the bundle
keeps. Needs loraplex[build], 40 GB of memory and of disk, and a GPU for anything like the times in docs/build.md. With
--tiny it tries itself.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App

from loraplex.build.findings import read_findings
from loraplex.build.record import StepRecord

PHI: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 600,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "eos_token_id": 500,
    "pad_token_id": 500,
}
"""Changes that make a model to try this with."""
SAMPLES, LENGTH = 128, 512
"""Of the calibration: what Olive's AutoAWQQuantizer looks at."""

app = App(help=__doc__)


@app.default
def main(work: Path, /, *, tiny: bool = False, device: str = "cuda") -> None:
    """Make what is missing in WORK, build, and print a table."""
    shape = PHI | (TINY if tiny else {})
    if not (work / "checkpoint/tokenizer.json").is_file():
        make_checkpoint(work / "checkpoint", shape)
    make_rows(work, shape["vocab_size"])
    recipe = {
        "base": "checkpoint",
        "name": "phi",
        "quantization": {
            "algorithm": "awq",
            "group_size": 128,
            "calibration": {"data": "calibration.jsonl", "samples": SAMPLES, "sequence_length": LENGTH},
        },
        "adapters": {name: _adapter(name) for name in ("travel", "tone")},
        "export": {"device": device},
    }
    (work / "recipe.json").write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    resume = ["--resume"] if (work / "bundle.work").is_dir() else []
    command = ["build", str(work / "recipe.json"), "--output", str(work / "bundle"), *resume]
    subprocess.run([sys.executable, "-m", "loraplex.server", *command], check=True)
    findings = read_findings(work / "bundle")
    print("| step | seconds | peak memory | of the GPU | written |\n|---|---|---|---|---|")
    for step in findings.steps:
        print(_line(step))
    print(", ".join(f"{name} {value}" for name, value in findings.machine.items()))


def make_checkpoint(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights in bfloat16, 7.6 GB in full size, and a tokenizer of as many words as there are tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    half = shape["hidden_size"] // shape["num_attention_heads"] // 2
    rope = {
        **{"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0},
        "short_factor": [1 + 1.8 * step / half for step in range(half)],
        "long_factor": [1.1 + 64 * step / half for step in range(half)],
        "original_max_position_embeddings": shape["original_max_position_embeddings"],
        "factor": shape["max_position_embeddings"] / shape["original_max_position_embeddings"],
    }
    config = AutoConfig.for_model("phi3", rope_parameters=rope, **shape)
    # Buffers such as RoPE's frequencies are computed where a model is made, and random values need no CPU.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("norm.weight"):
                parameter.fill_(1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(shape["vocab_size"])}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{shape['eos_token_id']}"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token=end, pad_token=end)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


def make_rows(work: Path, vocabulary: int) -> None:
    """Calibration, and for each adapter a thousand short rows, as long as those of the travel adapter, and ten more."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(2, vocabulary)}" for _ in range(count))

    def write(name: str, rows: Iterator[dict[str, str]]) -> None:
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("calibration", ({"text": words(LENGTH)} for _ in range(2 * SAMPLES)))
    for name in ("travel", "tone"):
        write(name, ({"prompt": words(12), "response": words(48)} for _ in range(1000)))
    write("heldout", ({"prompt": words(12), "response": words(48)} for _ in range(10)))


def _adapter(name: str) -> dict[str, Any]:
    """The lab's: a hundred steps."""
    return {
        "data": f"{name}.jsonl",
        "evaluation_data": "heldout.jsonl",
        "text_template": "{prompt} {response}",
        "rank": 16,
        "alpha": 32,
        "target_modules": ["qkv_proj", "o_proj"],
        "training": {"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 2e-4},
    }


def _line(step: StepRecord) -> str:
    sizes = (step.peak_bytes, step.peak_device_bytes, step.output_bytes)
    return f"| {step.name} | {step.seconds:.1f} | {' | '.join(f'{size / 1e9:.2f} GB' for size in sizes)} |"


if __name__ == "__main__":
    app()
