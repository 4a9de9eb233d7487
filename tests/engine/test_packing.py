"""Adapters are packed beside the steps, into memory that is freed between two of them only."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from loraplex.server.engine.bank import AdapterWeights
from loraplex.server.engine.branches import Linear
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.packing import Packer
from loraplex.server.engine.slots import Adapter
from tests.engine.lanes import Model

PROJECTION = "0.attn.q_proj"


class Memory(np.ndarray[Any, Any]):
    """An array that can be watched."""


@pytest.fixture
def layout(llama: Model) -> Layout:
    inputs, outputs = llama.bundle.manifest.base.projections[PROJECTION]
    return Layout.plan([Linear(onnx.NodeProto(), inputs, {PROJECTION: outputs})], {PROJECTION: 16}, slots=2)


def test_what_is_forgotten_while_it_is_packed(llama: Model, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate, freed = threading.Event(), threading.Event(), list[threading.Thread]()

    class SlowWeights(AdapterWeights):
        def __init__(self, file: Path) -> None:
            begun.set()
            gate.wait()
            super().__init__(file)

    def allocate() -> Any:
        memory = np.empty(layout.slot_bytes // 2, np.float16).view(Memory)
        weakref.finalize(memory, lambda: freed.append(threading.current_thread()))
        return memory

    monkeypatch.setattr("loraplex.server.engine.packing.AdapterWeights", SlowWeights)
    four, nine = (
        Adapter(name, llama.bundle.adapter(name) / f"{name}.onnx_adapter", name, {PROJECTION: 4})
        for name in ("four", "nine")
    )
    packer = Packer()
    packer.prepare(four, layout, allocate)
    packer.prepare(nine, layout, allocate)
    assert begun.wait(60)
    reading = [packer.forget(four), packer.forget(nine)]
    for read in reading:
        assert read is not None
        assert not read.done()
    gate.set()
    for read in reading:
        assert read is not None
        read.result(60)
    packer._thread.submit(int).result(60)  # whatever its thread held on to it has let go of
    assert [thread for thread in freed if thread is not threading.main_thread()] == []
    for _ in range(2):
        assert packer.forget(four) is None
    assert freed == [threading.main_thread()] * 2
