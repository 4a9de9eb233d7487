"""One adapter merged into a float checkpoint, for a bundle with a single model.

The merged checkpoint is quantized and exported like any other: rounding then sees the weights that are served, and the
graph has no LoRA branches to run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from loraplex.build import awq
from loraplex.build.checkpoint import locate
from loraplex.build.errors import BuildFailed, CheckpointUnsupported, first_line
from loraplex.build.peft_folder import read_config
from loraplex.build.twin import load_twin

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
"""Tokenizer, chat template and generation_config.json; config.json and an index of shards are written anew."""


def merge_adapter(checkpoint: Path | str, peft: Path, output: Path, *, name: str) -> Path:
    """Write a checkpoint with a PEFT adapter merged into its weights into `output`, an empty or new folder; return it.

    Merged in float32 and stored in the checkpoint's own dtype. `name` is the adapter's, for messages. Needs memory for
    the model in float32. Raises CheckpointUnsupported where the checkpoint is quantized already, AdapterInvalid where
    the adapter has what cannot be expressed, and BuildFailed where nothing of it found a place in the model.
    """
    from peft import PeftModel

    read_config(peft, name)
    folder = locate(checkpoint)
    if awq.group_size(folder) is not None:
        raise CheckpointUnsupported(f"{folder} is quantized already: merge the adapter before it is quantized")
    model = load_twin(folder)
    names = set(model.state_dict())
    adapted = PeftModel.from_pretrained(model, str(peft), adapter_name=name)
    if not adapted.targeted_module_names:
        raise BuildFailed(f"adapter {name} changes no layer of {folder}")
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what is not finite
        raise BuildFailed(f"adapter {name} cannot be merged: {first_line(error)}") from error
    if set(merged.state_dict()) != names:
        raise BuildFailed(f"adapter {name} adds tensors to {folder} that its architecture does not have")
    dtype = getattr(AutoConfig.from_pretrained(folder), "dtype", None) or torch.float32
    output.mkdir(parents=True, exist_ok=True)
    for pattern in _COPIED:
        for file in folder.glob(pattern):
            if not file.name.endswith(".safetensors.index.json"):
                shutil.copy2(file, output / file.name)
    merged.to(dtype).save_pretrained(output)
    return output
