"""Arguments of transformers.TrainingArguments, as a recipe gives them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from loraplex.build.document import Path_, Problems
from loraplex.build.errors import first_line
from loraplex.build.libraries import uncollected

_OURS = frozenset(
    {"output_dir", "report_to", "logging_dir", "fp16", "bf16", "resume_from_checkpoint", "push_to_hub"}
    # There are no rows to evaluate on: `evaluation_data` is for the verification.
    | {"do_eval", "eval_strategy", "load_best_model_at_end"}
)
"""Training arguments that a build sets itself."""
_POSITIVE = frozenset(
    {"max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"}
)


def check_training(training: Mapping[str, Any], path: Path_, problems: Problems) -> None:
    """Note what transformers would not take, and what the build sets itself."""
    if not training:
        return
    with uncollected():
        from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    before = len(problems.found)
    for name, value in training.items():
        if name in _OURS:
            problems.add((*path, name), "is set by the build")
        elif name not in fields:
            problems.add((*path, name), "is no argument of transformers.TrainingArguments")
        elif isinstance(fields[name].default, bool) and not isinstance(value, bool):
            problems.add((*path, name), f"is true or false, not {value!r}")
        elif type(fields[name].default) in (int, float) and not is_number(value):
            problems.add((*path, name), f"is a number, not {value!r}")
        elif name in _POSITIVE and float(value) <= 0:
            problems.add((*path, name), f"must be positive, not {value}")
    if len(problems.found) == before:
        try:
            TrainingArguments(output_dir="unused", **numbers(training))
        except (ValueError, TypeError, ImportError) as error:
            problems.add(path, first_line(error))


def is_number(value: object) -> bool:
    """YAML reads 2e-4 as text, because YAML 1.1 wants a dot in it."""
    if isinstance(value, bool):
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def numbers(training: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments with text that is a number turned into one."""
    return {name: float(v) if isinstance(v, str) and is_number(v) else v for name, v in training.items()}
