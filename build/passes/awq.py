"""AWQ without a GPU: Olive's own pass refuses to run there, although the quantizer behind it does not need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.common import inherit_hf_from_hf


class AwqOnCpu(Pass):
    """AutoAWQ in float32, zero points and version gemm: the format of Olive's AutoAWQQuantizer.

    Olive's pass hands over the name of a dataset; here the rows are read first, so that the number of samples and
    their length can be chosen. What follows a sample's `sequence_length` tokens is left out.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:  # noqa: ARG003
        return {
            "q_group_size": PassConfigParam(type_=int, default_value=128, description="Weights to a scale."),
            "calibration": PassConfigParam(
                type_=str, required=True, description="Folder of JSONL files whose rows have a `text`."
            ),
            "samples": PassConfigParam(type_=int, default_value=128, description="Rows to look at, at most."),
            "sequence_length": PassConfigParam(
                type_=int, default_value=512, description="Tokens to a row of the batch that rows are put together to."
            ),
        }

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        from awq import AutoAWQForCausalLM
        from datasets import load_dataset

        tokenizer = model.get_hf_tokenizer()
        texts = load_dataset(config.calibration, split="train")["text"]
        tokens = [tokenizer.encode(text)[: config.sequence_length] for text in texts[: config.samples]]
        awq = AutoAWQForCausalLM.from_pretrained(
            model.model_name_or_path, torch_dtype=torch.float32, trust_remote_code=False, safetensors=True
        )
        awq.quantize(
            tokenizer,
            quant_config={
                "zero_point": True,
                "q_group_size": config.q_group_size,
                "w_bit": 4,
                "version": "gemm",
                "modules_to_not_convert": [],
            },
            calib_data=[ids for ids in tokens if ids],
            max_calib_samples=config.samples,
            max_calib_seq_len=config.sequence_length,
        )
        awq.save_quantized(output_model_path)
        # Tokenizer, chat template and generation_config.json.
        model.save_metadata(str(Path(output_model_path)))
        quantized: HfModelHandler = inherit_hf_from_hf(model, output_model_path)
        return quantized
