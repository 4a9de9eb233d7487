"""Whether there is a GPU, on a machine without one."""

from __future__ import annotations

import ctypes.util

import onnxruntime_genai as og
import pytest

from loraplex.server.engine import gpu
from loraplex.server.engine.generator import choose_device
from loraplex.server.errors import BundleInvalid

pytestmark = pytest.mark.skipif(bool(ctypes.util.find_library("cuda")), reason="has an NVIDIA driver")


def test_a_build_for_cuda_without_a_gpu_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that was started without `--gpus`."""
    monkeypatch.setattr(og, "is_cuda_available", lambda: True)
    assert gpu.missing() == "there is no NVIDIA driver"
    assert choose_device("auto") == "cpu"
    with pytest.raises(BundleInvalid, match="device cuda: there is no NVIDIA driver"):
        choose_device("cuda")


def test_a_build_for_the_cpu_says_what_to_install() -> None:
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(BundleInvalid, match=r"install loraplex\[cuda\]"):
        choose_device("cuda")
