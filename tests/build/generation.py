"""Greedy answers of an exported folder, straight from og.Generator and og.Adapters, and PEFT's to compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.checkpoints import reference_tokens

EOS = 1


class Runner:
    """A loaded model folder with adapters by name."""

    def __init__(self, folder: Path, adapters: dict[str, Path] | None = None) -> None:
        import onnxruntime_genai as og

        self.og = og
        config = json.loads((folder / "genai_config.json").read_text())
        self.context_length: int = config["model"]["context_length"]
        self.model = og.Model(str(folder))
        self.adapters = og.Adapters(self.model)
        for name, file in (adapters or {}).items():
            self.adapters.load(str(file), name)

    def generator(self, prompt: Sequence[int], adapter: str | None = None) -> Any:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=min(len(prompt) + 64, self.context_length), do_sample=False)
        generator = self.og.Generator(self.model, parameters)
        if adapter is not None:
            generator.set_active_adapter(self.adapters, adapter)
        generator.append_tokens(np.array([prompt], np.int32))
        return generator

    def logits(self, prompt: Sequence[int], adapter: str | None = None) -> npt.NDArray[np.float32]:
        """Logits of the last prompt token, [vocabulary]."""
        logits: npt.NDArray[np.float32] = np.array(self.generator(prompt, adapter).get_logits(), np.float32)
        last: npt.NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
        return last

    def tokens(self, prompt: Sequence[int], count: int, adapter: str | None = None) -> list[int]:
        """Up to `count` greedy tokens; an EOS is the last one."""
        generator, found = self.generator(prompt, adapter), list[int]()
        while len(found) < count and not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found


def expected_tokens(checkpoint: Path, adapter: Path | None, prompt: Sequence[int], count: int) -> list[int]:
    """PEFT's greedy tokens, ended as og.Generator ends them."""
    tokens = reference_tokens(checkpoint, adapter, prompt, count)
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
