"""What nvidia-smi, which comes with every NVIDIA driver, says of the GPU that the engine runs on."""

from __future__ import annotations

import os
import subprocess


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
