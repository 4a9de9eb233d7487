"""The forward pass over rows of different lengths, on onnxruntime and its CPU kernels.

The graph takes each row's length from its attention mask, which is what lets rows of different lengths share a step:
the mask of a row has ones up to its own length, this step's tokens included. Decoding gives every row one token,
prefill gives one row several.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from loraplex.server.engine.adapter_table import AdapterTables
from loraplex.server.engine.kv_cache import KvCache, Part
from loraplex.server.engine.linear_graph import ADAPTERS, use_linear
from loraplex.server.engine.row_adapters import Adapter, RowAdapters
from loraplex.server.engine.row_graph import EXTERNAL_DATA, LORA, POSITIONS, row_graph
from loraplex.server.errors import BundleInvalid

logger = logging.getLogger("loraplex.batched")

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

FindOperator = Callable[[], Path | None]

KNOWN_INPUTS = {"input_ids", "attention_mask", "position_ids", ADAPTERS, POSITIONS}
LAST = np.array([-1])
ERRORS_ONLY = 3
ORT_ERRORS = (
    RuntimeError,
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
"""What onnxruntime raises: one class for each status code, which have no base of their own, and RuntimeError."""
SPIN_MICROSECONDS = "20"
"""How long a thread looks for work before it sleeps: enough between two nodes of a graph. The default is so long that
it keeps the API process off its core; see docs/batched-lane.md for what that costs."""


class PassFailed(Exception):
    """A forward pass gave nothing; str() is onnxruntime's reason in a line."""


class Forward:
    """One onnxruntime session with the KV of its rows. Used by one thread.

    `vocab_size` is the width of the logits; `end_tokens` are the ids that end an answer; `every_token` says whether
    `prefill` can give the logits of every token.
    """

    def __init__(self, folder: Path, threads: int, operator: FindOperator | None = None) -> None:
        """Load the base; raises BundleInvalid with onnxruntime's own reason.

        `operator` finds the library of `linear_operator`, whose operator takes the place of onnxruntime's where it can;
        it is called if there is something to do for it.
        """
        try:
            model = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
            path, head_size = folder / model["decoder"]["filename"], model["decoder"]["head_size"]
            self._session, projections = _open_session(folder, path, threads, operator)
        except (OSError, ValueError, KeyError, *ORT_ERRORS) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        end = model["eos_token_id"]
        self.end_tokens = frozenset([end] if isinstance(end, int) else end)
        inputs = {value.name: value for value in self._session.get_inputs()}
        parts, lora = [], {}
        for name, value in inputs.items():
            if name.startswith("past_key_values."):
                present = name.replace("past_key_values", "present")
                parts.append(Part(name, present, value.shape[1], head_size))
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
        self._gathers, last_only = POSITIONS in inputs, logits.shape[1] == 1
        self._computes_all = not (self._gathers or last_only)
        self.every_token = self._gathers or self._computes_all
        self._positions = "position_ids" in inputs
        self.kv = KvCache(parts)
        tables = AdapterTables(projections)
        self._tables = tables
        self._prefill = _Step(self._session, lora, tables)
        self._decode = _Step(self._session, lora, tables)

    def reserve(self, rows: int, length: int, held: Sequence[int]) -> None:
        """Make room in the KV cache: see KvCache.reserve. Raises OSError."""
        if self.kv.reserve(rows, length, held):
            self._prefill.kv_rows = self._decode.kv_rows = None

    def prepare(self, adapter: Adapter) -> None:
        """Bring a new adapter's weights into the form that passes read; without it, its first pass does."""
        if self._tables:
            self._tables.prepare(adapter)

    def prefill(self, row: int, ids: Ids, start: int, adapter: Adapter | None, *, every: bool = False) -> Logits:
        """Compute ids [tokens] of one row behind its first `start` tokens.

        Returns the logits of the last token, [1, vocab_size], or of `every` one, [tokens, vocab_size]. They are valid
        until the next call. Raises PassFailed.
        """
        step, end = self._prefill, start + len(ids)
        step.bind_rows(self.kv, row, 1, [adapter])
        step.bind("input_ids", ids[None])
        step.bind("attention_mask", np.ones((1, end), np.int64))
        if self._positions:
            step.bind("position_ids", np.arange(start, end)[None])
        if self._gathers:
            step.bind(POSITIONS, np.arange(len(ids)) if every else LAST)
        logits: Logits = step.run((1, len(ids) if every or self._computes_all else 1, self.vocab_size))[0]
        return logits if every else logits[-1:]

    def decode(
        self,
        ids: Ids,
        lengths: Ids,
        adapters: Sequence[Adapter | None],
        first: int = 0,
    ) -> Logits:
        """One token ids[i] for each row first + i, lengths[i] tokens long with it; logits [rows, vocab_size].

        The logits are valid until the next call. Raises PassFailed.
        """
        step, rows = self._decode, len(ids)
        step.bind_rows(self.kv, first, rows, adapters)
        step.bind("input_ids", ids[:, None])
        # As wide as a power of two, so that the arena's blocks of one step fit the next.
        width = min(self.kv.length, 1 << int(lengths.max() - 1).bit_length())
        step.bind("attention_mask", (np.arange(width) < lengths[:, None]).astype(np.int64))
        if self._positions:
            step.bind("position_ids", lengths[:, None] - 1)
        if self._gathers:
            step.bind(POSITIONS, LAST)
        return step.run((rows, 1, self.vocab_size))[:, 0]

    def release(self) -> None:
        """Give back the memory that is only needed while sequences run."""
        if not self.kv.release_all():
            self._prefill.kv_rows = self._decode.kv_rows = None
        for step in (self._prefill, self._decode):
            step.release()


