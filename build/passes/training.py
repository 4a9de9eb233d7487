"""Olive's LoRA and QLoRA passes, with what a recipe adds to them.

- On an AWQ checkpoint the adapter is trained on the float model that computes the same. To load one, transformers 5
  wants gptqmodel, which pins another numpy and cannot load Phi-3.
- The seed also counts for the first values of A, which Olive draws before transformers sets it.
- rslora, and for QLoRA a choice of target modules.
- Only answers are learned where a recipe says what an answer begins with.
- The losses are kept, and training goes on from its last checkpoint if it was interrupted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from olive.data.constants import IGNORE_INDEX
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.lora import LoRA, QLoRA
from transformers import TrainerCallback, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import TRAINER_STATE_NAME

from loraplex.build import awq, progress
from loraplex.build.row_check import answer_start
from loraplex.build.twin import load_twin

LOSSES = "losses.json"
_REPORTER = "loraplex"


class _RecipeTraining(LoRA):
    """What both have in common."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        options: dict[str, PassConfigParam] = super()._default_config(accelerator_spec)
        return options | {
            "adapted": PassConfigParam(type_=list[str], required=True, description="Names of the modules to adapt."),
            "use_rslora": PassConfigParam(type_=bool, default_value=False, description="Scale by alpha / sqrt(rank)."),
            "response_template": PassConfigParam(
                type_=str, default_value=None, description="What an answer begins with; else all of a row is learned."
            ),
            "seed": PassConfigParam(type_=int, default_value=42, description="Of the first values of A."),
        }

    def load_base_pytorch_model(self, model_handler: HfModelHandler, config: Any, **kwargs: Any) -> Any:
        folder = Path(model_handler.model_path)
        if not folder.is_dir() or awq.group_size(folder) is None:
            return super().load_base_pytorch_model(model_handler, config, **kwargs)
        dtype = self.get_torch_dtype(config.torch_dtype)
        model = load_twin(folder).to(dtype if dtype != torch.float16 else torch.float32)
        return model.to("cuda") if torch.cuda.is_available() else model

    @staticmethod
    def get_peft_model(model: Any, config: Any, config_kwargs: dict[str, Any] | None = None) -> Any:
        from peft import LoraConfig, get_peft_model

        set_seed(config.seed)
        options = LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.adapted,
            use_rslora=config.use_rslora,
            bias="none",
            **(config_kwargs or {}),
        )
        return get_peft_model(model, options)

    def train_and_save_new_model(
        self, model: Any, tokenizer: Any, config: Any, output_model: Any, output_model_path: str
    ) -> HfModelHandler:
        self._marker: list[int] = tokenizer.encode(config.response_template or "", add_special_tokens=False)
        losses = _Losses()
        INTEGRATION_TO_CALLBACK[_REPORTER] = losses
        config.training_args.report_to = _REPORTER
        if config.training_args.output_dir:
            _drop_unfinished(Path(config.training_args.output_dir))
        # The folder that the base lies in on this machine is nobody's business.
        for each in model.peft_config.values():
            each.base_model_name_or_path = ""
        super().train_and_save_new_model(model, tokenizer, config, output_model, output_model_path)
        adapter = Path(output_model_path) / "adapter"
        (adapter / LOSSES).write_text(json.dumps(losses.history), encoding="utf-8")
        # Olive copies into the output what a handler names. With the base, it would do so once for every adapter.
        output_model.get_hf_model_config().save_pretrained(output_model_path)
        return HfModelHandler(model_path=output_model_path, task=output_model.task)

    def get_datasets(self, config: Any) -> tuple[Any, Any]:
        train, evaluation = LoRA.get_datasets(config)
        if self._marker:
            train = train.map(self._mask_question)
            train.set_format("torch")
        return train, evaluation

    def _mask_question(self, row: dict[str, Any]) -> dict[str, Any]:
        ids = [int(token) for token in row["input_ids"]]
        labels = [int(token) for token in row["labels"]]
        learned = answer_start(ids, self._marker)
        if learned is None:
            learned = len(ids)  # cut off before the answer
        return {"labels": [IGNORE_INDEX] * learned + labels[learned:]}


class AdapterLora(_RecipeTraining):
    """Olive's LoRA."""


class AdapterQLora(_RecipeTraining, QLoRA):
    """Olive's QLoRA: the base is in bitsandbytes' nf4 while an adapter is trained on it."""


def _drop_unfinished(checkpoints: Path) -> None:
    """Delete checkpoints whose writing was interrupted: transformers would go on from the last, whole or not."""
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / TRAINER_STATE_NAME).is_file():  # what the trainer writes last
            shutil.rmtree(folder)


class _Losses(TrainerCallback):
    """Keeps what the trainer logs, and shows the loss beside the progress bar."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, Any] | None = None, **___: Any) -> None:
        if logs and "loss" in logs:
            progress.note(f"loss {float(logs['loss']):.3f}")
        self.history = [entry for entry in state.log_history if "loss" in entry or "eval_loss" in entry]

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        # Going on from a checkpoint of the last step would train one step more.
        if state.global_step >= state.max_steps:
            control.should_save = False
