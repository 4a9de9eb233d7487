"""The base as og.Generator runs it, with its adapters.

On a CPU with the compiled operator, a 4-bit layer and its LoRA branch are one node (see `linear_graph`), and all that
an adapter feeds to such layers is the address of its table. onnxruntime's own operators need three nodes for a branch,
whether an adapter is there or not, and two inputs, which on a small base take longer than what they compute.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
from onnx import numpy_helper
from onnxruntime import AdapterFormat, OrtValue

from loraplex.server.engine.adapter_table import AdapterTables
from loraplex.server.engine.forward import FindOperator
from loraplex.server.engine.linear_graph import ADAPTERS, use_linear
from loraplex.server.engine.row_adapters import Adapter
from loraplex.server.engine.row_graph import EXTERNAL_DATA, LORA, load_graph
from loraplex.server.errors import AdapterInvalid, BundleInvalid

logger = logging.getLogger("loraplex.generator")

CONFIG = "genai_config.json"


class GeneratorModel:
    """`model` and the `adapters` loaded for it, by the names that `load` was given. Used by one thread."""

    def __init__(self, folder: Path, *, device: str, threads: int, operator: FindOperator | None = None) -> None:
        """Load the base for "cpu" or "cuda"; raises BundleInvalid with onnxruntime-genai's own reason.

        `operator` finds the library of `linear_operator`; it is called if there is something to do for it.
        """
        self._tables = AdapterTables([])
        self._tabled: dict[str, Adapter] = {}
        """Adapters whose table onnxruntime knows by its address alone, kept for as long as they are loaded."""
        try:
            model = self._with_operator(folder, threads, operator) if operator and device == "cpu" else None
            self.model = model or og.Model(_config(folder, device, {"intra_op_num_threads": threads}))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BundleInvalid(f"the base in {folder} cannot be loaded: {error}") from None
        self.adapters = og.Adapters(self.model)
        self._loaded: set[str] = set()

    def _with_operator(self, folder: Path, threads: int, operator: FindOperator) -> og.Model | None:
        """The base on the operator; None where it does not fit, or is not to be had."""
        decoder = json.loads((folder / CONFIG).read_text("utf-8"))["model"]["decoder"]
        model = load_graph(folder / decoder["filename"])
        layers = _take_operator(model)
        library = operator() if layers else None
        if library is None:
            return None
        data = model.SerializeToString()  # which the config does not keep alive
        try:
            # onnxruntime-genai takes a library from beside the config only, follows no link to another place, and looks
            # for weights relative to the config.
            with _scratch() as beside:
                shutil.copy(library, beside)
                shutil.copy(folder / CONFIG, beside)
                options = {
                    "intra_op_num_threads": threads,
                    "custom_ops_library": library.name,
                    EXTERNAL_DATA: os.path.relpath(folder.resolve(), beside),
                }
                config = _config(Path(beside), "cpu", options)
                config.add_model_data(decoder["filename"], data)
                loaded = og.Model(config)
        except (OSError, RuntimeError) as error:  # of a library that was made on another machine, for one
            logger.warning("the operator of 4-bit layers cannot be loaded, slower ones take its place: %s", error)
            return None
        self._tables = AdapterTables(layers)
        return loaded

    def load(self, name: str, path: Path) -> None:
        """Load an adapter file. Raises AdapterInvalid."""
        try:
            if not self._tables:
                self.adapters.load(str(path), name)
            else:
                adapter = Adapter(name, path)
                with _file_in_memory() as file:
                    self._write(adapter, file)
                    self.adapters.load(file, name)
                self._tabled[name] = adapter
        except (OSError, RuntimeError) as error:
            raise AdapterInvalid(f"adapter {name!r}: {error}") from None
        self._loaded.add(name)

    def unload(self, name: str) -> None:
        """Let go of an adapter, which no generator uses any more; nothing where there is none of this name."""
        if name in self._loaded:
            self.adapters.unload(name)
            self._loaded.remove(name)
            self._tabled.pop(name, None)

    def _write(self, adapter: Adapter, path: str) -> None:
        """An adapter file for the changed graph: the table's address, and what layers without the operator take."""
        address = self._tables.addresses([adapter])
        tensors = {ADAPTERS: address} | adapter.weights
        values = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(each)) for name, each in tensors.items()}
        file = AdapterFormat()
        file.set_adapter_version(1)
        file.set_model_version(1)
        file.set_parameters(values)
        file.export_adapter(path)


@contextmanager
def _file_in_memory() -> Iterator[str]:
    """The path of a file that needs no room on a disk; who maps it may do so for longer. On Linux, as the operator."""
    file = os.memfd_create("adapter")
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _scratch() -> TemporaryDirectory[str]:
    """For what is read once, and then deleted."""
    temporary = Path(gettempdir()).resolve()
    return TemporaryDirectory(prefix="loraplex-model-", dir=temporary, ignore_cleanup_errors=True)


def _config(folder: Path, device: str, options: dict[str, Any]) -> og.Config:
    config = og.Config(str(folder))
    config.clear_providers()
    if device == "cuda":
        config.append_provider("cuda")
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return config


def _take_operator(model: onnx.ModelProto) -> list[list[str]]:
    """Put the operator where it fits, and give its input a default, no adapter; return what `use_linear` does.

    Nothing is changed where activations are not float32.
    """
    graph = model.graph
    lora = [value for value in graph.input if LORA in value.name]
    if any(value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for value in lora):
        return []
    layers = use_linear(model)
    inputs = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if LORA not in tensor.name or tensor.name in inputs]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if layers:
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), ADAPTERS))
    return layers
