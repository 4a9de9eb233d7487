"""The machine that a benchmark ran on, and the versions that it ran with."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from loraplex.server.machine import usable_cores

PACKAGES = ("loraplex", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda")
"""What serving depends on; each is told where it is installed."""


def machine() -> dict[str, str]:
    """Processor, cores, memory, GPUs and Python, in words."""
    found = {
        "processor": processor(),
        "cores": str(usable_cores()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    return found | ({"GPU": gpu} if (gpu := _gpus()) else {})


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions by package, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name, such as `AMD EPYC`."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpus() -> str:
    """Names of NVIDIA's GPUs and their driver; empty where there is none, or no nvidia-smi to ask."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(dict.fromkeys(line.strip() for line in lines))
