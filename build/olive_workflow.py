"""The Olive workflows of a build, as what their JSON files hold. Paths in them are absolute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraplex.build.recipe import AdapterRecipe
from loraplex.build.training_arguments import numbers

Workflow = dict[str, Any]


def olive_workflow(name: str, workflow: Workflow, output: Path, cache: Path, *, gpu: bool) -> Workflow:
    """A workflow of one of the kinds below, with what all of them need."""
    device = {"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}
    if not gpu:
        device = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "workflow_id": name.replace(" ", "-"),
        **workflow,
        "systems": {"local": {"type": "LocalSystem", "accelerators": [device]}},
        "host": "local",
        "target": "local",
        "output_dir": str(output),
        "cache_dir": str(cache),
        "evaluate_input_model": False,
        "no_artifacts": True,
    }


def merge_workflow(base: str, peft: str) -> Workflow:
    return {
        "input_model": {"type": "HfModel", "model_path": base, "adapter_path": peft},
        "passes": {"merge": {"type": "MergeAdapterWeights"}},
    }


def awq_workflow(base: str, rows: str, group_size: int, samples: int, length: int, *, gpu: bool) -> Workflow:
    """`rows` is a folder of JSONL with a `text`; see `passes.awq` for the numbers."""
    options = {
        "type": "AwqOnCuda" if gpu else "AwqOnCpu",
        "q_group_size": group_size,
        "calibration": rows,
        "samples": samples,
        "sequence_length": length,
    }
    return {"input_model": {"type": "HfModel", "model_path": base}, "passes": {"awq": options}}


def training_workflow(
    base: str, rows: str, adapter: AdapterRecipe, modules: Sequence[str], checkpoints: Path, *, gpu: bool
) -> Workflow:
    """`rows` is a folder of JSONL, with `messages` for a chat template and else with a `text`."""
    text: Workflow = {"text_cols": ["text"], "add_special_tokens": adapter.add_special_tokens}
    if adapter.chat_template:
        text = {"chat_template": True, "message_col": "messages", "add_special_tokens": False}
    arguments: Workflow = {
        "gradient_checkpointing": gpu,
        "logging_steps": 10,
        "save_steps": 100,
        "save_total_limit": 1,
        "output_dir": str(checkpoints),
        **({} if gpu or adapter.method == "lora" else {"optim": "adamw_torch"}),
        **numbers(adapter.training),
    }
    data = {
        "name": "rows",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": rows, "split": "train"},
        "pre_process_data_config": {
            **text,
            "strategy": "line-by-line",
            "max_seq_len": adapter.max_seq_len,
            "pad_to_max_len": False,
        },
    }
    options = {
        "type": "AdapterLora" if adapter.method == "lora" else "AdapterQLora",
        "r": adapter.rank,
        "alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(modules),
        "adapted": list(modules),
        "use_rslora": adapter.use_rslora,
        "response_template": adapter.response_template,
        "seed": int(numbers(adapter.training).get("seed", 42)),
        "torch_dtype": "bfloat16" if gpu else "float32",
        "train_data_config": "rows",
        "training_args": arguments,
    }
    return {
        "input_model": {"type": "HfModel", "model_path": base, "task": "text-generation"},
        "data_configs": [data],
        "passes": {"train": options},
    }


def bundle_workflow(name: str, kind: str, base: str, spec: Path) -> Workflow:
    """Of one of our passes that make bundles; `spec` is the JSON file with its options."""
    return {
        "input_model": {"type": "HfModel", "model_path": base, "task": "text-generation"},
        "passes": {name: {"type": kind, "spec": str(spec)}},
        # A bundle lies outside of Olive's cache, which would call a step done that left none.
        "clean_cache": True,
    }
