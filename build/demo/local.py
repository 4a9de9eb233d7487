"""Answers with the checkpoint and the PEFT folders of a work folder, in PyTorch, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from loraplex.build.demo import tokenizer
from loraplex.build.demo.dialogues import Message
from loraplex.build.demo.evaluation import BASE
from loraplex.build.demo.quantization import round_weights
from loraplex.build.demo.training import device

LONGEST = 200
"""Tokens of an answer at most."""


class Local:
    """Callable as evaluation.Answer: greedy, float32, with the base's weights `rounded` to four bits or not."""

    def __init__(self, work: Path, *, rounded: bool, batch: int = 256) -> None:
        self._work = work
        self._rounded = rounded
        self._batch = batch
        self._words = tokenizer.load(work / "base")

    @torch.inference_mode()
    def __call__(self, name: str, chats: Sequence[list[Message]]) -> list[str]:
        model = LlamaForCausalLM.from_pretrained(self._work / "base", dtype=torch.float32)
        if self._rounded:
            round_weights(model)
        if name != BASE:
            model = PeftModel.from_pretrained(model, self._work / name).merge_and_unload()
        model.to(device()).eval()
        texts = [self._words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        answers: list[str] = []
        for first in range(0, len(texts), self._batch):
            encoded = self._words(
                texts[first : first + self._batch], add_special_tokens=False, padding=True, return_tensors="pt"
            ).to(device())
            written = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=LONGEST,
                do_sample=False,
            )
            new = written[:, encoded["input_ids"].shape[1] :]
            answers += self._words.batch_decode(new, skip_special_tokens=True)
        return answers
