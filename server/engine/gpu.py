"""What NVIDIA's driver, and nvidia-smi, which comes with it, say of the GPU that the engine runs on."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import onnxruntime_genai as og


def missing() -> str | None:
    """Why nothing can run on CUDA in this process, None where it can.

    onnxruntime-genai itself only says what it was built for, and a container that was started without `--gpus` has
    neither driver nor GPU.
    """
    if not og.is_cuda_available():
        return "this onnxruntime-genai has no CUDA; install loraplex[cuda]"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int()
    if error := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"NVIDIA's driver has no GPU for this process (CUDA error {error})"
    return None if count.value else "no GPU is visible to this process"


def free_bytes() -> int | None:
    """Memory that no process uses; None where nvidia-smi does not say."""
    values = _query("memory.free")
    return int(values[0]) * 2**20 if values and values[0].isdigit() else None


def compute_capabilities() -> list[str]:
    """Such as "9.0", each once, of the GPUs that this process may use; empty where nvidia-smi does not say."""
    return sorted({value for value in _query("compute_cap") if value.replace(".", "").isdigit()})


def _query(field: str) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
