"""AWQ: Olive's pass on CUDA, and on a CPU, where that one refuses to run, the quantizer behind it.

Both search as in `awq_search`. The rows are read here, so that the number of samples and their length can be chosen;
Olive hands over the name of a dataset, of which AutoAWQ takes 128 rows and leaves out those of over 512 tokens.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.autoawq import AutoAWQQuantizer
from olive.passes.pytorch.common import inherit_hf_from_hf

_CALIBRATION = {
    "calibration": PassConfigParam(
        type_=str, required=True, description="Folder of JSONL files whose rows have a `text`."
    ),
    "samples": PassConfigParam(type_=int, default_value=128, description="Rows to look at, at most."),
    "sequence_length": PassConfigParam(
        type_=int, default_value=512, description="Tokens to a row of the batch that rows are put together to."
    ),
}


class AwqOnCuda(AutoAWQQuantizer):
    """Olive's AutoAWQQuantizer, in float16."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        options: dict[str, PassConfigParam] = super()._default_config(accelerator_spec)
        return options | _CALIBRATION

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        self._options = _search_options(model, config)
        quantized: HfModelHandler = super()._run_for_config(model, config, output_model_path)
        _keep_generation_config(model, Path(output_model_path))
        return quantized

    def _maybe_patch_awq_model(self, awq_model: Any) -> Any:
        awq_model = super()._maybe_patch_awq_model(awq_model)
        awq_model.quantize = partial(awq_model.quantize, **self._options)
        return awq_model


class AwqOnCpu(Pass):
    """AutoAWQ in float32, zero points and version gemm: the format of Olive's AutoAWQQuantizer."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:  # noqa: ARG003
        size = PassConfigParam(type_=int, default_value=128, description="Weights to a scale.")
        return {"q_group_size": size} | _CALIBRATION

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        from awq import AutoAWQForCausalLM

        awq = AutoAWQForCausalLM.from_pretrained(
            model.model_name_or_path, torch_dtype=torch.float32, trust_remote_code=False, safetensors=True
        )
        awq.quantize(
            model.get_hf_tokenizer(),
            quant_config={
                "zero_point": True,
                "q_group_size": config.q_group_size,
                "w_bit": 4,
                "version": "gemm",
                "modules_to_not_convert": [],
            },
            **_search_options(model, config),
        )
        awq.save_quantized(output_model_path)
        # Tokenizer and chat template.
        model.save_metadata(str(Path(output_model_path)))
        _keep_generation_config(model, Path(output_model_path))
        quantized: HfModelHandler = inherit_hf_from_hf(model, output_model_path)
        return quantized


def _keep_generation_config(model: HfModelHandler, output: Path) -> None:
    """That of the checkpoint: AutoAWQ has every model sample by default."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(model.model_name_or_path)
    except OSError:  # the checkpoint has none
        (output / "generation_config.json").unlink(missing_ok=True)
    else:
        config.save_pretrained(output)


def _search_options(model: HfModelHandler, config: Any) -> dict[str, Any]:
    """Arguments of AutoAWQ's `quantize` that both have in common."""
    from datasets import load_dataset

    # It prints a page about its own end when it is imported.
    from loraplex.build.passes.awq_search import Search

    tokenizer = model.get_hf_tokenizer()
    texts = load_dataset(config.calibration, split="train")["text"]
    begin = tokenizer.bos_token
    tokens = [
        tokenizer.encode(text, add_special_tokens=not (begin and text.startswith(begin)))[: config.sequence_length]
        for text in texts[: config.samples]
    ]
    return {
        "calib_data": [ids for ids in tokens if ids],
        "max_calib_samples": config.samples,
        "max_calib_seq_len": config.sequence_length,
        "quantizer_cls": Search,
    }
