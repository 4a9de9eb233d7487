"""Runs a bundle's generator graph as it is, with one change: logits of every position, which verification compares.

Serving needs those of the last token only, and the graph of a bundle gives no others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from loraplex.build.builder import CONFIG, MODEL
from loraplex.build.errors import ExportFailed, first_line
from loraplex.server.engine.linker import give_all_logits, link, share
from loraplex.server.engine.routing import tag

_BLOCKS = 32
"""Of the paged KV cache, 256 tokens each."""


def make_probe(variant: Path, target: Path, *, exact: bool) -> Path:
    """Write a changed copy of a generator variant into `target`, hard-linking its weights; return `target`.

    `exact` makes quantized layers compute with float32 activations instead of rounding them to int8.
    """
    target.mkdir(parents=True)
    model = onnx.load(variant / MODEL, load_external_data=False)
    give_all_logits(model.graph)
    if exact:
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                    attribute.i = 1
    onnx.save(model, target / MODEL)
    for file in variant.iterdir():
        # A folder has a tokenizer's further chat templates.
        if file.name != MODEL and file.is_file():
            share(file, target / file.name)
    return target


class Probe:
    """A model folder loaded with onnxruntime-genai, and adapters by name. Without a GPU it computes on the CPU."""

    def __init__(self, folder: Path, adapters: Mapping[str, Path], threads: int = 1) -> None:
        """Raises ExportFailed where model or adapters cannot be loaded."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og

        from loraplex.server.engine import gpu

        self._og = og
        decoder = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        self.context_length: int = decoder["context_length"]
        try:
            config = og.Config(str(folder))
            if gpu.missing():
                config.clear_providers()
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = og.Model(config)
            self._adapters = og.Adapters(self._model)
            for name, file in adapters.items():
                self._adapters.load(str(file), name)
        except RuntimeError as error:
            raise ExportFailed(f"{folder} does not load: {first_line(error)}") from error

    def logits(self, ids: Sequence[int], adapter: str | None) -> npt.NDArray[np.float32]:
        """Logits at every position of a sequence, [len(ids), vocabulary]."""
        generator = self._start(ids, adapter, 1)
        found: npt.NDArray[np.float32] = np.asarray(generator.get_output("logits"), np.float32)[0]
        return found

    def generate(self, ids: Sequence[int], adapter: str | None, count: int) -> list[int]:
        """Up to `count` greedy tokens; an end token is the last one."""
        generator, found = self._start(ids, adapter, count), list[int]()
        while len(found) < count and not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found

    def _start(self, ids: Sequence[int], adapter: str | None, count: int) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=min(len(ids) + count, self.context_length), do_sample=False)
        generator = self._og.Generator(self._model, parameters)
        if adapter is not None:
            generator.set_active_adapter(self._adapters, adapter)
        generator.append_tokens(np.array([ids], np.int32))
        return generator


class PagedProbe:
    """A paged variant with adapters linked into it, in an og.Engine. Needs CUDA; the engine gives no logits."""

    def __init__(self, variant: Path, adapters: Mapping[str, Path], cache: Path) -> None:
        """`cache` takes the linked folder. Raises ExportFailed where it cannot be loaded."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og

        self._og = og
        self._linked = link(variant, list(adapters.values()), cache)
        self._slots = {name: slot for slot, name in enumerate(adapters, 1)}
        settings = json.loads((self._linked.folder / CONFIG).read_text(encoding="utf-8"))
        end = settings["model"]["eos_token_id"]
        self._end: int = end if isinstance(end, int) else end[0]
        batching = {"max_batch_size": 4, "num_blocks": _BLOCKS, "max_scheduled_tokens": 2048}
        try:
            config = og.Config(str(self._linked.folder))
            config.overlay(json.dumps({"engine": {"dynamic_batching": batching}}))
            self._engine = og.Engine(og.Model(config))
        except RuntimeError as error:
            raise ExportFailed(f"{variant} does not load: {first_line(error)}") from error
        self._buffer = self._engine.create_event_buffer(16)

    def generate(self, ids: Sequence[int], adapter: str | None, count: int) -> list[int]:
        """As `Probe.generate`. Raises ExportFailed where the engine fails."""
        request = self._engine.create_request()
        turn = self._og.TurnOptions(request)
        turn.set_max_generated_tokens(count)
        turn.set_do_sample(False)
        prompt = tag(ids, self._slots[adapter] if adapter is not None else 0, self._linked.vocab_size)
        request.begin_turn(np.asarray(prompt, np.int32), turn)
        flags, found = self._og.EngineEventFlags, list[int]()
        try:
            while True:
                for event in self._engine.run(self._buffer):
                    if event.flags.value & flags.TOKEN.value:
                        found.append(event.token)
                    if event.flags.value & flags.FAILED.value:
                        raise ExportFailed(f"the paged graph fails: {event.error_code.name.lower()}")
                    if event.flags.value & flags.TURN_FINISHED.value:
                        # The engine keeps an end token to itself.
                        ended = event.finish_reason == self._og.FinishReason.EOS
                        return [*found, self._end] if ended else found
        finally:
            request.close()
