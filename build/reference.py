"""PyTorch's answers: a float32 model and PEFT adapters on it, asked for the logits of whole sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from loraplex.build.lora_inputs import BLOCKS

Logits = npt.NDArray[np.float32]


class Reference:
    """A model with PEFT adapters by name, on the GPU where there is one."""

    def __init__(self, model: PreTrainedModel, peft: Mapping[str, Path], threads: int = 1) -> None:
        """`threads` is how many PyTorch takes on a CPU, from now on in this process."""
        from peft import PeftModel

        torch.set_num_threads(threads)

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = model.to(self.device)
        self._adapted = bool(peft)
        for index, (name, folder) in enumerate(peft.items()):
            if index == 0:
                self.model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            else:
                self.model.load_adapter(str(folder), adapter_name=name)
        self.model.eval()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], adapter: str | None) -> Logits:
        """Logits at every position of a sequence, [len(ids), vocabulary]."""
        with self._active(adapter):
            logits = self.model(torch.tensor([list(ids)], device=self.device)).logits[0].float()
        found: Logits = logits.cpu().numpy()
        return found

    @contextlib.contextmanager
    def _active(self, adapter: str | None) -> Iterator[None]:
        if adapter is not None:
            self.model.set_adapter(adapter)
            yield
        elif self._adapted:
            with self.model.disable_adapter():
                yield
        else:
            yield


def round_to_nearest(model: PreTrainedModel, group_size: int) -> PreTrainedModel:
    """Round the decoder's linear layers to symmetric int4 in place, by groups, as onnxruntime's `rtn` does."""
    modules = {module for names in BLOCKS.values() for module in names} | {"qkv_proj", "gate_up_proj"}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in modules:
            # Computed in float64 as there: the farthest entry of a group lies just between two steps.
            groups = torch.nn.functional.pad(module.weight.data, (0, -module.in_features % group_size)).double()
            groups = groups.unflatten(-1, (-1, group_size))
            scale = groups.abs().amax(-1, keepdim=True) * 2 / 15
            steps = (groups / torch.where(scale == 0, 1, scale) + 8).round().clamp(0, 15) - 8
            module.weight.data = (steps * scale).flatten(-2)[:, : module.in_features].to(module.weight.dtype)
    return model


def perplexity(sequences: Sequence[Sequence[int]], logits: Any) -> tuple[float, int]:
    """exp of the mean negative log-likelihood of every token after the first of its sequence, and how many those are.

    `logits(ids)` gives [len(ids), vocabulary].
    """
    total, count = 0.0, 0
    for ids in sequences:
        scores = log_softmax(logits(ids)[:-1])
        total -= float(np.take_along_axis(scores, np.array(ids[1:])[:, None], 1).sum())
        count += len(ids) - 1
    return float(np.exp(total / count)), count


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    scores: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return scores
