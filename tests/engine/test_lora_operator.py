"""The LoRA operator's library: when it is compiled, and what is said where it cannot be."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import pytest

from loraplex.server.engine import lora_operator
from loraplex.server.engine.lora_operator import compile_operator, find_operator


@pytest.mark.parametrize(
    ("capabilities", "nvcc", "problem"),
    [
        (["7.5"], "", "compute capability 7.5: the LoRA operator needs 8.0"),
        (["7.0", "9.0"], "", "compute capability 7.0: the LoRA operator needs 8.0"),
        (["9.0"], None, "no nvcc"),
        (["9.0"], "exit 1", "cannot be compiled"),
        (["9.0"], "echo no such GPU >&2; exit 1", "no such GPU"),
    ],
)
def test_where_there_can_be_none(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    capabilities: list[str],
    nvcc: str | None,
    problem: str,
) -> None:
    """One line in the log, and the server goes on with stock operators."""
    program = tmp_path / "nvcc"
    program.write_text(f"#!/bin/sh\n{nvcc}\n")
    program.chmod(0o755)
    monkeypatch.setattr(lora_operator, "compute_capabilities", lambda: capabilities)
    monkeypatch.setattr(lora_operator, "_find_nvcc", lambda: program if nvcc is not None else None)
    with caplog.at_level(logging.WARNING, logger="loraplex.routed"):
        assert find_operator(tmp_path / "cache") is None
    assert len(caplog.records) == 1
    assert problem in caplog.text


@pytest.mark.slow
def test_it_compiles(tmp_path: Path) -> None:
    """For an A100 and a Blackwell, once; onnxruntime finds its door."""
    nvcc = lora_operator._find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    library = compile_operator(nvcc, tmp_path, ["8.0", "12.0"])
    written = library.stat().st_mtime_ns
    assert compile_operator(nvcc, tmp_path, ["8.0", "12.0"]) == library
    assert library.stat().st_mtime_ns == written
    assert ctypes.CDLL(str(library)).RegisterCustomOps