def _open_session(folder: Path, path: Path, threads: int, operator: FindOperator | None) -> tuple[Any, list[list[str]]]:
    """The session, and by layer the projections whose adapters it takes as tables. Raises BundleInvalid, ORT_ERRORS."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    options.add_session_config_entry(EXTERNAL_DATA, str(folder))
    model = row_graph(path)
    projections = use_linear(model) if operator else []
    if operator and projections:
        library = operator()
        try:
            if library is None:
                return _open_session(folder, path, threads, None)
            options.register_custom_ops_library(str(library))
        except ORT_ERRORS as error:  # one that was made on another machine
            logger.warning("the operator of 4-bit layers cannot be loaded, slower ones take its place: %s", error)
            return _open_session(folder, path, threads, None)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), projections


class _Step:
    """An IOBinding that stays bound to what does not change from step to step."""

    kv_rows: tuple[int, int] | None
    """First row and number of rows that the KV is bound for; None: bind it anew."""

    def __init__(self, session: Any, lora: dict[str, tuple[int, int]], tables: AdapterTables) -> None:
        self._session = session
        self._adapters = RowAdapters(lora)
        self._tables = tables
        self._bound: Sequence[Adapter | None] = ()
        self._binding = session.io_binding()
        self._fed: dict[str, Ids] = {}
        self._logits: Logits = np.empty((0, 0, 0), np.float32)
        self.kv_rows = None

    def bind_rows(self, kv: KvCache, first: int, rows: int, adapters: Sequence[Adapter | None]) -> None:
        if self.kv_rows != (first, rows):
            kv.bind(self._binding, first, rows)
            self.kv_rows = (first, rows)
        if len(self._bound) != rows or any(a is not b for a, b in zip(self._bound, adapters, strict=True)):
            self._adapters.bind(self._binding, adapters)
            if self._tables:
                self.bind(ADAPTERS, self._tables.addresses(adapters))
            self._bound = tuple(adapters)

    def bind(self, name: str, values: Ids) -> None:
        """Feed an input; a buffer of the same shape stays bound."""
        buffer = self._fed.get(name)
        if buffer is None or buffer.shape != values.shape:
            buffer = self._fed[name] = np.empty(values.shape, np.int64)
            self._binding.bind_input(name, "cpu", 0, np.int64, buffer.shape, buffer.ctypes.data)
        buffer[...] = values

    def run(self, shape: tuple[int, int, int]) -> Logits:
        """Compute logits of this shape, [rows, tokens, vocabulary]. Raises PassFailed."""
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
            self._binding.bind_output("logits", "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        try:
            self._session.run_with_iobinding(self._binding)
        except ORT_ERRORS as error:
            raise PassFailed(str(error).partition("\n")[0]) from None
        return self._logits

    def release(self) -> None:
        if self._adapters.release():
            self._bound = ()
