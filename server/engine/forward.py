"""The forward pass over rows of different lengths, on onnxruntime and its CPU kernels.

The graph takes each row's length from its attention mask, which is what lets rows of different lengths share a step: the
mask of a row has ones up to its own length, this step's tokens included. Decoding gives every row one token, prefill gives
one row several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from loraplex.server.engine.kv_cache import KvCache, Part
from loraplex.server.engine.row_adapters import Adapter, RowAdapters
from loraplex.server.engine.row_graph import EXTERNAL_DATA, LORA, row_graph
from loraplex.server.errors import BundleInvalid

Logits = npt.NDArray[np.float32]

KNOWN_INPUTS = {"input_ids", "attention_mask", "position_ids"}
ERRORS_ONLY = 3


class Forward:
    """One onnxruntime session with the KV of its rows. Used by one thread.

    `vocab_size` is the width of the logits; `end_tokens` are the ids that end an answer.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        """Load the base; raises BundleInvalid with onnxruntime's own reason."""
        try:
            model = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
            path = folder / model["decoder"]["filename"]
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = ERRORS_ONLY
            options.add_session_config_entry(EXTERNAL_DATA, str(folder))
            self._session = ort.InferenceSession(row_graph(path), options, providers=["CPUExecutionProvider"])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        end = model["eos_token_id"]
        self.end_tokens = frozenset([end] if isinstance(end, int) else end)
        inputs = {value.name: value for value in self._session.get_inputs()}
        parts, lora = [], {}
        for name, value in inputs.items():
            if name.startswith("past_key_values."):
                present = name.replace("past_key_values", "present")
                parts.append(Part(name, present, value.shape[1], value.shape[3]))
            elif LORA in name:
                projection, _, side = name.partition(LORA)
                if side.startswith("A"):
                    columns = inputs[f"{projection}{LORA}B.weight"].shape[2]
                    lora[projection] = (value.shape[1], columns)
            elif name not in KNOWN_INPUTS:
                raise BundleInvalid(f"the base in {folder} has an input that the batched lane cannot feed: {name}")
        if not parts or any(inputs[part.past].type != "tensor(float)" for part in parts):
            raise BundleInvalid(f"the base in {folder} has no float32 KV cache, so the batched lane cannot run it")
        (logits,) = (value for value in self._session.get_outputs() if value.name == "logits")
        self.vocab_size: int = logits.shape[-1]
        self._last_only = logits.shape[1] == 1
        self._positions = "position_ids" in inputs
        self.kv = KvCache(parts)
        self._prefill = _Step(self._session, lora)
        self._decode = _Step(self._session, lora)

    def reserve(self, rows: int, length: int, held: Sequence[int]) -> None:
        """Make room in the KV cache: see KvCache.reserve. Raises MemoryError."""
        if self.kv.reserve(rows, length, held):
            self._prefill.kv_rows = self._decode.kv_rows = None

    def prefill(self, row: int, ids: npt.NDArray[np.int64], start: int, adapter: Adapter | None) -> Logits:
        """Compute ids [tokens] of one row behind its first `start` tokens; the last token's logits [vocab_size]."""
        step, end = self._prefill, start + len(ids)
        step.bind_rows(self.kv, row, 1, [adapter])
        step.bind("input_ids", ids[None])
        step.bind("attention_mask", np.ones((1, end), np.int64))
        if self._positions:
            step.bind("position_ids", np.arange(start, end)[None])
        logits = np.empty((1, 1 if self._last_only else len(ids), self.vocab_size), np.float32)
        step.run(logits)
        return logits[0, -1]

    def decode(
        self,
        ids: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        adapters: Sequence[Adapter | None],
        first: int = 0,
    ) -> Logits:
        """One token ids[i] for each row first + i, lengths[i] tokens long with it; logits [rows, vocab_size]."""
        step, rows = self._decode, len(ids)
        step.bind_rows(self.kv, first, rows, adapters)
        step.bind("input_ids", ids[:, None])
        # As wide as a power of two, so that the arena's blocks of one step fit the next.
        width = min(self.kv.length, 1 << int(lengths.max() - 1).bit_length())
        step.bind("attention_mask", (np.arange(width) < lengths[:, None]).astype(np.int64))
        if self._positions:
            step.bind("position_ids", lengths[:, None] - 1)
        logits = np.empty((rows, 1, self.vocab_size), np.float32)
        step.run(logits)
        return logits[:, 0]

    def release(self) -> None:
        """Give back what is only needed while sequences run."""
        self.kv.clear()
        for step in (self._prefill, self._decode):
            step.release()


class _Step:
    """An IOBinding that stays bound to what does not change from step to step."""

    def __init__(self, session: Any, lora: dict[str, tuple[int, int]]) -> None:
        self._session = session
        self._adapters = RowAdapters(lora)
        self.release()

    def bind_rows(self, kv: KvCache, first: int, rows: int, adapters: Sequence[Adapter | None]) -> None:
        if self.kv_rows != (first, rows):
            kv.bind(self._binding, first, rows)
            self.kv_rows = (first, rows)
        if self._bound is None or len(self._bound) != rows or any(a is not b for a, b in zip(self._bound, adapters)):
            self._adapters.bind(self._binding, adapters)
            self._bound = list(adapters)

    def bind(self, name: str, values: npt.NDArray[np.int64]) -> None:
        values = np.ascontiguousarray(values)
        self._alive[name] = values
        self._binding.bind_input(name, "cpu", 0, np.int64, values.shape, values.ctypes.data)

    def run(self, logits: Logits) -> None:
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(self._binding)

    def release(self) -> None:
        self._adapters.release()
        self._binding = self._session.io_binding()
        self.kv_rows: tuple[int, int] | None = None
        self._bound: list[Adapter | None] | None = None
        self._alive: dict[str, npt.NDArray[np.int64]] = {}
